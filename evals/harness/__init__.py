"""Scores through lm-eval: of a model in memory or on disk, on benchmarks or on held-out rows.

May import compare, responses, sandbox, stats and common."""

from tunebook.evals.harness.scoring import LENGTH, LOGITS, Scores, Settings, max_batch_size, score

__all__ = ["LENGTH", "LOGITS", "Scores", "Settings", "max_batch_size", "score"]
