"""Replacing an open image's header so that a power cut leaves the old one or the new one, whole.

Only a sector reaches the disk at once, and a header with its extensions is often longer. So what fits into the first
sector alone, all but the table of feature names, is written there with one write; that is the switch. The rest follows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from formats.qcow2.extensions import Extension
from formats.qcow2.header import Header
from workbench.engine.write.header import compose_header, header_area, with_name
from workbench.units import SECTOR_SIZE, round_up

if TYPE_CHECKING:
    from workbench.engine.write.core import Core


def switch_header(core: Core, header: Header, extensions: Iterable[Extension], backing: bytes | None) -> None:
    """Make this the header, durably. All that it refers to must be durable; `core.begin` was called.

    extensions: those to keep; feature names are written anew.  backing: file name as stored. Raises ArgumentError, with
    nothing written, when it does not fit the first cluster; StorageError.
    """
    kept = list(extensions)
    new, cluster = compose_header(header, kept, backing)
    old = core.file.read(0, len(cluster))
    if cluster[SECTOR_SIZE:] == old[SECTOR_SIZE:]:
        _put(core, 0, cluster[:SECTOR_SIZE])
    elif (bridge := _bridge(core, new, kept, backing, cluster)) is None:
        _put(core, 0, cluster)  # long names in small clusters: one write of all is the best there is
    else:
        place, sector = bridge
        _put(core, place, backing or b"")
        _put(core, 0, sector)
        _put(core, SECTOR_SIZE, cluster[SECTOR_SIZE:place])
        _put(core, 0, cluster[:SECTOR_SIZE])
        _put(core, place, cluster[place:])
    core.header = core.meta.header = new


def _bridge(
    core: Core, new: Header, kept: list[Extension], backing: bytes | None, cluster: bytes
) -> tuple[int, bytes] | None:
    """(where the name waits, a first sector that says all by itself); None when there is no room for them.

    The name waits behind everything that the old header and the new one use.
    """
    was = core.header
    used = (core.meta.area.end, was.backing_file_offset + was.backing_file_size, len(cluster.rstrip(b"\0")))
    place = round_up(max(used) + 1, SECTOR_SIZE)
    header, area = header_area(new, kept, names=False)
    _, sector = with_name(header, area, place, backing)
    if len(sector) > SECTOR_SIZE or place + len(backing or b"") > len(cluster):
        return None
    return place, sector.ljust(SECTOR_SIZE, b"\0")


def _put(core: Core, offset: int, data: bytes) -> None:
    if data:
        core.file.write(offset, data)
        core.file.sync()
