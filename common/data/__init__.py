"""Rows to train on: read, checked, cleaned, mixed and split. Knows files and rows; no tokenizer and no model.

May import the ground modules alone."""

from tunebook.common.data.loading import (
    IN_MEMORY_BYTES,
    NEAR_DUPLICATE_LIMIT,
    SchemaReader,
    Splits,
    column_notes,
    load,
    splits_of,
)

__all__ = ["IN_MEMORY_BYTES", "NEAR_DUPLICATE_LIMIT", "SchemaReader", "Splits", "column_notes", "load", "splits_of"]
