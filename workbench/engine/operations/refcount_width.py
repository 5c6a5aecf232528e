"""Refcounts of another width (QEMU: qcow2_change_refcount_order).

New blocks and a new table are written behind everything that the file has, and become valid with one write to the header;
then the old ones are given back. A cut leaves the old refcounts or the new ones, and leaks at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from formats.qcow2 import limits
from formats.qcow2.refcounts import pack
from workbench.errors import UnsupportedError
from workbench.units import div_round_up

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from workbench.engine.write.core import Core

    Blocks = dict[int, NDArray[np.uint64]]


def require_width(core: Core, bits: int) -> None:
    """UnsupportedError when a refcount does not fit into `bits` bits."""
    limit = (1 << bits) - 1
    for index, values in _old_blocks(core):
        worst = int(values.argmax())
        if int(values[worst]) > limit:
            at = (index * core.refcounts.per_block + worst) * core.cluster_size
            raise UnsupportedError(
                f"Cannot decrease refcount entry width to {bits} bits: Cluster at offset {at:#x} has a refcount of"
                f" {int(values[worst])}",
                path=core.path,
            )


def change_refcount_width(core: Core, bits: int) -> None:
    """Make every refcount `bits` wide, a power of two up to 64. The image can only be closed afterwards.

    Raises what `require_width` raises, UnsupportedError for a table beyond 8 MiB, StorageError.
    """
    require_width(core, bits)
    if bits == core.geometry.refcount_bits:
        return
    core.finish()
    size, order = core.cluster_size, bits.bit_length() - 1
    per_block = size * 8 // bits
    blocks: Blocks = {}
    last = 0
    for index, values in _old_blocks(core):
        base = index * core.refcounts.per_block
        used = values.nonzero()[0]
        if len(used):
            last = max(last, base + int(used[-1]))
            _add(blocks, per_block, base, values[: int(used[-1]) + 1])
    start = max(last + 1, div_round_up(core.file.storage.size(), size))
    table_clusters, count = _area(blocks, start, per_block, size)
    if table_clusters * size > limits.MAX_REFCOUNT_TABLE_SIZE:
        raise UnsupportedError("the refcount table would exceed 8 MiB: the image file is too large", path=core.path)
    core.guard.check("new refcounts", start * size, count * size)
    _count(blocks, per_block, start, count, 1)
    old = [(offset // size, 1) for offset in core.refcounts.block_offsets()]
    old.append((core.reftable_place[0] // size, core.reftable_place[1] // size))
    places = {index: (start + number) * size for number, index in enumerate(sorted(blocks))}
    table = bytearray(table_clusters * size)
    for index, place in places.items():
        core.file.write(place, pack(blocks[index], order))
        table[index * 8 : index * 8 + 8] = place.to_bytes(8, "big")
    table_place = (start + len(blocks)) * size
    core.file.write(table_place, table)
    core.file.sync()
    core.write_header_fields(
        refcount_table_offset=table_place, refcount_table_clusters=table_clusters, refcount_order=order
    )
    core.dead = "its refcounts have another width now; open the image again"
    for first, clusters in old:
        _count(blocks, per_block, first, clusters, -1)
    for index in sorted({at // per_block for first, clusters in old for at in range(first, first + clusters)}):
        core.file.write(places[index], pack(blocks[index], order))
    core.file.sync()


def _old_blocks(core: Core) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    """(index, refcounts as uint64) of every block that there is."""
    import numpy as np

    refcounts = core.refcounts
    for index, offset in enumerate(refcounts.table):
        if offset:
            yield index, refcounts.cache.get(offset).data.astype(np.uint64)


def _area(blocks: Blocks, start: int, per_block: int, size: int) -> tuple[int, int]:
    """(clusters of the table, clusters of table and blocks) when they stand from cluster `start` on; the blocks that
    describe this area are among `blocks` afterwards."""
    count = 0
    while True:
        for index in range(start // per_block, (start + count) // per_block + 1):
            _block(blocks, per_block, index)
        table = div_round_up((max(blocks) + 1) * 8, size)
        if len(blocks) + table == count:
            return table, count
        count = len(blocks) + table


def _block(blocks: Blocks, per_block: int, index: int) -> NDArray[np.uint64]:
    import numpy as np

    if index not in blocks:
        blocks[index] = np.zeros(per_block, dtype=np.uint64)
    return blocks[index]


def _add(blocks: Blocks, per_block: int, first: int, values: NDArray[np.uint64]) -> None:
    """Take `values` over as the refcounts of clusters from `first` on."""
    done = 0
    while done < len(values):
        index, inside = divmod(first + done, per_block)
        part = values[done : done + per_block - inside]
        if part.any():
            _block(blocks, per_block, index)[inside : inside + len(part)] = part
        done += len(part)


def _count(blocks: Blocks, per_block: int, first: int, count: int, change: int) -> None:
    """Add `change` to the refcounts of a range, never below 0."""
    for at in range(first, first + count):
        block = _block(blocks, per_block, at // per_block)
        inside = at % per_block
        block[inside] = max(0, int(block[inside]) + change)
