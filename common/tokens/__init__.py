"""Rows become token ids and labels: templates, tokenizers, which characters train, and the cache of encoded rows.

May import data and the ground modules."""
