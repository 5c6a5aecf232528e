"""Where fixes work: the image as it would be, on an overlay, and the log of every step taken on it.

Fixes see the image through `meta` and `ledger`, which are made anew after each change, and change it only by `put` (and
`append` for new clusters at the end of the file). The file itself is only read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from formats.qcow2.header import field as header_field
from workbench.check.findings import FindingLog
from workbench.check.problems import Tier
from workbench.engine.metadata import Metadata, load_metadata
from workbench.errors import ImageError
from workbench.repair.gate import Gate, Rows
from workbench.repair.policy import Policy
from workbench.storage.base import Storage
from workbench.storage.file import device_full
from workbench.storage.overlay import Overlay
from workbench.units import Geometry, round_up

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from workbench.check.result import CheckResult
    from workbench.repair.ledger import Ledger
    from workbench.repair.preserve.keeping import Keeper

WHOLE: Final = ((0, 1 << 62),)
"""What a step places that lets a whole disk be read again."""
SHOWN: Final = 512
"""Bytes of a step's before and after images that a plan keeps for display; the rest is in the byte edits."""


@dataclass(frozen=True, slots=True)
class Step:
    """One change, with its reason. All offsets and lengths in bytes of the file.

    code: the finding that it answers.  fix: the fix that does it.  title: one clause for people.  before, after: the
    first SHOWN bytes of the range.  kind: what the range is (header, l1, l2, refcount-block, … or data).  guest: guest
    ranges concerned as (start, length).  snapshots: IDs of the snapshots concerned.  choice: the alternative taken.

    What the step declares, for the preservation proof: frees: host ranges (start, length) with content that nothing
    refers to and that goes free.  places: guest ranges (start, length) that get content whose place is certain, in the
    active disk, or in `snapshots` where those are named.
    """

    number: int
    code: str
    fix: str
    title: str
    tier: Tier
    offset: int
    length: int
    before: bytes
    after: bytes
    kind: str
    guest: tuple[tuple[int, int], ...] = ()
    snapshots: tuple[str, ...] = ()
    choice: str = ""
    frees: tuple[tuple[int, int], ...] = ()
    places: tuple[tuple[int, int], ...] = ()


_MOST_LOOKED: Final = 1 << 30
"""Bytes of free clusters that are looked at where the file cannot grow."""


