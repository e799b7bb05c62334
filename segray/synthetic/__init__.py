"""Scenes with known truth, drawn by program, and the model that was trained on them."""
