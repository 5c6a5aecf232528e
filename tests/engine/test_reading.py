"""Reading small images built in memory: every kind of cluster, damage named with its place, chains and the gate."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from formats.qcow2.entries import ClusterType
from formats.qcow2.tables import COMPRESSED, COPIED, ZERO, compressed_entry
from tests.engine.tiny import DATA, L2, tiny
from workbench.engine.codecs import compress
from workbench.engine.gate import OpenRequest, allow_local, forbid_all, no_backing, redirect, resolve_name
from workbench.engine.image import Image
from workbench.errors import ArgumentError, CorruptError, GateRefused, ImageError, StorageError
from workbench.storage.memory import MemoryStorage

C = 1 << 16


def opened(storage: MemoryStorage, **options: object) -> Image:
    return Image.open("tiny.qcow2", storage=storage, **options)  # type: ignore[arg-type]


def test_data_zeros_holes_and_compressed_clusters_read_as_what_they_are() -> None:
    text = b"all work and no play " * 4000
    packed = compress(text[:C], 0)
    assert packed is not None
    where = (DATA + 1) * C + 77
    words = [COPIED | DATA * C, ZERO, 0, compressed_entry(where, len(packed), 16), DATA * C | ZERO]
    storage = tiny(words, data={DATA: b"\x11" * C})
    storage.write(where, packed)
    with opened(storage) as image:
        assert image.read(0, 5 * C) == b"\x11" * C + bytes(2 * C) + text[:C] + bytes(C)
        assert image.read(3 * C + 5, 10) == text[5:15]
        assert image.read(C - 3, 6) == b"\x11\x11\x11\0\0\0"
        kinds = [each.kind for each in image.layer_extents()]
    assert kinds[:5] == [
        ClusterType.NORMAL,
        ClusterType.ZERO_PLAIN,
        ClusterType.UNALLOCATED,
        ClusterType.COMPRESSED,
        ClusterType.ZERO_ALLOC,
    ]


def test_what_lies_past_the_end_of_the_file_reads_as_zeros() -> None:
    storage = tiny([COPIED | 9 * C, COPIED | 100 * C], data={9: b"\x22" * 100}, clusters=10)
    storage.truncate(9 * C + 50)
    with opened(storage) as image:
        assert image.read(0, 2 * C) == b"\x22" * 50 + bytes(2 * C - 50)
    with opened(tiny([], l1=[COPIED | 100 * C])) as image:
        assert image.read(0, C) == bytes(C)


def test_reads_outside_the_disk_are_refused() -> None:
    with opened(tiny([0], size=C + 100)) as image:
        assert len(image.read(0, C + 100)) == C + 100
        for offset, length in ((0, C + 101), (C + 100, 1), (-1, 1)):
            with pytest.raises(ArgumentError):
                image.read(offset, length)


@pytest.mark.parametrize(
    ("word", "says"),
    [(DATA * C + 512, "not cluster aligned"), (COMPRESSED | 9 * C, "compressed cluster cannot be read")],
)
def test_damage_raises_with_table_index_and_offset_and_spares_the_rest(word: int, says: str) -> None:
    with opened(tiny([COPIED | DATA * C, word], data={DATA: b"\x33" * C})) as image:
        assert image.read(0, C) == b"\x33" * C
        with pytest.raises(CorruptError) as caught:
            image.read(0, 2 * C)
        assert says in str(caught.value)
        if word & COMPRESSED == 0:
            assert (caught.value.table, caught.value.index, caught.value.offset) == ("L2 table 0", 1, L2 * C + 8)


def test_an_unaligned_l1_entry_spoils_its_own_range_only() -> None:
    size = 8192 * C
    with opened(tiny([COPIED | DATA * C], l1=[COPIED | L2 * C, L2 * C + 512], size=2 * size)) as image:
        assert image.read(0, C) == bytes(C)
        with pytest.raises(CorruptError, match="L2 table offset 0x40200 is not cluster aligned"):
            image.read(size, 1)
        assert [each.kind for each in image.extents()][-1] is ClusterType.INVALID


def test_decoded_tables_are_remembered_within_a_bound_and_forgotten_on_request() -> None:
    storage = tiny([COPIED | DATA * C], data={DATA: b"\x44" * C, DATA + 1: b"\x55" * C})
    with opened(storage) as image:
        assert image.read(0, 1) == b"\x44"
        storage.write(L2 * C, (COPIED | (DATA + 1) * C).to_bytes(8, "big"))
        assert image.read(0, 1) == b"\x44"
        image.top.forget(0)
        assert image.read(0, 1) == b"\x55"


def test_version_2_and_every_cluster_size() -> None:
    for bits in range(9, 22):
        cluster = 1 << bits
        storage = tiny(
            [COPIED | DATA * cluster], cluster_bits=bits, version=2, size=cluster, data={DATA: b"\x66" * cluster}
        )
        with opened(storage) as image:
            assert image.read(0, cluster) == b"\x66" * cluster


# The gate and the chain -----------------------------------------------------------------------------------------------


def with_backing(name: str, size: int = 4 * C, format_name: str = "raw") -> bytes:
    """An empty overlay that names `name`."""
    raw = name.encode()
    extension = (
        (0xE2792ACA).to_bytes(4, "big") + len(format_name).to_bytes(4, "big") + format_name.encode().ljust(8, b"\0")
    )
    storage = tiny([], size=size, header={"backing_file_offset": 512, "backing_file_size": len(raw)})
    storage.write(104, extension if format_name else b"")
    storage.write(512, raw)
    return storage.getvalue()


def test_a_raw_backing_shorter_than_the_overlay_reads_on_as_zeros(tmp_path: Path) -> None:
    (tmp_path / "base.raw").write_bytes(b"\x77" * 1000)
    (tmp_path / "top.qcow2").write_bytes(with_backing("base.raw"))
    with Image.open(tmp_path / "top.qcow2") as image:
        assert image.read(0, C) == b"\x77" * 1000 + bytes(C - 1000)
        assert [each.depth for each in image.extents()] == [1, 1, 0]


def test_a_missing_base_is_one_clear_error_and_the_overlay_can_still_be_browsed(tmp_path: Path) -> None:
    path = tmp_path / "top.qcow2"
    path.write_bytes(with_backing("gone.raw"))
    with pytest.raises(StorageError) as caught:
        Image.open(path)
    assert "gone.raw" in str(caught.value) and "--no-backing" in str(caught.value)
    with Image.open(path, tolerant=True) as image:
        assert [fault.code for fault in image.problems] == ["BACKING-UNAVAILABLE"]
        assert [(each.present, each.zero, each.data) for each in image.extents()] == [(False, False, False)]
        with pytest.raises(StorageError):
            image.read(0, 1)
    with Image.open(path, gate=no_backing) as image:
        assert image.read(0, C) == bytes(C) and image.backing is None


def test_cycles_are_found_whatever_the_names(tmp_path: Path) -> None:
    (tmp_path / "a.qcow2").write_bytes(with_backing("./b.qcow2", format_name="qcow2"))
    (tmp_path / "b.qcow2").write_bytes(with_backing("c.qcow2", format_name="qcow2"))
    os.symlink("a.qcow2", tmp_path / "c.qcow2")
    with pytest.raises(ImageError, match="part of this chain already"):
        Image.open(tmp_path / "a.qcow2")
    with Image.open(tmp_path / "a.qcow2", tolerant=True) as image:
        assert [fault.code for fault in image.problems] == ["BACKING-CYCLE"]
        assert len(image.chain) == 3


@pytest.mark.parametrize("name", ["nbd:localhost:10809", "json:{}", "http://x/y", "fat:rw:/etc", "ssh://h/f"])
def test_protocol_strings_are_never_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / "top.qcow2").write_bytes(with_backing(name))
    with pytest.raises(GateRefused):
        Image.open(tmp_path / "top.qcow2")
    with Image.open(tmp_path / "top.qcow2", gate=forbid_all) as image:
        assert image.read(0, 4) == bytes(4)


def test_the_gate_sees_each_name_and_may_redirect(tmp_path: Path) -> None:
    (tmp_path / "other.raw").write_bytes(b"\x88" * C)
    (tmp_path / "top.qcow2").write_bytes(with_backing("gone.raw"))
    seen: list[OpenRequest] = []

    def gate(request: OpenRequest) -> Path | None:
        seen.append(request)
        return redirect(tmp_path / "other.raw")(request)

    with Image.open(tmp_path / "top.qcow2", gate=gate) as image:
        assert image.read(0, 2) == b"\x88\x88"
    assert [(each.kind, each.stored_name, each.format, each.depth) for each in seen] == [
        ("backing", "gone.raw", "raw", 0)
    ]
    assert seen[0].resolved == tmp_path / "gone.raw"


def test_names_resolve_as_in_qemu() -> None:
    assert resolve_name("b.raw", "/x/a.qcow2", "backing") == Path("/x/b.raw")
    assert resolve_name("b.raw", "/x/a.qcow2", "data") == Path("b.raw")
    assert resolve_name("file:b.raw", "/x/a.qcow2", "backing") == Path("b.raw")
    assert resolve_name("/y/b:c.raw", "/x/a.qcow2", "backing") == Path("/y/b:c.raw")
    assert resolve_name("./b:c.raw", "/x/a.qcow2", "backing") == Path("/x/b:c.raw")
    assert resolve_name("nbd:b", "/x/a.qcow2", "backing") is None
    assert allow_local(OpenRequest("backing", "b", Path("b"), "a", None, 0)) == Path("b")
