"""Small qcow2 images made from nothing, for tests that need one exact byte. Big-endian, 64 KiB unless told otherwise."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from workbench.engine.metadata import Metadata, load_metadata
from workbench.storage.memory import MemoryStorage

COPIED = 1 << 63


@dataclass
class Tiny:
    """Header in cluster 0, refcount table 1, block 2, L1 3, L2 4, then data clusters; one L2 table, 16-bit refcounts."""

    data_clusters: int = 4
    cluster_bits: int = 16
    refcount_order: int = 4
    incompatible: int = 0
    autoclear: int = 0
    crypt_method: int = 0
    header: dict[int, bytes] = field(default_factory=dict)
    extensions: bytes = b""

    @property
    def size(self) -> int:
        return 1 << self.cluster_bits

    def build(self) -> bytearray:
        """The image's bytes: guest clusters 0 to data_clusters - 1 are mapped in order."""
        size = self.size
        extended = bool(self.incompatible & 16)
        total = 5 + self.data_clusters
        image = bytearray(total * size)
        entries = size // (16 if extended else 8)
        image[0:104] = struct.pack(
            ">IIQIIQIIQQIIQQQQII",
            0x514649FB, 3, 0, 0, self.cluster_bits, entries * size, self.crypt_method, 1, 3 * size, size, 1, 0, 0,
            self.incompatible, 0, self.autoclear, self.refcount_order, 104,
        )  # fmt: skip
        image[104 : 104 + len(self.extensions)] = self.extensions
        for offset, raw in self.header.items():
            image[offset : offset + len(raw)] = raw
        self.put(image, size, 2 * size)
        bits = 1 << self.refcount_order
        for cluster in range(total):
            if bits >= 8:
                width = bits // 8
                image[2 * size + cluster * width : 2 * size + (cluster + 1) * width] = (1).to_bytes(width, "big")
            else:
                image[2 * size + cluster * bits // 8] |= 1 << (cluster * bits % 8)
        self.put(image, 3 * size, 4 * size | COPIED)
        step = 16 if extended else 8
        for index in range(self.data_clusters):
            self.put(image, 4 * size + index * step, (5 + index) * size | COPIED)
            if extended:
                self.put(image, 4 * size + index * step + 8, 0xFFFFFFFF)
        for cluster in range(5, total):
            image[cluster * size : (cluster + 1) * size] = bytes([cluster & 0xFF]) * size
        return image

    @staticmethod
    def put(image: bytearray, offset: int, value: int) -> None:
        """Store a 64-bit number."""
        image[offset : offset + 8] = value.to_bytes(8, "big")

    def entry(self, index: int) -> int:
        """Host offset of L2 entry `index` (standard entries)."""
        return 4 * self.size + index * 8


def load(image: bytes | bytearray) -> Metadata:
    """The metadata of an image in memory."""
    return load_metadata(MemoryStorage(bytes(image)))
