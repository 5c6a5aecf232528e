"""Feature bits and methods against what the image holds: compression, encryption, external data file, unknown bits."""

from __future__ import annotations

import glob
import math
import os

import numpy as np

from formats.qcow2.extensions import ExtensionType
from formats.qcow2.header import AUTOCLEAR, INCOMPATIBLE
from formats.qcow2.tables import COMPRESSED, OFFSET_MASK
from workbench.check.problems import Tier
from workbench.repair.fixes.base import Rule, codes
from workbench.repair.fixes.compressed import inflates
from workbench.repair.fixes.extensions import add_extension, drop_extension
from workbench.repair.ledger import batches
from workbench.repair.probe import find_luks
from workbench.repair.workspace import Workspace, header_field

_J = Tier.JUDGEMENT


def run_compression(space: Workspace) -> None:
    """Compression type and its bit: as the compressed clusters themselves tell."""
    header = space.meta.header
    if header.version < 3:
        return
    flagged = header.has("compression_type")
    if header.compression_type in (0, 1) and flagged == bool(header.compression_type):
        return
    samples = _packed_words(space)
    zstd = sum(inflates(space, word, 1) for word in samples)
    zlib = sum(inflates(space, word, 0) for word in samples)
    value = 1 if zstd > zlib or (zstd == zlib and (flagged or header.compression_type == 1)) else 0
    if value and header.header_length <= 104:
        value = 0
    name = ("zlib", "zstd")[value]
    if header.header_length > 104:
        space.put(
            header_field("header_length")[0] + 4,
            bytes([value]),
            code="COMPRESSION-TYPE",
            title=f"set the compression type to {name}",
            kind="header",
            tier=_J,
        )
    mask = INCOMPATIBLE["compression_type"].mask
    bits = header.incompatible_features | mask if value else header.incompatible_features & ~mask
    space.set_header(
        "incompatible_features",
        bits,
        code="COMPRESSION-TYPE",
        title=f"make the compression type's bit agree with {name}",
        tier=_J,
    )


def _packed_words(space: Workspace, most: int = 64) -> list[int]:
    found: list[int] = []
    for batch in batches(space, space.ledger.tables):
        found += batch.words[(batch.words & np.uint64(COMPRESSED)) != 0][: most - len(found)].tolist()
        if len(found) >= most:
            break
    return found


def run_encryption(space: Workspace) -> None:
    """An encryption method that nobody knows, or LUKS without any LUKS header, or the reverse."""
    header = space.meta.header
    has_pointer = space.meta.extension(ExtensionType.ENCRYPTION) is not None
    if header.crypt_method == 2 and not has_pointer and find_luks(space) is None:
        _set_method(space, _guess_method(space), "ENCRYPTION-MISSING")
    elif header.crypt_method > 2:
        method = 2 if has_pointer or find_luks(space) is not None else _guess_method(space)
        _set_method(space, method, "HEADER-CRYPT-METHOD")
    elif header.crypt_method == 1 and not has_pointer and _shows_plain_data(space):
        _set_method(space, 0, "HEADER-CRYPT-METHOD")
    elif header.crypt_method != 2 and has_pointer:
        pointer = space.meta.encryption
        if pointer is not None and space.overlay.read(pointer.offset, 6) == b"LUKS\xba\xbe":
            _set_method(space, 2, "ENCRYPTION-UNEXPECTED")
        else:
            drop_extension(
                space,
                ExtensionType.ENCRYPTION,
                code="ENCRYPTION-UNEXPECTED",
                title="drop the encryption extension: there is no LUKS header",
            )


def _set_method(space: Workspace, method: int, code: str) -> None:
    name = ("none", "AES", "LUKS")[method]
    space.set_header(
        "crypt_method",
        method,
        code=code,
        title=f"set the encryption method to {name}, as the content shows",
        tier=_J,
        guest=[(0, space.meta.header.size)],
    )


def _guess_method(space: Workspace) -> int:
    """AES (1) when every sampled data cluster looks random and the number speaks for it, else none (0)."""
    random, plain = _randomness(space)
    method = space.meta.header.crypt_method
    nearer_aes = (method ^ 1).bit_count() < method.bit_count()
    return 1 if random and not plain and nearer_aes else 0


def _shows_plain_data(space: Workspace) -> bool:
    """Guest data that no cipher wrote: several clusters with a pattern."""
    return _randomness(space)[1] >= 3


def _randomness(space: Workspace) -> tuple[int, int]:
    """(clusters that look random, clusters with a pattern) among some data clusters; empty ones do not count."""
    random = plain = 0
    for batch in batches(space, space.ledger.tables):
        words = batch.words[(batch.words != 0) & ((batch.words & np.uint64(COMPRESSED)) == 0)]
        for offset in (words[:64] & np.uint64(OFFSET_MASK)).tolist():
            data = space.overlay.read(offset, min(space.cluster, 65536)) if 0 < offset < space.size else b""
            if any(data):
                is_random = _entropy(data) > 7.2
                random, plain = random + is_random, plain + (not is_random)
    return random, plain


