"""`qwb explain`: where a guest offset is stored, what a host offset belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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
    snapshot_option,
)

if TYPE_CHECKING:
    from workbench.engine.address import Place
    from workbench.engine.metadata import Metadata

HELP = """What ADDRESS means in IMAGE.

\b
ADDRESS is one of
  g:12M  guest:0x3000     a guest offset: its way through L1 and L2 table, step by step
  0x50000  4M  c:5        a host offset or cluster: who references it, its refcount
  l1:3  l2:3.17           a table entry: the guest range it stands for, and where that is stored
  rb:0.5  refcount-block:0.5   a refcount: the cluster it counts
  header  l1  luks …      the cluster that a structure starts in

Sizes take k, M, G, T; hexadecimal begins with 0x.
"""


@click.command("explain", help=HELP)
@image_argument
@click.argument("address")
@json_option
@snapshot_option
@force_share_option
@debug_option
@handle_errors
def command(image: Path, address: str, as_json: bool, snapshot: str | None, force_share: bool) -> None:
    from workbench.engine.address import parse_address, resolve
    from workbench.engine.metadata import load_metadata
    from workbench.engine.opening import require_openable

    where = parse_address(address)
    with open_storage(image, force_share=force_share) as storage:
        meta = load_metadata(storage)
        if not meta.is_qcow2:
            require_openable(meta)
        _explain(meta, resolve(meta, where), snapshot, as_json)


def _explain(meta: Metadata, place: Place, snapshot: str | None, as_json: bool) -> None:
    from workbench.engine.explain import explain_guest, explain_host, stored_bytes
    from workbench.render.explain import host_json, host_lines
    from workbench.render.translation import translation_json, translation_lines

    chosen = place.address.snapshot if snapshot is None else meta.snapshot_index(snapshot)
    guest, host = _target(meta, place)
    if guest is not None:
        found = explain_guest(meta, guest, chosen)
        if as_json:
            print_json(translation_json(meta, found))
        else:
            print_lines(line.text for line in translation_lines(meta, found, stored_bytes(meta, found)))
        return
    facts = explain_host(meta, host)
    if as_json:
        print_json(host_json(facts))
    else:
        print_lines(host_lines(meta, facts))


def _target(meta: Metadata, place: Place) -> tuple[int | None, int]:
    """(guest offset or None, host offset): an entry stands for what it describes, everything else for its place."""
    from workbench.engine.tables import TableKind

    if place.guest is not None:
        return place.guest, 0
    table = place.structure.table if place.structure is not None else None
    if table is not None and place.entry is not None:
        described = table.base + place.entry * table.coverage(meta)
        if table.kind in (TableKind.L1, TableKind.L2):
            return described, 0
        if table.kind is TableKind.REFCOUNT_BLOCK:
            return None, described
    assert place.region is not None
    return None, place.region.offset
