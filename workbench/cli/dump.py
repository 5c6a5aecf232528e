"""`qwb dump`: any metadata structure, byte by byte, with its meaning."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from workbench.cli.common import (
    debug_option,
    force_share_option,
    handle_errors,
    image_argument,
    json_option,
    open_storage,
    print_json,
    print_lines,
)
from workbench.errors import ArgumentError

if TYPE_CHECKING:
    from workbench.engine.address import Place
    from workbench.engine.metadata import Metadata
    from workbench.engine.structures import Structure

LINES_IN_OVERVIEW: Final = 4096
RECORDS_IN_OVERVIEW: Final = 256

HELP = """Any structure of IMAGE: host offset, raw bytes, value, meaning.

\b
PART is one of
  header  extensions  backing-name  luks  snapshots  bitmaps
  l1  l1:N  l2:N  l2:N.M            L1 table, its entry N; L2 table N, its entry M
  refcount-table  refcount-block:N  rt:N  rb:N  rb:N.M
  snapshot:N  snapshot:N/l1  snapshot:N/l2:M
  bitmap:N  bitmap-table:N  extension:N
  cluster:N  c:N  0xOFFSET          the bytes of a cluster, in hex
  all                               everything, every L2 table and refcount block too
Without PART: an overview, all but the L2 tables and refcount blocks; very long tables and lists are cut there.

