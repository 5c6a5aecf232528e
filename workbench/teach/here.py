"""Sentences that need arithmetic, by key of the text they belong to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from workbench.teach import here_header, here_records, here_tables
from workbench.teach.filling import Facts

HERE: Final[Mapping[str, Callable[[Facts], str]]] = {**here_header.HERE, **here_tables.HERE, **here_records.HERE}
"""Functions raise UnknownFactError when they need a number that was not given."""
