"""Fetch, convert, inspect and quantise models."""
