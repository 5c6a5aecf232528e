"""The numbers that explanations are filled with: of the image, of a table entry, of one node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from formats.annotate import Node
    from workbench.engine.metadata import Metadata
    from workbench.engine.tables import Table

_GEOMETRY = (
    "cluster_size", "l2_entry_size", "l2_entries", "l2_coverage", "subcluster_size", "refcount_bits", "refcount_max",
    "refcount_block_entries", "refcount_block_coverage", "extended_l2",
)  # fmt: skip
_FLAGS = (
    "dirty", "corrupt", "data_file", "lazy_refcounts", "bitmaps", "data_file_raw",
)  # fmt: skip
_HEADER = (
    "version", "cluster_bits", "l1_size", "l1_table_offset", "refcount_table_offset", "refcount_table_clusters",
    "nb_snapshots", "snapshots_offset", "backing_file_offset", "backing_file_size", "crypt_method", "refcount_order",
    "header_length", "compression_type",
)  # fmt: skip


def facts_of(meta: Metadata) -> dict[str, object]:
    """The image's numbers, once per image. Reads no table (the LUKS header of an encrypted image, 592 bytes).

    Sizes and offsets in bytes. Facts that the image does not have are missing, so sentences about them are left out.
    """
    facts: dict[str, object] = {"file_size": meta.file_size}
    if not meta.is_qcow2:
        return facts
    header, geometry = meta.header, meta.geometry
    facts |= {name: getattr(header, name) for name in _HEADER}
    facts |= {"virtual_size": header.size, "header_length": meta.header_length}
    facts |= {f"flag_{name}": header.has(name) for name in _FLAGS}
    facts["features_set"] = ", ".join(header.features()) or "none"
    facts["feature_names"] = {(each.kind, each.bit): each.name for each in meta.feature_names}
    for name in ("backing_name", "backing_format", "data_file_name"):
        if (value := getattr(meta, name)) is not None:
            facts[name] = value
    if geometry is None:
        return facts
    facts |= {name: getattr(geometry, name) for name in _GEOMETRY}
    facts |= {
        "virtual_clusters": geometry.clusters(header.size),
        "file_clusters": geometry.clusters(meta.file_size),
        "l1_needed": geometry.l1_entries_for(header.size),
        "l1_length": header.l1_size * 8,
        "l1_coverage": header.l1_size * geometry.l2_coverage,
        "refcount_table_length": meta.refcount_table_said.length,
        "refcount_table_entries": meta.refcount_table_said.length // 8,
        "nb_extensions": len(meta.extensions),
        "extensions_start": meta.header_length,
        "extensions_end": meta.area.end,
    }
    bitmaps = meta.bitmaps_extension
    if bitmaps is not None:
        facts |= {
            "nb_bitmaps": bitmaps.nb_bitmaps,
            "bitmap_directory_offset": bitmaps.directory_offset,
            "bitmap_directory_size": bitmaps.directory_size,
        }
    return facts | _luks_facts(meta)


def _luks_facts(meta: Metadata) -> dict[str, object]:
    pointer, luks = meta.encryption, meta.luks
    if pointer is None:
        return {}
    facts: dict[str, object] = {"luks_offset": pointer.offset, "luks_length": pointer.length}
    if luks is not None and luks.valid:
        facts |= {
            "luks_cipher": f"{luks.cipher_name}-{luks.cipher_mode}",
            "luks_hash": luks.hash_spec,
            "luks_key_bytes": luks.key_bytes,
            "luks_active": sum(slot.active for slot in luks.key_slots),
        }
    return facts


def facts_of_table(meta: Metadata, table: Table, index: int | None = None) -> dict[str, object]:
    """What entry `index` of a table describes (or the whole table, without one). Bytes.

    range_start, range_length: guest bytes for L1 and L2 (and bitmaps, when the granularity is sane), host bytes for
    refcount structures.
    """
    if meta.geometry is None:
        return {}
    coverage = table.coverage(meta)
    facts: dict[str, object] = {
        "table": table.kind.value, "table_number": table.number, "table_offset": table.region.offset,
        "table_entries": table.entries, "table_length": table.region.length,
    }  # fmt: skip
    if table.snapshot is not None:
        facts["snapshot"] = table.snapshot
    if table.kind.value == "l2":
        facts["l1_index"] = table.number
    if index is not None:
        facts["index"] = index
    if coverage:
        facts["range_start"] = table.base + (index or 0) * coverage
        facts["range_length"] = coverage * (1 if index is not None else table.entries)
    return facts


def facts_of_node(node: Node, within: Node | None = None) -> dict[str, object]:
    """The selected node's value, offset, length, raw, symbol and word (the table entry that a bit field is part of).

    The values of a structure's parts are facts named `its_…`; those of a field's neighbours are, when `within` gives the
    annotated structure around it.
    """
    facts: dict[str, object] = {"offset": node.offset, "length": node.size, "end": node.end, "raw": node.raw}
    if node.value is not None:
        facts["value"] = node.value
    if node.symbol:
        facts["symbol"] = node.symbol
    if node.bits is not None:
        facts["low"], facts["high"] = node.bits
    if len(node.raw) >= 8:
        facts["word"] = int.from_bytes(node.raw[:8], "big")
    whole = node if node.children and node.bits is None and node.value is None else None
    parent = whole or (_parent(node, within) if within is not None else None)
    siblings: tuple[Any, ...] = parent.children if parent is not None else ()
    for each in siblings:
        if each.value is not None:
            facts[f"its_{each.name}"] = each.value
    return facts


def _parent(node: Node, within: Node) -> Node | None:
    return next((each for each in within.walk() if any(child.path == node.path for child in each.children)), None)
