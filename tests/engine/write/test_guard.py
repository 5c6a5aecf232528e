"""The overlap guard: metadata is never overwritten by something else."""

from __future__ import annotations

import pytest

from formats.qcow2.tables import COPIED
from tests.engine.write.kit import fresh, meta, opened
from workbench.engine.write.guard import ALL, CACHED, CONSTANT, NONE, Kind, guard_kinds
from workbench.errors import ArgumentError, CorruptError, ImageError
from workbench.storage.memory import MemoryStorage


def aimed(target: str) -> MemoryStorage:
    """An image whose guest cluster 0 is said to lie on a metadata structure."""
    storage = fresh(1 << 20)
    with opened(storage) as image:
        image.write(65536, b"x")
    header = meta(storage).header
    l2 = int(meta(storage).l1[0]) & ~COPIED
    places = {"L1": header.l1_table_offset, "L2": l2, "table": header.refcount_table_offset, "block": 0x20000}
    storage.write(l2, (places[target] | COPIED).to_bytes(8, "big"))
    return storage


@pytest.mark.parametrize(
    ("target", "title"),
    [("L1", "active L1 table"), ("L2", "active L2 table"), ("table", "refcount table"), ("block", "refcount block")],
)
def test_a_hit_marks_the_image_and_stops_writing(target: str, title: str) -> None:
    storage = aimed(target)
    image = opened(storage)
    with pytest.raises(CorruptError, match=f"guest data to 0x.*overlaps with the {title} at 0x"):
        image.write(0, b"boom")
    assert meta(storage).header.has("corrupt")
    marked = storage.getvalue()
    with pytest.raises(ImageError, match="refuses further writes"):
        image.write(65536, b"y")
    image.close()
    assert storage.getvalue() == marked


def test_without_the_guard_the_write_goes_through() -> None:
    storage = aimed("L1")
    with opened(storage, {"overlap-check": "none"}) as image:
        image.write(8, b"boom")
    assert not meta(storage).header.has("corrupt")


def test_a_cached_check_knows_tables_made_since() -> None:
    storage = fresh(1 << 20, cluster_size=4096)
    with opened(storage) as image:
        image.write(0, b"x")
        guard = image.writer.core.guard
        table = image.writer.core.tables.l1[0] & ~COPIED
        with pytest.raises(CorruptError):
            guard.check("a test", table + 100, 8)
        guard.check("an L2 table", table, 4096, Kind.ACTIVE_L2)


def test_templates_and_single_kinds() -> None:
    assert guard_kinds({}) == CACHED
    assert guard_kinds({"overlap-check": "none"}) == NONE
    assert guard_kinds({"overlap-check": "constant"}) == CONSTANT
    assert guard_kinds({"overlap-check.template": "all"}) == ALL
    assert len(list(ALL)) == 9
    assert guard_kinds({"overlap-check": "none", "overlap-check.active-l2": "on"}) == Kind.ACTIVE_L2
    assert guard_kinds({"overlap-check.main-header": "off"}) == CACHED & ~Kind.MAIN_HEADER
    with pytest.raises(ArgumentError):
        guard_kinds({"overlap-check": "some"})
    with pytest.raises(ArgumentError):
        guard_kinds({"overlap-check.nothing": "on"})


def test_unaligned_tables_are_corruption() -> None:
    storage = fresh(1 << 20)
    with opened(storage) as image:
        image.write(0, b"x")
    l1 = meta(storage).header.l1_table_offset
    entry = int(meta(storage).l1[0])
    storage.write(l1, (entry + 512).to_bytes(8, "big"))
    image = opened(storage)
    with pytest.raises(CorruptError, match=r"L2 table offset .* not cluster aligned"):
        image.write(0, b"y")
    image.close()
    assert meta(storage).header.has("corrupt")


def test_an_unaligned_refcount_block_is_corruption() -> None:
    storage = fresh(1 << 20)
    storage.write(0x10000, (0x20000 + 512).to_bytes(8, "big"))
    image = opened(storage)
    with pytest.raises(CorruptError, match=r"refcount block offset .* not cluster aligned"):
        image.write(0, b"y")
    image.close()
