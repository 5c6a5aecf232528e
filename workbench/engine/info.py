"""What an image says about itself, as plain JSON values: a superset of `qemu-img info --output=json`.

Keys that qemu-img prints have its names, values and omission rules; what we add: `file-size`, `opens`, `faults`,
`header`, `features`, `extensions`, `backing-missing`,
`backing-written-later` (seconds). Works on any damaged image. Imports no numpy: `qwb info` must start at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from formats.luks.header import SECTOR, LuksHeader
from formats.qcow2 import limits
from formats.qcow2.extensions import FEATURE_KINDS
from formats.qcow2.header import AUTOCLEAR, COMPATIBLE, COMPRESSION_TYPES, CRYPT_METHODS, INCOMPATIBLE
from formats.qcow2.snapshots import Snapshot
from workbench.engine.faults import Fault
from workbench.engine.metadata import Metadata, load_metadata
from workbench.engine.opening import refusal_of
from workbench.errors import ImageError, QwbError
from workbench.storage.base import Storage
from workbench.storage.identity import written_later
from workbench.units import SECTOR_SIZE, round_down, round_up

Json = dict[str, Any]
OpenStorage = Callable[[str], Storage]
"""Opens a backing file by path, read-only; raises QwbError when it cannot or may not."""

_FEATURE_WORDS = {
    "incompatible": (INCOMPATIBLE, "incompatible_features"),
    "compatible": (COMPATIBLE, "compatible_features"),
    "autoclear": (AUTOCLEAR, "autoclear_features"),
}
_HEADER_KEYS = (
    "version",
    "cluster_bits",
    "size",
    "crypt_method",
    "l1_size",
    "l1_table_offset",
    "refcount_order",
    "refcount_table_offset",
    "refcount_table_clusters",
    "nb_snapshots",
    "snapshots_offset",
    "header_length",
    "backing_file_offset",
    "backing_file_size",
)


def image_info(meta: Metadata, filename: str) -> Json:
    """Everything about one qcow2 image; `filename` as the caller named it. Never raises on content."""
    header = meta.header
    out: Json = {"virtual-size": round_down(header.size, SECTOR_SIZE), "filename": filename}
    if meta.geometry is not None:
        out["cluster-size"] = meta.geometry.cluster_size
    out |= {"format": "qcow2", "actual-size": meta.storage.allocated_size()}
    if header.crypt_method:
        out["encrypted"] = True
    if meta.backing_name:
        out["backing-filename"] = meta.backing_name
        out["full-backing-filename"] = full_backing_name(filename, meta.backing_name)
        if meta.backing_format:
            out["backing-filename-format"] = meta.backing_format
        if not has_protocol(meta.backing_name) and not _exists(out["full-backing-filename"]):
            out["backing-missing"] = True
        later = written_later(out["full-backing-filename"], filename)
        if later:
            out["backing-written-later"] = later
    if meta.snapshots:
        out["snapshots"] = [_snapshot(each) for each in meta.snapshots]
    out["format-specific"] = {"type": "qcow2", "data": _specific(meta)}
    out["dirty-flag"] = header.has("dirty")
    return out | _ours(meta)


def _ours(meta: Metadata) -> Json:
    header, refusal = meta.header, refusal_of(meta)
    return {
        "file-size": meta.file_size,
        "opens": refusal is None,
        "faults": [fault_json(fault) for fault in meta.faults],
        "header": {key.replace("_", "-"): getattr(header, key) for key in _HEADER_KEYS},
        "features": {kind: list(_features(meta, kind)) for kind in _FEATURE_WORDS},
        "extensions": [
            {"type": each.type, "name": each.name, "offset": each.offset, "length": len(each.data)}
            for each in meta.extensions
        ],
    }


def fault_json(fault: Fault) -> Json:
    """code, what, offset, length; refuses: whether QEMU would not open the image because of it."""
    return {
        "code": fault.code,
        "what": fault.what,
        "offset": fault.offset,
        "length": fault.length,
        "refuses": fault.refusal.name.lower(),
    }


def _features(meta: Metadata, kind: str) -> Iterator[str]:
    """Names of the bits that are set; bits we do not know by the image's own name table."""
    layout, key = _FEATURE_WORDS[kind]
    word = getattr(meta.header, key)
    own = {row.bit: row.name for row in meta.feature_names if FEATURE_KINDS.get(row.kind) == kind}
    known = {bit.low: bit.name for bit in layout if not bit.reserved}
    for bit in range(64):
        if word >> bit & 1:
            yield known.get(bit, own.get(bit) or f"unknown bit {bit}")


def _snapshot(each: Snapshot) -> Json:
    out: Json = {
        "id": each.id,
        "name": each.name,
        "vm-state-size": each.vm_state_size,
        "date-sec": each.date_seconds,
        "date-nsec": each.date_nanoseconds,
        "vm-clock-sec": each.vm_clock // 10**9,
        "vm-clock-nsec": each.vm_clock % 10**9,
    }
    if each.icount is not None and each.icount != (1 << 64) - 1:
        out["icount"] = each.icount
    if each.disk_size is not None:
        out["disk-size"] = each.disk_size
    return out


