"""Questions, and models' answers to them, kept as they come.

May import stats and common."""