def _entropy(data: bytes) -> float:
    """Bits per byte."""
    if not data:
        return 0.0
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    shares = counts[counts > 0] / len(data)
    return float(-(shares * np.log2(shares)).sum()) if len(shares) > 1 else 0.0 * math.pi


def run_unknown(space: Workspace) -> None:
    """Incompatible bits that nobody knows and the image does not name either: a flipped bit, not a feature."""
    header = space.meta.header
    unknown = INCOMPATIBLE["unknown"].mask & header.incompatible_features
    if not unknown or header.version < 3:
        return
    named = {row.bit for row in space.meta.feature_names if row.kind == 0}
    for bit in range(64):
        if unknown >> bit & 1 and bit in named:
            space.note(f"incompatible feature bit {bit} has a name in this image: it may be real, and is kept")
            unknown &= ~(1 << bit)
    if unknown:
        title = f"clear the unknown incompatible features {unknown:#x}"
        space.set_header(
            "incompatible_features",
            header.incompatible_features & ~unknown,
            code="FEATURE-UNKNOWN",
            title=title,
            tier=_J,
        )


def run_data_file(space: Workspace) -> None:
    """The external data file's bits: as the mapping shows where the data is."""
    header = space.meta.header
    if header.version < 3:
        return
    named = bool(space.meta.data_file_name)
    mask = INCOMPATIBLE["data_file"].mask
    if header.has("data_file") and not named and not _maps_outside(space):
        space.set_header(
            "incompatible_features",
            header.incompatible_features & ~mask,
            code="DATA-FILE-UNNAMED",
            title="clear the external data file bit: the data is in this file",
            tier=_J,
            guest=[(0, header.size)],
        )
    elif header.has("data_file") and not named:
        _name_data_file(space)
    elif not header.has("data_file") and named and _maps_outside(space):
        space.set_header(
            "incompatible_features",
            header.incompatible_features | mask,
            code="DATA-FILE-UNEXPECTED",
            title="set the external data file bit: the data is not in this file",
            tier=_J,
            guest=[(0, header.size)],
        )
    header = space.meta.header
    if header.has("data_file_raw") and not header.has("data_file"):
        value = header.autoclear_features & ~AUTOCLEAR["data_file_raw"].mask
        space.set_header(
            "autoclear_features",
            value,
            code="DATA-FILE-RAW-BIT",
            title="clear the raw data file bit: there is no data file",
            tier=_J,
        )


def _name_data_file(space: Workspace) -> None:
    """The only raw file beside the image that carries its name and is as long as the mapping needs."""
    folder, name = os.path.split(space.base.path)
    stem = os.path.splitext(name)[0]
    found = [
        each
        for each in sorted(glob.glob(os.path.join(glob.escape(folder), glob.escape(stem) + "*")))
        if os.path.isfile(each)
        and each != space.base.path
        and not each.endswith((".qwb-case", ".qwb-case-journal", ".qcow2"))
    ]
    if len(found) != 1:
        space.note("the name of the external data file is lost, and which file it was cannot be told")
        return
    chosen = os.path.basename(found[0])
    title = f"name {chosen!r} as the external data file: the only file beside the image that it can be"
    add_extension(space, ExtensionType.DATA_FILE, chosen.encode(), code="DATA-FILE-UNNAMED", title=title)


def _maps_outside(space: Workspace) -> bool:
    """Most L2 entries map each guest offset to the same offset, in clusters that this file does not count as used."""
    same = other = counted = 0
    ledger, bits = space.ledger, np.uint64(space.geometry.cluster_bits)
    for batch in batches(space, ledger.tables):
        for at, row in enumerate(batch.rows.tolist()):
            words = batch.words[at]
            index = np.flatnonzero((words & np.uint64(COMPRESSED)) == 0)
            offset = words[index] & np.uint64(OFFSET_MASK)
            guest = int(ledger.tables.index[row]) * space.geometry.l2_coverage + index * space.cluster
            used = words[index] > 1
            same += int((used & (offset == guest.astype(np.uint64))).sum())
            other += int((used & (offset != guest.astype(np.uint64))).sum())
            numbers = (offset[used] >> bits).astype(np.int64)
            numbers = numbers[numbers < ledger.clusters]
            counted += int((ledger.stored[numbers] > 0).sum())
    return same > other and counted <= same


RULES = (
    Rule("compression", "Correct the compression type", codes("COMPRESSION-TYPE"), _J, run_compression),
    Rule(
        "encryption-method",
        "Correct the encryption method",
        codes("HEADER-CRYPT-METHOD", "ENCRYPTION-MISSING", "ENCRYPTION-UNEXPECTED"),
        _J,
        run_encryption,
    ),
    Rule("feature-bits", "Clear unknown feature bits", codes("FEATURE-UNKNOWN"), _J, run_unknown),
    Rule(
        "data-file-bits",
        "Correct the external data file's bits",
        codes("DATA-FILE-UNNAMED", "DATA-FILE-UNEXPECTED", "DATA-FILE-RAW-BIT"),
        _J,
        run_data_file,
    ),
)
