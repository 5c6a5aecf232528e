"""`qwb snapshot`: list, create, apply and delete internal snapshots, with qemu-img's options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from workbench.cli.common import (
    debug_option,
    force_share_option,
    handle_errors,
    image_argument,
    json_option,
    mind_interrupted,
    open_storage,
    print_json,
    read_secret,
    secret_option,
)
from workbench.errors import ArgumentError


@click.command(name="snapshot")
@image_argument
@click.option("-l", "--list", "listing", is_flag=True, help="List the snapshots (what happens without any option).")
@click.option("-c", "--create", "create", metavar="NAME", help="Keep the disk as it is now under NAME.")
@click.option("-a", "--apply", "apply", metavar="NAME", help="Make the disk what it was at snapshot NAME (or ID).")
@click.option("-d", "--delete", "delete", metavar="NAME", help="Forget snapshot NAME (or ID) and free its clusters.")
@click.option(
    "--discard", is_flag=True, help="With -a and -d: punch holes for freed clusters (they cannot be recovered)."
)
@force_share_option
@secret_option
@json_option
@debug_option
@handle_errors
def command(
    image: Path,
    listing: bool,
    create: str | None,
    apply: str | None,
    delete: str | None,
    discard: bool,
    force_share: bool,
    secret_file: Path | None,
    as_json: bool,
) -> None:
    """List the internal snapshots of IMAGE, or create, apply or delete one."""
    wanted = [each for each in (create, apply, delete) if each is not None]
    if len(wanted) + listing > 1:
        raise ArgumentError("one of -l, -c, -a and -d at a time")
    if wanted:
        mind_interrupted(image, writable=True)
        _change(image, create, apply, delete, discard=discard, secret=read_secret(secret_file))
        if as_json:
            print_json(_listed(image, force_share=False))
        return
    rows = _listed(image, force_share=force_share)
    if as_json:
        print_json(rows)
    else:
        _show(rows)


def _change(
    image: Path, create: str | None, apply: str | None, delete: str | None, *, discard: bool, secret: bytes | None
) -> None:
    from workbench.engine.gate import no_backing
    from workbench.engine.image import Image
    from workbench.engine.snapshots import apply_snapshot, create_snapshot, delete_snapshot

    options = {"discard": "unmap" if discard else "ignore"}
    with Image.open(image, writable=True, gate=no_backing, secret=secret, options=options) as opened:
        if create is not None:
            create_snapshot(opened, create)
        elif apply is not None:
            apply_snapshot(opened, apply)
        elif delete is not None:
            delete_snapshot(opened, delete)


def _listed(image: Path, *, force_share: bool) -> list[dict[str, Any]]:
    """The snapshots in qemu-img's JSON form."""
    from workbench.engine.info import image_info
    from workbench.engine.metadata import load_metadata

    with open_storage(image, force_share=force_share) as storage:
        found: list[dict[str, Any]] = image_info(load_metadata(storage), str(image)).get("snapshots", [])
    return found


def _show(rows: list[dict[str, Any]]) -> None:
    from datetime import UTC, datetime

    from workbench.render.text import printable
    from workbench.units import format_size

    if not rows:
        return
    click.echo("Snapshot list:")
    click.echo(f"{'ID':<10}{'TAG':<18}{'VM SIZE':>10}{'DATE':>21}{'VM CLOCK':>15}")
    for row in rows:
        moment = datetime.fromtimestamp(row["date-sec"], UTC).strftime("%Y-%m-%d %H:%M:%S")
        clock = row["vm-clock-sec"]
        shown = f"{clock // 3600:02d}:{clock // 60 % 60:02d}:{clock % 60:02d}.{row['vm-clock-nsec'] // 1000000:03d}"
        ident, name = printable(row["id"]), printable(row["name"])
        click.echo(f"{ident:<10}{name:<18}{format_size(row['vm-state-size']):>10}{moment:>21}{shown:>15}")
