"""The process that a command runs in: signals that end it, what reaches its terminal, faults of the machine in words.

May import the ground modules."""