def _specific(meta: Metadata) -> Json:
    header = meta.header
    out: Json = {
        "compat": "0.10" if header.version == 2 else "1.1",
        "compression-type": COMPRESSION_TYPES.get(header.compression_type, f"unknown {header.compression_type}"),
        "refcount-bits": 1 << header.refcount_order
        if header.refcount_order <= limits.MAX_REFCOUNT_ORDER
        else f"2^{header.refcount_order}",
    }
    if header.version >= 3:
        out["lazy-refcounts"] = header.has("lazy_refcounts")
        out["corrupt"] = header.has("corrupt")
        out["extended-l2"] = header.has("extended_l2")
        bitmaps = _bitmaps(meta)
        if bitmaps:
            out["bitmaps"] = bitmaps
        if header.has("data_file"):
            if meta.data_file_name is not None:
                out["data-file"] = meta.data_file_name
            out["data-file-raw"] = header.has("data_file_raw")
    if header.crypt_method:
        out["encrypt"] = _encryption(meta)
    return out


def _bitmaps(meta: Metadata) -> list[Json]:
    """As qemu-img: only bitmaps that the autoclear bit vouches for."""
    if not meta.header.has("bitmaps"):
        return []
    return [
        {
            "name": each.name,
            "granularity": each.granularity if each.granularity_bits < 64 else None,
            "flags": [flag for flag, set_ in (("in-use", each.in_use), ("auto", each.auto)) if set_],
        }
        for each in meta.bitmap_directory.bitmaps
    ]


def _encryption(meta: Metadata) -> Json:
    method = CRYPT_METHODS.get(meta.header.crypt_method, f"unknown {meta.header.crypt_method}")
    if method != "luks" or meta.luks is None or not meta.luks.valid:
        return {"format": method}
    return {"format": "luks", **luks_info(meta.luks)}


def luks_info(luks: LuksHeader) -> Json:
    """A LUKS1 header in QEMU's words. Offsets in bytes."""
    mode, _, ivgen = luks.cipher_mode.partition("-")
    generator, _, ivgen_hash = ivgen.partition(":")
    key_bits = luks.key_bytes * 8 // (2 if mode == "xts" else 1)
    out: Json = {
        "cipher-alg": f"{luks.cipher_name}-{key_bits}",
        "cipher-mode": mode,
        "ivgen-alg": generator,
        "hash-alg": luks.hash_spec,
        "payload-offset": luks.payload_offset * SECTOR,
        "master-key-iters": luks.mk_digest_iterations,
        "uuid": luks.uuid,
    }
    if ivgen_hash:
        out["ivgen-hash-alg"] = ivgen_hash
    slots = []
    for slot in luks.key_slots:
        one: Json = {"active": slot.active, "key-offset": slot.key_material_offset * SECTOR}
        if slot.active:
            one |= {"iters": slot.iterations, "stripes": slot.stripes}
        slots.append(one)
    return out | {"slots": slots}


# The backing chain ----------------------------------------------------------------------------------------------------


def has_protocol(name: str) -> bool:
    """`nbd:…`, `json:…`, `http://…`: anything with a colon before the first slash, as QEMU decides."""
    return ":" in name.partition("/")[0]


def full_backing_name(image: str, backing: str) -> str:
    """The backing name as QEMU resolves it: relative names start at the image's folder."""
    if has_protocol(backing) or os.path.isabs(backing):
        return backing
    folder = image.rpartition("/")
    return f"{folder[0]}/{backing}" if folder[1] else backing


def _exists(path: str) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # a NUL in the name
        return False


def chain_info(meta: Metadata, filename: str, open_storage: OpenStorage) -> list[Json]:
    """The image and every backing file below it, each as `image_info`, raw ones as qemu-img shows them.

    Where the chain breaks (missing file, cycle, a name that is no plain path) the last element says why in
    `backing-error`. Bounded by limits.MAX_BACKING_CHAIN.
    """
    chain = [image_info(meta, filename)]
    seen = {os.path.realpath(filename)}
    while "full-backing-filename" in chain[-1]:
        above = chain[-1]
        name = above["full-backing-filename"]
        try:
            if has_protocol(name):
                raise ImageError("is not a plain local path and is not opened", path=name)
            if os.path.realpath(name) in seen:
                raise ImageError("the backing chain comes back to a file that is already in it", path=name)
            if len(chain) >= limits.MAX_BACKING_CHAIN:
                raise ImageError(f"the backing chain is longer than {limits.MAX_BACKING_CHAIN} files", path=name)
            seen.add(os.path.realpath(name))
            chain.append(_layer(name, above.get("backing-filename-format"), open_storage))
        except QwbError as error:
            missing = isinstance(error.__cause__, FileNotFoundError)
            above["backing-error"] = f"the backing file {name} is missing" if missing else str(error)
            break
        except ValueError:  # a NUL in the name
            above["backing-error"] = "the backing file name is no path"
            break
    return chain


def _layer(name: str, recorded: str | None, open_storage: OpenStorage) -> Json:
    storage = open_storage(name)
    try:
        below = load_metadata(storage)
        if recorded in (None, "", "qcow2") and below.is_qcow2:
            return image_info(below, name)
        if recorded == "qcow2":
            raise ImageError("is recorded as qcow2 but is no qcow2 image", path=name)
        return {
            "virtual-size": round_up(below.file_size, SECTOR_SIZE),
            "filename": name,
            "format": recorded or "raw",
            "actual-size": storage.allocated_size(),
            "dirty-flag": False,
        }
    finally:
        storage.close()
