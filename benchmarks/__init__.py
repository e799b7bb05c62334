"""Benchmarks of segray for its developers; not part of the package that users install."""
