"""Programs that a model wrote, run where they can reach nothing.

May import common."""

from tunebook.evals.sandbox.run import PASSED, check, run, run_all

__all__ = ["PASSED", "check", "run", "run_all"]
