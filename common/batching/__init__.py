"""Encoded rows become batches: packing, sampling by length, collating, loading.

May import tokens, data and the ground modules."""
