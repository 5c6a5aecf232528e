"""qcow2 workbench: look into qcow2 images, find what is wrong, put it right without losing data."""

__version__ = "0.1.0"
