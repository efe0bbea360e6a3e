"""Encoded rows become batches: packing, sampling by length, collating, loading.

May import models, tokens, data and the ground modules."""
