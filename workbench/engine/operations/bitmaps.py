"""Persistent dirty bitmaps added, removed, cleared, switched and merged (QEMU: qcow2-bitmap.c, `qemu-img bitmap`).

New bits, tables and the new directory go into new clusters; what was there before becomes free when the header leads to
the new directory. So a cut leaves the old bitmaps or the new ones, and leaks at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Final

from formats.qcow2 import limits
from formats.qcow2.bitmaps import Bitmap, build_bitmap, entry_size
from formats.qcow2.entries import PointerKind, PointerTable, offset_of, read_pointer
from formats.qcow2.extensions import BitmapsExtension, Extension, ExtensionType, build_bitmaps_extension
from formats.qcow2.header import AUTOCLEAR
from workbench.engine.bitmap_bits import BitmapBits, is_zero, stored_bits
from workbench.engine.metadata import Metadata
from workbench.engine.write.header_switch import switch_header
from workbench.errors import ArgumentError, UnsupportedError
from workbench.units import div_round_up, is_power_of_two

if TYPE_CHECKING:
    from workbench.engine.image import Image
    from workbench.engine.write.core import Core

_BIT: Final = AUTOCLEAR["bitmaps"].mask
_AUTO: Final = 2
_TYPE: Final = 1
_LEAST_DEFAULT: Final = 4096
_MOST_DEFAULT: Final = 65536


class Action(Enum):
    """What can be done with a bitmap; the value is qemu-img's word."""

    ADD = "add"
    REMOVE = "remove"
    REMOVE_ALL = "remove-all"
    CLEAR = "clear"
    ENABLE = "enable"
    DISABLE = "disable"
    MERGE = "merge"


@dataclass(frozen=True, slots=True)
class Step:
    """One action. granularity: of a bitmap to add, in bytes; None for the default.  source: name of the bitmap to merge."""

    action: Action
    granularity: int | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class BitmapState:
    """A bitmap as it is stored. granularity: guest bytes for each bit.  inconsistent: it was not saved properly.

    ranges: dirty guest ranges [start, end) in bytes; empty for an inconsistent one.  stored: bytes of its table and bits
    in the file.
    """

    name: str
    granularity: int
    enabled: bool
    inconsistent: bool
    ranges: tuple[tuple[int, int], ...]
    stored: int

    @property
    def dirty(self) -> int:
        """Dirty guest bytes."""
        return sum(end - start for start, end in self.ranges)


def list_bitmaps(meta: Metadata, name: str | None = None) -> list[BitmapState]:
    """All bitmaps of an image, or the one called `name`. ArgumentError when there is none of that name."""
    found = [_state(meta, each) for each in _entries(meta) if name is None or each.name == name]
    if name is not None and not found:
        raise ArgumentError(f"Dirty bitmap '{name}' not found", path=meta.storage.path)
    return found


def _state(meta: Metadata, entry: Bitmap) -> BitmapState:
    assert meta.geometry is not None
    bits = stored_bits(meta, entry, meta.header.size)
    clusters = meta.geometry.clusters(entry.table_size * 8) + sum(1 for word in bits.table if offset_of(word))
    ranges = () if entry.in_use else tuple(bits.ranges())
    return BitmapState(
        entry.name, entry.granularity, entry.auto, entry.in_use, ranges, clusters * meta.geometry.cluster_size
    )


def change_bitmaps(image: Image, name: str, steps: list[Step], source: Metadata | None = None) -> None:
    """Do `steps` in order with the bitmap `name` of an image that is open for writing. source: the image whose bitmaps
    are merged, default the same.

    When one cannot be done, those before it are done, as in QEMU, and ArgumentError or UnsupportedError says why.
    """
    writer = image.writer
    with writer.bitmaps_at_rest() as core:
        editor = _Editor(core, source)
        try:
            for step in steps:
                with _telling(step, name):
                    editor.do(name, step)
        finally:
            editor.store()


@contextmanager
def _telling(step: Step, name: str) -> Iterator[None]:
    """QEMU's beginning of every such error."""
    what = "remove-all" if step.action is Action.REMOVE_ALL else f"{step.action.value} on bitmap {name}"
    try:
        yield
    except (ArgumentError, UnsupportedError) as error:
        error.what = f"Operation {what} failed: {error.what}"
        raise


@dataclass(eq=False, slots=True)
class _Draft:
    """A bitmap of the new directory. old: as it is stored, None for a new one.  bits: None while nobody looked at them."""

    entry: Bitmap
    old: Bitmap | None = None
    bits: BitmapBits | None = field(default=None)


