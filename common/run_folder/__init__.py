"""The output folder of a run: what a run is, whose folder it is now, and which of its checkpoints are whole.

May import the ground modules."""
