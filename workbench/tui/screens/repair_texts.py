"""What the repair flow says before, while and after it writes."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from workbench.render.plan import after_text, cost_words, ranges_words, size_words, verdict_text
from workbench.render.sizes import count
from workbench.render.text import printable
from workbench.repair.apply import Applied, Phase, Progress
from workbench.repair.cases import case_path
from workbench.repair.edits import proof_lines
from workbench.repair.session import note_of_dependents
from workbench.tui.screens.repair_flow import Flow


def confirm_text(flow: Flow) -> Text:
    """What will change, what it costs, how to go back."""
    plan, cost = flow.plan, flow.cost
    assert plan is not None and cost is not None
    text = Text()
    text.append("What is written\n", "bold")
    text.append(
        f"  {count(len(plan.steps), 'step')} into {Path(flow.path).name}: {cost_words(cost)}.\n  {size_words(cost.sizes)}\n"
    )
    text.append("What comes of it\n", "bold")
    text.append(f"  Now {verdict_text(plan.before)}; afterwards it {after_text(plan)}.\n")
    text.append("What it means for the guest\n", "bold")
    text.append(f"  {str(plan.proof)[:1].upper()}{str(plan.proof)[1:]}.\n", "" if plan.proof.harmless else "bold")
    for line in proof_lines(plan.proof, 4):
        text.append(f"    {line}\n")
    if cost.guest:
        text.append(f"  Concerned: {ranges_words(cost.guest)}; nothing else of the disk is touched.\n")
    elif plan.proof.harmless:
        text.append("  No guest data is touched: the guest reads what it reads now.\n")
    if cost.snapshots:
        text.append(f"  Snapshots concerned: {', '.join(cost.snapshots[:6])}.\n")
    if flow.dependents:
        text.append(f"  ! This image {printable(note_of_dependents(flow.dependents))} (t).\n", "bold")
    if flow.left:
        text.append(
            f"  {count(len(flow.left), 'kind')} of finding stay{'s' if len(flow.left) == 1 else ''}; the plan says why.\n"
        )
    text.append("How to go back\n", "bold")
    text.append(f"  The old bytes are stored first, in {case_path(flow.path).name}.\n")
    text.append("  u in the workbench (or `qwb undo`) restores the file bit for bit.\n")
    if not flow.drops:
        text.append("\nWrite it? Enter or y writes, Escape goes back.", "bold")
    return text


def write_text(now: Progress) -> str:
    """A phase of the writing, with what it means."""
    more = {
        Phase.FINGERPRINT: "Making sure that nobody has changed the image since the plan was made.",
        Phase.PROOF: "Proving once more, on what is in the file now, that nothing is lost.",
        Phase.JOURNAL: "Storing the old and the new bytes in the case file. The image is still untouched.",
        Phase.WRITE: "The changes are being written.",
        Phase.FLUSH: "Waiting until the disk has everything.",
        Phase.CHECK: "Everything is written. The image is being checked again.",
    }
    share = f"  {now.done:,} of {now.total:,}" if now.total else ""
    return f"{now.phase.value.capitalize()}{share}\n\n{more[now.phase]}\nIf this is cut off, the next start puts the old bytes back or completes it."


def done_text(flow: Flow, applied: Applied) -> Text:
    """How it ended, and how to go back."""
    session = applied.session
    text = Text()
    before = session.plan.get("before")
    text.append("Before  ", "bold")
    text.append(f"{verdict_text(before) if isinstance(before, dict) else 'not checked'}\n")
    text.append("Now     ", "bold")
    text.append(f"{verdict_text(applied.verdict)}\n\n")
    for each in flow.left[:4]:
        text.append(f"Stays: {each.title}. {each.why}\n")
    if flow.left:
        text.append("\n")
    text.append(f"This is session {session.id}. ", "bold")
    text.append(
        f"u takes it back, now or at any later time, as long as nobody has written to the image in between. Keep {case_path(flow.path).name} until you are sure.\n\n"
    )
    text.append("Enter closes this; the workbench then shows the repaired image.")
    return text
