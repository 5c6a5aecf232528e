"""Header extensions: overrun, doubled, out of place; and the backing file name behind them."""

from __future__ import annotations

import os
from typing import Final

from formats.qcow2 import limits
from formats.qcow2.extensions import (
    EXTENSION_NAMES,
    Extension,
    ExtensionArea,
    ExtensionType,
    build_extensions,
    parse_extensions,
)
from workbench.check.problems import Tier
from workbench.repair.fixes.base import Rule, codes
from workbench.repair.workspace import Workspace
from workbench.units import round_up

_FIXED_LENGTH: Final = {ExtensionType.BITMAPS: 24, ExtensionType.ENCRYPTION: 16}


def write_area(
    space: Workspace, extensions: list[Extension], *, code: str, title: str, tier: Tier = Tier.JUDGEMENT
) -> bool:
    """Write the whole extension area anew; the backing file name moves when it must. False when there is no room."""
    meta = space.meta
    start, area = meta.header_length, build_extensions(extensions)
    name = meta.backing_name
    raw = name.encode("utf-8", "surrogateescape") if name else b""
    name_at = meta.header.backing_file_offset
    if raw and name_at < start + len(area):
        name_at = start + len(area)
    if start + len(area) + len(raw) > space.cluster:
        return False
    end = max(min(meta.area.end, len(meta.head)), start + len(area))
    if raw:
        end = max(end, meta.header.backing_file_offset + len(raw), name_at + len(raw))
    body = bytearray(max(min(end, space.cluster), start + len(area)) - start)
    body[: len(area)] = area
    if raw:
        body[name_at - start : name_at - start + len(raw)] = raw
    space.put(start, bytes(body), code=code, title=title, kind="header", tier=tier)
    if raw and name_at != meta.header.backing_file_offset:
        space.set_header("backing_file_offset", name_at, code=code, title="the backing file name moved")
    return True


def add_extension(space: Workspace, kind: int, data: bytes, *, code: str, title: str) -> bool:
    """Put one extension in (replacing those of its type)."""
    kept = [each for each in space.meta.extensions if each.type != kind]
    return write_area(space, [*kept, Extension(0, kind, data)], code=code, title=title)


def drop_extension(space: Workspace, kind: int, *, code: str, title: str, tier: Tier = Tier.JUDGEMENT) -> bool:
    """Take the extensions of one type out."""
    return write_area(
        space, [each for each in space.meta.extensions if each.type != kind], code=code, title=title, tier=tier
    )


def run_backing(space: Workspace) -> None:
    """Backing file name: offset and length from what stands in the header cluster, format from the file itself."""
    meta, header, head = space.meta, space.meta.header, space.meta.head
    if not header.backing_file_offset:
        return
    if header.backing_file_offset >= space.cluster:
        area = parse_extensions(head, meta.header_length, len(head))
        raw = head[area.end : area.end + header.backing_file_size]
        if area.ended and raw and len(raw) == header.backing_file_size and _is_name(raw):
            space.set_header(
                "backing_file_offset",
                area.end,
                code="BACKING-OFFSET",
                title=f"point at the backing file name {raw.decode()!r}",
                tier=Tier.JUDGEMENT,
                guest=[(0, header.size)],
            )
        elif not header.backing_file_size or not any(head[area.end : area.end + 1024]):
            title = "clear offset and length of a backing file name that is not there"
            space.put(8, bytes(12), code="BACKING-OFFSET", title=title, kind="header", tier=Tier.JUDGEMENT)
            return
        else:
            space.note("the backing file name is lost: the image cannot tell what it was based on")
    _moved_name(space)
    header = space.meta.header
    room = min(limits.MAX_BACKING_NAME, space.cluster - header.backing_file_offset)
    if header.backing_file_offset < space.cluster and not 0 < header.backing_file_size <= room:
        raw = head[header.backing_file_offset : header.backing_file_offset + room].split(b"\0")[0]
        if _is_name(raw):
            code = "BACKING-NAME-TOO-LONG"
            space.set_header(
                "backing_file_size",
                len(raw),
                code=code,
                title=f"set the length of the backing file name {raw.decode()!r}",
                tier=Tier.JUDGEMENT,
                guest=[(0, header.size)],
            )
    if space.rows.has("BACKING-FORMAT-TOO-LONG"):
        _backing_format(space)


