"""The structures of an image as a tree that is only as large as what has been opened of it.

Items have stable keys (`header`, `l2:3`, `snapshot:0/l1`, `refcount-block:5`) which places, bookmarks and addresses use; here
is how a key, or a host offset, leads to its item.
"""

from __future__ import annotations

from collections.abc import Iterator

from formats.qcow2.entries import block_of, offset_of
from workbench.tui.outline_items import GROUP, Item, Kind
from workbench.tui.outline_parts import OutlineParts


class Outline(OutlineParts):
    """The tree, with the ways to find items in it by key and by host offset."""

    # Looking things up

    def find(self, key: str) -> Item | None:
        """The item with that key, or None when this image has no such thing."""
        try:
            return self._find(key)
        except (IndexError, ValueError, AssertionError):
            return None

    def _find(self, key: str) -> Item | None:
        root = next((each for each in self.roots() if each.key == key), None)
        if root is not None:
            return root
        base, _, last = key.rpartition("/")
        name, _, number = (last if base else key).partition(":")
        if "#" in key:
            return self.group(key)
        if name == "l2":
            owner = f"{base}/l1" if base else "l1"
            words = self._l1_words(owner)
            found = 0 <= int(number) < len(words) and offset_of(int(words[int(number)]))
            return self._l2(owner, int(number)) if found else None
        if name == "refcount-block":
            words = self.meta.refcount_table
            found = 0 <= int(number) < len(words) and block_of(int(words[int(number)]))
            return self._block(int(number)) if found else None
        if base.startswith("snapshot:") and last == "l1":
            return self._snapshot_l1(int(base[9:]))
        makers = {
            "extension": self._extension, "snapshot": self._snapshot, "bitmap": self._bitmap, "slot": self._slot, "bitmap-table": self._bitmap_table,
            "layer": self._layer,
        }  # fmt: skip
        return makers[name](int(number)) if name in makers and number.isdigit() else None

    def parents(self, key: str) -> list[str]:
        """Keys from the top down to (not with) `key`, groups included, for opening the tree there."""
        if "#" in key:
            return self._above_group(key)
        if "/" in key:
            base, _, last = key.rpartition("/")
            chain = [*self.parents(base), base]
            if last.startswith("l2:"):
                chain.append(f"{base}/l1")
                chain += self._groups_to(f"{base}/l1", self._l1_indices(f"{base}/l1"), int(last[3:]))
            return chain
        name, _, number = key.partition(":")
        if name == "l2":
            return ["l1", *self._groups_to("l1", self._l1_indices("l1"), int(number))]
        if name == "refcount-block":
            return ["refcount-table", *self._groups_to("refcount-table", self._block_indices(), int(number))]
        if name == "snapshot":
            return ["snapshots", *self._groups_to("snapshots", list(range(len(self.meta.snapshots))), int(number))]
        if name == "bitmap":
            return [
                "bitmaps",
                *self._groups_to("bitmaps", list(range(len(self.meta.bitmap_directory.bitmaps))), int(number)),
            ]
        if name == "bitmap-table":
            return [*self.parents(f"bitmap:{number}"), f"bitmap:{number}"]
        if name == "layer":
            return ["backing-name", *(f"layer:{each}" for each in range(1, int(number)))]
        owner = {"extension": "extensions", "slot": "luks"}.get(name)
        return [owner] if owner else []

    def _above_group(self, key: str) -> list[str]:
        """The table or list that a group is a slice of, and larger groups around it."""
        base, _, span = key.partition("#")
        low = int(span.partition("-")[0])
        if base in ("snapshots", "bitmaps"):
            number = len(self.meta.snapshots if base == "snapshots" else self.meta.bitmap_directory.bitmaps)
            indices = list(range(number))
        elif base == "refcount-table":
            indices = self._block_indices()
        else:
            indices = self._l1_indices(base)
        chain = self._groups_to(base, indices, indices[low])
        return [*self.parents(base), base, *(chain[: chain.index(key)] if key in chain else [])]

    @staticmethod
    def _groups_to(key: str, indices: list[int], index: int) -> list[str]:
        from bisect import bisect_left

        at = bisect_left(indices, index)
        low, high = 0, len(indices)
        found = []
        while high - low > GROUP:
            step = GROUP
            while high - low > step * GROUP:
                step *= GROUP
            start = low + (at - low) // step * step
            low, high = start, min(start + step, high)
            found.append(f"{key}#{low}-{high}")
        return found

    def holding(self, offset: int) -> Item:
        """The item of the first levels that owns a host byte (tables pointed at by L1 or refcount table included)."""
        best = self._file()
        candidates = self.roots()
        candidates += (
            [self._extension(i) for i in range(len(self.meta.extensions) + self.meta.area.ended)]
            if self.geometry
            else []
        )
        if self.geometry and self.meta.encryption and self.meta.luks and self.meta.luks.valid:
            candidates += [self._slot(index) for index in range(8)]
        if self.geometry:
            candidates += [self._snapshot(i) for i in range(min(len(self.meta.snapshots), 4096))]
            candidates += [self._bitmap(i) for i in range(min(len(self.meta.bitmap_directory.bitmaps), 4096))]
            candidates += [self._snapshot_l1(i) for i in range(min(len(self.meta.snapshots), 256))]
            candidates += [self._bitmap_table(i) for i in range(min(len(self.meta.bitmap_directory.bitmaps), 256))]
            candidates += self._tables_at(offset)
        for item in candidates:
            if item.offset <= offset < item.end and (item.length < best.length or best.kind is Kind.FILE):
                best = item
        return best

    def _tables_at(self, offset: int) -> Iterator[Item]:
        import numpy as np

        assert self.geometry is not None
        cluster = offset // self.geometry.cluster_size * self.geometry.cluster_size
        l1 = offset_of(self.meta.l1)
        for index in np.flatnonzero(l1 == np.uint64(cluster))[:1].tolist() if cluster else []:
            yield self._l2("l1", index)
        blocks = block_of(self.meta.refcount_table)
        for index in np.flatnonzero(blocks == np.uint64(cluster))[:1].tolist() if cluster else []:
            yield self._block(index)
        for number in range(min(len(self.meta.snapshots), 64) if cluster else 0):
            offsets = offset_of(self._l1_words(f"snapshot:{number}/l1"))
            for index in np.flatnonzero(offsets == np.uint64(cluster))[:1].tolist():
                yield self._l2(f"snapshot:{number}/l1", index)
