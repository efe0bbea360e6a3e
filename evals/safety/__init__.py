"""Safety and bias scores.

May import harness, compare, responses, stats and common."""

from tunebook.evals.safety.table import lines, markdown, missing, notes, quality, table

__all__ = ["lines", "markdown", "missing", "notes", "quality", "table"]
