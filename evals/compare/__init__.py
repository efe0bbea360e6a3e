"""Two models on the same lm-eval items: read, matched, compared, and shown (`comparison.compare`).

May import stats and common.
"""
