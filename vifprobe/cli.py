# SPDX-License-Identifier: Apache-2.0
"""Command group. A command is imported when it is called. Only this file turns errors into messages and exit codes."""

from __future__ import annotations

import os
import sys
from difflib import get_close_matches
from importlib import import_module

import click

from vifprobe.commands import output
from vifprobe.errors import EXIT_DONE, EXIT_FAILED, ReaderGoneError, VifprobeError
from vifprobe.model.untrusted_text import safe
from vifprobe.process.causes import TRACEBACK_SWITCH, cause
from vifprobe.version import __version__

#: Command -> its line in `vifprobe --help`. The file of each command in vifprobe/commands/ has its name.
COMMANDS = {
    "watch": "Show one or more taps on a live screen.",
    "capture": "Write a folder of evidence: histograms, timeline, drops.",
    "replay": "Count the packets of a recording (pcap, pcapng).",
    "policer": "Show who declares a tap's limit, and who enforces it.",
    "report": "Make one HTML page with plots from a capture.",
    "diff": "Compare two captures, before and after a change.",
    "explain": "Explain a finding (P11): meaning, proof, what to do.",
    "taps": "List the taps of this host and their guests.",
    "doctor": "Check what this kernel and host can do, and what is missing.",
    "cleanup": "Remove tc filters that a killed run left.",
}


class _Group(click.Group):
    """Imports a command's module on first use, and suggests the nearest command for a mistyped one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"vifprobe.commands.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS:
            nearest = get_close_matches(args[0], COMMANDS, n=1)
            hint = f"Did you mean `{nearest[0]}`?" if nearest else f"Commands: {', '.join(COMMANDS)}."
            raise click.UsageError(f"no command {args[0]!r}. {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="vifprobe")
def group() -> None:
    """Show what a VM sends through its tap, and what the policer does with it.

    Outbound: from the guest to the network (the tap's rx counters). Inbound: from the network to the guest.

    \b
    Example:
      sudo vifprobe watch tap834d76e9-5f
      sudo vifprobe capture tap834d76e9-5f -d 30s -o evidence/
    """


def show_error(error: VifprobeError) -> None:
    """Write the message and hints of an error to stderr."""
    click.echo("\n  ".join((f"Error: {error.message}", *error.hints)), err=True)


def show_usage_error(error: click.ClickException) -> None:
    """Write a usage error as click does, but escape control characters in what the user typed."""
    if isinstance(error, click.UsageError) and error.ctx is not None:
        click.echo(error.ctx.get_usage(), err=True)
        click.echo(f"Try '{error.ctx.command_path} --help' for help.\n", err=True)
    lines = error.format_message().split("\n")
    click.echo("Error: " + "\n".join(map(safe, lines)), err=True)


def main() -> None:
    """Entry point. Shows no traceback for an error that a user can cause."""
    output.set_up()
    try:
        code = _run()
    finally:
        output.end_messages()
    sys.exit(code if isinstance(code, int) else EXIT_DONE)


def _run() -> object:
    """Run the command. Return its exit code, or its return value."""
    try:
        return group.main(prog_name="vifprobe", standalone_mode=False)
    except ReaderGoneError as error:
        return error.exit_code  # the reader has gone, so no message can reach it
    except VifprobeError as error:
        show_error(error)
        return error.exit_code
    except click.ClickException as error:
        show_usage_error(error)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        # Before anything was counted. A run that counts handles the signal itself, and keeps what was seen.
        click.echo("Stopped.", err=True)
        return EXIT_FAILED
    except Exception as error:
        # Last resort: every expected error has its own class, raised where it happens.
        if os.environ.get(TRACEBACK_SWITCH):
            raise
        show_error(cause(error))
        return EXIT_FAILED
