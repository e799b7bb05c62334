"""Bytes of an image to upright RGB pixels, resizing with exact inverses, tiling. OpenCV and Pillow live here."""
