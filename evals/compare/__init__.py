"""Two models on the same lm-eval items: read, matched, compared, and shown.

May import stats and common."""

from tunebook.evals.compare.comparison import compare

__all__ = ["compare"]
