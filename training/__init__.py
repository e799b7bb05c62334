"""Training of the embedded model; not part of the package that users install."""
