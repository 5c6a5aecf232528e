"""The catalogue is complete, and codes that no damage recipe triggers are triggered here."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from formats.qcow2.extensions import ExtensionType
from tests.check.images import COPIED, Tiny, load
from workbench.check import check
from workbench.check.companions import companions
from workbench.check.findings import FindingLog
from workbench.check.problems import CATALOGUES, PROBLEMS, Severity, Tier
from workbench.engine import validate


def _texts(module: Path) -> set[str]:
    """String constants of a module that look like problem codes."""
    tree = ast.parse(module.read_text())
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {word for word in words if word.replace("-", "").isalnum() and word.isupper() and "-" in word}


def test_every_fault_of_the_loader_is_in_the_catalogue() -> None:
    stems = {"REFTABLE", "SNAPSHOT-TABLE", "L1-TABLE"}
    codes = {code for code in _texts(Path(validate.__file__)) if code not in stems}
    codes |= {f"{stem}-{end}" for stem in stems for end in ("TOO-LARGE", "UNALIGNED", "OFFSET")}
    assert codes - set(PROBLEMS) - {"-TOO-LARGE", "-UNALIGNED", "-OFFSET"} == set()


def test_every_code_is_defined_once() -> None:
    codes = [each.code for part in CATALOGUES for each in part.problems]
    assert len(codes) == len(set(codes)) == len(PROBLEMS)


def test_every_problem_is_explained() -> None:
    for problem in PROBLEMS.values():
        for text in (problem.title, problem.meaning, problem.arises, problem.guest_impact, problem.template):
            assert text.strip(), problem.code
        for text in (problem.meaning, problem.arises, problem.guest_impact):
            assert text.endswith("."), (problem.code, text)


def test_fixes_have_one_meaning_each() -> None:
    seen: dict[str, tuple[Tier, str]] = {}
    for problem in PROBLEMS.values():
        for fix in problem.fixes:
            assert seen.setdefault(fix.id, (fix.tier, fix.title)) == (fix.tier, fix.title)
    assert {tier for tier, _ in seen.values()} == set(Tier)


def test_corruptions_and_leaks_can_be_fixed() -> None:
    for problem in PROBLEMS.values():
        if problem.severity in (Severity.CORRUPTION, Severity.LEAK):
            assert problem.fixes, problem.code


def _extension(kind: int, data: bytes) -> bytes:
    return kind.to_bytes(4, "big") + len(data).to_bytes(4, "big") + data + bytes(-len(data) % 8)


HUGE = (1 << 63) - (1 << 16)


def _field(offset: int, value: int, width: int = 8) -> dict[int, bytes]:
    return {offset: value.to_bytes(width, "big")}


CRAFTED: dict[str, Tiny] = {
    "BACKING-FORMAT-TOO-LONG": Tiny(extensions=_extension(ExtensionType.BACKING_FORMAT, b"x" * 40)),
    "DATA-FILE-RAW-BACKING": Tiny(incompatible=4, autoclear=2, header=_field(8, 200) | _field(16, 4, 4)),
    "ENCRYPTION-EXTENSION": Tiny(crypt_method=2, extensions=_extension(ExtensionType.ENCRYPTION, bytes(8))),
    "EXTENDED-L2-CLUSTER-SIZE": Tiny(cluster_bits=12, incompatible=16),
    "L1-TABLE-OFFSET": Tiny(header=_field(40, HUGE) | _field(36, 1 << 20, 4)),
    "REFTABLE-OFFSET": Tiny(header=_field(48, HUGE) | _field(56, 4, 4)),
    "SNAPSHOT-TABLE-OFFSET": Tiny(header=_field(60, 60000, 4) | _field(64, HUGE)),
    "SNAPSHOT-WITH-DATA-FILE": Tiny(incompatible=4, header=_field(60, 1, 4)),
}
UNREACHABLE = {"SNAPSHOT-TABLE-TOO-LARGE": "needs a table of more than 64 MiB: see tests/repair/test_limits.py"}


@pytest.mark.parametrize("code", sorted(CRAFTED))
def test_header_fields_trigger(code: str) -> None:
    result = check(load(CRAFTED[code].build()))
    assert code in result.findings.by_code
    assert all(found.message for found in result.findings)


def test_more_references_than_the_refcount_holds() -> None:
    tiny = Tiny(cluster_bits=16, refcount_order=0)
    image = tiny.build()
    tiny.put(image, tiny.entry(1), 5 * tiny.size | COPIED)
    assert "REFCOUNT-OVERFLOW" in check(load(image)).findings.by_code


def test_reserved_bits_of_a_compressed_descriptor() -> None:
    tiny = Tiny(cluster_bits=9, data_clusters=2)
    image = tiny.build()
    tiny.put(image, tiny.entry(3), 1 << 62 | 1 << 58 | 0xA00)
    found = check(load(image)).findings.by_code
    assert "COMPRESSED-RESERVED" in found or "COMPRESSED-BEYOND-EOF" in found


def test_a_snapshot_l1_beyond_any_file() -> None:
    tiny = Tiny(data_clusters=6)
    size = tiny.size
    tiny.header = _field(60, 1, 4) | _field(64, 5 * size)
    image = tiny.build()
    entry = (HUGE + (1 << 16)).to_bytes(8, "big") + (2).to_bytes(4, "big") + bytes(24) + (16).to_bytes(4, "big")
    image[5 * size : 6 * size] = (entry + bytes(16)).ljust(size, b"\0")
    assert "SNAPSHOT-L1-OFFSET" in check(load(image)).findings.by_code


def test_companions_that_are_missing_or_not_plain_files() -> None:
    log = FindingLog()
    tiny = Tiny(header=_field(8, 600) | _field(16, 15, 4) | {600: b"nbd://host/disk"})
    assert companions(load(tiny.build()), log) is None
    lost = Tiny(incompatible=4, extensions=_extension(ExtensionType.DATA_FILE, b"/nowhere/data.raw"))
    assert companions(load(lost.build()), log) is not None
    assert set(log.freeze().by_code) == {"BACKING-NOT-FOLLOWED", "DATA-FILE-MISSING"}
