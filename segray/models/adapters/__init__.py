"""One module for each model family: what its inputs and outputs mean."""
