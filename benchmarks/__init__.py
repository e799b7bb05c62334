"""Benchmarks of segray for its developers, not part of the installed package."""
