"""Bytes in files: what an image is read from and written to."""
