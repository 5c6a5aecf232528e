"""What the bytes of a qcow2 image mean: declarative, pure, opens no file and imports nothing of the workbench."""
