"""Every problem code that can be fixed: an image that has it, and a plan after which it is gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sample_images.editor import EXT_BACKING_FORMAT, EXT_CRYPTO, Editor
from sample_images.kit import K
from tests.conftest import BaseImages
from tests.repair.judging import inside
from workbench.check.problems import PROBLEMS
from workbench.repair.fixes import RULES, rules_for
from workbench.repair.plan import make_plan
from workbench.repair.policy import Mode
from workbench.repair.session import Guide
from workbench.storage.file import FileStorage

pytestmark = pytest.mark.oracle  # the images are built by the real QEMU tools

BY_RECIPE = {
    "BITMAPS-BIT-WITHOUT-EXTENSION": "bitmaps-extension-lost",
    "BITMAPS-NOT-TRUSTED": "bitmaps-autoclear-missing",
    "BITMAPS-EXTENSION": "bitmaps-count-zero",
    "BITMAP-DIRECTORY-UNALIGNED": "bitmaps-directory-unaligned",
    "BITMAP-DIRECTORY-SIZE": "bitmap-name-empty",
    "BITMAP-UNREADABLE": "bitmap-name-long",
    "BITMAP-TABLE-SIZE": "bitmap-name-empty",
    "BITMAP-TABLE-UNALIGNED": "bitmap-table-unaligned",
    "BITMAP-NAME": "bitmap-name-empty",
    "BITMAP-FLAGS": "bitmap-flags-reserved",
    "BITMAP-TYPE": "bitmap-type-unknown",
    "BITMAP-GRANULARITY": "bitmap-granularity-small",
    "BITMAP-EXTRA-DATA": "bitmap-name-empty",
    "BITMAP-DUPLICATE-NAME": "bitmap-duplicate-name",
    "BITMAP-ENTRY-RESERVED": "bitmap-entry-reserved",
    "BITMAP-ENTRY-UNALIGNED": "bitmap-entry-unaligned",
    "BITMAP-ENTRY-BEYOND-EOF": "bitmap-entry-past-eof",
    "HEADER-MAGIC": "magic-wrong",
    "HEADER-TRUNCATED": "truncated-in-header",
    "HEADER-VERSION": "version-unknown",
    "HEADER-CLUSTER-BITS": "cluster-bits-small",
    "HEADER-LENGTH": "header-length-small",
    "HEADER-REFCOUNT-ORDER": "refcount-order-large",
    "HEADER-CRYPT-METHOD": "crypt-unknown",
    "HEADER-SIZE": "size-huge",
    "FEATURE-UNKNOWN": "feature-incompatible-unknown",
    "COMPRESSION-TYPE": "compression-type-unknown",
    "IMAGE-DIRTY": "dirty",
    "IMAGE-CORRUPT-BIT": "corrupt",
    "EXTENSION-OVERRUN": "extension-overrun",
    "ENCRYPTION-UNEXPECTED": "extension-crypto-alone",
    "ENCRYPTION-MISSING": "luks-extension-lost",
    "LUKS-UNALIGNED": "luks-offset-unaligned",
    "LUKS-BEYOND-EOF": "luks-offset-past-eof",
    "LUKS-LENGTH": "luks-length-huge",
    "LUKS-MAGIC": "luks-offset-unaligned",
    "LUKS-VERSION": "luks-version-wrong",
    "LUKS-KEY-SLOT": "luks-slot-outside",
    "LUKS-NO-KEY": "luks-slots-disabled",
    "BACKING-OFFSET": "backing-name-outside",
    "BACKING-NAME-TOO-LONG": "backing-name-long",
    "BACKING-FORMAT-MISSING": "extension-overrun-backing",
    "L1-ENTRY-RESERVED": "l1-offset-zero",
    "L1-ENTRY-UNALIGNED": "cluster-bits-wrong",
    "L1-ENTRY-BEYOND-EOF": "l1-offset-zero",
    "L1-ENTRY-OFFSET-ZERO": "l1-offset-zero",
    "L1-COPIED-WRONG": "l1-offset-zero",
    "L1-TABLE-TOO-LARGE": "l1-size-huge",
    "L1-TABLE-UNALIGNED": "cluster-bits-wrong",
    "L1-TABLE-TOO-SMALL": "size-grown",
    "L2-TABLE-SHARED": "l1-shared-l2",
    "L2-ENTRY-RESERVED": "cluster-bits-wrong",
    "L2-ENTRY-UNALIGNED": "cluster-bits-wrong",
    "L2-ENTRY-BEYOND-EOF": "cluster-bits-wrong",
    "L2-COPIED-WRONG": "cluster-bits-wrong",
    "L2-TABLE-FOREIGN": "cluster-bits-wrong",
    "COMPRESSED-COPIED": "cluster-bits-wrong",
    "COMPRESSED-BEYOND-EOF": "cluster-bits-wrong",
    "COMPRESSED-WITH-DATA-FILE": "feature-data-file-alone",
    "COMPRESSED-WITH-SUBCLUSTERS": "subcluster-compressed",
    "SUBCLUSTER-CONFLICT": "subcluster-both",
    "SUBCLUSTER-UNALLOCATED": "subcluster-no-cluster",
    "DATA-FILE-UNNAMED": "feature-data-file-alone",
    "DATA-FILE-RAW-BIT": "feature-data-raw-alone",
    "DATA-FILE-OFFSET": "data-file-raw-moved",
    "REFCOUNT-TOO-LOW": "bitmap-table-shared",
    "REFCOUNT-ZERO": "refcount-order-wrong",
    "REFCOUNT-TOO-HIGH": "cluster-bits-wrong",
    "CLUSTER-LEAKED": "bitmap-name-empty",
    "REFCOUNT-UNREADABLE": "block-unaligned",
    "REFBLOCK-RESERVED": "cluster-bits-wrong",
    "REFBLOCK-UNALIGNED": "block-unaligned",
    "REFBLOCK-BEYOND-EOF": "cluster-bits-wrong",
    "REFBLOCK-SHARED": "cluster-bits-wrong",
    "REFBLOCK-MISSING": "truncated-header",
    "REGION-BEYOND-EOF": "bitmap-table-past-eof",
    "REFTABLE-MISSING": "rt-size-zero",
    "REFTABLE-TOO-LARGE": "rt-size-huge",
    "REFTABLE-UNALIGNED": "cluster-bits-wrong",
    "METADATA-OVERLAP": "bitmap-table-shared",
    "DATA-OVERLAPS-METADATA": "bitmap-entry-data",
    "DATA-CROSS-LINKED": "cluster-bits-wrong",
    "DATA-OVERLAPS-COMPRESSED": "cluster-bits-wrong",
    "REFCOUNT-PAST-EOF": "cluster-bits-wrong",
    "SNAPSHOTS-TOO-MANY": "snapshots-too-many",
    "SNAPSHOT-TABLE-UNALIGNED": "snapshots-offset-unaligned",
    "SNAPSHOT-UNREADABLE": "truncated-snapshots",
    "SNAPSHOT-EXTRA-TOO-LARGE": "snapshot-extra-large",
    "SNAPSHOT-EXTRA-TOO-SMALL": "truncated-snapshots",
    "SNAPSHOT-L1-UNALIGNED": "snapshot-l1-unaligned",
    "SNAPSHOT-L1-TOO-LARGE": "snapshot-l1-huge",
    "SNAPSHOT-DISK-SIZE": "snapshot-table-over-refcounts",
    "SNAPSHOT-DUPLICATE-ID": "snapshot-table-over-refcounts",
}
"""code -> a damage recipe that triggers it."""


def _far(field: str) -> Callable[[Editor], None]:
    return lambda e: e.set(field, 1 << 63)


def _odd_luks_pointer(e: Editor) -> None:
    e.put(e.extension(EXT_CRYPTO).offset + 4, 8, 4)


def _long_format(e: Editor) -> None:
    e.remove_extension(EXT_BACKING_FORMAT)
    e.add_extension(EXT_BACKING_FORMAT, b"qcow2-but-much-too-long")


def _reserved_in_descriptor(e: Editor) -> None:
    guest = e.guests("compressed")[0]
    e.set_l2(guest, e.l2(guest) | 1 << 57)


def _shared_stream(e: Editor) -> None:
    e.set_l2(30 * 4 * K, e.l2(e.guests("compressed")[0]))


def _block_in_data(e: Editor) -> None:
    e.set_rt(e.rt_entries - 1, e.host_of(e.guests("data")[0]))


def _snapshot_far(e: Editor) -> None:
    e.set_snapshot(e.snapshots()[0], "l1_table_offset", 1 << 63)


CRAFTED: dict[str, tuple[str, Callable[[Editor], None]]] = {
    "EXTENDED-L2-CLUSTER-SIZE": ("many-l2", lambda e: e.set_bits("incompatible_features", 16)),
    "ENCRYPTION-EXTENSION": ("luks-aes-128-cbc-plain64", _odd_luks_pointer),
    "BACKING-FORMAT-TOO-LONG": ("backing-raw", _long_format),
    "L1-TABLE-OFFSET": ("many-l2", _far("l1_table_offset")),
    "REFTABLE-OFFSET": ("many-l2", _far("refcount_table_offset")),
    "REFBLOCK-FOREIGN": ("many-l2", _block_in_data),
    "SNAPSHOT-TABLE-OFFSET": ("snapshots", _far("snapshots_offset")),
    "SNAPSHOT-L1-OFFSET": ("snapshots", _snapshot_far),
    "SNAPSHOT-WITH-DATA-FILE": ("data-file", lambda e: e.set("nb_snapshots", 1)),
    "REFCOUNT-OVERFLOW": ("refcount-1", _shared_stream),
}
"""code -> (base image, damage) where no recipe triggers it."""

ELSEWHERE = {
    "L2-TABLE-LOST": "linked where its place is certain, else kept and named: tests/repair/test_gate.py",
    "EXTENSION-DUPLICATE": "of two that differ both are kept: see the test below",
    "DATA-FILE-UNEXPECTED": "the guest would read another file: the proof asks for consent, see the test below",
    "AUTOCLEAR-UNKNOWN": "harmless: cleared with the next change, or when asked for (tests/repair/test_gate.py)",
    "HEADER-LENGTH-UNALIGNED": "changed only where the header extensions can be read then and not before",
    "COMPRESSED-RESERVED": "its offset is then beyond the end of any real file: see the test below",
    "L2-TABLE-EMPTY": "stays where no lost table is found for the entry: the orphans are kept",
    "SNAPSHOT-TABLE-TOO-LARGE": "needs a table of more than 64 MiB: see test_limits.py",
    "DATA-FILE-MISSING": "the name is restored where it was cut short; another file cannot be made up",
    "DATA-FILE-RAW-BACKING": "needs a data file and a backing file in one image, which no QEMU tool makes",
    "COMPRESSED-UNREADABLE": "only on request",
    "HEADER-CLUSTER-SIZE-DOUBTFUL": "set with consent: tests/repair/test_astray.py",
}


@pytest.mark.parametrize("code", sorted(BY_RECIPE))
def test_a_recipe_has_the_problem_and_its_plan_ends_it(code: str, base_images: BaseImages) -> None:
    image = base_images.damaged(BY_RECIPE[code])
    with inside(image.parent), Guide(image.name) as guide:
        plan = guide.plan()
    assert code in plan.result_before.findings.by_code
    assert code not in plan.result_after.findings.by_code


@pytest.mark.parametrize("code", sorted(CRAFTED))
def test_a_crafted_image_has_the_problem_and_its_plan_ends_it(
    code: str, base_images: BaseImages, tmp_path: Path
) -> None:
    base, damage = CRAFTED[code]
    image = base_images.copy(base_images.get(base), tmp_path / "work")
    with Editor(image) as editor:
        damage(editor)
    with inside(image.parent), Guide(image.name) as guide:
        plan = guide.plan()
    assert code in plan.result_before.findings.by_code
    assert code not in plan.result_after.findings.by_code
    assert plan.after.clean


def test_every_code_with_a_fix_is_covered() -> None:
    on_request = set().union(*(rule.codes for rule in RULES if rule.on_request))  # tested by name in tests/oracle
    fixable = {code for code in PROBLEMS if rules_for(code)}
    assert fixable - set(BY_RECIPE) - set(CRAFTED) - set(ELSEWHERE) - on_request == set()
    assert Mode.CODES.value == "codes"


def test_reserved_bits_of_a_compressed_descriptor_are_cleared_and_its_data_stays(
    base_images: BaseImages, tmp_path: Path
) -> None:
    image = base_images.copy(base_images.get("v3-512"), tmp_path / "work")
    with Editor(image) as editor:
        guest = editor.guests("compressed")[0]
        at, healthy = editor.l2_at(guest), editor.l2(guest)
        _reserved_in_descriptor(editor)
    with Guide(image) as guide:
        plan = guide.plan()
        assert plan.after.clean and not plan.after.leaks
        assert plan.overlay.read(at, 8) == healthy.to_bytes(8, "big")


@pytest.mark.parametrize(
    ("recipe", "code"),
    [("extension-double", "EXTENSION-DUPLICATE"), ("extension-data-file-alone", "DATA-FILE-UNEXPECTED")],
)
def test_what_would_read_differently_is_left_as_it_is(
    recipe: str, code: str, base_images: BaseImages, tmp_path: Path
) -> None:
    """Which of two backing formats, or of two places of the data, is right cannot be proven."""
    image = base_images.copy(base_images.damaged(recipe), tmp_path / "work")
    with FileStorage.open(image) as storage:
        plan = make_plan(storage)
    assert plan.proof.harmless and code in plan.result_after.findings.by_code
    assert plan.withheld is not None or any("both are kept" in note for note in plan.notes)
