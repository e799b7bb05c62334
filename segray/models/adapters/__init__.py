"""Adapters: one module for each model family, with the meaning of the family's inputs and outputs."""
