"""Repair: from findings to a healthy image, planned, simulated, undoable. Nothing is written before `apply`.

A step-by-step flow (session.py):

    with Guide(path) as guide:                    # case=FILE: another case file than IMAGE.qwb-case
        guide.interrupted()                       # Session | None: end it first, guide.recover(complete=False)
        groups = guide.look(found=check_result)   # choose: tuple[Group]; without `found` it checks first
        guide.choose(mode=Mode.ALL)               #   Mode.LEAKS, Mode.ALL, Mode.CODES with codes=frozenset({...}),
        guide.choose(choices={"entries": "zero"}) #   alternatives per fix id, free_orphans=, destructive=
        plan = guide.plan(on_phase=..., cancel=...)
        plan.before, plan.after                   # Verdict (str() for people): now, and simulated on the overlay
        plan.steps, plan.groups()                 # Step: code, fix, title, tier, offset, length, before, after, kind,
                                                  #   guest ranges, snapshots, choice
        edits.describe(step, geometry, edits.heads(plan))   # [(field, before, after)] by the schemas
        plan.overlay                              # Storage of the repaired image: open it, look around in it
        plan.result_before, plan.result_after     # CheckResults (census, claims: host map before and after)
        plan.edits(), plan.as_json()              # byte edits; JSON that read_change() makes applicable again
        done = guide.apply(progress=...)          # Progress(phase, done, total); Applied(session, verdict of the re-check)
        guide.history(); guide.undo()             # [Session]; Undone: str() says what is true of the image then
        guide.dependents()                        # files beside it that have the image as their backing file

    Choices: fix ids and their alternatives stand in fixes.RULES; a lost L2 table whose place is uncertain (see plan.notes)
    is linked by choices={"relink:0x12000": "2"} (table offset: L1 index). fixes.catalogue.IMPLEMENTED leads from the fix
    ids of the problem catalogue to (rule id, alternative id).  Beside the flow: copying.repaired_copy(plan, NEW),
    orphans.export_orphans(storage, check_result, folder), recovery.interrupted(path), undo.sessions(path).

    Group: code, title, severity, count, meaning, guest_impact, fixes (Rule), tier, default, alternatives [(fix id,
    Alternative(id, title, consequence))].  An edit by hand: `plan.hand_edit(storage, offset, data, title)` -> Change, then
    guide.apply(change=...): journaled and undoable like any repair.

All of it can run in a worker thread; callbacks come from that thread. Errors: PlanRefused (would be worse), LockedError
(someone has the image open), ImageError (changed since), StorageError, CheckCancelled.

Parts: policy (choices) -> fixes/ (rules, in running order) on a workspace (overlay, ledger, log of steps) -> plan ->
apply (lock, fingerprint, journal, write, flush, re-check) <-> casefile (SQLite) <-> undo, recovery.
"""
