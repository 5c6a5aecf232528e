"""Build the shipped sample images and their manifest with real QEMU tools: ``python -m sample_images.build``.

Shipped as built: LUKS headers hold random salts, so a rebuild of an encrypted sample differs. Name samples to rebuild
only those; ``--missing`` builds only what is not there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sample_images import IMAGES, MANIFEST
from sample_images.bases import BASES
from sample_images.qemu import check
from sample_images.recipes import RECIPES, damage


@dataclass(frozen=True, slots=True)
class Plan:
    """A sample to build: from a base alone (healthy) or from a damage recipe."""

    name: str
    source: str
    look_at: str
    title: str = ""
    shows: str = ""

    @property
    def damaged(self) -> bool:
        return self.source in RECIPES

    @property
    def base(self) -> str:
        return RECIPES[self.source].base if self.damaged else self.source


HEALTHY: tuple[Plan, ...] = (
    Plan(
        "plain",
        "v3-4k",
        "Follow one guest offset through L1 and L2; compare data, zero and compressed entries.",
        "A plain image",
        "Version 3, 4 KiB clusters: data, zero clusters with and without a host cluster, zlib-compressed clusters.",
    ),
    Plan(
        "disk-16m",
        "disk-16m",
        "Guest offset 5M: the disk and the snapshot share that cluster (x shows both). Sixteen KiB further on they do not.",
        "A 16 MiB disk with a snapshot",
        "Version 3, 4 KiB clusters; what was written after the snapshot was taken has clusters of its own.",
    ),
    Plan(
        "tiny-clusters",
        "v3-512",
        "The L1 table has one entry for every 32 KiB of the disk.",
        "512-byte clusters",
        "The smallest cluster size: every structure fits on a few screens of hex.",
    ),
    Plan(
        "version-2",
        "v2-4k",
        "The header ends after 72 bytes; there is no zero flag and no feature bit.",
        "A version 2 image",
        "What old programs write (compat=0.10).",
    ),
    Plan(
        "compressed",
        "converted-zlib",
        "Several compressed clusters share one host cluster; its refcount counts them.",
        "Compressed with zlib",
        "Made by qemu-img convert -c, with the default 64 KiB clusters.",
    ),
    Plan(
        "zstd",
        "zstd-4k",
        "compression_type is 1 and the incompatible feature bit 3 is set.",
        "Compressed with zstd",
        "The other compression method.",
    ),
    Plan(
        "subclusters",
        "subclusters-16k",
        "L2 entries are 16 bytes; guest offset 0x78000 has allocated and zero subclusters side by side.",
        "Extended L2 entries",
        "Clusters of 16 KiB made of 32 subclusters, partly written.",
    ),
    Plan(
        "snapshots",
        "snapshots-resized",
        "Three L1 tables share L2 tables and data; each snapshot records its own disk size.",
        "Internal snapshots",
        "Three snapshots, taken while the disk was 1, 5 and 3 MiB.",
    ),
    Plan(
        "bitmaps",
        "bitmaps",
        "The bitmaps extension leads to the directory, each entry to a table, and that to the bits.",
        "Dirty bitmaps",
        "Three persistent bitmaps of different granularity, one of them disabled.",
    ),
    Plan(
        "backing-chain",
        "backing-chain",
        "An unallocated cluster is read from the middle file, then from the base, then as zeros.",
        "A chain of three files",
        "An overlay on a qcow2 file on a raw file, each of another size.",
    ),
    Plan(
        "data-file",
        "data-file-raw",
        "Offsets in L2 entries are offsets in the data file, one to one.",
        "External data file",
        "The guest's data lies in a raw file of its own; this file holds metadata only.",
    ),
    Plan(
        "luks",
        "luks-aes-128-cbc-essiv",
        "The crypto extension leads to the LUKS header; its payload offset counts from the guest's start.",
        "Encrypted with LUKS",
        "aes-128-cbc-essiv:sha256, one key slot in use.",
    ),
    Plan(
        "aes",
        "aes",
        "crypt_method is 1; there is no key header at all.",
        "Legacy AES encryption",
        "The old encryption, which nobody should use any more.",
    ),
    Plan(
        "refcount-1",
        "refcount-1",
        "One bit for each cluster: no cluster can be shared, so no snapshot is possible.",
        "One-bit refcounts",
        "The narrowest refcounts.",
    ),
    Plan(
        "refcount-64",
        "refcount-blocks",
        "A refcount block covers only 32 KiB of the file, so there are several.",
        "64-bit refcounts",
        "The widest refcounts on the smallest clusters.",
    ),
    Plan(
        "odd-size",
        "size-odd-4k",
        "Only the first sector of the last cluster belongs to the disk.",
        "A size that ends inside a cluster",
        "The disk ends 512 bytes into its last cluster.",
    ),
    Plan(
        "lazy-refcounts",
        "lazy-refcounts",
        "Compatible feature bit 0: while open, the dirty bit stands in for refcount updates.",
        "Lazy refcounts",
        "Refcount updates may be postponed; this image was closed cleanly.",
    ),
    Plan(
        "unknown-extension",
        "unknown-extension",
        "A program that does not know an extension keeps it.",
        "An unknown header extension",
        "A header extension of a type nobody has defined.",
    ),
    Plan(
        "fragmented",
        "fragmented",
        "The host map and the guest map are in different order.",
        "Fragmented",
        "Clusters were written in scattered order.",
    ),
)

DAMAGED: tuple[Plan, ...] = (
    Plan(
        "leaked",
        "leak-tail",
        "Three clusters at the end count 1, but no table refers to them: one is empty, one noise, one text.",
    ),
    Plan(
        "lost-l1-entry",
        "l1-entry-past-eof",
        "L1 entry 1 points past the end of the file; its L2 table survives as a leaked cluster and can be linked again.",
    ),
    Plan("wiped-l2", "l2-zeroed", "qemu-img check calls this leaks; -r leaks would free the clusters of guest data."),
    Plan("half-leaked", "leaks-many", "The leaked clusters hold text of the guest: they are not waste."),
    Plan(
        "refcount-zero",
        "refcount-zero-data",
        "The first data cluster counts 0: the next allocation would overwrite it.",
    ),
    Plan("refcount-block-missing", "block-missing-only", "Refcount table entry 0 is zero, so every cluster counts 0."),
    Plan("data-over-l2", "data-over-l2", "A data entry points at the L2 table it stands in."),
    Plan("data-over-refcounts", "data-over-refcount-block", "A data entry points at the refcount block."),
    Plan("cross-linked", "l2-crosslink", "Guest clusters 0 and 1 share a host cluster; the other one is leaked."),
    Plan("foreign-l2", "l2-overwritten-by-fs", "The L2 table of the second 2 MiB holds an ext4 superblock."),
    Plan("copied-wrong", "l2-entry-uncopied", "The first L2 entry lacks its COPIED flag."),
    Plan("unaligned-entry", "l2-entry-unaligned", "The first L2 entry points 512 bytes into a cluster."),
    Plan("entry-past-eof", "l2-entry-past-eof", "The first L2 entry points 1 TiB into the file."),
    Plan("truncated", "truncated-half", "Entries point past the end of the file."),
    Plan("bad-l1-size", "l1-size-small", "The header's l1_size is too small for the disk: QEMU refuses to open it."),
    Plan(
        "bad-refcount-table",
        "rt-unaligned",
        "refcount_table_offset is no multiple of the cluster size: QEMU refuses to open it.",
    ),
    Plan("extension-overrun", "extension-overrun", "The last header extension claims a length of 1 MiB."),
    Plan(
        "snapshot-table-astray",
        "snapshots-offset-data",
        "snapshots_offset points at guest text, which is read as entries.",
    ),
    Plan(
        "snapshot-table-wiped",
        "snapshots-wiped",
        "nb_snapshots is 2, but the table is zeros; both L1 tables survive as leaks.",
    ),
    Plan(
        "bitmap-directory-wiped",
        "bitmaps-directory-wiped",
        "The directory is zeros; QEMU refuses to open the image because of it.",
    ),
    Plan(
        "bitmap-in-use",
        "bitmap-flag-in-use",
        "The first bitmap's in-use flag is set: it was not saved and must not be trusted.",
    ),
    Plan("dirty", "dirty-stale", "The dirty bit is set and three refcounts are behind, as after a crash."),
    Plan("corrupt", "corrupt", "Incompatible feature bit 1: QEMU opens it only to read, or to repair."),
    Plan(
        "compressed-garbage",
        "compressed-garbage",
        "qemu-img check finds nothing, but guest offset 0x10000 cannot be read.",
    ),
    Plan("subclusters-contradict", "subcluster-both", "Four subclusters are marked allocated and zero at once."),
    Plan(
        "backing-missing",
        "backing-missing",
        "The backing file name leads nowhere; what lies in the overlay can still be read.",
    ),
    Plan(
        "luks-length",
        "luks-length-oversized",
        "The LUKS header's length reaches past the file; qemu-img check -r leaks would free the keys.",
    ),
)


def build_sample(plan: Plan, folder: Path) -> dict[str, Any]:
    """Build one sample into an empty `folder`; returns its manifest entry. Raises QemuMissing, QemuFailed."""
    base = BASES[plan.base]
    image = base.build(folder, plan.name)
    recipe = RECIPES[plan.source] if plan.damaged else None
    if recipe:
        damage(recipe, image)
    companions = sorted(each.name for each in folder.iterdir() if each != image)
    if recipe and "backing-missing" in recipe.name:
        (folder / companions.pop()).unlink()
    verdict = check(image, secret=base.secret)
    return {
        "name": plan.name,
        "file": image.name,
        "title": plan.title or (recipe.title if recipe else base.description),
        "shows": plan.shows or (f"Damage: {_inside(recipe.title)}." if recipe else base.description),
        "wrong": recipe.what_is_wrong if recipe else None,
        "look_at": plan.look_at,
        "passphrase": base.secret,
        "companions": companions,
        "base": base.name,
        "recipe": recipe.name if recipe else None,
        "sha256": {name: sha256(folder / name) for name in (image.name, *companions)},
        "check": {"exit_code": verdict.code, "corruptions": verdict.corruptions, "leaks": verdict.leaks},
    }


def _inside(title: str) -> str:
    """A title as it stands inside a sentence; abbreviations stay as they are."""
    return title if not title[1:2].islower() else title[:1].lower() + title[1:]


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """Build all samples, or those named, and write the manifest."""
    parser = argparse.ArgumentParser(description="Build the shipped sample images.")
    parser.add_argument("names", nargs="*", help="samples to rebuild (default: all)")
    parser.add_argument("--missing", action="store_true", help="build only samples that are not in the manifest")
    options = parser.parse_args(arguments)
    old = {entry["name"]: entry for entry in json.loads(MANIFEST.read_text())["samples"]} if MANIFEST.exists() else {}
    IMAGES.mkdir(exist_ok=True)
    entries = []
    for plan in (*HEALTHY, *DAMAGED):
        wanted = plan.name in options.names if options.names else not (options.missing and plan.name in old)
        if not wanted and plan.name in old:
            entries.append(old[plan.name])
            continue
        with tempfile.TemporaryDirectory() as draft:
            entry = build_sample(plan, Path(draft))
            for name in entry["sha256"]:
                shutil.copyfile(Path(draft) / name, IMAGES / name)
        entries.append(entry)
        print(f"{entry['file']}: {entry['title']} (qemu-img check exits {entry['check']['exit_code']})")
    MANIFEST.write_text(json.dumps({"samples": entries}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    kept = {name for entry in entries for name in entry["sha256"]}
    for stray in IMAGES.iterdir():
        if stray.name not in kept:
            stray.unlink()
    total = sum(path.stat().st_size for path in IMAGES.iterdir())
    print(f"{len(entries)} samples, {total / (1 << 20):.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
