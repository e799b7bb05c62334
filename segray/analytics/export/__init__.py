"""Write a label set in the formats of other tools."""
