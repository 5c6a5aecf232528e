"""Shared by all tests: finding QEMU, the ``oracle`` mark, and base images built once per run."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import sample_images
from sample_images.qemu import find_qemu_img, find_qemu_io

REQUIRE_ORACLE = "QWB_REQUIRE_ORACLE"
KEEP_BASES = "QWB_BASE_IMAGES"  # a folder that keeps base images between runs: LUKS ones take seconds to build


def qemu_is_missing() -> str | None:
    """The reason why tests against real QEMU cannot run here, or None."""
    absent = [name for name, found in (("qemu-img", find_qemu_img()), ("qemu-io", find_qemu_io())) if not found]
    return f"{' and '.join(absent)} not found (package qemu-utils)" if absent else None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked ``oracle`` where QEMU is missing; with QWB_REQUIRE_ORACLE=1 it fails instead."""
    if item.get_closest_marker("oracle") is None:
        return
    reason = qemu_is_missing()
    if reason is None:
        return
    if os.environ.get(REQUIRE_ORACLE) == "1":
        pytest.fail(f"{REQUIRE_ORACLE}=1, but {reason}", pytrace=False)
    pytest.skip(reason)


class BaseImages:
    """Base images built once per test run, each at its first use, shared by all xdist workers. Read them only."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def get(self, name: str) -> Path:
        """The image of base `name`, with its companions beside it; do not write to it (see `copy`)."""
        from sample_images.bases import BASES

        base = BASES[name]
        return self._once(name, base.build)

    def damaged(self, name: str) -> Path:
        """The image of damage recipe `name`; do not write to it (see `copy`)."""
        from sample_images.recipes import RECIPES, damage

        recipe = RECIPES[name]

        def build(folder: Path) -> Path:
            image = self._copy(self.get(recipe.base), folder)
            damage(recipe, image)
            return image

        return self._once(f"damaged.{name}", build)

    def copy(self, source: Path, folder: Path) -> Path:
        """Copy an image of this cache and its companions into `folder`, for a test that writes."""
        return self._copy(source, folder)

    def _once(self, key: str, build: Callable[[Path], Path]) -> Path:
        # Whoever finishes first renames its folder into place; a worker that comes second throws its own away.
        final = self.root / key
        if not final.exists():
            draft = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=self.root))
            try:
                built = build(draft)
            except BaseException:
                shutil.rmtree(draft)
                raise
            (draft / ".image").write_text(built.name)
            try:
                draft.rename(final)
            except OSError:
                shutil.rmtree(draft)
        return final / (final / ".image").read_text()

    @staticmethod
    def _copy(source: Path, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for each in source.parent.iterdir():
            if each.name != ".image":
                shutil.copy2(each, folder / each.name, follow_symlinks=False)
        return folder / source.name


@pytest.fixture(scope="session", autouse=True)
def _state_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What goes to the state directory must not land in the home of whoever runs the tests."""
    before = os.environ.get("XDG_STATE_HOME")
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))
    yield
    if before is None:
        del os.environ["XDG_STATE_HOME"]
    else:
        os.environ["XDG_STATE_HOME"] = before


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Names of tests are words, not contents: bytes in them (a time stamp, say) differ between the workers of one run."""
    long = [item.nodeid[:120] for item in items if len(item.nodeid) > 240]
    if long:
        raise pytest.UsageError(f"give the parameters of these tests ids: {', '.join(long[:5])}")


@pytest.fixture
def loop() -> Iterator[Callable[[Path], Path]]:
    """`loop(file)`: a real block device over a file (whole sectors), gone after the test. Skips where that needs rights."""
    made: list[str] = []

    def attach(file: Path) -> Path:
        try:
            done = subprocess.run(
                ["losetup", "--find", "--show", str(file)], capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            pytest.skip("losetup not found (package mount)")
        name = done.stdout.strip()
        if done.returncode or not os.access(name, os.R_OK | os.W_OK):
            pytest.skip(f"no loop device here: {done.stderr.strip() or name}")
        made.append(name)
        return Path(name)

    yield attach
    for name in made:
        subprocess.run(["losetup", "--detach", name], check=False)


def _builders_digest() -> str:
    """Changes whenever the code that builds the images does."""
    digest = hashlib.sha256()
    for source in sorted(Path(sample_images.__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


@pytest.fixture(scope="session")
def base_images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BaseImages]:
    """The cache of base images and damaged images; needs real QEMU (mark the test ``oracle``)."""
    kept = os.environ.get(KEEP_BASES)
    if kept:
        yield BaseImages(Path(kept) / _builders_digest())
        return
    root = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        root = root.parent
    yield BaseImages(root / "base-images")


@pytest.fixture(scope="session")
def qemu_img() -> str:
    """The path of ``qemu-img``; the test is skipped without it."""
    found = find_qemu_img()
    if found is None:
        pytest.skip("qemu-img not found (package qemu-utils)")
    return found


@pytest.fixture(scope="session")
def qemu_io() -> str:
    """The path of ``qemu-io``; the test is skipped without it."""
    found = find_qemu_io()
    if found is None:
        pytest.skip("qemu-io not found (package qemu-utils)")
    return found
