"""Reading or writing a disk over and over, against the clock (QEMU: `qemu-img bench`)."""

from __future__ import annotations