class _Editor:
    """Bitmaps changed in memory, then stored at once."""

    def __init__(self, core: Core, source: Metadata | None) -> None:
        self._core = core
        self._size = core.header.size
        self._source = source
        start = core.header.backing_file_offset
        self._backing = core.file.read(start, core.header.backing_file_size) if start else None
        self._before = _entries(core.meta)
        self._drafts = [_Draft(each, each) for each in self._before]
        self._taken: list[tuple[int, int]] = []
        """(host offset, length) of new clusters that nothing refers to yet."""

    def do(self, name: str, step: Step) -> None:
        match step.action:
            case Action.ADD:
                self._add(name, step.granularity)
            case Action.REMOVE:
                self._drafts.remove(self._find(name))
            case Action.REMOVE_ALL:
                self._drafts.clear()
            case Action.CLEAR:
                self._bits(self._usable(name)).clear()
            case Action.ENABLE | Action.DISABLE:
                draft = self._usable(name)
                flags = draft.entry.flags & ~_AUTO | (_AUTO if step.action is Action.ENABLE else 0)
                draft.entry = replace(draft.entry, flags=flags)
            case Action.MERGE:
                self._merge(name, step.source)

    def store(self) -> None:
        """Make the image have what the drafts say, durably. Nothing is written when that is what it has."""
        core, drafts = self._core, self._drafts
        if all(not _changed(each) for each in drafts) and [each.old for each in drafts] == self._before:
            return
        gone: list[tuple[int, int]] = []
        kept = {each.old.offset for each in drafts if each.old is not None}
        for entry in self._before:
            if entry.offset not in kept:
                gone += self._places(entry, None)
        try:
            for draft in drafts:
                if draft.old is None or (draft.bits is not None and draft.bits.changed):
                    gone += self._store_bits(draft)
            self._store_directory(gone)
        except BaseException:
            if core.dead is None:
                for place, length in self._taken:
                    core.allocator.release(place, length)
            raise

    # -- inside

    def _find(self, name: str) -> _Draft:
        found = next((each for each in self._drafts if each.entry.name == name), None)
        if found is None:
            raise ArgumentError(f"Dirty bitmap '{name}' not found", path=self._core.path)
        return found

    def _usable(self, name: str) -> _Draft:
        draft = self._find(name)
        _require_consistent(draft.entry, self._core.path)
        return draft

    def _bits(self, draft: _Draft) -> BitmapBits:
        if draft.bits is None:
            draft.bits = stored_bits(self._core.meta, draft.entry, self._size, self._core.file.read)
        return draft.bits

    def _add(self, name: str, granularity: int | None) -> None:
        core = self._core
        chosen = granularity or min(max(core.cluster_size, _LEAST_DEFAULT), _MOST_DEFAULT)
        length = len(_raw(name))
        chunks = div_round_up(div_round_up(self._size, chosen), core.cluster_size * 8)
        directory = sum(_size_in_directory(each.entry) for each in self._drafts) + entry_size(0, length)
        refusals = (
            (not name, "Bitmap name cannot be empty"),
            (chosen < 512 or not is_power_of_two(chosen), "Granularity must be power of 2 and at least 512"),
            (any(each.entry.name == name for each in self._drafts), f"Bitmap already exists: {name}"),
            (core.header.version < 3, "Cannot store dirty bitmaps in qcow2 v2 files"),
            (chosen > 1 << limits.MAX_BITMAP_GRANULARITY_BITS, "Granularity exceeds maximum (2147483648 bytes)"),
            (
                div_round_up(div_round_up(self._size, chosen), 8) > limits.MAX_BITMAP_PHYSICAL_SIZE
                or chunks > limits.MAX_BITMAP_TABLE_ENTRIES,
                "Too much space will be occupied by the bitmap. Use larger granularity",
            ),
            (
                length > limits.MAX_BITMAP_NAME,
                f"Name length exceeds maximum ({limits.MAX_BITMAP_NAME} characters)",
            ),
            (len(self._drafts) >= limits.MAX_BITMAPS, "Maximum number of persistent bitmaps is already reached"),
            (directory > limits.MAX_BITMAP_DIRECTORY_SIZE, "Not enough space in the bitmap directory"),
            (self._size == 0, "a disk without a size has nothing to record"),
        )
        for bad, words in refusals:
            if bad:
                raise ArgumentError(words, path=core.path)
        bits = chosen.bit_length() - 1
        entry = Bitmap(0, 0, chunks, _AUTO, _TYPE, bits, b"", name, b"")
        self._drafts.append(_Draft(entry, None, BitmapBits(core.file.read, core.shape, [0] * chunks, bits, self._size)))

    def _merge(self, name: str, source: str) -> None:
        draft = self._find(name)
        if self._source is None:
            other = self._find(source)
            entry, size = other.entry, self._size
            path = self._core.path
        else:
            found = next((each for each in _entries(self._source) if each.name == source), None)
            if found is None:
                raise ArgumentError(f"Dirty bitmap '{source}' not found", path=self._source.storage.path)
            entry, size, path = found, self._source.header.size, self._source.storage.path
        _require_consistent(draft.entry, self._core.path)
        _require_consistent(entry, path)
        if size != self._size:
            raise ArgumentError(
                f"Bitmaps are of different sizes (destination size is {self._size}, source size is {size})"
                " and can't be merged",
                path=path,
            )
        bits = self._bits(other) if self._source is None else stored_bits(self._source, entry, size)
        self._bits(draft).merge(bits)

    def _store_bits(self, draft: _Draft) -> list[tuple[int, int]]:
        """Bits and table in new clusters. Returns (host offset, length) of what they replace."""
        bits = self._bits(draft)
        gone = self._places(draft.old, bits.changed) if draft.old is not None else []
        table = list(bits.table)
        for number in sorted(bits.changed):
            table[number] = 0
            if not is_zero(bits.chunks[number]):
                table[number] = self._write_new(bytes(bits.chunks[number]), "dirty bitmap data")
        place = self._write_new(b"".join(word.to_bytes(8, "big") for word in table), "a bitmap table")
        draft.entry = replace(draft.entry, table_offset=place, table_size=len(table))
        return gone

    def _places(self, entry: Bitmap, only: set[int] | None) -> list[tuple[int, int]]:
        """Clusters of an entry's table and bits; `only`: of those chunks."""
        core = self._core
        table = stored_bits(core.meta, entry, self._size).table
        words = [word for number, word in enumerate(table) if only is None or number in only]
        found = [read_pointer(word, PointerTable.BITMAP, core.shape) for word in words]
        sound = [each.start for each in found if each.kind is PointerKind.CLUSTER and not each.faults]
        return [(entry.table_offset, entry.table_size * 8), *((each, core.cluster_size) for each in sound)]

    def _write_new(self, data: bytes, what: str) -> int:
        """New clusters with `data`, zeros behind it; their host offset."""
        core = self._core
        place = core.allocator.allocate(len(data))
        self._taken.append((place, len(data)))
        core.guard.check(what, place, len(data))
        core.file.write(place, data.ljust(core.geometry.clusters(len(data)) * core.cluster_size, b"\0"))
        return place

    def _store_directory(self, gone: list[tuple[int, int]]) -> None:
        """The new directory, made valid by the header; then what it replaces is given back."""
        core = self._core
        old = core.meta.bitmaps_extension if core.header.has("bitmaps") else None
        if old is not None:
            gone.append((old.directory_offset, old.directory_size))
        extensions = [each for each in core.meta.extensions if each.type != ExtensionType.BITMAPS]
        features = core.header.autoclear_features & ~_BIT
        if self._drafts:
            data = b"".join(build_bitmap(each.entry) for each in self._drafts)
            place = self._write_new(data, "the bitmap directory")
            core.references_changed()
            core.settle_references()
            core.file.sync()
            record = build_bitmaps_extension(BitmapsExtension(len(self._drafts), 0, len(data), place))
            extensions.append(Extension(0, ExtensionType.BITMAPS, record))
            features |= _BIT
        self._taken.clear()
        switch_header(core, replace(core.header, autoclear_features=features), extensions, self._backing)
        for offset, length in gone:
            core.allocator.free(offset, length)
        core.flush()


def _changed(draft: _Draft) -> bool:
    return draft.entry != draft.old or (draft.bits is not None and bool(draft.bits.changed))


def _entries(meta: Metadata) -> list[Bitmap]:
    """The bitmaps that the autoclear bit vouches for."""
    usable = meta.header.has("bitmaps") and meta.bitmaps_extension is not None
    return list(meta.bitmap_directory.bitmaps) if usable else []


def _require_consistent(entry: Bitmap, path: str) -> None:
    if entry.in_use:
        raise UnsupportedError(
            f"Bitmap '{entry.name}' is inconsistent and cannot be used", path=path, hint="it can only be removed"
        )


def _raw(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _size_in_directory(entry: Bitmap) -> int:
    return entry_size(len(entry.extra_data), len(_raw(entry.name)))