class Workspace:
    """An image under repair. fix: the one at work, for the log."""

    def __init__(self, base: Storage, policy: Policy) -> None:
        self.base = base
        self.overlay = Overlay(base)
        self.policy = policy
        self.steps: list[Step] = []
        self.notes: list[str] = []
        self._noted: dict[str, str] = {}
        """What was seen and left alone, and why."""
        self.fix = ""
        self.rows: Rows = Rows(FindingLog().freeze(), ())
        """What the fix at work answers."""
        self.gate: Gate | None = None
        """Judges the writes of the fix at work; None on a trial."""
        self.fresh: list[tuple[int, int]] = []
        """(offset, end) of the clusters that were appended."""
        self.kept: list[tuple[int, int]] = []
        """(offset, end) of bytes that must stay counted though nothing refers to them any more."""
        self.evidence: tuple[NDArray[np.bool_], bool] | None = None
        """What the refcount fix found out about unreferenced clusters, for those that follow it."""
        self.floor: NDArray[Any] | None = None
        """Stored refcounts of the image as it was found."""
        self.found: CheckResult | None = None
        """The check of the image as it was found, for evidence that repairs take away."""
        self.keeper: Keeper | None = None
        """Why clusters of the image as it was found must stay counted; made by `repair.triage` when it is first asked."""
        self._undo: list[tuple[int, bytes, int]] = []
        self._mark: tuple[int, list[tuple[int, int]], int] = (0, [], 0)
        self._meta: Metadata | None = None
        self._ledger: Ledger | None = None
        self._wild: NDArray[np.int64] | None = None

    # -- what is there

    @property
    def meta(self) -> Metadata:
        if self._meta is None:
            self._meta = load_metadata(self.overlay)
        return self._meta

    @property
    def geometry(self) -> Geometry:
        """The image's shape; ImageError when the header gives none (then only header fixes may run)."""
        found = self.meta.geometry
        if found is None:
            raise ImageError("the header gives no cluster size", path=self.base.path)
        return found

    @property
    def cluster(self) -> int:
        """Cluster size in bytes."""
        return self.geometry.cluster_size

    @property
    def size(self) -> int:
        """Length of the file as it would be, in bytes."""
        return self.overlay.size()

    @property
    def end(self) -> int:
        """The file's length rounded up to a cluster: references from here on are beyond the end."""
        return round_up(self.overlay.size(), self.cluster)

    @property
    def ledger(self) -> Ledger:
        if self._ledger is None:
            from workbench.repair.ledger import build_ledger

            self._ledger = build_ledger(self)
            self._wild = self._ledger.wild
        return self._ledger

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes; zeros past the end of the file."""
        return self.overlay.read(offset, length).ljust(length, b"\0")

    def read_cluster(self, offset: int) -> bytes:
        return self.read(offset, self.cluster)

    def words(self, offset: int, count: int) -> NDArray[np.uint64]:
        """`count` table entries from `offset`, native uint64 (a copy)."""
        from formats.qcow2.tables import words

        return words(self.read(offset, count * 8)).copy()

    @property
    def snapshot_ids(self) -> tuple[str, ...]:
        return tuple(each.id for each in self.meta.snapshots)

    # -- changing it

    def put(
        self,
        offset: int,
        data: bytes,
        *,
        code: str,
        title: str,
        kind: str,
        tier: Tier = Tier.SAFE,
        guest: Sequence[tuple[int, int]] = (),
        snapshots: Sequence[str] = (),
        choice: str = "",
        frees: Sequence[tuple[int, int]] = (),
        places: Sequence[tuple[int, int]] = (),
    ) -> bool:
        """Stage `data` at `offset` and log why; False when nothing would change."""
        before = self.overlay.read(offset, len(data))
        if before == data:
            return False
        if self.gate is not None:
            self.gate.require(offset, before, data, kind)
        self._undo.append((offset, before, self.overlay.size()))
        self.overlay.write(offset, data)
        self.steps.append(
            Step(
                number=len(self.steps) + 1,
                code=code,
                fix=self.fix,
                title=title,
                tier=tier,
                offset=offset,
                length=len(data),
                before=before[:SHOWN],
                after=data[:SHOWN],
                kind=kind,
                guest=tuple(guest),
                snapshots=tuple(snapshots),
                choice=choice,
                frees=tuple(frees),
                places=tuple(places),
            )
        )
        self.changed()
        return True

    def put_words(self, offset: int, words: NDArray[np.uint64], **why: Any) -> bool:
        """Stage table entries; only from the first to the last one that differs."""
        import numpy as np

        from formats.qcow2.tables import table_bytes

        different = np.flatnonzero(self.words(offset, words.size) != words)
        if not different.size:
            return False
        first, last = int(different[0]), int(different[-1])
        return self.put(offset + first * 8, table_bytes(words[first : last + 1]), **why)

    def set_header(self, name: str, value: int, **why: Any) -> bool:
        """Stage one header field by its name in the schema."""
        offset, size = header_field(name)
        return self.put(offset, (value & ((1 << size * 8) - 1)).to_bytes(size, "big"), kind="header", **why)

    def append(self, clusters: int = 1) -> int:
        """Host offset of `clusters` new zero clusters at the end of the file; inside it where it cannot grow.

        Raises ImageError with the bytes that are missing when a block device has no room, and for a plan that grows out of
        all proportion.
        """
        offset = self._room_past_end(clusters)
        if not self.base.growable and offset + clusters * self.cluster > self.base.size():
            offset = self._inside(clusters)
            self._undo.append((0, b"", self.overlay.size()))
            self.fresh.append((offset, offset + clusters * self.cluster))
            return offset
        limit = self.base.size() + max(self.base.size(), 64 << 20) + (1 << 30)
        if offset + clusters * self.cluster > limit:
            raise ImageError("the repair would more than double the file", path=self.base.path)
        self._undo.append((0, b"", self.overlay.size()))
        self.overlay.truncate(offset + clusters * self.cluster)
        start = self.fresh.pop()[0] if self.fresh and self.fresh[-1][1] == offset else offset
        self.fresh.append((start, offset + clusters * self.cluster))
        self.changed()
        return offset

    def _inside(self, clusters: int) -> int:
        """Host offset of neighbouring clusters that nothing refers to, that no refcount calls in use, and that are empty."""
        from workbench.engine.unreferenced import runs_of

        ledger = self.ledger
        free = (ledger.counts == 0) & (~ledger.known | (ledger.stored == 0))
        for start, end in (*self.fresh, *self.kept):
            free[start >> ledger.cluster_bits : -(-end >> ledger.cluster_bits)] = False
        runs, looked = runs_of(free), 0
        for first, last in runs[runs[:, 1] - runs[:, 0] >= clusters].tolist():
            empty = 0
            for number in range(first, last if looked < _MOST_LOOKED else first):
                empty = 0 if self.read_cluster(number << ledger.cluster_bits).strip(b"\0") else empty + 1
                if empty == clusters:
                    return (number - clusters + 1) << ledger.cluster_bits
                looked += self.cluster
        full = device_full(self.base.path, self.base.size(), self.base.size() + clusters * self.cluster)
        raise ImageError(f"{full.what}; {full.hint}", path=self.base.path)

    def keep(self, offset: int, length: int) -> None:
        """These clusters stay counted: an entry that led there is dropped, their content is not."""
        start = offset & -self.cluster
        if start < self.size:
            self.kept.append((start, min(round_up(offset + length, self.cluster), self.end)))

    def keep_each(self, offsets: NDArray[np.uint64], length: int) -> None:
        """`keep` for each of these offsets."""
        import numpy as np

        for offset in offsets[offsets < np.uint64(self.end)].tolist():
            self.keep(offset, length)

    def set_length(self, size: int) -> None:
        """Give the file another length; `log_length` says why."""
        self._undo.append((size, self.overlay.read(size, max(0, self.size - size)), self.size))
        self.overlay.truncate(size)

    def log_length(self, offset: int, length: int, before: bytes, *, code: str, title: str, tier: Tier) -> None:
        """Record that the file's length changed: `length` bytes from `offset` came or went."""
        step = Step(len(self.steps) + 1, code, self.fix, title, tier, offset, length, before, b"", "data")
        if before:  # cut off: whole clusters, as far as they go
            step = replace(step, frees=((offset, round_up(length, self.cluster)),))
        self.steps.append(step)
        self.changed()

    def _room_past_end(self, clusters: int) -> int:
        """The first offset past the end where so many clusters have room that no reference means.

        References that were right before the file was cut off must not come to lead to what is new. A fix that has changed
        something since the ledger was made goes by that one: fixes only take such references away.
        """
        if self._wild is None:
            return self.end
        import numpy as np

        first, wild = self.end // self.cluster, self._wild
        wild = wild[wild >= first]
        starts, ends = np.append(first, wild + 1), np.append(wild, np.int64(1 << 62))
        return int(starts[np.argmax(ends - starts >= clusters)]) * self.cluster

    def changed(self) -> None:
        """Forget what was derived from the bytes."""
        self._meta = None
        self._ledger = None

    def note(self, text: str, about: str = "") -> None:
        """Record once what was seen and left alone. about: what it is of; a newer note about the same takes its place."""
        if about:
            self.forget_notes(about)
            self._noted[text] = about
        if text not in self.notes:
            self.notes.append(text)

    def forget_notes(self, about: str) -> None:
        """Take back what was noted about something (all that begins so): it is looked at anew."""
        gone = {text for text, known in self._noted.items() if known.startswith(about)}
        self.notes = [text for text in self.notes if text not in gone]
        self._noted = {text: known for text, known in self._noted.items() if text not in gone}

    # -- a fix at work

    def start(self, fix: str, rows: Rows, gate: Gate | None) -> None:
        """From here on `fix` works, for `rows`."""
        self.fix, self.rows, self.gate = fix, rows, gate
        self._undo = []
        self._mark = (len(self.steps), list(self.fresh), len(self.kept))

    def roll_back(self) -> None:
        """Take back everything since `start`."""
        for offset, before, size in reversed(self._undo):
            if before:
                self.overlay.write(offset, before)
            if self.overlay.size() != size:
                self.overlay.truncate(size)
        steps, fresh, kept = self._mark
        del self.steps[steps:], self.kept[kept:]
        self.fresh = fresh
        if not self.steps:
            self.overlay = Overlay(self.base)
        self._undo = []
        self.changed()

    # -- trying things

    def trial(self) -> Workspace:
        """A workspace on top of this one, to try a change and look at the result; nothing of it comes back by itself."""
        return Workspace(self.overlay, replace(self.policy))
