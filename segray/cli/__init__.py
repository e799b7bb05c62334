"""The `segray` command: arguments in, exit codes out."""
