"""Choose images for people, and read their corrections."""
