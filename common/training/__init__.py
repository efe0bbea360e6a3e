"""What goes on around training: checks, metrics, callbacks, evaluation, checkpoints, the plain loop.

May import generation and what generation may import."""
