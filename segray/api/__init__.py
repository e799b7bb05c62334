"""The Python interface: models, label sets and runs as objects. segray/__init__.py names what is public."""
