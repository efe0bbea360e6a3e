"""Questions, and models' answers to them, cached as they come.

May import stats and common."""
