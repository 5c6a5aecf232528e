"""Who may know what: which modules name the bits of table entries."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
MASKS = {
    "ALL_ONES", "BITMAP_TABLE_ENTRY", "COMPRESSED", "COPIED", "L1_ENTRY", "L2_EXTENDED", "L2_STANDARD", "OFFSET_MASK",
    "REFCOUNT_OFFSET_MASK", "REFCOUNT_TABLE_ENTRY", "SUBCLUSTER_BITMAP", "ZERO", "compressed_entry", "compressed_layout",
    "compressed_range", "l2_layout",
}  # fmt: skip
SOURCES = {"formats.qcow2.tables", "formats.qcow2.layouts"}
VALUES = {0x00FF_FFFF_FFFF_FE00, 0xFFFF_FFFF_FFFF_FE00}

MAY = {
    "formats/qcow2/layouts.py",  # defines them
    "formats/qcow2/entries.py",  # reads with them: the one reading
    "formats/qcow2/tables.py",  # makes schemas of them
    "workbench/engine/tables.py",  # which layout annotates the entries of which table
}
ON_PURPOSE = {  # the preservation proof reads for itself, so that a mistake of the one reading cannot hide from it
    f"workbench/repair/preserve/{name}.py" for name in ("hosts", "keeping", "objects", "views", "walk")
}


def names_masks(source: str) -> bool:
    """Whether a module takes a mask or layout from where they are defined, or spells one out."""
    tree = ast.parse(source)
    modules = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "formats.qcow2"
        for alias in node.names
        if alias.name in ("tables", "layouts")
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in SOURCES:
            if any(alias.name in MASKS for alias in node.names):
                return True
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in modules and node.attr in MASKS:
                return True
        elif isinstance(node, ast.Constant) and isinstance(node.value, int) and node.value in VALUES:
            return True
    return False


def test_what_an_entry_says_is_read_in_one_place() -> None:
    naming = {
        str(path.relative_to(ROOT))
        for folder in ("formats", "workbench")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if names_masks(path.read_text("utf-8"))
    }
    assert naming - MAY - ON_PURPOSE == set(), "use formats.qcow2.entries instead of masks"
    listed = {name for name in MAY | ON_PURPOSE if (ROOT / name).exists()}
    assert listed - naming == set(), "take these off the list"


def test_masks_are_noticed_however_they_are_named() -> None:
    assert names_masks("from formats.qcow2.tables import words, COPIED")
    assert names_masks("from formats.qcow2 import tables as t\nx = 1 & t.OFFSET_MASK")
    assert names_masks("x = 0x00fffffffffffe00")
    assert not names_masks("from formats.qcow2.tables import words\nfrom workbench.engine import tables\ntables.ZERO")


def test_the_one_reading_imports_nothing_but_formats() -> None:
    for module in ("entries", "layouts", "tables", "header"):
        tree = ast.parse((ROOT / f"formats/qcow2/{module}.py").read_text("utf-8"))
        sources = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not any((source or "").startswith("workbench") for source in sources)


def imports(source: str, known: set[str]) -> set[str]:
    """Modules of `known` that a module takes in when it runs, inside functions too; not those for its type hints alone."""
    tree = ast.parse(source)
    hints = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and isinstance(branch.test, ast.Name) and branch.test.id == "TYPE_CHECKING"
        for statement in branch.body
        for node in ast.walk(statement)
    }
    found = set[str]()
    for node in ast.walk(tree):
        if id(node) in hints:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else node.module)
    return found & known


def in_circles(graph: dict[str, set[str]]) -> set[str]:
    """Modules that can be reached from themselves: what remains when all that lead nowhere, or that nothing needs, are gone."""
    left = {name: set(needs) - {name} for name, needs in graph.items()}
    while True:
        needed = set().union(*left.values()) if left else set()
        gone = {name for name, needs in left.items() if not needs or name not in needed}
        if not gone:
            return set(left)
        left = {name: needs - gone for name, needs in left.items() if name not in gone}


def test_no_two_files_need_each_other() -> None:
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for folder in ("formats", "workbench", "sample_images")
        for path in (ROOT / folder).rglob("*.py")
    }
    graph = {name: imports(path.read_text("utf-8"), set(files)) for name, path in files.items()}
    assert in_circles(graph) == set()


def test_circles_are_noticed_inside_functions_too() -> None:
    known = {"a.one", "a.two", "a.three"}
    hint = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from a.two import X"
    inside = "def f() -> None:\n    from a import two"
    assert imports(hint, known) == set() and imports(inside, known) == {"a.two"}
    assert in_circles({"a.one": {"a.two"}, "a.two": {"a.one"}, "a.three": {"a.one"}}) == {"a.one", "a.two"}
    assert in_circles({"a.one": {"a.two"}, "a.two": {"a.three"}, "a.three": set()}) == set()
