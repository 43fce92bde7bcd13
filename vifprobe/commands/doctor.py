# SPDX-License-Identifier: Apache-2.0
"""`vifprobe doctor`: what this kernel and host can do, and what does not work without each missing piece."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from vifprobe.errors import EXIT_DONE, EXIT_FAILED
from vifprobe.kernel.checkup import checkup
from vifprobe.render.export.jsonlines import dumps
from vifprobe.render.text.doctor import Check, CheckState, doctor_lines
from vifprobe.render.text.terminal import print_lines, stream_glyphs, stream_width
from vifprobe.session import rights


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each check, one a line.")
def command(as_json: bool) -> None:
    """Check kernel, packages and permissions.

    For each missing piece, doctor shows what does not work without it and how to get it. The exit code is 1 if a piece
    is missing that `vifprobe watch` needs.

    \b
    Example:
      sudo vifprobe doctor
    """
    every = (*checkup(), *rights.checks())
    checks = [Check(found.name, CheckState(found.state), found.detail, found.cost, found.remedy) for found in every]
    if as_json:
        sys.stdout.writelines(
            dumps({"schema": 1, **asdict(check), "state": check.state.value}) + "\n" for check in checks
        )
    else:
        print_lines(sys.stdout, doctor_lines(checks, stream_width(sys.stdout), stream_glyphs(sys.stdout)))
    sys.exit(EXIT_FAILED if any(check.state is CheckState.MISSING for check in checks) else EXIT_DONE)
