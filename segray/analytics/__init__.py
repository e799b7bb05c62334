"""Measures, reports, exports and reviews of committed label sets. Nothing here writes to a label set."""
