"""What the numbers of the header mean in this image (spec: Header)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from formats.qcow2 import limits
from workbench.teach.filling import Facts, UnknownFactError, both, code, number, size, span
from workbench.units import div_round_up

_MAX_L1_ENTRIES: Final = limits.MAX_L1_SIZE // 8


def where(facts: Facts, offset: int, length: int = 0, *, named: bool = False) -> str:
    """A host offset in words: which cluster, whether it is aligned, whether the file reaches it.

    named: the sentence before has said the offset already.
    """
    unit, end = number(facts, "cluster_size"), number(facts, "file_size")
    name = "That" if named else f"{offset:#x}"
    text = f"{name} is the start of cluster {offset // unit:,}"
    if offset % unit:
        text = f"{name} is **not cluster aligned**: it lies {offset % unit:,} bytes into cluster {offset // unit:,}"
    if offset >= end:
        return f"{text}, **beyond the end of the file** at {end:#x}."
    if length and offset + length > end:
        return f"{text}. **The file ends inside it**, at {end:#x}."
    return f"{text}."


def _version(facts: Facts) -> str:
    value = number(facts, "value")
    if value == 2:
        return "Version 2: a header of 72 bytes, no feature bits, no zero flag, 16-bit refcounts."
    if value == 3:
        return f"Version 3, with a header of {number(facts, 'header_length')} bytes."
    return f"**Version {value:,} does not exist.** Nothing else in the header can be trusted."


def _cluster_bits(facts: Facts) -> str:
    value = number(facts, "value")
    if not 9 <= value <= 21:
        return f"**{value:,} is outside 9 … 21**, so no table of this image can be located."
    unit, entries = 1 << value, (1 << value) // (16 if facts.get("extended_l2") else 8)
    text = f"Clusters are 1 << {value} = {both(unit)}; one L2 table has {entries:,} entries and describes {size(entries * unit)} of the disk."
    if "refcount_block_coverage" in facts:
        text += f" One refcount block counts {size(number(facts, 'refcount_block_coverage'))} of the file."
    return text


def _size(facts: Facts) -> str:
    value, unit = number(facts, "value"), number(facts, "cluster_size")
    entries, coverage = div_round_up(value, number(facts, "l2_coverage")), number(facts, "l2_coverage")
    text = f"The guest sees a disk of {both(value)}: {div_round_up(value, unit):,} clusters, "
    text += f"which take {entries:,} L1 entr{'y' if entries == 1 else 'ies'} of {size(coverage)} each."
    if value % unit:
        text += f" The last cluster is used only up to byte {value % unit:,}."
    if value % 512:
        text += " It is **not a whole number of sectors**."
    if entries > _MAX_L1_ENTRIES:
        text += f" That is **more than QEMU takes** with clusters of {size(unit)}."
    return text


def _l1_size(facts: Facts) -> str:
    value, coverage, needed = number(facts, "value"), number(facts, "l2_coverage"), number(facts, "l1_needed")
    text = f"{value:,} × {size(coverage)} cover {size(value * coverage)}; the disk of {size(number(facts, 'virtual_size'))} needs {needed:,}."
    if value < needed:
        text += " **The table is too small for the disk.**"
    elif value > needed:
        text += f" What is more ({value - needed:,}) describes the space beyond the disk, where saved VM state goes."
    if value > _MAX_L1_ENTRIES:
        text += " **QEMU's limit is exceeded.**"
    return text


def _l1_offset(facts: Facts) -> str:
    length = number(facts, "l1_length")
    return f"{where(facts, number(facts, 'value'), length)} The table takes {both(length)}."


def _refcount_offset(facts: Facts) -> str:
    length = number(facts, "refcount_table_length")
    return f"{where(facts, number(facts, 'value'), length)} The table takes {both(length)}."


def _refcount_clusters(facts: Facts) -> str:
    value, unit = number(facts, "value"), number(facts, "cluster_size")
    if not value:
        return "**0: the image has no refcount table.**"
    entries, coverage = value * unit // 8, number(facts, "refcount_block_coverage")
    text = f"{value:,} × {size(unit)} hold {entries:,} entries, enough to count a file of {size(entries * coverage)}"
    text += f"; the file has {size(number(facts, 'file_size'))}."
    return text + (" **QEMU's limit of 8 MiB is exceeded.**" if value * unit > limits.MAX_REFCOUNT_TABLE_SIZE else "")


def _snapshots(facts: Facts) -> str:
    value = number(facts, "value")
    if not value:
        return "0: this image has no internal snapshots."
    return f"{value:,} snapshot{'s' if value > 1 else ''}, listed at {number(facts, 'snapshots_offset'):#x}."


def _snapshots_offset(facts: Facts) -> str:
    if not number(facts, "nb_snapshots"):
        return "There are no snapshots, so the offset is not used."
    return where(facts, number(facts, "value"))


def _backing_offset(facts: Facts) -> str:
    value = number(facts, "value")
    if not value:
        return "0: no backing file. What is not allocated here reads as zeros."
    name = code(facts["backing_name"]) if "backing_name" in facts else "**unreadable: it leaves the first cluster**"
    return f"The name stands at {value:#x}, {number(facts, 'backing_file_size'):,} bytes: {name}."


def _backing_size(facts: Facts) -> str:
    if not number(facts, "backing_file_offset"):
        return "There is no backing file, so the length has no meaning."
    value = number(facts, "value")
    return f"The name is {value:,} bytes long." + (" **Too long.**" if value > limits.MAX_BACKING_NAME else "")


def _crypt(facts: Facts) -> str:
    value = number(facts, "value")
    texts = {
        0: "0: guest data is stored in the clear.",
        1: "1: AES-CBC with the passphrase itself as key. Weak by design; convert the image away from it.",
        2: "2: LUKS; guest data cannot be read without a passphrase for one of the key slots.",
    }
    text = texts.get(value, f"**{value:,} is no known method.**")
    if value == 2 and "luks_cipher" in facts:
        text += f" Cipher {code(facts['luks_cipher'])}, {number(facts, 'luks_active')} of 8 key slots in use."
    return text


def _features(facts: Facts) -> str:
    value = number(facts, "value")
    if not value:
        return "0: none is set."
    return f"{value:#x}: bit{'s' if value.bit_count() > 1 else ''} {_bits(value)} set."


def _bits(value: int) -> str:
    return ", ".join(str(bit) for bit in range(value.bit_length()) if value >> bit & 1)


def _unknown(kind: int) -> Callable[[Facts], str]:
    def sentence(facts: Facts) -> str:
        value = number(facts, "value")
        if not value:
            return "No such bit is set."
        low = facts.get("low", 0)
        names = facts.get("feature_names")
        known: Mapping[object, object] = names if isinstance(names, Mapping) else {}
        shift = low if isinstance(low, int) else 0
        bits = [bit + shift for bit in range(value.bit_length()) if value >> bit & 1]
        told = [f"{bit} ({code(known[kind, bit])})" if (kind, bit) in known else str(bit) for bit in bits]
        return f"Set: {', '.join(told)}. Names in brackets are what the image itself calls them."

    return sentence


def _refcount_order(facts: Facts) -> str:
    value = number(facts, "value")
    if value > 6:
        return f"**{value:,} is more than 6**: there are no refcounts wider than 64 bits."
    width = 1 << value
    highest = "2⁶⁴ − 1" if width == 64 else f"{(1 << width) - 1:,}"
    entries = number(facts, "cluster_size") * 8 // width
    text = f"Refcounts are 1 << {value} = {width} bit{'s' if width > 1 else ''} wide: a cluster can be shared {highest} times at most"
    text += f", and one block holds {entries:,} of them."
    return text + (" With 1 bit, nothing can be shared: no internal snapshots." if width == 1 else "")


def _header_length(facts: Facts) -> str:
    value = number(facts, "value")
    if value < 104:
        return f"**{value:,} is shorter than version 3's 104 bytes.**"
    if "cluster_size" in facts and value > number(facts, "cluster_size"):
        return f"**{value:,} bytes do not fit in the first cluster.**"
    more = (
        "exactly the fields of the first version 3"
        if value == 104
        else f"{value - 104:,} bytes of additional fields behind byte 104"
    )
    return f"{value:,} bytes: {more}." + ("" if value % 8 == 0 else " **Not a multiple of 8.**")


def _compression(facts: Facts) -> str:
    value = number(facts, "value")
    return {0: "0: zlib (raw deflate).", 1: "1: zstd."}.get(value, f"**{value} is no known method.**")


def _extensions(facts: Facts) -> str:
    count, start = number(facts, "nb_extensions"), number(facts, "extensions_start")
    return f"{count} extension{'' if count == 1 else 's'}, {span(start, number(facts, 'extensions_end') - start)}."


def _image(facts: Facts) -> str:
    disk, file = number(facts, "virtual_size"), number(facts, "file_size")
    text = f"A version {number(facts, 'version')} image: the guest sees {size(disk)}, the file has {size(file)}, clusters are {size(number(facts, 'cluster_size'))}."
    if facts.get("flag_dirty"):
        text += " It was **not closed properly** (dirty)."
    if facts.get("flag_corrupt"):
        text += " It is **marked corrupt**."
    return text


def _additional(facts: Facts) -> str:
    raw = facts.get("raw")
    if not isinstance(raw, bytes):
        raise UnknownFactError("raw")
    return f"{len(raw):,} bytes, " + ("not all zero: fields this program does not know." if any(raw) else "all zero.")


HERE: Final[Mapping[str, Callable[[Facts], str]]] = {
    "image": _image,
    "header.version": _version,
    "header.cluster_bits": _cluster_bits,
    "header.size": _size,
    "header.l1_size": _l1_size,
    "header.l1_table_offset": _l1_offset,
    "header.refcount_table_offset": _refcount_offset,
    "header.refcount_table_clusters": _refcount_clusters,
    "header.nb_snapshots": _snapshots,
    "header.snapshots_offset": _snapshots_offset,
    "header.backing_file_offset": _backing_offset,
    "header.backing_file_size": _backing_size,
    "header.crypt_method": _crypt,
    "header.incompatible_features": _features,
    "header.compatible_features": _features,
    "header.autoclear_features": _features,
    "header.incompatible_features.unknown": _unknown(0),
    "header.compatible_features.unknown": _unknown(1),
    "header.autoclear_features.unknown": _unknown(2),
    "header.refcount_order": _refcount_order,
    "header.header_length": _header_length,
    "header.compression_type": _compression,
    "header.additional": _additional,
    "extensions": _extensions,
}