def _moved_name(space: Workspace) -> None:
    """The name follows the extensions; an offset beside it names a file that does not exist."""
    meta, header = space.meta, space.meta.header
    name, area = meta.backing_name, parse_extensions(meta.head, meta.header_length, len(meta.head))
    if (
        not name
        or not area.ended
        or header.backing_file_offset in (0, area.end)
        or header.backing_file_offset >= space.cluster
    ):
        return
    folder = os.path.dirname(space.base.path)
    raw = meta.head[area.end : area.end + header.backing_file_size]
    if (
        not _is_name(raw)
        or os.path.exists(os.path.join(folder, name))
        or not os.path.exists(os.path.join(folder, raw.decode()))
    ):
        return
    title = f"point at the backing file name {raw.decode()!r}"
    space.set_header(
        "backing_file_offset",
        area.end,
        code="BACKING-OFFSET",
        title=title,
        tier=Tier.JUDGEMENT,
        guest=[(0, header.size)],
    )


def _is_name(raw: bytes) -> bool:
    try:
        return bool(raw) and raw.decode("utf-8").isprintable()
    except UnicodeDecodeError:
        return False


def _backing_format(space: Workspace) -> None:
    """A recorded format that is no format's name. Only plain local files are looked at, only their magic."""
    meta = space.meta
    name, recorded = meta.backing_name, meta.backing_format
    if not name or recorded is None or "://" in name or name.startswith("json:"):
        return
    path = os.path.join(os.path.dirname(space.base.path), name)
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except OSError:
        space.note(
            f"the backing file {name!r} cannot be opened: put it back, or read with another one: `qwb convert --backing PATH`"
        )
        return
    found = "qcow2" if magic == b"QFI\xfb" else "raw"
    add_extension(
        space, ExtensionType.BACKING_FORMAT, found.encode(), code="BACKING-FORMAT-TOO-LONG",
        title=f"record the backing file's format as {found}: there is no format of the name that stands there",
    )  # fmt: skip


def run_data_file_name(space: Workspace) -> None:
    """A data file name cut short by a wrong length: the rest of it stands behind."""
    found = space.meta.extension(ExtensionType.DATA_FILE)
    if found is None or not found.data:
        return
    folder, head = os.path.dirname(space.base.path), space.meta.head
    start, end = found.offset + 8, space.meta.extension_end
    whole = head[start : min(end, start + 1024)].split(b"\0")[0]
    if whole == found.data or _beside(folder, found.data) or not _beside(folder, whole):
        return
    before = [each for each in space.meta.extensions if each.offset < found.offset]
    rest = parse_extensions(head, start + round_up(len(whole), 8), end).extensions
    name = Extension(0, ExtensionType.DATA_FILE, whole)
    title = f"correct the length of the external data file's name: {whole.decode('utf-8', 'replace')!r}"
    write_area(space, [*before, name, *rest], code="DATA-FILE-UNNAMED", title=title)


def _beside(folder: str, name: bytes) -> bool:
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return text.isprintable() and os.path.isfile(os.path.join(folder, text))


def run_overrun(space: Workspace) -> None:
    """A record whose length leaves the area: the length that lets the rest be read, else the area ends before it."""
    area = space.meta.area
    if area.overrun is None:
        return
    offset, kind, _ = area.overrun
    end = space.meta.extension_end
    length = _fitting_length(space, offset, kind, end)
    if length is not None:
        title = f"set the length of header extension {EXTENSION_NAMES[ExtensionType(kind)]!r} to {length}"
        space.put(
            offset + 4,
            length.to_bytes(4, "big"),
            code="EXTENSION-OVERRUN",
            title=title,
            kind="header",
            tier=Tier.JUDGEMENT,
        )
        return
    later = _later_records(space, offset + 8, end)
    title = "end the header extensions before the record that overruns"
    if later:
        title += f", keep {len(later)} found behind it"
    write_area(space, [*area.extensions, *later], code="EXTENSION-OVERRUN", title=title)


