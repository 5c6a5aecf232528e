"""Opening an image as its guest sees it: the files behind it are asked about, the passphrase is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.engine.gate import OpenRequest
from workbench.errors import PassphraseError, QwbError
from workbench.tui.background import Job, Pages
from workbench.tui.place import View
from workbench.tui.screens.core import BrowserCore
from workbench.tui.screens.dialogs import TextDialog
from workbench.tui.session import gate_key

Ready = Callable[[Pages], None]

WAITING = "Opening the image as its guest sees it …"
LOCKED = "The guest's data is encrypted. Enter asks for the passphrase."
UNANSWERED = "The image names another file; nobody said whether to open it. Enter asks again."


class Unanswered(Exception):
    """The image names a file that nobody has been asked about yet. No QwbError: a tolerant open must not go on without."""

    def __init__(self, request: OpenRequest) -> None:
        super().__init__(request.stored_name)
        self.request = request


class Unlocking(BrowserCore):
    """The guest's bytes, and what stands in the way of them; part of the browser."""

    def with_guest(self, ready: Ready) -> None:
        """Give `ready` the pages of guest data; asks for a passphrase and before it opens other files."""
        session = self.session
        if session.guest_pages is not None:
            ready(session.guest_pages)
            return
        session.guest_wanted.append(ready)
        if not session.opening:
            self._open_guest()

    def _open_guest(self) -> None:
        from workbench.engine.image import Image

        session, known = self.session, dict(self.session.allowed)
        session.opening = True
        self.say_guest(WAITING)

        def gate(request: OpenRequest) -> Path | None:
            """Runs in the worker: what was answered, else the question."""
            key = gate_key(request)
            if key not in known:
                raise Unanswered(request)
            return known[key]

        def work(job: Job) -> Image | OpenRequest:
            staged = session.storage if session.simulated else None
            try:
                image = Image.open(
                    session.path,
                    gate=gate,
                    secret=session.secret,
                    force_share=True,
                    tolerant=True,
                    lock=False,
                    storage=staged,
                )
            except Unanswered as asked:
                return asked.request
            try:
                image.unlock()
            except BaseException:
                image.close()
                raise
            return image

        session.background.submit(work, self._guest_opened, self._guest_failed, title="opening", long=True)

    def _guest_opened(self, found: Any) -> None:
        """The image is open, or there is something to ask first."""
        session = self.session
        if isinstance(found, OpenRequest):
            self.ask_gate(found, lambda _path: self._open_guest(), lambda: self._give_up(UNANSWERED))
            return
        session.opening = False
        session.image = found
        session.guest_pages = Pages(
            session.background, lambda at, size: _guest_read(found, at, size), session.more_pages
        )
        self.say_guest("")
        for fault in found.problems:
            self.notify(fault.what.replace("[", "\\["), severity="warning")
        wanted, session.guest_wanted = session.guest_wanted, []
        for ready in wanted:
            ready(session.guest_pages)

    def _guest_failed(self, error: Exception) -> None:
        if isinstance(error, PassphraseError):
            wrong = str(error.what) if self.session.secret else ""
            self.ask_passphrase(self._open_guest, wrong, lambda: self._give_up(LOCKED))
        else:
            self._give_up(f"No guest data: {error.what if isinstance(error, QwbError) else error}. Enter tries again.")
            self.failed(error)

    def _give_up(self, why: str) -> None:
        """Nothing was opened; the views say why."""
        self.session.opening = False
        self.session.guest_wanted.clear()
        self.say_guest(why)

    def say_guest(self, why: str) -> None:
        """What the view of guest data shows instead of bytes."""
        self.session.guest_wait = why
        self.refresh_pages()

    def ask_passphrase(
        self, then: Callable[[], None], wrong: str = "", never: Callable[[], None] | None = None
    ) -> None:
        """Ask for the passphrase; an empty answer leaves the image locked."""

        def given(text: str | None) -> None:
            if text:
                self.session.secret = text.encode()
                then()
            elif never is not None:
                never()

        note = wrong or "Guest data is encrypted. The metadata can be browsed without a passphrase."
        self.app.push_screen(
            TextDialog("Passphrase", note=note, password=True, hints="⏎ unlock   Esc go on without it"), given
        )

    def do_unlock(self) -> None:
        self.ask_passphrase(lambda: self.reopen_guest(self._show_guest))

    def reopen_guest(self, ready: Ready) -> None:
        """Open it anew, with whatever was learned since."""
        self.session.close_guest()
        self.with_guest(ready)

    def _show_guest(self, _pages: Pages) -> None:
        if self.place.view is not View.GUEST_HEX:
            self.to_view(View.GUEST_HEX)
        else:
            self.select(self.place, record=False)


def _guest_read(image: Any, offset: int, length: int) -> bytes:
    data: bytes = image.read(offset, max(0, min(length, image.size - offset)))
    return data
