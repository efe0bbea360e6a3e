"""Rows to train on: read, checked, cleaned, mixed and split. Knows files and rows; no tokenizer and no model.

May import the ground modules alone."""

from tunebook.common.data.loading import HELD, TEXTS, Sides, Table, columns_of, load, parse, sides_of

__all__ = ["HELD", "TEXTS", "Sides", "Table", "columns_of", "load", "parse", "sides_of"]
