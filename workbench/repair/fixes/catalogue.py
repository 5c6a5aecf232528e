"""The catalogue's fixes (check/fixes.py) and the rules that carry them out, with the alternative each stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

IMPLEMENTED: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    "raise-refcount": (("refcounts", ""),),
    "lower-refcount": (("refcounts", ""),),
    "free-waste": (("refcounts", ""),),
    "free-orphans": (("refcounts", ""),),  # with Policy.free_orphans
    "rebuild-refcounts": (("refcounts", ""),),
    "replace-refcount-block": (("refcounts", ""),),
    "relink-l2": (("relink", "best"),),
    "correct-copied": (("copied", ""), ("harmless-flags", "")),
    "clear-reserved": (("entries", ""), ("l1-entries", ""), ("harmless-flags", "")),
    "unmap-entry": (("entries", "unallocated"), ("foreign-tables", "unallocated"), ("unreadable", "")),
    "zero-entry": (("entries", "zero"), ("foreign-tables", "zero"), ("unreadable", "")),
    "align-entry": (("entries", ""), ("l1-entries", "")),  # where the aligned cluster is free for it
    "drop-l1-entry": (("l1-entries", ""),),
    "copy-cluster": (("overlaps", "copy"),),
    "copy-l2-table": (("shared-tables", "copy"),),
    "relocate-data": (("overlaps", "copy"),),
    "derive-header-field": (
        ("header-identity", ""),
        ("header-length", ""),
        ("header-shape", ""),
        ("header-sizes", ""),
        ("header-rebuild", ""),
        ("compression", ""),
        ("encryption-method", ""),
        ("data-file-bits", ""),
        ("backing-name", ""),
        ("bitmaps", "mend"),
        ("snapshot-table", ""),
        ("snapshot-entries", "keep"),
    ),
    "find-table": (("l1-table", ""), ("snapshot-table", ""), ("snapshot-entries", "keep"), ("bitmaps", "mend")),
    "clear-dirty": (("finish", ""),),
    "clear-corrupt": (("finish", ""),),
    "clear-feature": (
        ("feature-bits", ""),
        ("data-file-bits", ""),
        ("bitmaps", "mend"),
        ("raw-bit", ""),
        ("finish", ""),
    ),
    "set-feature": (("data-file-bits", ""), ("header-shape", "")),
    "drop-extension": (("extension-overrun", ""), ("extension-duplicate", ""), ("backing-format-unused", "")),
    "pad-snapshot-extra": (("snapshot-table", ""),),
    "trim-snapshot-extra": (("snapshot-table", ""),),
    "fix-snapshot-disk-size": (("snapshot-entries", "keep"),),
    "renumber-snapshot": (("snapshot-entries", "keep"),),
    "drop-snapshot": (("snapshot-entries", "drop"),),
    "cut-snapshot-table": (("snapshot-table", ""),),
    "drop-bitmap": (("bitmaps-in-use", "drop"), ("bitmaps", "drop")),
    "drop-bitmaps": (("bitmaps", "drop"),),
    "clear-in-use": (("bitmaps-in-use", "trust"),),
    "restore-bitmaps-bit": (("bitmaps", "mend"),),
    "clear-bitmap-entry": (("bitmaps", "mend"), ("bitmap-tail", "")),
    "fix-luks-pointer": (("luks-pointer", ""),),
    "clear-subclusters": (("subclusters", "data"),),
    "record-backing-format": (("backing-format", "probe"),),
    "extend-file": (("extend-file", ""),),
    "trim-tail": (("trim-tail", ""),),
}
"""Fix id -> (rule id, alternative id or empty) in the order in which they are tried."""


def choice_of(fix: str, code: str) -> str:
    """What `--choose` wants for a fix of a problem, `rule=alternative`; empty where it is done without being chosen."""
    from workbench.repair.fixes import rules_for

    rules = {rule.id: rule for rule in rules_for(code)}
    for name, way in IMPLEMENTED.get(fix, ()):
        if way and name in rules and way != rules[name].default:
            return f"{name}={way}"
    return ""
