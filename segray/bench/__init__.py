"""How fast segray is on this machine, against what the machine can do and against other ways to do the same."""
