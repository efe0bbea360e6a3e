"""What a run, a dataset or a table of methods looked like: JSON, text and pages that open offline.

May import everything in common except commands and run."""

from tunebook.common.report.run import charts, write

__all__ = ["charts", "write"]
