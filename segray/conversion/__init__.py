"""Commands on model files: fetch, convert, inspect and quantise."""
