"""What a model gives away of the cases that it learnt from: attacks, and the cases that they are tried on."""
