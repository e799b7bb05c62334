"""`segray view`: a page on which people look at a label set."""
