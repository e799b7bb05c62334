"""Decoding of image files to upright RGB pixels, resizing and tiling. OpenCV and Pillow live here."""
