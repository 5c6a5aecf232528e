"""`qwb info` for people, from the JSON values of engine/info.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from workbench.render.sizes import count, date, duration, size_with_bytes
from workbench.render.tables import pairs, table
from workbench.render.text import printable, quoted
from workbench.units import format_size

Json = dict[str, Any]


def info_lines(info: Json) -> Iterator[str]:
    """Sections on the disk, its features and state, backing file, encryption, snapshots, bitmaps and faults."""
    yield f"{printable(info['filename'])}: {_headline(info)}"
    if "format-specific" not in info:
        yield from pairs(_sizes(info))
        return
    yield ""
    yield "Disk"
    yield from pairs([*_sizes(info), *_layout(info)])
    yield ""
    yield "State"
    yield from pairs(_state(info))
    for title, rows in (
        ("Backing file", _backing(info)),
        ("External data file", _data_file(info)),
        ("Encryption", _encryption(info)),
    ):
        if rows:
            yield ""
            yield title
            yield from pairs(rows)
    for title, lines in (("Snapshots", _snapshots(info)), ("Bitmaps", _bitmaps(info)), ("Problems", _problems(info))):
        if lines:
            yield ""
            yield title
            yield from lines


def _headline(info: Json) -> str:
    size = format_size(info["virtual-size"])
    if "format-specific" not in info:
        return f"{printable(str(info['format']))} image, {size}"
    version = info["header"]["version"]
    compat = f" (compat {info['format-specific']['data']['compat']})" if version in (2, 3) else " (unknown)"
    damaged = "" if info["opens"] else ", DAMAGED: QEMU would refuse to open it"
    return f"qcow2 image, version {version}{compat}, virtual disk of {size}{damaged}"


def _sizes(info: Json) -> list[tuple[str, str]]:
    rows = [("virtual size", size_with_bytes(info["virtual-size"]))]
    odd = info.get("header", {}).get("size", 0) % 512
    if odd:
        rows.append(("", f"the header says {info['header']['size']} bytes; QEMU drops the last {odd}"))
    if "file-size" in info:
        rows.append(("file size", size_with_bytes(info["file-size"])))
    rows.append(("space on disk", size_with_bytes(info["actual-size"])))
    return rows


def _layout(info: Json) -> list[tuple[str, str]]:
    data, header = info["format-specific"]["data"], info["header"]
    rows = []
    if "cluster-size" in info:
        clusters = -(-info["virtual-size"] // info["cluster-size"])
        rows.append(
            ("cluster size", f"{format_size(info['cluster-size'])} (the virtual disk has {count(clusters, 'cluster')})")
        )
    else:
        rows.append(("cluster size", f"unusable: 2^{header['cluster-bits']} bytes"))
    rows.append(("refcounts", f"{data['refcount-bits']} bits wide"))
    rows.append(("L2 entries", "extended, with 32 subclusters each" if data.get("extended-l2") else "standard"))
    rows.append(("compression", data["compression-type"]))
    rows.append(("L1 table", f"{count(header['l1-size'], 'entry')} at {header['l1-table-offset']:#x}"))
    rows.append(
        (
            "refcount table",
            f"{count(header['refcount-table-clusters'], 'cluster')} at {header['refcount-table-offset']:#x}",
        )
    )
    for kind, names in info["features"].items():
        if names:
            rows.append((f"{kind} bits", printable(", ".join(names))))
    if info["extensions"]:
        rows.append(("extensions", printable(", ".join(each["name"] for each in info["extensions"]))))
    return rows


def _state(info: Json) -> list[tuple[str, str]]:
    data = info["format-specific"]["data"]
    rows = [
        (
            "dirty",
            "yes: not closed properly; refcounts may be out of date and are rebuilt at the next writing open"
            if info["dirty-flag"]
            else "no",
        )
    ]
    if data.get("corrupt"):
        rows.append(("corrupt", "YES: damage was found in use; QEMU refuses to write until it is repaired"))
    else:
        rows.append(("corrupt", "not marked"))
    if "lazy-refcounts" in data:
        rows.append(("lazy refcounts", "on" if data["lazy-refcounts"] else "off"))
    return rows


def _backing(info: Json) -> list[tuple[str, str]]:
    if "backing-filename" not in info:
        return []
    rows = [("name", quoted(info["backing-filename"]))]
    if info["full-backing-filename"] != info["backing-filename"]:
        where = "looked for at" if info.get("backing-missing") else "found at"
        rows.append((where, quoted(info["full-backing-filename"])))
    rows.append(("format", printable(info.get("backing-filename-format") or "not recorded: QEMU guesses (unsafe)")))
    if "backing-written-later" in info:
        rows.append(("written", "after this image last was: a base with other content makes a mixed disk"))
    if info.get("backing-missing"):
        rows.append(("PROBLEM", "the file is missing"))
    elif "backing-error" in info:
        rows.append(("PROBLEM", printable(info["backing-error"])))
    return rows


def _data_file(info: Json) -> list[tuple[str, str]]:
    data = info["format-specific"]["data"]
    if "data-file-raw" not in data:
        return []
    return [
        ("name", quoted(data["data-file"]) if "data-file" in data else "not recorded"),
        ("raw", "yes: readable on its own as a raw disk" if data["data-file-raw"] else "no: this image maps it"),
    ]


def _encryption(info: Json) -> list[tuple[str, str]]:
    found = info["format-specific"]["data"].get("encrypt")
    if not found:
        return []
    if "slots" not in found:
        words = {"aes": "AES-128-CBC of old QEMU (insecure)", "luks": "LUKS, but its header is not readable"}
        return [("format", words.get(found["format"], printable(found["format"])))]
    ivgen = found["ivgen-alg"] + (f":{found['ivgen-hash-alg']}" if "ivgen-hash-alg" in found else "")
    active = [str(index) for index, slot in enumerate(found["slots"]) if slot["active"]]
    rows = [
        ("format", "LUKS1"),
        ("cipher", f"{found['cipher-alg']}, {found['cipher-mode']}, IV from {ivgen}"),
        ("hash", found["hash-alg"]),
        ("uuid", found["uuid"]),
        ("key slots", f"{len(active)} of {len(found['slots'])} in use{': ' if active else ''}{', '.join(active)}"),
    ]
    rows += [
        (f"slot {i}", f"{slot['iters']:,} iterations, {slot['stripes']:,} stripes, key at +{slot['key-offset']:#x}")
        for i, slot in enumerate(found["slots"])
        if slot["active"]
    ]
    return [(label, printable(value)) for label, value in rows]


def _snapshots(info: Json) -> list[str]:
    rows = [
        (
            printable(each["id"]),
            quoted(each["name"]),
            date(each["date-sec"]),
            duration(each["vm-clock-sec"] * 10**9 + each["vm-clock-nsec"]),
            format_size(each["vm-state-size"]) if each["vm-state-size"] else "none",
            format_size(each["disk-size"]) if "disk-size" in each else "as the image",
        )
        for each in info.get("snapshots", ())
    ]
    return list(table(("ID", "NAME", "TAKEN", "VM CLOCK", "VM STATE", "DISK"), rows, indent="  ")) if rows else []


def _bitmaps(info: Json) -> list[str]:
    rows = [
        (
            quoted(each["name"]),
            format_size(each["granularity"]) if each["granularity"] else "absurd",
            "records writes" if "auto" in each["flags"] else "not recording",
            "IN USE: was not saved, out of date" if "in-use" in each["flags"] else "saved",
        )
        for each in info["format-specific"]["data"].get("bitmaps", ())
    ]
    return list(table(("NAME", "GRANULARITY", "RECORDING", "STATE"), rows, indent="  ")) if rows else []


def _problems(info: Json) -> list[str]:
    rows = [
        (
            each["code"],
            f"{each['offset']:#x}",
            printable(each["what"]) + ("" if each["refuses"] == "none" else "  [QEMU refuses to open]"),
        )
        for each in info["faults"]
    ]
    return list(table((), rows, indent="  "))
