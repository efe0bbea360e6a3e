"""Preference pairs: read, encoded, and trained on by DPO.

May import estimate, training and what they may import."""

from tunebook.common.preference.encoding import PARTS, Collator, encode, masked

__all__ = ["PARTS", "Collator", "encode", "masked"]
