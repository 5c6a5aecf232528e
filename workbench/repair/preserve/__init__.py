"""The preservation proof: what a plan would do to every byte, judged without knowing any fix.

Fixes are heuristics and may be wrong. So base and overlay are read here by a walk of their own (`walk`), and each guest
and host byte that the plan touches is sorted: equal, regained, given up, freed content, or unproven. A step's
declarations (`frees`, `places`) are claims: they are believed only where nothing in the base speaks against them.
"""

from workbench.repair.preserve.account import Account, Fate, PlanRefused, Proof, Stretch
from workbench.repair.preserve.proof import prove

__all__ = ["Account", "Fate", "PlanRefused", "Proof", "Stretch", "prove"]
