"""The sticker dataset: procedural scenes with exact truth, and the small model trained on them."""
