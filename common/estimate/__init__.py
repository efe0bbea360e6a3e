"""Memory and time of a run before it trains: by arithmetic, by a few profiled steps, and by models without weights.

May import training and what training may import."""
