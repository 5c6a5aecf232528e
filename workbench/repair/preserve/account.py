"""What a proof says: bytes by fate, in ranges exact to the (sub)cluster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from workbench.errors import QwbError
from workbench.repair.preserve.walk import View
from workbench.units import format_size, many


class Fate(Enum):
    """What becomes of a byte that is not simply equal. The values are the JSON keys."""

    REGAINED = "regains"
    GIVEN_UP = "gives-up"
    FREED = "frees-content"
    UNPROVEN = "unproven"


@dataclass(frozen=True, slots=True)
class Stretch:
    """A run of bytes with one fate. guest: bytes of a disk (the active one, or of `snapshot`), else of the file."""

    start: int
    length: int
    reason: str
    guest: bool
    snapshot: str = ""

    def as_json(self) -> dict[str, Any]:
        where = {"snapshot": self.snapshot} if self.snapshot else {}
        space = "guest" if self.guest else "host"
        return {"start": self.start, "length": self.length, "space": space, "reason": self.reason, **where}


@dataclass(frozen=True, slots=True)
class Account:
    """Everything with one fate. bytes: their number; ranges: exact to the (sub)cluster, in order."""

    bytes: int = 0
    ranges: tuple[Stretch, ...] = ()

    def as_json(self, limit: int = 1000) -> dict[str, Any]:
        out: dict[str, Any] = {"bytes": self.bytes, "ranges": [each.as_json() for each in self.ranges[:limit]]}
        reasons = dict.fromkeys(each.reason for each in self.ranges)
        out["reason"] = "; ".join(list(reasons)[:4])
        if len(self.ranges) > limit:
            out["ranges-omitted"] = len(self.ranges) - limit
        return out


@dataclass(frozen=True, slots=True)
class Proof:
    """The verdict on a plan."""

    regains: Account = Account()
    gives_up: Account = Account()
    frees_content: Account = Account()
    unproven: Account = Account()

    @property
    def loss(self) -> int:
        """Bytes given up or not proven to be kept: what a person must consent to."""
        return self.gives_up.bytes + self.unproven.bytes

    @property
    def harmless(self) -> bool:
        return not self.gives_up.ranges and not self.unproven.ranges

    def __str__(self) -> str:
        parts = [f"gives up {_size(self.gives_up.bytes)}"]
        if self.unproven.ranges:
            parts.append(f"{_size(self.unproven.bytes)} not proven to be kept")
        if self.regains.bytes:
            parts.append(f"{_size(self.regains.bytes)} regained")
        if self.frees_content.bytes:
            parts.append(f"frees {_size(self.frees_content.bytes)} of content that nothing refers to")
        return "; ".join(parts)

    def as_json(self) -> dict[str, Any]:
        pairs = zip(Fate, (self.regains, self.gives_up, self.frees_content, self.unproven), strict=True)
        return {fate.value: account.as_json() for fate, account in pairs}


class PlanRefused(QwbError):
    """The plan would give something up, or cannot be proven not to, and nobody agreed to that. proof: what and where."""

    def __init__(self, proof: Proof, *, path: str) -> None:
        lost = (*proof.gives_up.ranges, *proof.unproven.ranges)
        where = f"{lost[0].start:#x}, {lost[0].length} bytes of the {'guest' if lost[0].guest else 'file'}: {lost[0].reason}"
        more = f" (and {many(len(lost) - 1, 'more range')})" if len(lost) > 1 else ""
        super().__init__(
            f"the repair cannot be proven to lose nothing: {proof}; at {where}{more}",
            path=path,
            hint=f"nothing was changed; see all ranges with --dry-run, or agree with --accept-loss {proof.loss}",
        )
        self.proof = proof


def _size(count: int) -> str:
    return "0 bytes" if not count else format_size(count)


class Ledger:
    """Stretches by fate, neighbours joined."""

    def __init__(self) -> None:
        self.rows: dict[Fate, dict[tuple[bool, str, str], list[tuple[int, int, int]]]] = {fate: {} for fate in Fate}

    def add(
        self, fate: Fate, start: int, length: int, reason: str, *, size: int | None = None, view: View | None = None
    ) -> None:
        """size: bytes that count, where they are fewer than the range has."""
        key = (view is not None, view.name if view is not None else "", reason)
        rows = self.rows[fate].setdefault(key, [])
        if rows and rows[-1][0] + rows[-1][1] == start:
            old = rows[-1]
            rows[-1] = (old[0], old[1] + length, old[2] + (length if size is None else size))
        else:
            rows.append((start, length, length if size is None else size))

    def account(self, fate: Fate) -> Account:
        found, total = [], 0
        for (guest, name, reason), rows in self.rows[fate].items():
            total += sum(size for _, _, size in rows)
            joined: list[tuple[int, int]] = []
            for start, length, _ in sorted(rows):
                if joined and joined[-1][1] == start:
                    joined[-1] = (joined[-1][0], start + length)
                else:
                    joined.append((start, start + length))
            found += [Stretch(start, end - start, reason, guest, name) for start, end in joined]
        return Account(total, tuple(sorted(found, key=lambda each: (each.guest, each.snapshot, each.start))))

    def guest_ranges(self, *fates: Fate) -> Iterator[tuple[int, int]]:
        """(start, length) of what the active disk regains or loses."""
        for fate in fates:
            for (guest, name, _), rows in self.rows[fate].items():
                if guest and not name:
                    yield from ((start, length) for start, length, _ in rows)


class Ranges:
    """Declared byte ranges, asked by place."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        merged: list[list[int]] = []
        for start, length in sorted(ranges):
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], start + length)
            else:
                merged.append([start, start + length])
        self.starts = np.array([each[0] for each in merged], dtype=np.int64)
        self.ends = np.array([each[1] for each in merged], dtype=np.int64)

    def cover(self, start: int, length: int) -> bool:
        at = int(np.searchsorted(self.starts, start, side="right")) - 1
        return at >= 0 and start + length <= int(self.ends[at])

    def touch(self, start: int, end: int) -> bool:
        at = int(np.searchsorted(self.ends, start, side="right"))
        return at < self.starts.size and int(self.starts[at]) < end
