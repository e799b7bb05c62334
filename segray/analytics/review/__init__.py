"""Choice of images for people, and comparison of labels with their corrections."""
