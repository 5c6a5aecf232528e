"""Working on an image: marks, copying, reloading."""

from __future__ import annotations

import hashlib
from typing import Final

from workbench.render.sizes import span
from workbench.tui.background import Job
from workbench.tui.place import View
from workbench.tui.screens.core import BrowserCore
from workbench.tui.screens.dialogs import ChooseDialog
from workbench.tui.session import Loaded, load
from workbench.tui.widgets.hexview import HexView
from workbench.units import format_size

HASH_STEP: Final = 4 << 20
COPY_LIMIT: Final = 1 << 16
"""Bytes that go to the clipboard as hex at most."""


class Working(BrowserCore):
    """Commands that read more, or give something out; part of the browser."""

    # Marking a range

    def do_mark(self) -> None:
        """First press: one end. Second: the other; then length and hash. Then again: a new range, or away on the same place."""
        session = self.session
        at, end = self._byte()
        if session.mark_from is None and session.mark is not None and session.mark[0] <= at < session.mark[1]:
            session.mark, session.mark_hash = None, ""
            self.notify("The mark is taken away.", timeout=2)
        elif session.mark_from is None:
            session.mark, session.mark_hash, session.mark_from = None, "", at
            self.notify(
                f"Marked from {at:#x}; go to the other end and press {self.app.key_of('mark')} again.", timeout=4
            )
        else:
            low, high = min(session.mark_from, at), max(session.mark_from + 1, end)
            session.mark_from, session.mark, session.mark_hash = None, (low, high), ""
            self._hash_mark()
        for widget in self.query(HexView):
            widget.marked = session.mark
            widget.refresh()
        self.update_title()

    def _byte(self) -> tuple[int, int]:
        """The byte under the cursor in the hex view, else the selected field or entry: (first byte, end)."""
        widget = self.current_view()
        if isinstance(widget, HexView) and self.place.view is View.HEX:
            return widget.at, widget.at + 1
        return self.place.offset, max(self.place.end, self.place.offset + 1)

    def _hash_mark(self) -> None:
        session = self.session
        assert session.mark is not None
        low, high = session.mark
        storage = session.storage

        def work(job: Job) -> str:
            digest = hashlib.sha256()
            for at in range(low, high, HASH_STEP):
                job.step(at - low, high - low)
                digest.update(storage.read(at, min(HASH_STEP, high - at)))
            return digest.hexdigest()

        def done(text: str) -> None:
            session.mark_hash = text
            self.update_title()

        session.background.submit(work, done, self.failed, title="hashing", long=True)

    def mark_note(self) -> str:
        """Length and hash of the marked range."""
        session = self.session
        if session.mark is None:
            return f"marked from {session.mark_from:#x}" if session.mark_from is not None else ""
        low, high = session.mark
        return f"{span(low, high - low)}: {format_size(high - low)}, sha256 {session.mark_hash[:16] or '…'}"

    # Copying

    def do_copy(self) -> None:
        found = self.prepared
        if found is None:
            return
        session, place = self.session, self.place
        low, high = session.mark or (place.offset, place.end)
        options = [
            ("offset", f"(o) offset       {place.offset:#x}"),
            ("hex", f"(h) bytes        {span(low, high - low)}"),
        ]
        value = found.explanation.value
        if value:
            options.insert(1, ("value", f"(v) value        {value[:60]}"))
        if place.guest is not None:
            options.append(("guest", f"(g) guest offset {place.guest:#x}"))
        if session.mark_hash:
            options.append(("hash", f"(s) SHA-256      {session.mark_hash[:16]}…"))
        self.app.push_screen(ChooseDialog("Copy", options), self._copy)

    def _copy(self, what: str | None) -> None:
        found, place, session = self.prepared, self.place, self.session
        if what is None or found is None:
            return
        if what == "hex":
            low, high = session.mark or (place.offset, place.end)
            storage = session.storage
            size = min(high - low, COPY_LIMIT)
            session.background.submit(lambda _job: storage.read(low, size).hex(" "), self._copied, self.failed)
            return
        texts = {
            "offset": f"{place.offset:#x}",
            "value": found.explanation.value,
            "guest": f"{place.guest or 0:#x}",
            "hash": session.mark_hash,
        }
        self._copied(texts[what])

    def _copied(self, text: str) -> None:
        self.app.copy_to_clipboard(text)
        shown = text if len(text) <= 48 else text[:47] + "…"
        self.notify(f"Copied: {shown}".replace("[", "\\["), timeout=3)

    # The file again

    def do_reload(self) -> None:
        """Read the image anew; the place is kept where it still exists."""
        session = self.session

        def done(loaded: Loaded) -> None:
            if loaded.storage is None:
                self.notify(f"It can no longer be read: {loaded.what}", severity="error")
                return
            session.release()
            session.adopt(loaded)
            session.changed_underneath = ""
            session.allowed = {key: path for key, path in session.allowed.items() if path is not None}  # ask again
            self.fill_tree(lambda: self.select(self.place, record=False))
            self.start_check()
            self.notify("Read again.", timeout=2)

        session.background.submit(lambda _job: load(session.path), done, self.failed, title="reading")
