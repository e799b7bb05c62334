"""Rows of a label set for DuckDB, Polars and Arrow."""
