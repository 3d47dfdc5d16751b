"""What `benchmarks/weak_supervision.py` is made of: cases and their labels, arms, one run, tables and pictures."""
