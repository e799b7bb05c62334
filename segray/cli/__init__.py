"""The segray command."""
