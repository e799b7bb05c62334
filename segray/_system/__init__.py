"""Matters of the operating system: memory, signals, child processes, standard streams."""
