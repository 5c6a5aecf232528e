"""`qwb`: the command group. Commands are imported only when they run, so that each pays for itself alone."""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from workbench import __version__
from workbench.cli.common import EXIT_BUG, EXIT_ERROR, EXIT_INTERRUPTED, complain, friendly_errors

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

COMMANDS: Final[dict[str, str]] = {
    "browse": "Open the workbench on an image (what `qwb IMAGE` does).",
    "info": "What an image is: size, features, snapshots, bitmaps, what is wrong with its header.",
    "check": "Look for corruptions and leaks, as `qemu-img check`, with causes.",
    "map": "Which guest ranges are data, zeros or holes, and where they are stored.",
    "dump": "Any metadata structure: offsets, raw bytes, values, meaning.",
    "explain": "Where a guest offset is stored, or what a host offset belongs to.",
    "problems": "The catalogue of problems: meaning, cause, fixes.",
    "repair": "Plan, try and apply fixes; every one can be undone.",
    "undo": "Take a repair back, byte for byte.",
    "compare": "Whether two disks have the same content.",
    "convert": "Copy a disk's content into a new image.",
    "measure": "How much space a new image will need.",
    "dd": "Copy a window of a disk into a new image, block by block.",
    "rebase": "Put an image onto another backing file.",
    "commit": "Write what an overlay holds into its backing file.",
    "bench": "How long many requests to a disk take.",
    "create": "Make a new image.",
    "amend": "Change options of an image: compat, refcount width, lazy refcounts, data file.",
    "resize": "Change the virtual size.",
    "io": "Read and write guest data with qemu-io's commands.",
    "bitmap": "Add, remove, clear, switch, merge and list dirty bitmaps.",
    "snapshot": "List, create, apply and delete internal snapshots.",
    "samples": "The shipped sample images: list them, copy one out.",
}
"""Every command with its line in the help; the module of the same name holds it as `command`."""


def _shipped(name: str) -> bool:
    return name in COMMANDS and importlib.util.find_spec(f"workbench.cli.{name}") is not None


class LazyGroup(click.Group):
    """A group whose commands live in modules imported on use; a first argument that is a file means `browse`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in COMMANDS if _shipped(name)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if not _shipped(cmd_name):
            return None
        command: click.Command = importlib.import_module(f"workbench.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and (os.path.exists(name) or "/" in name or "." in name):
            return super().resolve_command(ctx, ["browse", *args])
        if not _shipped(name) and not name.startswith("-"):
            import difflib

            near = difflib.get_close_matches(name, self.list_commands(ctx), 1)
            hint = f"did you mean `qwb {near[0]}`?" if near else "see `qwb --help`"
            raise click.UsageError(f"{name}: no such command and no such file; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Help from the table alone: no command is imported."""
        rows = [(name, COMMANDS[name]) for name in self.list_commands(ctx)]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Command names from the table alone, options, and files (for `qwb IMAGE`)."""
        from click.shell_completion import CompletionItem

        if incomplete.startswith("-"):
            return click.Command.shell_complete(self, ctx, incomplete)
        found = [
            CompletionItem(name, help=COMMANDS[name]) for name in self.list_commands(ctx) if name.startswith(incomplete)
        ]
        return [*found, CompletionItem(incomplete, type="file")] if incomplete or not found else found

    def invoke(self, ctx: click.Context) -> Any:
        with friendly_errors():
            return super().invoke(ctx)


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, "--version", prog_name="qwb", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Look into qcow2 disk images, find what is wrong, repair without losing data.

    `qwb IMAGE` opens the workbench; `qwb` alone opens its gallery of samples.

    \b
    Completion of commands, options and files in your shell:
      bash  eval "$(_QWB_COMPLETE=bash_source qwb)"    in ~/.bashrc
      zsh   eval "$(_QWB_COMPLETE=zsh_source qwb)"     in ~/.zshrc
      fish  _QWB_COMPLETE=fish_source qwb | source     in ~/.config/fish/completions/qwb.fish
    """
    if ctx.invoked_subcommand is None:
        browse = cli.get_command(ctx, "browse")
        if browse is None:
            click.echo(ctx.get_help())
            return
        browse.main(args=[], prog_name="qwb browse", standalone_mode=False, parent=ctx)


def main(args: list[str] | None = None) -> None:
    """Entry point of `qwb`. Exit codes: the command's own; 1 errors and wrong usage; 130 after Ctrl-C.

    Wrong usage is 1 and not click's 2: 2 means "corrupt" to whoever reads the exit code of a check.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without our characters is no reason to fail
    try:
        code = cli.main(args=args, prog_name="qwb", standalone_mode=False)
    except click.ClickException as error:
        complain(_usage_line(error))
        code = EXIT_ERROR
    except click.Abort:
        complain("interrupted")
        code = EXIT_INTERRUPTED
    except Exception as error:
        if "--debug" in (sys.argv[1:] if args is None else args):
            raise
        complain(f"internal error, please report it: {type(error).__name__}: {error} (--debug shows where)")
        raise SystemExit(EXIT_BUG) from error
    sys.exit(code if isinstance(code, int) else 0)


def _usage_line(error: click.ClickException) -> str:
    text = " ".join(error.format_message().split())
    if isinstance(error, click.UsageError) and error.ctx is not None and "see `qwb" not in text:
        return f"{text} (see `{error.ctx.command_path} --help`)"
    return text


if __name__ == "__main__":
    main()
