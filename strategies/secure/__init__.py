"""Secure aggregation: the coordinator learns the sum of what sites send, and nothing of what one of them sent.

The protocol is that of Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving machine learning"
(CCS '17), figure 4, with the signatures and the consistency check that it needs against a coordinator that lies:

======== ===================================================== =======================================================
exchange what a site gives                                     what it is given before
======== ===================================================== =======================================================
train    two fresh public keys, signed                         plan and weights; it has learnt, and keeps its update
shares   shares of its two secrets, sealed for each of others  everybody's keys
masked   its update, masked                                    shares that were meant for it
confirm  its signature under who is in the sum                 whose masked updates came
unmask   one share of every other site                         the signatures of so many others as the threshold says
======== ===================================================== =======================================================

Every module here is pure: values in, values out, secrets from the operating system. `fixed_point` makes whole numbers
of an update, `masks` hides them, `shamir` splits secrets, `identity` signs, `messages` says what travels, `party` is
one site's side and `tally` the coordinator's.
"""
