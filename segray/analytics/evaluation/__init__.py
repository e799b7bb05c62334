"""Comparison of a label set with ground truth."""
