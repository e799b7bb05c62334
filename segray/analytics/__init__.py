"""What people do with committed tables: measure and look. Nothing here writes to a label set."""
