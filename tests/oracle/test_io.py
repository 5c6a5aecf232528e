"""`qwb io` and `qwb create` beside the real qemu-io and qemu-img."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from formats.qcow2.tables import COPIED, OFFSET_MASK
from tests.campaigns import write_differential
from tests.conftest import BaseImages
from workbench.engine.create import CreateOptions, create_file
from workbench.engine.image import Image
from workbench.engine.metadata import load_metadata
from workbench.engine.qio.session import OpenOptions, Session
from workbench.engine.write.prealloc import Preallocation
from workbench.errors import LockedError
from workbench.storage.file import FileStorage

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("seed", range(1, len(write_differential.SHAPES) + 1, 2))
def test_a_script_gives_the_same_disk_and_output_as_qemu_io(seed: int, tmp_path: Path) -> None:
    tally = write_differential.campaign(seed, 1, 60, tmp_path)
    assert tally.failures == []


def test_the_script_on_which_qemu_io_itself_corrupts(tmp_path: Path, qemu_img: str) -> None:
    path = tmp_path / "disk.qcow2"
    create_file(str(path), CreateOptions(1 << 20))
    said: list[str] = []
    session = Session(said.append, said.append)
    assert session.open(str(path))
    for line in ("write -c -P 55 0 64k", "discard 0 64k", "write -P 66 64k 64k", "write -c -P 77 128k 64k"):
        assert session.run(line), said
    assert session.run("read -P 66 64k 64k") and session.run("read -P 77 128k 64k") and session.run("read -P 0 0 64k")
    assert session.close()
    subprocess.run([qemu_img, "check", "-q", path], check=True)


CREATE = [
    (CreateOptions(1 << 20), []),
    (CreateOptions(1 << 20, compat=2), ["compat=0.10"]),
    (CreateOptions(1 << 20, cluster_size=512), ["cluster_size=512"]),
    (CreateOptions(1 << 40, cluster_size=2 << 20), ["cluster_size=2M"]),
    (CreateOptions(1 << 20, refcount_bits=1), ["refcount_bits=1"]),
    (
        CreateOptions(1 << 20, lazy_refcounts=True, extended_l2=True, compression_type="zstd"),
        ["lazy_refcounts=on", "extended_l2=on", "compression_type=zstd"],
    ),
    (CreateOptions(20 << 20, preallocation=Preallocation.METADATA), ["preallocation=metadata"]),
]


@pytest.mark.parametrize(("options", "words"), CREATE, ids=[",".join(words) or "plain" for _, words in CREATE])
def test_created_images_are_bytewise_those_of_qemu_img(
    options: CreateOptions, words: list[str], tmp_path: Path, qemu_img: str
) -> None:
    ours, theirs = tmp_path / "ours.qcow2", tmp_path / "theirs.qcow2"
    create_file(str(ours), options)
    extra = ["-o", ",".join(words)] if words else []
    subprocess.run([qemu_img, "create", "-q", "-f", "qcow2", *extra, theirs, str(options.size)], check=True)
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_raw_data_file_and_a_backing_file_are_written_down(tmp_path: Path, qemu_img: str) -> None:
    base, top, data = tmp_path / "base.qcow2", tmp_path / "top.qcow2", tmp_path / "data.raw"
    create_file(str(base), CreateOptions(1 << 20))
    create_file(str(top), CreateOptions(1 << 20, backing_file="base.qcow2", backing_format="qcow2"))
    create_file(str(tmp_path / "outside.qcow2"), CreateOptions(1 << 20, data_file=str(data), data_file_raw=True))
    with Image.open(tmp_path / "outside.qcow2", writable=True) as image:
        image.write(4096, b"seen")
    assert data.read_bytes()[4096:4100] == b"seen"
    for each in (base, top, tmp_path / "outside.qcow2"):
        subprocess.run([qemu_img, "check", "-q", each], check=True)


# The nine kinds of metadata ---------------------------------------------------------------------------------------------


def _aim(path: Path, kind: str, qemu_img: str, qemu_io: str) -> None:
    """An image in which the next write would hit metadata of this kind."""

    def run(*words: str) -> None:
        subprocess.run([*words], check=True, capture_output=True)

    run(qemu_img, "create", "-q", "-f", "qcow2", str(path), "1M")
    run(qemu_io, "-c", "write 128k 64k", str(path))
    if kind == "bitmap-directory":
        run(qemu_img, "bitmap", "--add", "-g", "65536", str(path), "dirty")
    if kind in ("snapshot-table", "inactive-l1", "inactive-l2"):
        run(qemu_img, "snapshot", "-c", "one", str(path))
        run(qemu_io, "-c", "write 128k 64k", str(path))  # the active disk has an L2 table of its own again
    storage = FileStorage.open(path, writable=True)
    meta = load_metadata(storage)
    header, l2 = meta.header, int(meta.l1[0]) & OFFSET_MASK
    if kind == "main-header":
        storage.write(2 * 65536, bytes(2))  # its refcount: the header's cluster counts as free
    else:
        snapshots, extension = meta.snapshots, meta.bitmaps_extension
        target = {
            "active-l1": lambda: header.l1_table_offset,
            "active-l2": lambda: l2,
            "refcount-table": lambda: header.refcount_table_offset,
            "refcount-block": lambda: int(meta.refcount_table[0]),
            "snapshot-table": lambda: header.snapshots_offset,
            "inactive-l1": lambda: snapshots[0].l1_table_offset,
            "inactive-l2": lambda: int(meta.snapshot_l1(snapshots[0])[0]) & OFFSET_MASK,
            "bitmap-directory": lambda: extension.directory_offset if extension else 0,
        }[kind]()
        storage.write(l2, (target | COPIED).to_bytes(8, "big"))
    storage.close()


KINDS = (
    "main-header",
    "active-l1",
    "active-l2",
    "refcount-table",
    "refcount-block",
    "snapshot-table",
    "inactive-l1",
    "inactive-l2",
    "bitmap-directory",
)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_metadata_is_guarded_as_in_qemu(kind: str, tmp_path: Path, qemu_img: str, qemu_io: str) -> None:
    ours, theirs = tmp_path / "ours.qcow2", tmp_path / "theirs.qcow2"
    _aim(ours, kind, qemu_img, qemu_io)
    shutil.copy(ours, theirs)
    said: list[str] = []
    told: list[str] = []
    session = Session(said.append, told.append, OpenOptions(extra={"overlap-check": "all"}))
    assert session.open(str(ours))
    assert not session.run("write 0 4k")
    session.close()
    options = f"driver=qcow2,overlap-check=all,file.filename={theirs}"
    done = subprocess.run(
        [qemu_io, "--image-opts", "-c", "write 0 4k", options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "".join(said) == done.stdout
    assert load_metadata(FileStorage.open(theirs)).header.has("corrupt")
    assert load_metadata(FileStorage.open(ours)).header.has("corrupt")
    named = re.search(r"overlaps with ([^)]*)\)", done.stderr)
    if named:  # both name the same kind
        assert named[1] in "".join(told)
    for path in (ours, theirs):  # neither opens for writing any more
        again = subprocess.run([qemu_io, "-c", "write 0 4k", path], capture_output=True, text=True, check=False)
        assert again.returncode == 1
    assert not Session(said.append, told.append).open(str(ours))


# Bitmaps, locks -----------------------------------------------------------------------------------------------------------


def _bits(path: Path) -> list[tuple[str, int, bytes]]:
    from workbench.engine.metadata import Region

    found = []
    with FileStorage.open(path) as storage:
        meta = load_metadata(storage)
        size = meta.header.cluster_size
        for each in meta.bitmap_directory.bitmaps:
            data = b""
            for word in meta.read_words(Region(each.table_offset, each.table_size * 8), each.table_size * 8).tolist():
                place = word & OFFSET_MASK
                data += storage.read(place, size).ljust(size, b"\0") if place else bytes([255 * (word & 1)]) * size
            found.append((each.name, each.flags, data[: each.data_size(meta.header.size)]))
    return found


def test_dirty_bitmaps_record_what_qemu_records(tmp_path: Path, qemu_img: str, qemu_io: str) -> None:
    ours, theirs = tmp_path / "ours.qcow2", tmp_path / "theirs.qcow2"
    subprocess.run([qemu_img, "create", "-q", "-f", "qcow2", ours, "64M"], check=True)
    for words in (
        ["-g", "65536", str(ours), "coarse"],
        ["-g", "512", str(ours), "fine"],
        ["--disable", str(ours), "off"],
    ):
        subprocess.run([qemu_img, "bitmap", "--add", *words], check=True)
    shutil.copy(ours, theirs)
    lines = ["write 100000 70000", "write -z 5M 1M", "discard 10M 200000", "truncate 300M", "write 299M 100"]
    session = Session(lambda _: None, lambda _: None)
    assert session.open(str(ours))
    assert session.run(lines[0])
    assert [flags & 1 for _, flags, _ in _bits(ours)] == [1, 1, 0]  # in use while written
    assert all(session.run(line) for line in lines[1:])
    assert session.close()
    subprocess.run(
        [qemu_io, *(word for line in lines for word in ("-c", line)), theirs], check=True, capture_output=True
    )
    assert _bits(ours) == _bits(theirs)
    subprocess.run([qemu_img, "check", "-q", ours], check=True)


def test_an_image_in_use_is_refused_and_kept_from_others(tmp_path: Path, qemu_img: str, qemu_io: str) -> None:
    path = tmp_path / "disk.qcow2"
    create_file(str(path), CreateOptions(1 << 20))
    with Image.open(path, writable=True):
        done = subprocess.run([qemu_io, "-c", "read 0 1", path], capture_output=True, text=True, check=False)
        assert done.returncode == 1 and "lock" in done.stderr
    holder = subprocess.Popen([qemu_io, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdin is not None
    assert holder.stdout.read(9) == "qemu-io> "
    with pytest.raises(LockedError, match="cannot get the"):
        Image.open(path, writable=True)
    holder.communicate("quit\n")


def test_encrypted_images_are_written(base_images: BaseImages, tmp_path: Path) -> None:
    shape = next(each for each in write_differential.SHAPES if each.name == "luks")
    tally = write_differential.campaign(write_differential.SHAPES.index(shape), 1, 40, tmp_path)
    assert tally.failures == []
