"""A model judges two models' answers, in both orders.

May import harness, compare, responses, stats and common."""

from tunebook.evals.judge.run import collect, pairs, report

__all__ = ["collect", "pairs", "report"]
