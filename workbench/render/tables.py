"""Plain tables: columns as wide as what is in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[int] = (), indent: str = ""
) -> Iterator[str]:
    """Lines of a table; `right` are the indices of right-aligned columns. The last column is not padded."""
    body = [list(row) for row in rows]
    lines = [list(header), *body] if header else body
    if not lines:
        return
    columns = max(len(row) for row in lines)
    widths = [max((len(row[i]) for row in lines if i < len(row)), default=0) for i in range(columns)]
    rights = set(right)
    for row in lines:
        cells = [
            cell.rjust(widths[i]) if i in rights else cell if i == columns - 1 else cell.ljust(widths[i])
            for i, cell in enumerate(row)
        ]
        yield (indent + "  ".join(cells)).rstrip()


def pairs(rows: Iterable[tuple[str, str]], *, indent: str = "  ") -> Iterator[str]:
    """`label  value` lines, labels aligned; a value of several lines continues under itself."""
    items = list(rows)
    width = max((len(label) for label, _ in items), default=0)
    for label, value in items:
        first, *more = value.split("\n")
        yield f"{indent}{label.ljust(width)}  {first}".rstrip()
        for line in more:
            yield f"{indent}{' ' * width}  {line}".rstrip()
