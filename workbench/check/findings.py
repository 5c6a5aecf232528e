"""Findings in columns: one row per coalesced range, a Python object only for the row that is looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, overload

import numpy as np

from workbench.check.problems import PROBLEMS, Problem, Severity

if TYPE_CHECKING:
    from numpy.typing import NDArray

NOWHERE: Final = (1 << 64) - 1
"""Value of `guest` when a finding concerns no guest range."""
JOINED: Final = ("L2-COPIED-WRONG",)
"""Codes of which one fault makes a row in each of many neighbouring tables: they become one row with a count."""
MAX_RUNS: Final = 12
"""Runs of one code in one table before they become a single row with a count."""

ROW: Final = np.dtype(
    [
        ("code", np.uint16),
        ("offset", np.uint64),
        ("length", np.uint64),
        ("count", np.uint64),
        ("counted", np.uint64),
        ("table", np.uint64),
        ("index", np.uint32),
        ("guest", np.uint64),
        ("guest_length", np.uint64),
        ("value", np.uint64),
        ("other", np.uint64),
        ("snapshot", np.int32),
        ("note", np.int32),
    ]
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One row, decoded.

    offset, length: host bytes concerned (the entries of a table, or the clusters).  count: entries or clusters in the
    row (with gaps when the range holds more).  counted: how much of it qemu-img counts (corruptions, leaks or check
    errors, by the problem's severity); 0 for what it does not see.  table: host offset of the table; index: first
    entry in it.  guest, guest_length: guest bytes, or guest None.  value: the raw entry or stored refcount of the first
    item; other: references counted, or another owner's offset.  snapshot: index of the snapshot, -1 the active disk.
    """

    row: int
    code: str
    offset: int
    length: int
    count: int
    counted: int
    table: int
    index: int
    guest: int | None
    guest_length: int
    value: int
    other: int
    snapshot: int
    numbers: dict[str, Any]

    @property
    def problem(self) -> Problem:
        return PROBLEMS[self.code]

    @property
    def severity(self) -> Severity:
        return self.problem.severity

    @property
    def end(self) -> int:
        return self.offset + self.length

    @property
    def message(self) -> str:
        """One line for people, near QEMU's wording."""
        values: dict[str, Any] = {
            "offset": self.offset,
            "end": self.end,
            "length": self.length,
            "count": self.count,
            "table": self.table,
            "index": self.index,
            "guest": self.guest if self.guest is not None else 0,
            "value": self.value,
            "other": self.other,
            "what": self.problem.title,
            "owners": "",
            **self.numbers,
        }
        text = self.problem.template.format_map(values)
        if self.count > 1 and "{count" not in self.problem.template:
            text += f" ({self.count} of them)"
        if self.snapshot >= 0 and "snapshot" not in text:
            text += f" [snapshot {self.snapshot}]"
        return text

    def as_json(self) -> dict[str, Any]:
        """The finding for `--json`."""
        out: dict[str, Any] = {
            "code": self.code,
            "severity": self.severity.value,
            "counted": self.counted,
            "count": self.count,
            "offset": self.offset,
            "length": self.length,
            "message": self.message,
        }
        if self.guest is not None:
            out |= {"guest-offset": self.guest, "guest-length": self.guest_length}
        if self.table:
            out |= {"table-offset": self.table, "index": self.index}
        if self.snapshot >= 0:
            out["snapshot"] = self.snapshot
        return out


class Findings(Sequence[Finding]):
    """All rows of a check, frozen. `columns` is a structured array (dtype ROW); `codes` maps its code numbers."""

    def __init__(self, columns: NDArray[Any], codes: tuple[str, ...], notes: tuple[dict[str, Any], ...]) -> None:
        self.columns = columns
        self.codes = codes
        self._notes = notes

    def __len__(self) -> int:
        return int(self.columns.size)

    def without(self, rows: NDArray[np.intp]) -> Findings:
        """The same, some rows left out."""
        return Findings(np.delete(self.columns, rows), self.codes, self._notes)

    @overload
    def __getitem__(self, index: int) -> Finding: ...
    @overload
    def __getitem__(self, index: slice) -> list[Finding]: ...
    def __getitem__(self, index: int | slice) -> Finding | list[Finding]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        row = self.columns[position]
        guest = int(row["guest"])
        note = int(row["note"])
        return Finding(
            row=position,
            code=self.codes[int(row["code"])],
            offset=int(row["offset"]),
            length=int(row["length"]),
            count=int(row["count"]),
            counted=int(row["counted"]),
            table=int(row["table"]),
            index=int(row["index"]),
            guest=None if guest == NOWHERE else guest,
            guest_length=int(row["guest_length"]),
            value=int(row["value"]),
            other=int(row["other"]),
            snapshot=int(row["snapshot"]),
            numbers=self._notes[note] if note >= 0 else {},
        )

    def __iter__(self) -> Iterator[Finding]:
        return (self[index] for index in range(len(self)))

    def rows(self, *codes: str) -> NDArray[np.intp]:
        """Row numbers of the findings with one of `codes`, in order."""
        wanted = [self.codes.index(code) for code in codes if code in self.codes]
        return np.flatnonzero(np.isin(self.columns["code"], wanted))

    def of(self, *codes: str) -> Iterator[Finding]:
        """The findings with one of `codes`."""
        return (self[int(row)] for row in self.rows(*codes))

    @cached_property
    def by_code(self) -> dict[str, tuple[int, int]]:
        """code -> (items, counted by qemu-img), for the codes that occur."""
        out: dict[str, tuple[int, int]] = {}
        for number, code in enumerate(self.codes):
            chosen = self.columns[self.columns["code"] == number]
            if chosen.size:
                out[code] = (int(chosen["count"].sum()), int(chosen["counted"].sum()))
        return out

    def counted(self, severity: Severity) -> int:
        """What qemu-img counts in total for that severity."""
        return sum(counted for code, (_, counted) in self.by_code.items() if PROBLEMS[code].severity is severity)


