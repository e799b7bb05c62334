"""Pages and pictures of a label set."""
