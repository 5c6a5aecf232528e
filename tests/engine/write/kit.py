"""Images in memory for the tests of the write engine."""

from __future__ import annotations

from collections.abc import Mapping

from tests.campaigns.write_kit import new_image
from workbench.check.run import check
from workbench.engine.create import CreateOptions
from workbench.engine.image import Image
from workbench.engine.metadata import Metadata, load_metadata
from workbench.storage.base import Storage
from workbench.storage.memory import MemoryStorage


def fresh(size: int = 1 << 20, **options: object) -> MemoryStorage:
    """A new image of `size` bytes."""
    return MemoryStorage(new_image(CreateOptions(size, **options)))  # type: ignore[arg-type]


def opened(storage: Storage, options: Mapping[str, object] | None = None, *, writable: bool = True) -> Image:
    return Image.open("<memory>", storage=storage, writable=writable, options=options)


def disk(storage: MemoryStorage) -> bytes:
    """The guest's content, read by a fresh open."""
    with opened(MemoryStorage(storage.getvalue()), writable=False) as image:
        return image.read(0, image.size)


def meta(storage: MemoryStorage) -> Metadata:
    return load_metadata(MemoryStorage(storage.getvalue()))


def assert_clean(storage: MemoryStorage) -> None:
    """No corruption and no leak."""
    result = check(meta(storage))
    assert (result.corruptions, result.leaks, result.check_errors) == (0, 0, 0), [f.code for f in result.findings]
