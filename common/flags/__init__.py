"""What flags may be called, which numbers they take, and which of their values no file may hold.

May import the ground modules."""
