# SPDX-License-Identifier: Apache-2.0
"""`vifprobe diff`: two captures side by side, before and after a change."""

from __future__ import annotations

import sys

import click

from vifprobe.commands.options import fail_on, fails
from vifprobe.errors import EXIT_DONE, EXIT_FINDING, CaptureError


@click.command("diff")
@click.argument("before", metavar="DIR")
@click.argument("after", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@fail_on
def command(before: str, after: str, as_json: bool, fail_on: str | None) -> None:
    """Compare two captures: rates, packet classes, limits, findings.

    Each tap is compared with the tap of the same name. If each capture has only one tap, these two are compared. With
    --fail-on, only findings count that are in the second capture and not in the first.

    \b
    Example:
      vifprobe diff before/ after/
    """
    from vifprobe.analysis.difference import difference, paired
    from vifprobe.capture.reader import load
    from vifprobe.render.export.jsonlines import dumps
    from vifprobe.render.text.difference import diff_lines, diff_object
    from vifprobe.render.text.terminal import print_lines, stream_glyphs, stream_width

    earlier, later = load(before), load(after)
    pairs = paired(earlier.readings(), later.readings())
    if not pairs:
        names = [", ".join(tap.name for tap in capture.manifest.taps) for capture in (earlier, later)]
        raise CaptureError(
            f"{before} and {after}: no tap has totals in both captures.", f"Taps: {names[0]}, and {names[1]}."
        )
    found = [difference(*pair) for pair in pairs]
    stream = sys.stdout
    if as_json:
        stream.write(dumps(diff_object(earlier, later, found)) + "\n")
    else:
        print_lines(stream, diff_lines(earlier, later, found, stream_width(stream), stream_glyphs(stream)))
    new = [finding for each in found for finding in each.new]
    sys.exit(EXIT_FINDING if fails(new, fail_on) else EXIT_DONE)
