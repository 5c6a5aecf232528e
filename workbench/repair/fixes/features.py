"""Feature bits and methods against what the image holds: compression, encryption, external data file, unknown bits."""

from __future__ import annotations

import glob
import os
from typing import Final

import numpy as np

from formats.luks.header import MAGIC as LUKS_MAGIC
from formats.qcow2.entries import is_compressed, offset_of
from formats.qcow2.extensions import ExtensionType
from formats.qcow2.header import AUTOCLEAR, INCOMPATIBLE
from formats.qcow2.header import field as header_field
from workbench.check.problems import Tier
from workbench.repair.fixes.base import Alternative, Rule, codes
from workbench.repair.fixes.compressed import inflates
from workbench.repair.fixes.extensions import add_extension, drop_extension
from workbench.repair.ledger import META, batches
from workbench.repair.probe import find_luks
from workbench.repair.workspace import WHOLE, Workspace

_J = Tier.JUDGEMENT
_CIPHERED: Final = 110
"""Different bytes that a sector of ciphertext has at least."""
_LOOKED_AT: Final = 4096
"""Clusters that are searched for plain data."""


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
        places=WHOLE,
    )


def _packed_words(space: Workspace, most: int = 64) -> list[int]:
    found: list[int] = []
    for batch in batches(space, space.ledger.tables):
        found += batch.words[is_compressed(batch.words)][: most - len(found)].tolist()
        if len(found) >= most:
            break
    return found


def run_encryption(space: Workspace) -> None:
    """An encryption method that nobody knows, LUKS without any LUKS header, or a LUKS header without the method."""
    header, rows = space.meta.header, space.rows
    pointer = space.meta.encryption
    if rows.has("HEADER-CRYPT-METHOD"):
        if pointer is not None or find_luks(space) is not None:
            _set_method(space, 2, "HEADER-CRYPT-METHOD")
            return
        if _holds_plain_data(space):
            _set_method(space, 0, "HEADER-CRYPT-METHOD")
        else:
            space.note(f"the encryption method {header.crypt_method} is unknown, and what it was cannot be told")
    elif rows.has("ENCRYPTION-MISSING") and find_luks(space) is None:
        if _holds_plain_data(space):
            _set_method(space, 0, "ENCRYPTION-MISSING")
    elif rows.has("ENCRYPTION-UNEXPECTED"):
        if pointer is not None and space.overlay.read(pointer.offset, 6) == LUKS_MAGIC:
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
        title=f"set the encryption method to {name}, the only one that it can be",
        tier=_J,
        places=WHOLE,
        guest=[(0, space.meta.header.size)],
    )


def _holds_plain_data(space: Workspace) -> bool:
    """Some sector of guest data is what no cipher writes: not empty, and made of few different bytes.

    Of 512 random bytes some 220 differ; half of that never happens. The other way round nothing follows.
    """
    looked = 0
    for batch in batches(space, space.ledger.tables):
        for offset in offset_of(batch.words[(batch.words != 0) & ~is_compressed(batch.words)]).tolist():
            data = space.overlay.read(offset, min(space.cluster, 65536)) if 0 < offset < space.size else b""
            for at in range(0, len(data), 512):
                sector = data[at : at + 512]
                if any(sector) and len(set(sector)) < _CIPHERED:
                    return True
            looked += 1
            if looked >= _LOOKED_AT:
                return False
    return False


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
            places=WHOLE,
        )


def run_data_file(space: Workspace) -> None:
    """The external data file's bits: as the mapping shows where the data is."""
    header = space.meta.header
    if header.version < 3:
        return
    named = bool(space.meta.data_file_name)
    mask = INCOMPATIBLE["data_file"].mask
    outside = _maps_outside(space) if not space.rows.codes <= {"DATA-FILE-RAW-BIT"} else None
    if header.has("data_file") and not named and outside is False:
        space.set_header(
            "incompatible_features",
            header.incompatible_features & ~mask,
            code="DATA-FILE-UNNAMED",
            title="clear the external data file bit: the data is in this file",
            tier=_J,
            places=WHOLE,
            guest=[(0, header.size)],
        )
    elif header.has("data_file") and not named:
        if space.policy.choice("data-file-bits", "ask") == "beside":
            _name_data_file(space)
        else:
            space.note("the name of the external data file is lost, and which file it was cannot be told from here")
    elif not header.has("data_file") and named and outside:
        space.set_header(
            "incompatible_features",
            header.incompatible_features | mask,
            code="DATA-FILE-UNEXPECTED",
            title="set the external data file bit: the data is not in this file",
            tier=_J,
            places=WHOLE,
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
            places=WHOLE,
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


def _maps_outside(space: Workspace) -> bool | None:
    """True: every L2 entry maps its guest offset to the same offset, and no such cluster is counted in this file.

    False: every cluster is one of this file, and counted. None: neither, or nothing is mapped.
    """
    same = other = counted = free = 0
    ledger, bits = space.ledger, np.uint64(space.geometry.cluster_bits)
    for batch in batches(space, ledger.tables):
        for at, row in enumerate(batch.rows.tolist()):
            words = batch.words[at]
            index = np.flatnonzero(~is_compressed(words))
            offset = offset_of(words[index])
            guest = int(ledger.tables.index[row]) * space.geometry.l2_coverage + index * space.cluster
            used = words[index] > 1
            same += int((used & (offset == guest.astype(np.uint64))).sum())
            other += int((used & (offset != guest.astype(np.uint64))).sum())
            numbers = (offset[used] >> bits).astype(np.int64)
            # A data file's offsets may be metadata's here: those are counted for another reason.
            inside = (numbers > 0) & (numbers < ledger.clusters)
            inside[inside] = (ledger.flags[numbers[inside]] & np.uint8(META)) == 0
            stored = int((ledger.stored[numbers[inside]] > 0).sum())
            counted += stored
            free += numbers.size - stored
    if same and not other and not counted:
        return True
    return False if not free else None


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
        alternatives=(
            Alternative(
                "ask", "Leave the data file unnamed", "the image cannot be opened until its data file is named"
            ),
            Alternative("beside", "Name the only file beside it", "the guest reads that file, and writes into it"),
        ),
    ),
)
