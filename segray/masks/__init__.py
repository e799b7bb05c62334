"""Compiled kernels over masks, boxes and priors. Numba lives here."""
