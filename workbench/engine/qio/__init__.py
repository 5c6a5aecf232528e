"""qemu-io's command language over this engine: scripts written for qemu-io run here, with the same output."""
