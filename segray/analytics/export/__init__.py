"""Export of a label set to the formats of other tools."""
