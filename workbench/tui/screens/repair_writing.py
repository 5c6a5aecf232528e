"""The work behind the repair screen: what runs in a worker, the last question, writing the image or a copy, how it ended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rich.text import Text
from textual import on
from textual.widgets import ContentSwitcher, Input, ProgressBar, Static

from workbench.errors import LockedError, QwbError
from workbench.render.plan import after_text, verdict_text
from workbench.render.text import printable
from workbench.repair.apply import Applied, Progress
from workbench.repair.plan import PlanRefused
from workbench.tui.background import Background, Job
from workbench.tui.screens.dialogs import TextDialog
from workbench.tui.screens.repair_frame import RepairFrame
from workbench.tui.screens.repair_steps import At
from workbench.tui.screens.repair_texts import confirm_text, done_text, write_text
from workbench.tui.standing import stands

T = TypeVar("T")


class RepairWriting(RepairFrame):
    """Steps 3 to 5, and the worker that all steps use; `RepairScreen` has the steps before."""

    answered: Callable[[str | None], None]
    background: Background
    _job: Job | None
    _busy_text: str

    def go_to(self, at: At) -> None:
        """Show a step."""
        self.at = at
        pages = {At.TROUBLE: "done", At.WRITE: "busy"}
        self.query_one("#pages", ContentSwitcher).current = pages.get(at, at.value)
        self.frame()

    # Work

    def work(
        self,
        text: str,
        what: Callable[[Job], Any],
        done: Callable[[Any], None],
        failed: Callable[[Exception], None] | None = None,
    ) -> None:
        """Run something in a worker behind the busy page."""
        self._busy_text = text
        self.go_to(At.BUSY)
        self.banner("Nothing has been written. Escape stops this.")
        answered, told = self._while_here(done), self._while_here(failed or self.trouble)
        self._job = self.background.submit(what, answered, told, title="repair", long=True)
        self._tick()

    def _while_here(self, tell: Callable[[T], None]) -> Callable[[T], None]:
        """An answer that is dropped when the screen is gone by then."""
        return lambda value: tell(value) if stands(self) else None

    def _tick(self) -> None:
        """What runs, in words."""
        if self.at is At.BUSY and self._job is not None and stands(self):
            note = self._job.note
            self.query_one("#busy-text", Static).update(
                f"{self._busy_text}\n\n{note[:1].upper() + note[1:] + ' …' if note else ''}"
            )
            self.query_one("#bar", ProgressBar).update(total=self._job.total or None, progress=self._job.done)

    def trouble(self, error: Exception) -> None:
        """Something stands in the way: say what and what to do."""
        what = error.what if isinstance(error, QwbError) else f"{type(error).__name__}: {error}"
        hint = (error.hint or "") if isinstance(error, QwbError) else ""
        self.go_to(At.TROUBLE)
        text = Text()
        if isinstance(error, LockedError):
            self.banner("✗ Refused: the image is in use.")
            text.append(f"{printable(what)}.\n\n", "bold")
            text.append(
                "Two programs that write to one image destroy it, so nothing can be repaired while it is in use.\n\n"
            )
        elif isinstance(error, PlanRefused):
            self.banner("✗ Refused: this repair cannot be proven to lose nothing.")
            text.append(f"{printable(what)}.\n\n", "bold")
        else:
            self.banner("✗ This did not work.")
            text.append(f"{printable(what)}.\n\n", "bold")
        text.append("What now: ", "bold")
        text.append((hint or "go back and choose fewer repairs, or look at the findings (key 8)") + ".\n\n")
        text.append(
            "The image is what it was before."
            if self.flow.applied is None
            else "The repair was written before this happened; u in the workbench takes it back."
        )
        self.query_one("#done-text", Static).update(text)
        self.query_one("#done").focus()

    # 3 Confirm

    def show_confirm(self) -> None:
        flow, plan = self.flow, self.flow.plan
        assert plan is not None and flow.cost is not None
        self.set_class(flow.drops, "drops")
        self.go_to(At.CONFIRM)
        self.banner("! Last question before the image is written.")
        self.query_one("#confirm-text", Static).update(confirm_text(flow))
        if flow.drops:
            does = (
                "leaves the image WORSE than it is" if flow.worse else f"is not proven to lose nothing ({plan.proof})"
            )
            self.query_one("#warning", Static).update(
                f"▲ This {does}. To write it all the same, type the word  {flow.word}  at the bottom. Escape goes back."
            )
            field = self.query_one("#word", Input)
            field.value = ""
            field.focus()
        else:
            self.query_one("#confirm-scroll").focus()

    @on(Input.Submitted, "#word")
    def word_given(self, event: Input.Submitted) -> None:
        event.stop()
        if event.value.strip() == self.flow.word:
            self.write()
        else:
            self.notify(f"That is not the word: type {self.flow.word}, or press Escape to go back.", severity="warning")

    def do_yes(self) -> None:
        self.write()

    def do_copy(self) -> None:
        """Ask where to, and write a repaired copy."""
        path = Path(self.flow.path)
        note = "This image stays exactly as it is; the repaired copy is a new file."

        def given(target: str | None) -> None:
            if target:
                self.work(f"Writing the repaired copy {target}.", lambda _job: self.flow.copy(target), self.copied)

        self.app.push_screen(
            TextDialog(
                "Write a repaired copy to", note=note, value=str(path.with_name(path.stem + ".repaired" + path.suffix))
            ),
            given,
        )

    def do_orphans(self) -> None:
        """Ask where to, and copy the orphaned clusters out."""
        path = Path(self.flow.path)
        note = "Clusters that may hold guest data whose mapping is lost, one file for each run, and a list of where they lay."

        def given(target: str | None) -> None:
            if target:
                self.work(
                    f"Copying orphans to {target}.", lambda _job: self.flow.copy_orphans(target), self.orphans_copied
                )

        self.app.push_screen(
            TextDialog(
                "Copy orphans into the new folder", note=note, value=str(path.with_name(path.stem + ".orphans"))
            ),
            given,
        )

    def orphans_copied(self, index: Path) -> None:
        self.go_to(At.TROUBLE)
        self.banner("✓ The orphans are copied out. The image was not touched.")
        text = Text(f"{index.parent}\n\n", "bold")
        text.append(
            "Each file is one run of clusters, named by where it lay. orphans.json says how sure it is that they are guest data, and where they may belong."
        )
        self.query_one("#done-text", Static).update(text)
        self.query_one("#done").focus()

    def copied(self, target: Path) -> None:
        self.go_to(At.TROUBLE)
        self.banner("✓ The repaired copy is written.")
        text = Text(f"{target}\n\n", "bold")
        text.append(f"It {after_text(self.flow.plan) if self.flow.plan is not None else ''}.\n\n")
        text.append(f"{self.flow.path} was not touched. Try the copy before you put it in the place of the original.")
        self.query_one("#done-text", Static).update(text)
        self.query_one("#done").focus()

    # 4 Write, 5 Result

    def write(self) -> None:
        """Write; from here on Escape does nothing, until it is done or rolled back."""
        self.query_one("#busy-text", Static).update(
            "Writing. The old bytes are stored first, so this can be undone even after a power cut."
        )
        self.go_to(At.WRITE)
        self.banner(f"Writing into {self.flow.path}")
        bar = self.query_one("#bar", ProgressBar)
        bar.update(total=None, progress=0)
        latest: list[Progress] = []

        def tell(progress: Progress) -> None:
            latest[:] = [progress]

        def show() -> None:
            if latest and stands(self):
                now = latest[0]
                self.query_one("#busy-text", Static).update(write_text(now))
                bar.update(total=now.total or None, progress=now.done)

        ticking = self.set_interval(0.1, show)

        def done(applied: Applied) -> None:
            ticking.stop()
            self.show_done(applied)

        def failed(error: Exception) -> None:
            ticking.stop()
            self.trouble(error)

        self.background.submit(lambda _job: self.flow.write(tell), done, failed, title="writing the repair", long=True)

    def show_done(self, applied: Applied) -> None:
        self.go_to(At.DONE)
        verdict = applied.verdict or {}
        good = verdict_text(verdict) == "clean" or not (
            verdict.get("corruptions") or verdict.get("check-errors") or not verdict.get("openable", True)
        )
        self.banner(
            ("✓ Written and checked again: the image is " if good else "! Written and checked again: ")
            + verdict_text(verdict)
            + "."
        )
        self.query_one("#done-text", Static).update(done_text(self.flow, applied))
        self.query_one("#done").focus()

    def do_undo(self) -> None:
        self.answer("undo")

    # Leaving

    def answer(self, answer: str | None) -> None:
        """Leave. The one who asked is told by the app: who pushed this screen may be gone."""
        self.dismiss(answer)
        self.app.call_later(self.answered, answer)
