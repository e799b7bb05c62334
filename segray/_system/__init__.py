"""Matters of the operating system: memory, signals, threads, child processes, standard streams."""
