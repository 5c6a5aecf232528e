"""Samples to practise on: each is opened as a copy, so that a repair does not use up the sample that came with qwb."""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path

from sample_images import copy_out, find_sample


class Practice:
    """The copies of one run; they are gone when it ends."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._copying = threading.Lock()

    def copy_of(self, name: str) -> Path:
        """The run's copy of a sample with the files it needs, made when it is first asked for. OSError when it cannot be."""
        with self._copying:  # Enter may be pressed twice
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="qwb-samples-")
            folder = Path(self._folder.name, name)
            if not folder.exists():
                folder.mkdir()
                try:
                    copy_out(name, folder)
                except OSError:
                    shutil.rmtree(folder, ignore_errors=True)  # half a copy is none
                    raise
            return folder / find_sample(name).file

    def holds(self, path: str) -> bool:
        """Whether a file is one of the copies: not worth remembering."""
        return self._folder is not None and Path(path).is_relative_to(self._folder.name)

    def close(self) -> None:
        """Remove the copies."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