class FindingLog:
    """Collects rows while a check runs."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._notes: list[dict[str, Any]] = []
        self._parts: list[NDArray[Any]] = []
        self._singles: list[tuple[Any, ...]] = []

    def _code(self, code: str) -> int:
        if code not in self._codes:
            if code not in PROBLEMS:
                raise KeyError(f"problem {code} is not in the catalogue")
            self._codes[code] = len(self._codes)
        return self._codes[code]

    def has(self, *codes: str) -> bool:
        """Whether anything was logged under one of `codes`."""
        return any(code in self._codes for code in codes)

    def add(
        self,
        code: str,
        offset: int,
        length: int,
        *,
        count: int = 1,
        counted: int = 0,
        table: int = 0,
        index: int = 0,
        guest: int | None = None,
        guest_length: int = 0,
        value: int = 0,
        other: int = 0,
        snapshot: int = -1,
        numbers: Mapping[str, Any] | None = None,
    ) -> None:
        """Log one finding; `numbers` are extra values for the message template."""
        note = -1
        if numbers:
            note = len(self._notes)
            self._notes.append(dict(numbers))
        limit = NOWHERE
        where = NOWHERE if guest is None else guest & limit
        row = (self._code(code), offset & limit, min(length, limit), count, counted, table & limit, index & 0xFFFFFFFF)
        self._singles.append((*row, where, guest_length, value & limit, other & limit, snapshot, note))

    def add_columns(self, code: str, rows: int, **columns: Any) -> None:
        """Log `rows` findings at once; columns by name of ROW (arrays or scalars)."""
        if not rows:
            return
        part = np.zeros(rows, dtype=ROW)
        part["code"] = self._code(code)
        part["guest"] = NOWHERE
        part["snapshot"] = -1
        part["note"] = -1
        part["count"] = 1
        for name, values in columns.items():
            part[name] = values
        self._parts.append(part)

    def freeze(self, base: Findings | None = None) -> Findings:
        """Everything logged so far (after the rows of `base`), most severe first, then by host offset."""
        parts = list(self._parts)
        if self._singles:
            parts.append(np.array(self._singles, dtype=ROW))
        columns = np.concatenate(parts) if parts else np.zeros(0, dtype=ROW)
        for code in JOINED:
            if code in self._codes and columns.size:
                columns = _join(columns, self._codes[code])
        codes = tuple(self._codes)
        rank = np.array([PROBLEMS[code].severity.rank for code in codes] or [0], dtype=np.uint8)
        if columns.size:
            columns = columns[np.lexsort((columns["offset"], columns["code"], rank[columns["code"]]))]
        return Findings(columns, codes, tuple(self._notes))


def _join(columns: NDArray[Any], code: int) -> NDArray[Any]:
    """The columns with those rows of `code` in one that go on from table to table: next in the guest, further on in the file."""
    mine = columns[columns["code"] == code]
    mine = mine[np.lexsort((mine["guest"], mine["snapshot"]))]
    onward = mine["guest"][1:] == mine["guest"][:-1] + mine["guest_length"][:-1]
    onward &= (mine["snapshot"][1:] == mine["snapshot"][:-1]) & (mine["table"][1:] > mine["table"][:-1])
    onward &= (mine["note"][1:] < 0) & (mine["note"][:-1] < 0)
    if not onward.any():
        return columns
    first = np.flatnonzero(np.append(True, ~onward))
    last = np.append(first[1:], mine.size) - 1
    out = mine[first].copy()
    out["length"] = mine["offset"][last] + mine["length"][last] - out["offset"]
    out["guest_length"] = mine["guest"][last] + mine["guest_length"][last] - out["guest"]
    for name in ("count", "counted"):
        out[name] = np.add.reduceat(mine[name], first)
    return np.concatenate([columns[columns["code"] != code], out])


def runs_of(rows: NDArray[np.intp], cols: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(first, last) positions of runs of neighbouring entries in (table row, column) order.

    A table with more than MAX_RUNS runs becomes one run.
    """
    if not rows.size:
        empty = np.zeros(0, dtype=np.intp)
        return empty, empty
    new_row = np.ones(rows.size, dtype=bool)
    new_row[1:] = rows[1:] != rows[:-1]
    breaks = new_row.copy()
    breaks[1:] |= cols[1:] != cols[:-1] + 1
    tables = np.cumsum(new_row) - 1
    crowded = np.bincount(tables, weights=breaks) > MAX_RUNS
    breaks &= new_row | ~crowded[tables]
    first = np.flatnonzero(breaks)
    last = np.append(first[1:], rows.size) - 1
    return first, last
