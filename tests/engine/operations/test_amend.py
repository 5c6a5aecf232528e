"""Options of an image changed: the disk and its snapshots read as before, and every cut leaves a sound image."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.campaigns.write_powercut import Trace, crash_states
from tests.engine.write.kit import assert_clean, fresh, meta
from workbench.check.run import check
from workbench.engine.gate import no_backing
from workbench.engine.image import Image
from workbench.engine.metadata import load_metadata
from workbench.engine.operations.amend import AmendOptions, amend
from workbench.engine.operations.bitmaps import Action, Step, change_bitmaps
from workbench.engine.snapshots import create_snapshot
from workbench.errors import ArgumentError, ImageError, QwbError, StorageError
from workbench.storage.base import Storage
from workbench.storage.memory import MemoryStorage
from workbench.storage.recording import Faulty, OpKind, Recording

K = 4096
MIB = 1 << 20


def opened(storage: Storage, *, writable: bool = True, snapshot: str | None = None) -> Image:
    return Image.open("<memory>", storage=storage, writable=writable, gate=no_backing, snapshot=snapshot)


def views(storage: MemoryStorage) -> list[bytes]:
    """The disk and all its snapshots, up to the smallest size."""
    found = []
    for name in (None, *(each.id for each in meta(storage).snapshots)):
        with opened(MemoryStorage(storage.getvalue()), writable=False, snapshot=name) as image:
            found.append(image.read(0, min(image.size, MIB)))
    return found


def worked_on(**options: object) -> MemoryStorage:
    """An image with data, zeros of every sort, two snapshots that share tables, and what was written after them."""
    storage = fresh(**{"cluster_size": K, **options})  # type: ignore[arg-type]
    zeros = options.get("compat") != 2
    with opened(storage) as image:
        image.write(0, b"a" * (40 * K))
        image.write(100 * K, b"b" * K)
        if zeros:
            image.write_zeroes(5 * K, 3 * K)
            image.write_zeroes(50 * K, 3 * K)
    for number in range(2):
        with opened(storage) as image:
            create_snapshot(image, f"s{number}", now=0)
        with opened(storage) as image:
            image.write((number + 10) * K, b"c" * K)
            if zeros:
                image.write_zeroes((number + 20) * K, K)
                image.write_zeroes((number + 60) * K, K)
    return storage


def plain(**options: object) -> MemoryStorage:
    storage = fresh(**{"cluster_size": K, **options})  # type: ignore[arg-type]
    with opened(storage) as image:
        image.write(7 * K, b"a" * (40 * K))
    return storage


def amended(storage: MemoryStorage, options: AmendOptions) -> MemoryStorage:
    out = MemoryStorage(storage.getvalue())
    with opened(out) as image:
        amend(image, options)
        assert image.writer.core.dead
    return out


@pytest.mark.parametrize("make", [plain, worked_on])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 32, 64])
def test_refcounts_of_every_width_and_back(make: Callable[..., MemoryStorage], bits: int) -> None:
    before = make()
    if make is worked_on and bits == 1:
        data = before.getvalue()
        with opened(before) as image, pytest.raises(QwbError, match="Cannot decrease refcount entry width to 1 bits"):
            amend(image, AmendOptions(refcount_bits=1))
        assert before.getvalue() == data
        return
    after = amended(before, AmendOptions(refcount_bits=bits))
    assert meta(after).header.refcount_order == bits.bit_length() - 1
    assert_clean(after)
    assert views(after) == views(before)
    back = amended(after, AmendOptions(refcount_bits=16))
    assert_clean(back)
    assert views(back) == views(before)
    with opened(back) as image:
        image.write(200 * K, b"z" * K)
    assert_clean(back)


def test_a_wide_refcount_table_spans_clusters() -> None:
    before = fresh(64 << 20, cluster_size=512)
    with opened(before) as image:
        image.write(0, b"x" * (3 << 20))
    after = amended(before, AmendOptions(refcount_bits=64))
    assert meta(after).header.refcount_table_clusters > 1
    assert_clean(after)


@pytest.mark.parametrize("backing", [None, "base.raw"])
def test_version_2_has_no_zero_flags_and_reads_the_same(backing: str | None) -> None:
    options = {"backing_file": backing, "backing_format": "raw"} if backing else {}
    before = worked_on(**options)
    after = amended(before, AmendOptions(compat=2))
    header = meta(after).header
    assert (header.version, header.header_length, header.incompatible_features) == (2, 72, 0)
    assert meta(after).backing_name == backing
    assert_clean(after)
    assert views(after) == views(before)
    up = amended(after, AmendOptions(compat=3))
    assert meta(up).header.version == 3
    assert_clean(up)
    assert views(up) == views(before)


def test_what_a_snapshot_shares_is_never_overwritten_with_zeros() -> None:
    storage = fresh(cluster_size=K, backing_file="base.raw", backing_format="raw")
    with opened(storage) as image:
        image.write(0, b"kept" * K)
        create_snapshot(image, "s", now=0)
    with opened(storage) as image:
        image.write_zeroes(0, 2 * K)  # the flag, on top of clusters that the snapshot has
    after = amended(storage, AmendOptions(compat=2))
    assert views(after)[1][: 4 * K] == b"kept" * K and views(after)[0][: 2 * K] == bytes(2 * K)
    assert_clean(after)


def test_an_upgrade_completes_the_snapshots_entries() -> None:
    from dataclasses import replace

    from workbench.engine.snapshots import replace_snapshot_table

    storage = worked_on(compat=2)
    with opened(storage) as image:
        core = image.writer.core
        core.begin()
        short = [replace(each, extra_data=b"", extra_data_size=0, raw=b"") for each in image.meta.snapshots]
        replace_snapshot_table(core, short)
        core.flush()
        image.writer.reload()
    assert [each.disk_size for each in meta(storage).snapshots] == [None, None]
    after = amended(storage, AmendOptions(compat=3, size=2 * MIB))
    assert [each.disk_size for each in meta(after).snapshots] == [MIB, MIB]
    assert [each.name for each in meta(after).snapshots] == ["s0", "s1"]
    assert meta(after).header.size == 2 * MIB
    assert_clean(after)
    assert views(after) == views(storage)


def test_lazy_refcounts_go_on_and_off_and_leave_the_image_clean() -> None:
    before = plain()
    on = amended(before, AmendOptions(lazy_refcounts=True))
    assert meta(on).header.has("lazy_refcounts") and not meta(on).header.has("dirty")
    with opened(on) as image:
        image.write(0, b"x")
        amend(image, AmendOptions(lazy_refcounts=False, size=3 * MIB, refcount_bits=8))
    assert not meta(on).header.has("lazy_refcounts") and not meta(on).header.has("dirty")
    assert_clean(on)
    off = amended(amended(before, AmendOptions(lazy_refcounts=True)), AmendOptions(compat=2, lazy_refcounts=True))
    assert meta(off).header.version == 2  # it had them, so nothing is asked for that is not there; QEMU sees it so, too


def test_everything_at_once() -> None:
    before = plain(compat=2)
    after = amended(before, AmendOptions(3, 5 * MIB, 1, True))
    header = meta(after).header
    assert (header.version, header.size, header.refcount_order) == (3, 5 * MIB, 0)
    assert header.has("lazy_refcounts")
    assert_clean(after)
    down = amended(after, AmendOptions(2, MIB, 16, False, force=True))
    assert (meta(down).header.version, meta(down).header.size) == (2, MIB)
    assert_clean(down)
    assert views(down) == views(before)


def test_what_is_so_already_writes_nothing() -> None:
    storage = plain(lazy_refcounts=True)
    before = storage.getvalue()
    with opened(storage) as image:
        amend(image, AmendOptions(3, MIB, 16, True, data_file_raw=False))
    assert storage.getvalue() == before


def test_bitmaps_stay_with_their_bits() -> None:
    storage = plain()
    with opened(storage) as image:
        change_bitmaps(image, "b", [Step(Action.ADD, 512)])
        image.write(3 * K, b"x")
        amend(image, AmendOptions(refcount_bits=8, size=2 * MIB, lazy_refcounts=True))
    from workbench.engine.operations.bitmaps import list_bitmaps

    (found,) = list_bitmaps(meta(storage))
    assert (found.enabled, found.inconsistent, found.ranges) == (True, False, ((3 * K, 3 * K + 512),))
    assert_clean(storage)


def test_the_data_file_gets_another_name_and_is_raw_no_more(tmp_path: Path) -> None:
    from workbench.engine.create import CreateOptions, create_file

    image, data = str(tmp_path / "a.qcow2"), str(tmp_path / "a.raw")
    create_file(image, CreateOptions(MIB, data_file=data, data_file_raw=True))
    with Image.open(image, writable=True) as disk:
        amend(disk, AmendOptions(data_file=str(tmp_path / "b.raw"), data_file_raw=False))
    with pytest.raises(StorageError):
        Image.open(image).read(0, 1)
    (tmp_path / "a.raw").rename(tmp_path / "b.raw")
    with Image.open(image) as disk:
        assert disk.read(0, MIB) == bytes(MIB) and not disk.meta.header.has("data_file_raw")


REFUSED: tuple[tuple[dict[str, object], AmendOptions, str], ...] = (
    ({}, AmendOptions(refcount_bits=3), "power of two"),
    ({}, AmendOptions(refcount_bits=128), "power of two"),
    ({}, AmendOptions(compat=2, refcount_bits=8), "16 bits"),
    ({"refcount_bits": 8}, AmendOptions(compat=2), "16 bits"),
    ({}, AmendOptions(data_file="x"), "data-file can only"),
    ({}, AmendOptions(data_file_raw=True), "data-file-raw cannot"),
    ({}, AmendOptions(backing_file="x"), "Cannot amend the backing file"),
    ({"backing_file": "a", "backing_format": "raw"}, AmendOptions(backing_file="a"), "Cannot amend the backing file"),
    ({"compat": 2}, AmendOptions(lazy_refcounts=True), "Lazy refcounts only"),
    ({}, AmendOptions(compat=2, lazy_refcounts=True), "Lazy refcounts only"),
    ({}, AmendOptions(size=1000), "multiple of 512"),
    ({}, AmendOptions(size=K), "add --force"),
    ({}, AmendOptions(size=1 << 60), "too large"),
    ({"cluster_size": 16384, "extended_l2": True}, AmendOptions(compat=2), "incompatible features 0x10"),
)


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_cannot_be_is_refused_and_nothing_is_written(number: int) -> None:
    made, options, words = REFUSED[number]
    storage = plain(**made)
    before = storage.getvalue()
    with opened(storage) as image, pytest.raises(QwbError, match=words):
        amend(image, options)
    assert storage.getvalue() == before


def test_a_downgrade_never_loses_bitmaps_or_snapshots_of_other_sizes() -> None:
    storage = plain()
    with opened(storage) as image:
        change_bitmaps(image, "b", [Step(Action.ADD)])
        with pytest.raises(QwbError, match="version 2 has no bitmaps"):
            amend(image, AmendOptions(compat=2))
    storage = worked_on()
    with opened(storage) as image, pytest.raises(QwbError, match="Internal snapshots prevent"):
        amend(image, AmendOptions(compat=2, size=2 * MIB))
    storage = plain(compression_type="zstd")
    with opened(storage) as image:
        image.write_compressed(100 * K, b"z" * K)
        with pytest.raises(QwbError, match="zstd"):
            amend(image, AmendOptions(compat=2))


def test_zstd_without_compressed_data_becomes_zlib() -> None:
    after = amended(plain(compression_type="zstd"), AmendOptions(compat=2))
    assert meta(after).header.compression_type == 0
    assert_clean(after)


def test_an_amended_image_takes_no_more_writes_until_it_is_opened_again() -> None:
    storage = plain()
    with opened(storage) as image:
        amend(image, AmendOptions(refcount_bits=8))
        with pytest.raises(ImageError, match="open the image again"):
            image.write(0, b"x")
    assert_clean(storage)


CHANGES: dict[str, tuple[Callable[..., MemoryStorage], dict[str, object], AmendOptions]] = {
    "width": (plain, {}, AmendOptions(refcount_bits=1)),
    "width-small": (worked_on, {"cluster_size": 512}, AmendOptions(refcount_bits=64)),
    "downgrade": (worked_on, {}, AmendOptions(compat=2)),
    "downgrade-overlay": (
        worked_on,
        {"backing_file": "b" * 700, "backing_format": "qcow2"},
        AmendOptions(compat=2, lazy_refcounts=False),
    ),
    "upgrade": (worked_on, {"compat": 2}, AmendOptions(compat=3, lazy_refcounts=True)),
    "upgrade-all": (plain, {"compat": 2}, AmendOptions(3, 2 * MIB, 8, True)),
    "lazy-off": (plain, {"lazy_refcounts": True}, AmendOptions(lazy_refcounts=False, refcount_bits=32)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_cut_leaves_a_sound_image_that_reads_the_same(change: str) -> None:
    make, made, options = CHANGES[change]
    before = make(**made)
    storage = Recording(MemoryStorage(before.getvalue()))
    with opened(storage) as image:
        amend(image, options)
    after = MemoryStorage(storage.base.getvalue())  # type: ignore[attr-defined]
    assert_clean(after)
    wanted, name = views(before), meta(before).backing_name
    assert views(after) == wanted
    trace = Trace(before.getvalue(), storage.ops, [], MIB, meta(before).header.cluster_size)
    rng = random.Random(change)
    for _, position, data in crash_states(trace, rng, 1):
        if len(storage.ops) > 150 and rng.random() < 0.5:
            continue
        state = MemoryStorage(data)
        if meta(state).header.has("dirty"):
            opened(state).close()  # counts the refcounts anew
        assert (views(state), meta(state).backing_name) == (wanted, name), position
        result = check(load_metadata(MemoryStorage(state.getvalue())), fast=True)
        assert (result.corruptions, result.check_errors) == (0, 0), (position, [f.code for f in result.findings])


def test_a_write_that_fails_leaves_a_sound_image() -> None:
    before = worked_on()
    wanted = views(before)
    for at in range(100):
        base = MemoryStorage(before.getvalue())
        storage = Faulty(base, at, errno=28, on=(OpKind.WRITE,), sticky=True)
        done = False
        try:
            with opened(storage) as image:
                amend(image, AmendOptions(compat=2, refcount_bits=16, size=MIB))
            done = True
        except (StorageError, ArgumentError):
            pass
        assert views(base) == wanted, at
        result = check(load_metadata(base), fast=True)
        assert (result.corruptions, result.check_errors) == (0, 0), at
        if done:
            assert at > 5
            return
    raise AssertionError("never done")
