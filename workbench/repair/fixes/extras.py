"""What is done only when it is asked for by name (`--fix CODE`): the image works as it is, or something is given up."""

from __future__ import annotations

import os

import numpy as np

from formats.qcow2.bitmaps import build_bitmap
from formats.qcow2.entries import is_compressed, offset_of, zero_entry
from formats.qcow2.extensions import ExtensionType
from formats.qcow2.header import AUTOCLEAR
from workbench.check.problems import Tier
from workbench.repair.fixes.base import Alternative, Rule, codes
from workbench.repair.fixes.compressed import inflates
from workbench.repair.fixes.extensions import add_extension, drop_extension
from workbench.repair.ledger import batches
from workbench.repair.workspace import Workspace

_J = Tier.JUDGEMENT


def run_tail_bits(space: Workspace) -> None:
    """Bitmap bits that stand for nothing behind the end of the disk."""
    extension = space.meta.bitmaps_extension
    if extension is None or not space.meta.header.has("bitmaps"):
        return
    for each in space.meta.bitmap_directory.bitmaps:
        bits = -(-space.meta.header.size // each.granularity) if each.granularity_bits < 64 else 0
        last = bits // 8
        index, inner = divmod(last, space.cluster)
        if index >= each.table_size or each.table_offset >= space.size:
            continue
        offset = offset_of(int(space.words(each.table_offset + index * 8, 1)[0]))
        if not offset or offset >= space.size:
            continue
        data = bytearray(space.read_cluster(offset))
        if bits % 8:
            data[inner] &= (1 << bits % 8) - 1
            inner += 1
        data[inner:] = bytes(len(data) - inner)
        title = f"clear the bits of bitmap {each.name!r} behind the end of the disk"
        space.put(offset, bytes(data), code="BITMAP-TAIL-BITS", title=title, kind="bitmap-data")


def run_in_use(space: Workspace) -> None:
    """Bitmaps left in use: trusted again, or dropped."""
    if not space.meta.header.has("bitmaps"):
        return
    chosen = space.policy.choice("bitmaps-in-use", "keep")
    if chosen == "keep":
        space.note("bitmaps that were not saved properly stay marked so: trust or drop them if you know better")
        return
    if chosen == "trust":
        for each in space.meta.bitmap_directory.bitmaps:
            if each.in_use:
                flags = (each.flags & ~1).to_bytes(4, "big")
                title = f"trust bitmap {each.name!r} again, although it was not saved properly"
                space.put(each.offset + 12, flags, code="BITMAP-IN-USE", title=title, kind="bitmap-flags", tier=_J)
        return
    _drop_in_use(space)


def _drop_in_use(space: Workspace) -> None:
    kept = [each for each in space.meta.bitmap_directory.bitmaps if not each.in_use]
    extension = space.meta.bitmaps_extension
    if extension is None or len(kept) == len(space.meta.bitmap_directory.bitmaps):
        return
    why = {"code": "BITMAP-IN-USE", "title": "drop the bitmaps that were not saved properly"}
    if not kept:
        drop_extension(space, ExtensionType.BITMAPS, tier=Tier.DESTRUCTIVE, **why)
        value = space.meta.header.autoclear_features & ~AUTOCLEAR["bitmaps"].mask
        space.set_header("autoclear_features", value, tier=Tier.DESTRUCTIVE, **why)
        return
    data = b"".join(build_bitmap(each) for each in kept)
    offset = extension.directory_offset
    space.put(offset, data, kind="bitmap", tier=Tier.DESTRUCTIVE, code=why["code"], title=why["title"])
    record = len(kept).to_bytes(4, "big") + bytes(4) + len(data).to_bytes(8, "big") + offset.to_bytes(8, "big")
    add_extension(space, ExtensionType.BITMAPS, record, **why)


def run_backing_format(space: Workspace) -> None:
    """Record the backing file's format where none is recorded: qcow2 by its magic, raw otherwise."""
    name = space.meta.backing_name
    if not name or space.meta.backing_format is not None or "://" in name or name.startswith("json:"):
        return
    path = os.path.join(os.path.dirname(space.base.path), name)
    chosen = space.policy.choice("backing-format", "probe")
    if chosen == "probe":
        try:
            with open(path, "rb") as file:
                chosen = "qcow2" if file.read(4) == b"QFI\xfb" else "raw"
        except OSError:
            space.note(f"the backing file {name!r} cannot be opened, so its format cannot be told")
            return
    title = f"record {chosen} as the backing file's format"
    add_extension(space, ExtensionType.BACKING_FORMAT, chosen.encode(), code="BACKING-FORMAT-MISSING", title=title)


def run_unused_format(space: Workspace) -> None:
    """A backing format without a backing file."""
    if not space.meta.header.backing_file_offset and space.meta.backing_format is not None:
        title = "drop the backing format: there is no backing file"
        drop_extension(space, ExtensionType.BACKING_FORMAT, code="BACKING-FORMAT-UNUSED", title=title)


def run_unreadable(space: Workspace) -> None:
    """Compressed clusters that cannot be decompressed: read as zeros instead of an I/O error. Their bytes go."""
    ledger, geometry = space.ledger, space.geometry
    zero = zero_entry(space.meta.shape)
    for batch in batches(space, ledger.tables):
        for row, column in np.argwhere(is_compressed(batch.words)).tolist():
            if inflates(space, int(batch.words[row, column])):
                continue
            number = int(batch.rows[row])
            place = int(ledger.tables.offset[number]) + column * geometry.l2_entry_size
            guest = int(ledger.tables.index[number]) * geometry.l2_coverage + column * space.cluster
            title = f"let guest offset {guest:#x} read as zeros: its compressed data cannot be read"
            space.put(
                place,
                zero.to_bytes(8, "big"),
                code="COMPRESSED-UNREADABLE",
                title=title,
                kind="l2",
                tier=Tier.DESTRUCTIVE,
                guest=[(guest, space.cluster)],
            )


def run_raw_bit(space: Workspace) -> None:
    """The raw bit of an external data file that cannot be read on its own."""
    header = space.meta.header
    if header.version >= 3 and header.has("data_file_raw") and header.backing_file_offset:
        value = header.autoclear_features & ~AUTOCLEAR["data_file_raw"].mask
        title = "clear the raw data file bit: with a backing file the data file alone is not the disk"
        space.set_header("autoclear_features", value, code="DATA-FILE-RAW-BACKING", title=title, tier=_J)


def run_tail(space: Workspace) -> None:
    """Cut off whole clusters at the end of the file that nobody counts or refers to."""
    ledger = space.ledger
    used = np.flatnonzero((ledger.counts > 0) | (ledger.stored > 0))
    end = (int(used[-1]) + 1) << ledger.cluster_bits if used.size else space.cluster
    if end < space.size:
        tail = space.size - end
        last = space.read(end, min(tail, 512))
        space.set_length(end)
        space.log_length(
            end,
            tail,
            last,
            code="FILE-TAIL-UNUSED",
            title=f"cut {tail} unused bytes off the file",
            tier=Tier.DESTRUCTIVE,
        )


def run_extend(space: Workspace) -> None:
    """Fill the last cluster of the file with zeros."""
    if space.size % space.cluster:
        end = space.end
        old = space.size
        space.set_length(end)
        space.log_length(
            old,
            end - old,
            b"",
            code="REGION-BEYOND-EOF",
            title=f"fill the last cluster with {end - old} zeros",
            tier=Tier.SAFE,
        )


RULES = (
    Rule("extend-file", "Fill the last cluster", codes("REGION-BEYOND-EOF"), Tier.SAFE, run_extend, on_request=True),
    Rule(
        "bitmap-tail",
        "Clear bitmap bits behind the disk",
        codes("BITMAP-TAIL-BITS"),
        Tier.SAFE,
        run_tail_bits,
        on_request=True,
    ),
    Rule("raw-bit", "Clear the raw data file bit", codes("DATA-FILE-RAW-BACKING"), _J, run_raw_bit),
    Rule(
        "bitmaps-in-use",
        "Decide about bitmaps left in use",
        codes("BITMAP-IN-USE"),
        _J,
        run_in_use,
        alternatives=(
            Alternative("keep", "Leave them in use", "nobody trusts them; QEMU tools can remove them"),
            Alternative("trust", "Trust them again", "a backup may miss what was written before the crash"),
            Alternative("drop", "Drop them", "the next backup must be a full one", Tier.DESTRUCTIVE),
        ),
        on_request=True,
    ),
    Rule(
        "backing-format",
        "Record the backing format",
        codes("BACKING-FORMAT-MISSING"),
        _J,
        run_backing_format,
        alternatives=(
            Alternative("probe", "As its first bytes say", "a guest that wrote a qcow2 header into a raw disk decides"),
            Alternative("raw", "raw", "whatever it holds is taken as it is"),
            Alternative("qcow2", "qcow2", "it is opened as a qcow2 image"),
        ),
        on_request=True,
    ),
    Rule(
        "backing-format-unused",
        "Drop an unused backing format",
        codes("BACKING-FORMAT-UNUSED"),
        _J,
        run_unused_format,
        on_request=True,
    ),
    Rule(
        "unreadable",
        "Zero unreadable compressed clusters",
        codes("COMPRESSED-UNREADABLE"),
        Tier.DESTRUCTIVE,
        run_unreadable,
        on_request=True,
    ),
    Rule("trim-tail", "Cut off the unused end", codes("FILE-TAIL-UNUSED"), Tier.DESTRUCTIVE, run_tail, on_request=True),
)
