"""Synthetic scenes with exact truth, and the model that was trained on them."""
