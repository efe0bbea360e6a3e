"""Blind human rating of two models' answers.

May import harness, compare, responses, stats and common."""

from tunebook.evals.rating.page import RatingSession, as_text, check, name_of, serve

__all__ = ["RatingSession", "as_text", "check", "name_of", "serve"]
