"""Refcount blocks of 1, 2, 4, 8, 16, 32 and 64 bits (spec: Host cluster management, Refcount block entry).

Widths under a byte count from the least significant bit; wider ones are big-endian.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from construct import Adapter, GreedyBytes, Struct

from formats.annotate import Field

if TYPE_CHECKING:
    from numpy.typing import NDArray

REFCOUNTS = "qcow2: Host cluster management"
_WIDE: Final = {3: "u1", 4: "u2", 5: "u4", 6: "u8"}


def unpack(data: bytes | bytearray | memoryview, order: int) -> NDArray[Any]:
    """Refcounts of a block (or several in a row) as a native unsigned array.

    order: refcount_order, 0 to 6.  Result: 1-D, uint8 up to 8 bits, uint16, uint32, uint64 above.
    """
    import numpy as np

    if order >= 3:
        kind = _WIDE[order]
        width = 1 << (order - 3)
        usable = len(data) // width * width
        return np.frombuffer(memoryview(data)[:usable], dtype=f">{kind}").astype(kind)
    raw = np.frombuffer(data, dtype=np.uint8)
    if order == 0:
        return np.unpackbits(raw, bitorder="little")
    bits, per_byte = 1 << order, 8 >> order
    out = np.empty((raw.size, per_byte), dtype=np.uint8)
    for index in range(per_byte):
        out[:, index] = (raw >> (index * bits)) & ((1 << bits) - 1)
    return out.reshape(-1)


def pack(values: NDArray[Any], order: int) -> bytes:
    """Inverse of `unpack`. ValueError when a value does not fit the width."""
    import numpy as np

    if values.size and int(values.max()) > (1 << (1 << order)) - 1:
        raise ValueError(f"refcount {int(values.max())} does not fit {1 << order} bits")
    if order >= 3:
        return values.astype(f">{_WIDE[order]}").tobytes()
    narrow = values.astype(np.uint8)
    if order == 0:
        return np.packbits(narrow, bitorder="little").tobytes()
    bits, per_byte = 1 << order, 8 >> order
    grouped = narrow.reshape(-1, per_byte)
    out = np.zeros(grouped.shape[0], dtype=np.uint8)
    for index in range(per_byte):
        out |= grouped[:, index] << (index * bits)
    return out.tobytes()


_COMMON: Final = 4096
"""Refcounts that are higher, most of the time, were never counted by anybody."""


def may_be_refcounts(values: NDArray[Any]) -> bool:
    """Whether a block with these values can be one: not when most are huge, or (8 bits) all occur about as often.

    Under 8 bits anything can. Empty blocks can.
    """
    import numpy as np

    if not values.size or values.size < 2 or (int(values.max()) <= _COMMON and values.dtype.itemsize > 1):
        return True
    used = values[values != 0]
    if values.dtype.itemsize > 1:
        return bool(int(np.count_nonzero(used > _COMMON)) * 2 <= used.size)
    return bool(used.size < 512 or int(np.bincount(used).max()) * 64 >= used.size)


def get_one(block: bytes | bytearray | memoryview, index: int, order: int) -> int:
    """One refcount of a block without decoding the rest."""
    bits = 1 << order
    if order >= 3:
        width = bits >> 3
        return int.from_bytes(block[index * width : (index + 1) * width], "big")
    at = index * bits
    return (block[at >> 3] >> (at & 7)) & ((1 << bits) - 1)


def set_one(block: bytearray | memoryview, index: int, order: int, value: int) -> None:
    """Store one refcount. ValueError when it does not fit the width."""
    bits = 1 << order
    if not 0 <= value < 1 << bits:
        raise ValueError(f"refcount {value} does not fit {bits} bits")
    if order >= 3:
        width = bits >> 3
        block[index * width : (index + 1) * width] = value.to_bytes(width, "big")
        return
    at = index * bits
    mask = ((1 << bits) - 1) << (at & 7)
    block[at >> 3] = (block[at >> 3] & ~mask & 0xFF) | (value << (at & 7))


def last_counted(block: bytes, order: int, entries: int) -> int | None:
    """Index of the last entry that is not zero among the first `entries`; None when all of them are zero.

    Works on the bytes, since numpy takes longer to load than everything else that a first look at an image needs.
    """
    bits = max(0, entries) << order
    used = bytearray(block[: (bits + 7) >> 3])
    if bits & 7 and len(used) > bits >> 3:  # the last byte holds entries that were not asked for
        used[-1] &= (1 << (bits & 7)) - 1
    used = used.rstrip(b"\0")
    return ((len(used) - 1) * 8 + used[-1].bit_length() - 1) >> order if used else None


class _Refcounts(Adapter):  # type: ignore[misc]
    """A whole block as a list of ints; the width comes from the parse parameter `refcount_order`."""

    def _decode(self, obj: bytes, context: Any, path: str) -> list[int]:
        result: list[int] = unpack(obj, context.get("_params", context)["refcount_order"]).tolist()
        return result

    def _encode(self, obj: list[int], context: Any, path: str) -> bytes:
        import numpy as np

        return pack(np.asarray(obj, dtype=np.uint64), context.get("_params", context)["refcount_order"])


REFCOUNT_BLOCK_SCHEMA: Final = Struct(
    Field(
        "refcounts",
        _Refcounts(GreedyBytes),
        "How often each host cluster is used: 0 free, 1 in use, 2 and more shared (a write must copy first).",
        REFCOUNTS,
        unit="references",
    )
)