def _fitting_length(space: Workspace, offset: int, kind: int, end: int) -> int | None:
    head = space.meta.head
    if kind not in EXTENSION_NAMES:
        return None
    if kind in _FIXED_LENGTH:
        return _FIXED_LENGTH[ExtensionType(kind)]
    for padded in range(8, min(end - offset - 8, 4096) + 1, 8):
        rest = parse_extensions(head, offset + 8 + padded, end)
        if rest.overrun is None and rest.ended and all(each.type in EXTENSION_NAMES for each in rest.extensions):
            data = head[offset + 8 : offset + 8 + padded]
            if kind in (ExtensionType.BACKING_FORMAT, ExtensionType.DATA_FILE):
                data = data.rstrip(b"\0")
                return len(data) if _is_name(data) else None
            return padded
    return None


def _later_records(space: Workspace, start: int, end: int) -> list[Extension]:
    """Known records further on that lead to the end marker."""
    for at in range((start + 7) & ~7, end - 8, 8):
        kind = int.from_bytes(space.meta.head[at : at + 4], "big")
        if kind in EXTENSION_NAMES and kind:
            area: ExtensionArea = parse_extensions(space.meta.head, at, end)
            if area.ended and all(each.type in EXTENSION_NAMES for each in area.extensions):
                return list(area.extensions)
    return []


def run_duplicates(space: Workspace) -> None:
    """Of several extensions of one type the last one counts for QEMU, and stays, where they say the same.

    Of backing formats that differ, the last one stays if it fits the backing file; else both do.
    """
    kinds = [each.type for each in space.meta.extensions]
    if len(set(kinds)) == len(kinds):
        return
    chosen = {each.type: each for each in space.meta.extensions}  # the last one, as QEMU
    for kind in chosen:
        every = [each for each in space.meta.extensions if each.type == kind]
        if all(each.data == every[0].data for each in every):
            continue
        if kind != ExtensionType.BACKING_FORMAT or not _fits_backing(space, every[-1]):
            space.note(f"header extension {every[0].name!r} is there twice, with different content: both are kept")
            return
    kept = [each for each in space.meta.extensions if chosen[each.type] is each]
    write_area(space, kept, code="EXTENSION-DUPLICATE", title="keep one header extension of each type")


def _fits_backing(space: Workspace, each: Extension) -> bool:
    """Whether the backing file is of the format that the extension records, as far as its first bytes tell."""
    name = space.meta.backing_name
    if not name or "://" in name or name.startswith("json:"):
        return False
    try:
        with open(os.path.join(os.path.dirname(space.base.path), name), "rb") as file:
            return (file.read(4) == b"QFI\xfb") == (each.data.rstrip(b"\0") == b"qcow2")
    except OSError:
        return False


RULES = (
    Rule(
        "data-file-name",
        "Restore the external data file's name",
        codes("DATA-FILE-UNNAMED", "DATA-FILE-MISSING"),
        Tier.JUDGEMENT,
        run_data_file_name,
    ),
    Rule("extension-overrun", "Mend header extensions", codes("EXTENSION-OVERRUN"), Tier.JUDGEMENT, run_overrun),
    Rule(
        "extension-duplicate",
        "Drop doubled header extensions",
        codes("EXTENSION-DUPLICATE"),
        Tier.JUDGEMENT,
        run_duplicates,
    ),
    Rule(
        "backing-name",
        "Mend the backing file reference",
        codes("BACKING-OFFSET", "BACKING-NAME-TOO-LONG", "BACKING-FORMAT-TOO-LONG"),
        Tier.JUDGEMENT,
        run_backing,
    ),
)
