"""What is left of a plan when the part that the proof stops is left out.

A repair that may lose something is not carried out unasked; but one doubtful fix must not keep the others from what they
can prove. So fixes are left out, as few as possible, until the rest is harmless.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from workbench.repair.fixes import RULES
from workbench.repair.policy import Policy
from workbench.repair.preserve import Proof

if TYPE_CHECKING:
    from workbench.repair.plan import Plan

_FOUNDATION: Final = "header-shape"
"""What it sets decides how all the rest is read: without it no other fix means what it says."""
Attempt = Callable[[Policy], "Plan"]


@dataclass(frozen=True, slots=True)
class Withheld:
    """What was left out: titles of the fixes, and what the whole plan would have cost."""

    titles: tuple[str, ...]
    proof: Proof


def harmless_part(attempt: Attempt, policy: Policy, full: Plan) -> Plan | None:
    """The largest part of `full` that loses nothing, or None when no part does.

    Tried in this order: nothing goes free; one fix less; each fix alone, and then all that stood the proof together.
    """
    careful = replace(policy, cautious=True)
    kept = attempt(careful)
    if kept.proof.harmless:
        return _named(kept, full, ())
    always = {rule.id for rule in RULES if rule.always}
    used = [rule.id for rule in RULES if rule.id not in always and any(step.fix == rule.id for step in full.steps)]
    if _FOUNDATION in used:
        always.add(_FOUNDATION)
        used.remove(_FOUNDATION)
    good: list[str] = []
    for each in used:
        less = attempt(replace(careful, skip=policy.skip | {each}))
        if less.proof.harmless and not less.empty:
            return _named(less, full, (each,))
    for each in used if len(used) > 2 else ():
        alone = attempt(replace(careful, skip=policy.skip | (set(used) - {each})))
        if alone.proof.harmless and not alone.empty:
            good.append(each)
    skipped = set(used) - set(good)
    rest = attempt(replace(careful, skip=policy.skip | skipped))
    if rest.proof.harmless and not rest.empty:
        return _named(rest, full, tuple(each for each in used if each in skipped))
    return None


def _named(part: Plan, full: Plan, skipped: tuple[str, ...]) -> Plan:
    titles = tuple(rule.title for rule in RULES if rule.id in skipped) or ("Free what nothing refers to",)
    return replace(part, policy=full.policy, withheld=Withheld(titles, full.proof))