Entries that say the same, and clusters that lie side by side, are folded into one line (--full: every entry alone).
"""


@click.command("dump", help=HELP)
@image_argument
@click.argument("part", required=False)
@json_option
@click.option("--full", is_flag=True, help="One line for every table entry.")
@click.option("--no-docs", is_flag=True, help="Leave the meaning of fields out.")
@click.option("--width", type=click.IntRange(40), help="Columns to use (default: the terminal's).")
@force_share_option
@debug_option
@handle_errors
def command(
    image: Path, part: str | None, as_json: bool, full: bool, no_docs: bool, width: int | None, force_share: bool
) -> None:
    from workbench.engine.metadata import load_metadata

    with open_storage(image, force_share=force_share) as storage:
        meta = load_metadata(storage)
        dump = _Dump(meta, full=full, docs=not no_docs, width=width or shutil.get_terminal_size((150, 24)).columns)
        if not meta.is_qcow2 and (part is None or not part[:1].isdigit()):
            from workbench.engine.opening import require_openable

            require_openable(meta)
        places = list(dump.structures()) if part in (None, "all") else [dump.find(part or "")]
        dump.overview = part is None
        if as_json:
            _json(dump, places, everything=part == "all", single=part not in (None, "all"))
        else:
            print_lines(dump.text(places, everything=part == "all"))


def _json(dump: _Dump, places: list[Place], *, everything: bool, single: bool) -> None:
    values = dump.json(places, everything=everything)
    if single:
        print_json(next(values))
        return
    import json

    # One structure at a time: "all" of a big image must not be held in memory.
    out = sys.stdout
    out.write("[")
    for index, value in enumerate(values):
        out.write((",\n" if index else "\n") + json.dumps(value, indent=4))
    out.write("\n]\n")
    out.flush()


class _Dump:
    """What to print of which image, and how."""

    def __init__(self, meta: Metadata, *, full: bool, docs: bool, width: int) -> None:
        self.meta, self.full, self.docs, self.width = meta, full, docs, width
        self.color = sys.stdout.isatty()
        self.overview = False
        self.shown: dict[tuple[str, int], str] = {}

    def find(self, part: str) -> Place:
        """The place that PART names; a guest offset is the data cluster's business, so it is refused here."""
        from workbench.engine.address import parse_address, resolve

        place = resolve(self.meta, parse_address(part))
        if place.region is None:
            raise ArgumentError(
                f"{part!r} is a guest offset", hint=f"see `qwb explain {self.meta.storage.path} {part}`"
            )
        return place

    def structures(self) -> Iterator[Place]:
        from workbench.engine.address import Address, AddressKind, Place
        from workbench.engine.structures import structures

        for each in structures(self.meta).children():
            yield Place(Address(AddressKind.NAMED, name=each.path), each.region, each)

    # text

    def text(self, places: list[Place], *, everything: bool) -> Iterator[str]:
        """Sections one after the other."""
        for index, place in enumerate(places):
            if index:
                yield ""
            if place.structure is None:
                yield from self._bytes(place)
            elif place.entry is not None:
                yield from self._entry(place)
            else:
                yield from self._structure(place.structure, everything)

    def _structure(self, what: Structure, everything: bool) -> Iterator[str]:
        from workbench.engine.structures import Part
        from workbench.render.entries import table_lines
        from workbench.render.sizes import count, span
        from workbench.render.text import printable
        from workbench.render.tree import tree_lines

        region = what.region
        beyond = "" if region.end <= self.meta.file_size else "  BEYOND THE END OF THE FILE"
        amount = count(what.table.entries, "entry") if what.table else count(region.length, "byte")
        yield printable(f"== {what.title}  [{what.path}]  {span(region.offset, region.length)}, {amount}{beyond}")
        if other := self._repeated(what):
            yield f"   the same table as {other}"
        elif what.table is not None:
            lines = table_lines(self.meta, what.table, fold=not self.full)
            yield from islice(lines, LINES_IN_OVERVIEW if self.overview else None)
            if self.overview and next(lines, None) is not None:
                yield f"   … and more: `qwb dump IMAGE {what.path}` shows all of it"
        elif (node := what.annotate()) is not None:
            yield from tree_lines(node, width=self.width, docs=self.docs, color=self.color)
        if what.part in (Part.SNAPSHOTS, Part.BITMAPS, Part.EXTENSIONS) or (everything and what.expandable()):
            for child in self._children(what):
                yield ""
                yield from self._structure(child, everything)
            if self.overview and what.child_count() > RECORDS_IN_OVERVIEW:
                yield ""
                yield f"   … and {what.child_count() - RECORDS_IN_OVERVIEW} more: `qwb dump IMAGE {what.path}` shows them all"

    def _repeated(self, what: Structure) -> str | None:
        """The structure under which this very table has been shown already (snapshots share L2 tables)."""
        if what.table is None:
            return None
        earlier = self.shown.setdefault((what.part.value, what.region.offset), what.path)
        return earlier if earlier != what.path else None

    def _children(self, what: Structure) -> Iterator[Structure]:
        """Children in portions: an L1 table may have millions."""
        start, step = 0, 1 << 14
        while portion := what.children(start, step):
            yield from portion[: RECORDS_IN_OVERVIEW if self.overview else None]
            if self.overview:
                return
            start += step

    def _entry(self, place: Place) -> Iterator[str]:
        from workbench.engine.tables import TableKind
        from workbench.render.entries import table_lines
        from workbench.render.tree import tree_lines

        assert place.structure is not None and place.structure.table is not None and place.entry is not None
        table = place.structure.table
        yield f"== {table.name}, entry {place.entry}"
        yield from table_lines(self.meta, table, first=place.entry, length=1)
        if table.kind is not TableKind.REFCOUNT_BLOCK and place.entry < table.readable(self.meta):
            node = table.annotate(self.meta, place.entry, 1)
            yield from tree_lines(node, width=self.width, docs=self.docs, color=self.color)

    def _bytes(self, place: Place) -> Iterator[str]:
        from workbench.engine.owners import owners_of
        from workbench.render.explain import owner_words
        from workbench.render.hexdump import hexdump
        from workbench.render.sizes import span

        where, data = self._read(place)
        yield f"== {place.address}  {span(where, len(data))}"
        if self.meta.geometry is not None:
            for owner in owners_of(self.meta, where // self.meta.geometry.cluster_size, limit=8):
                yield f"   belongs to: {owner_words(owner)}"
        if not data:
            yield "the file has no bytes here: it ends at " + f"{self.meta.file_size:#x}"
        yield from hexdump(data, where, fold=not self.full)

    def _read(self, place: Place) -> tuple[int, bytes]:
        """(start, bytes) of the cluster; a host offset shows the rest of its cluster."""
        assert place.region is not None
        size = self.meta.geometry.cluster_size if self.meta.geometry else 4096
        start = place.region.offset
        length = place.region.length if place.region.length > 1 else size - start % size
        return start, self.meta.storage.read(start, length) if start < self.meta.file_size else b""

    # JSON

    def json(self, places: list[Place], *, everything: bool) -> Iterator[dict[str, Any]]:
        """One object a structure."""
        for place in places:
            if place.structure is None:
                yield self._bytes_json(place)
            elif place.entry is not None and place.structure.table is not None:
                yield self._table_json(place.structure, place.entry, 1)
            else:
                yield from self._structure_json(place.structure, everything)

    def _structure_json(self, what: Structure, everything: bool) -> Iterator[dict[str, Any]]:
        from workbench.engine.structures import Part

        deeper = what.part in (Part.SNAPSHOTS, Part.BITMAPS, Part.EXTENSIONS)
        out = self._table_json(what, 0, None) if what.table is not None else self._record_json(what)
        if deeper:
            out["children"] = [self._record_json(child) for child in self._children(what)]
        yield out
        if everything and what.expandable():
            for child in self._children(what):
                if not deeper:
                    yield from self._structure_json(child, everything)
                else:
                    for below in self._children(child):
                        yield from self._structure_json(below, everything)

    def _head(self, what: Structure) -> dict[str, Any]:
        return {"path": what.path, "title": what.title, "offset": what.region.offset, "length": what.region.length}

    def _record_json(self, what: Structure) -> dict[str, Any]:
        from workbench.render.jsonify import node_to_json

        node = what.annotate()
        out = self._head(what)
        if node is not None:
            out["tree"] = node_to_json(node, docs=self.docs)
        return out

    def _table_json(self, what: Structure, first: int, length: int | None) -> dict[str, Any]:
        from workbench.render.entries import run_json

        assert what.table is not None
        if length is None and (other := self._repeated(what)):
            return self._head(what) | {"entries": what.table.entries, "same-as": other}
        runs = what.table.runs(self.meta, first, length, fold=not self.full)
        shown = [
            run_json(self.meta, what.table, run) for run in islice(runs, LINES_IN_OVERVIEW if self.overview else None)
        ]
        more = {"cut": True} if self.overview and next(runs, None) is not None else {}
        return self._head(what) | {"entries": what.table.entries, "runs": shown} | more

    def _bytes_json(self, place: Place) -> dict[str, Any]:
        from workbench.engine.owners import owners_of
        from workbench.render.explain import owner_json

        where, data = self._read(place)
        out: dict[str, Any] = {"path": str(place.address), "offset": where, "length": len(data), "raw": data.hex()}
        if self.meta.geometry is not None:
            found = owners_of(self.meta, where // self.meta.geometry.cluster_size, limit=1000)
            out["owners"] = [owner_json(owner) for owner in found]
        return out
