"""`qwb info`: what an image is."""

from __future__ import annotations

from pathlib import Path

import click

from workbench.cli.common import (
    complain,
    debug_option,
    force_share_option,
    handle_errors,
    image_argument,
    json_option,
    open_storage,
    print_json,
    print_lines,
)


@click.command("info", epilog="Exit code: 0; 1 when the file is no qcow2 image or the backing chain is broken.")
@image_argument
@json_option
@click.option("--backing-chain", is_flag=True, help="Show every backing file too.")
@force_share_option
@debug_option
@handle_errors
def command(image: Path, as_json: bool, backing_chain: bool, force_share: bool) -> None:
    """What IMAGE is: size, features, state, snapshots, bitmaps, encryption, and what is wrong with its header.

    A damaged image is shown too, with its faults. --json is a superset of `qemu-img info --output=json`.
    """
    from workbench.engine.info import chain_info, image_info
    from workbench.engine.metadata import load_metadata
    from workbench.engine.opening import require_openable
    from workbench.storage.file import FileStorage

    with open_storage(image, force_share=force_share) as storage:
        meta = load_metadata(storage)
        if not meta.is_qcow2 or meta.foreign is not None:
            require_openable(meta)  # raises: says that it is empty, or what it is
        chain = chain_info(meta, str(image), FileStorage.open) if backing_chain else [image_info(meta, str(image))]
    if as_json:
        print_json(chain if backing_chain else chain[0])
    else:
        from workbench.render.info import info_lines

        lines: list[str] = []
        for each in chain:
            lines += [*([""] if lines else []), *info_lines(each)]
        print_lines(lines)
    broken = next((each["backing-error"] for each in chain if "backing-error" in each), None)
    if broken:
        complain(f"{image}: the backing chain is broken: {broken}")
        raise click.exceptions.Exit(1)
