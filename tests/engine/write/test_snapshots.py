"""Internal snapshots: content, counts, and power cuts in the middle of an operation."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.campaigns.write_kit import run_step, workload
from tests.campaigns.write_powercut import Trace, crash_states
from tests.engine.write.kit import assert_clean, disk, fresh, meta, opened
from workbench.check.run import check
from workbench.engine.image import Image
from workbench.engine.metadata import load_metadata
from workbench.engine.snapshots import apply_snapshot, create_snapshot, delete_snapshot
from workbench.errors import ArgumentError, UnsupportedError
from workbench.storage.memory import MemoryStorage
from workbench.storage.recording import Recording


def busy(image: Image, seed: int) -> bytes:
    """Some work on the disk; its content afterwards."""
    for step in workload(random.Random(seed), image.size, image.geometry.cluster_size, 60):
        run_step(image, step)
    return image.read(0, image.size)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cluster_size": 4096},
        {"cluster_size": 512, "refcount_bits": 64},
        {"compat": 2},
        {"extended_l2": True, "cluster_size": 16384},
        {"lazy_refcounts": True},
    ],
    ids=str,
)
def test_snapshots_keep_their_content_and_the_image_stays_clean(options: dict[str, object]) -> None:
    storage = fresh(1 << 20, **options)
    with opened(storage, {"discard": "unmap"}) as image:
        first = busy(image, 1)
        create_snapshot(image, "one", now=1.5)
        second = busy(image, 2)
        assert create_snapshot(image, "two").id == "2"
        third = busy(image, 3)
    assert_clean(storage)
    assert disk(storage) == third
    for name, content in (("one", first), ("2", second)):
        with Image.open("<memory>", storage=MemoryStorage(storage.getvalue()), snapshot=name) as view:
            assert view.read(0, view.size) == content
    with opened(storage) as image:
        apply_snapshot(image, "one")
        assert image.read(0, image.size) == first
        busy(image, 4)
        delete_snapshot(image, "two")
        last = busy(image, 5)
        delete_snapshot(image, "1")
        assert image.read(0, image.size) == last
    assert meta(storage).header.nb_snapshots == 0
    assert_clean(storage)
    assert disk(storage) == last


def test_a_snapshot_of_another_size_is_applied_with_its_size() -> None:
    storage = fresh(1 << 20, cluster_size=4096)
    with opened(storage) as image:
        image.write(0, b"small")
        create_snapshot(image, "small")
        image.truncate(64 << 20)
        image.write(60 << 20, b"large")
        create_snapshot(image, "large")
        apply_snapshot(image, "small")
        assert image.size == 1 << 20
        apply_snapshot(image, "large")
        assert image.read(60 << 20, 5) == b"large"
    assert_clean(storage)


def test_what_cannot_be_done_is_refused_before_anything_changes() -> None:
    narrow = fresh(1 << 20, refcount_bits=1)
    with opened(narrow) as image, pytest.raises(UnsupportedError, match="one bit"):
        create_snapshot(image, "one")
    packed = fresh(1 << 20, refcount_bits=2)
    with opened(packed) as image:
        for number in range(3):
            image.write_compressed(number << 16, bytes([number]) * 65536)
        with pytest.raises(UnsupportedError, match="would exceed 3"):
            create_snapshot(image, "one")
        image.write(0, b"still writable")
        with pytest.raises(ArgumentError, match="no snapshot"):
            delete_snapshot(image, "none")
    assert_clean(packed)


@pytest.mark.parametrize("what", ["create", "delete", "apply"])
@pytest.mark.parametrize("cluster", [4096, 65536])
def test_a_power_cut_leaves_the_disk_before_or_after(what: str, cluster: int) -> None:
    base = fresh(1 << 20, cluster_size=cluster)
    with opened(base) as image:
        kept = busy(image, 1)
        create_snapshot(image, "one")
        before = busy(image, 2)
    start = base.getvalue()
    storage = Recording(MemoryStorage(start))
    run: Callable[[Image], object] = {
        "create": lambda image: create_snapshot(image, "two"),
        "delete": lambda image: delete_snapshot(image, "one"),
        "apply": lambda image: apply_snapshot(image, "one"),
    }[what]
    with opened(storage) as image:
        run(image)
    rng = random.Random(what)
    for _, position, data in crash_states(Trace(start, storage.ops, [], 1 << 20, cluster), rng, 2):
        state = MemoryStorage(data)
        if load_metadata(state).header.has("dirty"):
            opened(state).close()
        result = check(load_metadata(state), fast=True)
        assert (result.corruptions, result.check_errors) == (0, 0), (position, [f.code for f in result.findings])
        found = disk(state)
        assert found == before or (what == "apply" and found == kept), position
        for each in load_metadata(state).snapshots:
            with Image.open("<memory>", storage=MemoryStorage(data), snapshot=each.id) as view:
                assert view.read(0, view.size) == (kept if each.name == "one" else before)
