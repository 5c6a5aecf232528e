"""Persistent bitmaps changed: what is dirty afterwards, what is refused, and that every cut leaves the old or the new."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.campaigns.write_kit import new_image
from tests.campaigns.write_powercut import Trace, crash_states
from tests.engine.write.kit import assert_clean, fresh, meta, opened
from workbench.check.run import check
from workbench.engine.bitmap_bits import BitmapBits
from workbench.engine.create import CreateOptions
from workbench.engine.metadata import load_metadata
from workbench.engine.operations.bitmaps import Action, Step, change_bitmaps, list_bitmaps
from workbench.errors import ArgumentError, StorageError, UnsupportedError
from workbench.storage.memory import MemoryStorage
from workbench.storage.recording import Faulty, OpKind, Recording

ADD = Step(Action.ADD, 4096)
MIB = 1 << 20


def steps(*actions: Action) -> list[Step]:
    return [Step(each) for each in actions]


def known(storage: MemoryStorage) -> dict[str, tuple[bool, bool, tuple[tuple[int, int], ...]]]:
    """(records, is inconsistent, dirty ranges) by name."""
    return {each.name: (each.enabled, each.inconsistent, each.ranges) for each in list_bitmaps(meta(storage))}


def dirtied(*ranges: tuple[int, int], name: str = "a", **options: object) -> MemoryStorage:
    """An image with one recording bitmap and what was written since."""
    storage = fresh(**options)  # type: ignore[arg-type]
    with opened(storage) as image:
        change_bitmaps(image, name, [ADD])
        for start, end in ranges:
            image.write(start, b"w" * (end - start))
    return storage


@pytest.mark.parametrize("options", [{}, {"cluster_size": 512}, {"lazy_refcounts": True}, {"cluster_size": 4096}])
def test_a_bitmap_records_from_the_moment_it_is_added_also_while_the_image_stays_open(
    options: dict[str, object],
) -> None:
    storage = fresh(**options)  # type: ignore[arg-type]
    with opened(storage) as image:
        image.write(0, b"before")
        change_bitmaps(image, "a", [ADD])
        image.write(3 * 4096 + 5, b"x" * 4096)
        change_bitmaps(image, "b", [ADD])
        image.write(MIB - 1, b"y")
        change_bitmaps(image, "a", steps(Action.DISABLE))
        image.write(8 * 4096, b"z")
    last = (MIB - 4096, MIB)
    assert known(storage) == {
        "a": (False, False, ((3 * 4096, 5 * 4096), last)),
        "b": (True, False, ((8 * 4096, 9 * 4096), last)),
    }
    assert_clean(storage)


def test_actions_are_done_in_order_and_those_before_a_failure_stay() -> None:
    storage = dirtied((0, 4096))
    with opened(storage) as image:
        change_bitmaps(image, "b", [ADD, Step(Action.MERGE, source="a"), *steps(Action.DISABLE)])
        with pytest.raises(ArgumentError, match="Operation merge on bitmap b failed: Dirty bitmap 'none' not found"):
            change_bitmaps(image, "b", [*steps(Action.ENABLE), Step(Action.MERGE, source="none"), *steps(Action.CLEAR)])
        change_bitmaps(image, "a", steps(Action.REMOVE, Action.ADD))
    assert known(storage) == {"b": (True, False, ((0, 4096),)), "a": (True, False, ())}
    assert [each.name for each in list_bitmaps(meta(storage))] == ["b", "a"]
    assert_clean(storage)


def test_what_changes_nothing_writes_nothing() -> None:
    storage = dirtied((0, 4096))
    before = storage.getvalue()
    with opened(storage) as image:
        change_bitmaps(image, "a", [*steps(Action.ENABLE), Step(Action.MERGE, source="a")])
    assert storage.getvalue() == before


def test_the_last_bitmap_takes_its_extension_with_it() -> None:
    storage = dirtied((0, MIB))
    with opened(storage) as image:
        change_bitmaps(image, "", steps(Action.REMOVE_ALL))
    assert meta(storage).bitmaps_extension is None
    assert not meta(storage).header.has("bitmaps")
    assert_clean(storage)


@pytest.mark.parametrize("fine", [512, 4096, 65536])
@pytest.mark.parametrize("coarse", [512, 8192, 1 << 20])
@pytest.mark.parametrize("cluster", [512, 65536])
def test_merging_sets_every_bit_that_covers_a_dirty_byte(fine: int, coarse: int, cluster: int) -> None:
    size = 3 * MIB - 512
    source, target = fresh(size, cluster_size=512), fresh(size, cluster_size=cluster)
    ranges = ((0, 512), (5 * 512, MIB), (MIB + 65536, MIB + 65537), (size - 1, size))
    with opened(source) as image:
        change_bitmaps(image, "s", [Step(Action.ADD, fine)])
        for start, end in ranges:
            image.write(start, b"x" * (end - start))
    with opened(target) as image:
        change_bitmaps(image, "t", [Step(Action.ADD, coarse), Step(Action.MERGE, source="s")], meta(source))
    marked = set()
    for start, end in list_bitmaps(meta(source))[0].ranges:
        marked |= set(range(start // coarse, (end - 1) // coarse + 1))
    found = list_bitmaps(meta(target))[0].ranges
    covered = {bit for start, end in found for bit in range(start // coarse, -(-end // coarse))}
    assert covered == marked and marked
    assert all(start % coarse == 0 and (end % coarse == 0 or end == size) for start, end in found)
    assert_clean(target)


def test_bitmaps_of_disks_of_other_sizes_are_not_merged() -> None:
    source, target = dirtied(size=2 * MIB), dirtied()
    with opened(target) as image, pytest.raises(ArgumentError, match="of different sizes"):
        change_bitmaps(image, "a", [Step(Action.MERGE, source="a")], meta(source))


def test_an_inconsistent_bitmap_can_only_be_removed() -> None:
    storage = dirtied((0, 4096))
    copy = MemoryStorage(storage.getvalue())
    image = opened(copy)
    image.write(0, b"x")
    image.flush()
    broken = MemoryStorage(copy.getvalue())  # as a crash leaves it
    image.close()
    assert known(broken) == {"a": (True, True, ())}
    for each in (Action.CLEAR, Action.ENABLE, Action.DISABLE):
        with opened(broken) as image, pytest.raises(UnsupportedError, match="inconsistent"):
            change_bitmaps(image, "a", steps(each))
    for name, source in (("good", "a"), ("a", "good")):
        todo = [*([ADD] if name == "good" else []), Step(Action.MERGE, source=source)]
        with opened(broken) as image, pytest.raises(UnsupportedError, match="'a' is inconsistent"):
            change_bitmaps(image, name, todo)
    with opened(broken) as image:
        change_bitmaps(image, "a", steps(Action.REMOVE))
    assert known(broken) == {"good": (True, False, ())}
    assert_clean(broken)


@pytest.mark.parametrize(
    ("name", "granularity", "options", "words"),
    [
        ("", None, {}, "name cannot be empty"),
        ("x" * 1024, None, {}, "Name length"),
        ("ä" * 512, None, {}, "Name length"),
        ("a", 256, {}, "power of 2"),
        ("a", 3000, {}, "power of 2"),
        ("a", 1 << 32, {}, "exceeds maximum"),
        ("a", 512, {"size": 1 << 45, "cluster_size": 2 << 20}, "Too much space"),
        ("a", None, {"size": 0}, "nothing to record"),
        ("a", None, {"compat": 2}, "v2"),
    ],
    ids=["no-name", "long", "long-utf8", "256", "3000", "4G", "huge", "no-disk", "v2"],
)
def test_what_cannot_be_added_is_refused(
    name: str, granularity: int | None, options: dict[str, object], words: str
) -> None:
    storage = fresh(**options)  # type: ignore[arg-type]
    before = storage.getvalue()
    with opened(storage) as image, pytest.raises(ArgumentError, match=words):
        change_bitmaps(image, name, [Step(Action.ADD, granularity)])
    assert storage.getvalue() == before


def test_a_name_that_is_there_is_not_added_again() -> None:
    storage = dirtied()
    with opened(storage) as image, pytest.raises(ArgumentError, match="already exists"):
        change_bitmaps(image, "a", [ADD])


def test_a_backing_name_stays_whole_when_it_makes_room() -> None:
    for length in (1, 30, 33, 200, 1000):
        name = "b" * length
        storage = fresh(backing_file=name, backing_format="raw")
        with opened_alone(storage) as image:
            change_bitmaps(image, "a", [ADD])
        assert (meta(storage).backing_name, meta(storage).backing_format) == (name, "raw")
        assert list(known(storage)) == ["a"]
        assert_clean(storage)


def opened_alone(storage: MemoryStorage | Recording | Faulty):  # type: ignore[no-untyped-def]
    from workbench.engine.gate import no_backing
    from workbench.engine.image import Image

    return Image.open("<memory>", storage=storage, writable=True, gate=no_backing)


def fragmented(**options: object) -> MemoryStorage:
    """Two bitmaps with dirty ranges, one disabled, and guest data."""
    storage = MemoryStorage(new_image(CreateOptions(MIB, **options)))  # type: ignore[arg-type]
    with opened_alone(storage) as image:
        change_bitmaps(image, "one", [Step(Action.ADD, 512)])
        for at in range(0, MIB, 40960):
            image.write(at, b"1" * 512)
        change_bitmaps(image, "two", [ADD])
        image.write(77777, b"2" * 5000)
    return storage


CHANGES: dict[str, tuple[Callable[..., MemoryStorage], str, list[Step]]] = {
    "first": (lambda **o: MemoryStorage(new_image(CreateOptions(MIB, **o))), "new", [ADD]),
    "second": (fragmented, "new", [ADD, Step(Action.MERGE, source="one")]),
    "clear": (fragmented, "one", steps(Action.CLEAR)),
    "disable": (fragmented, "one", steps(Action.DISABLE)),
    "merge": (fragmented, "two", [Step(Action.MERGE, source="one")]),
    "remove": (fragmented, "one", steps(Action.REMOVE)),
    "remove-all": (fragmented, "", steps(Action.REMOVE_ALL)),
    "replace": (fragmented, "one", steps(Action.REMOVE, Action.ADD)),
}
SHAPES = {
    "plain": {},
    "small": {"cluster_size": 512},
    "lazy": {"cluster_size": 4096, "lazy_refcounts": True},
    "overlay": {"cluster_size": 4096, "backing_file": "b" * 400, "backing_format": "qcow2"},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("change", CHANGES)
def test_every_cut_leaves_the_old_bitmaps_or_the_new(shape: str, change: str) -> None:
    make, name, todo = CHANGES[change]
    before = make(**SHAPES[shape])
    storage = Recording(MemoryStorage(before.getvalue()))
    with opened_alone(storage) as image:
        change_bitmaps(image, name, todo)
    after = MemoryStorage(storage.base.getvalue())  # type: ignore[attr-defined]
    assert_clean(after)
    old, new = known(before), known(after)
    backing = meta(before).backing_name
    with opened_alone(MemoryStorage(before.getvalue())) as image:
        disk = image.read(0, MIB)
    trace = Trace(before.getvalue(), storage.ops, [], MIB, meta(before).header.cluster_size)
    seen = 0
    for _, position, data in crash_states(trace, random.Random(f"{shape} {change}"), 2):
        state = MemoryStorage(data)
        dirty = meta(state).header.has("dirty")
        with opened_alone(state) as image:  # a dirty one is counted anew
            assert image.read(0, MIB) == disk
            assert image.meta.backing_name == backing
        assert known(state) in (old, new), position
        result = check(load_metadata(MemoryStorage(data if not dirty else state.getvalue())))
        assert (result.corruptions, result.check_errors) == (0, 0), position
        seen += 1
    assert seen >= 4


def test_a_write_that_fails_leaves_the_old_bitmaps_and_frees_what_it_took() -> None:
    before = fragmented(cluster_size=512)
    for at in range(100):
        base = MemoryStorage(before.getvalue())
        storage = Faulty(base, at, errno=28, on=(OpKind.WRITE,), sticky=False)
        try:
            with opened_alone(storage) as image:
                change_bitmaps(image, "two", [Step(Action.MERGE, source="one"), *steps(Action.DISABLE)])
        except StorageError:
            assert known(base) in (known(before), known(fragmented_after()))
            result = check(meta(base))
            assert (result.corruptions, result.check_errors) == (0, 0)
            continue
        assert known(base) == known(fragmented_after())
        assert at > 3
        return
    raise AssertionError("never done")


def fragmented_after() -> MemoryStorage:
    storage = fragmented(cluster_size=512)
    with opened_alone(storage) as image:
        change_bitmaps(image, "two", [Step(Action.MERGE, source="one"), *steps(Action.DISABLE)])
    return storage


def test_a_chunk_of_all_ones_reads_as_dirty_to_the_end_of_the_disk() -> None:
    with opened(fresh(cluster_size=512)) as image:
        shape = image.meta.shape
    bits = BitmapBits(lambda offset, length: bytes(length), shape, [1, 0, 1], 9, 2 * 4096 * 512 + 700)
    assert list(bits.ranges()) == [(0, 4096 * 512), (2 * 4096 * 512, 2 * 4096 * 512 + 700)]
    bits.resize(2 * 4096 * 512)
    assert list(bits.ranges()) == [(0, 4096 * 512)]
    bits.resize(100 * 512)
    bits.resize(4096 * 512)
    assert list(bits.ranges()) == [(0, 100 * 512)]
