"""Compare a label set with a truth."""
