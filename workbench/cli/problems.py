"""`qwb problems`: the catalogue of problems."""

from __future__ import annotations

import click

from workbench.cli.common import debug_option, handle_errors, json_option, print_json, print_lines
from workbench.errors import ArgumentError

HELP = """The catalogue of problems that check can find; with CODE, what that problem means and how it is fixed."""


@click.command("problems", help=HELP)
@click.argument("code", required=False)
@json_option
@debug_option
@handle_errors
def command(code: str | None, as_json: bool) -> None:
    from workbench.check.problems import PROBLEMS, Severity, with_severity
    from workbench.render.check_report import problem_page
    from workbench.repair.fixes.catalogue import choice_of

    if code is not None and code.upper() not in PROBLEMS:
        import difflib

        near = difflib.get_close_matches(code.upper(), PROBLEMS, 3, 0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "see `qwb problems`"
        raise ArgumentError(f"no problem has the code {code!r}", hint=hint)
    chosen = [PROBLEMS[code.upper()]] if code is not None else list(PROBLEMS.values())
    if as_json:
        rows = [
            {
                "code": each.code,
                "severity": each.severity.value,
                "title": each.title,
                "meaning": each.meaning,
                "arises": each.arises,
                "guest-impact": each.guest_impact,
                "spec": each.spec,
                "fixes": [
                    {"id": fix.id, "tier": fix.tier.value, "title": fix.title, "choose": choice_of(fix.id, each.code)}
                    for fix in each.fixes
                ],
            }
            for each in chosen
        ]
        print_json(rows if code is None else rows[0])
    elif code is not None:
        print_lines(problem_page(chosen[0]))
    else:
        lines: list[str] = []
        for severity in Severity:
            lines += ["", severity.value.upper()]
            lines += [f"  {each.code:<30} {each.title}" for each in with_severity(severity)]
        print_lines(lines[1:])
