# SPDX-License-Identifier: Apache-2.0
"""Names that others on the host choose (interfaces, aliases, nft comments, processes) reach no terminal as they are."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from command_kit import Ended, run, start

from vifprobe.testing.net.netns import Netns
from vifprobe.testing.net.taps import Tap, create_tap
from vifprobe.testing.net.taps import tap as make_tap

ESCAPE = "\x1b[31m\u202e"
HOSTILE_TAP = f"{ESCAPE}[x"  # 11 bytes; a name's can be anything but a slash, a colon and a blank
RULES = f"""
table netdev hostile {{
    comment "{ESCAPE}[red]"
    chain hostile {{
        type filter hook ingress device "tap0" priority 0; policy accept; comment "{ESCAPE}[red]";
        limit rate over 5 mbytes/second burst 5000 bytes drop comment "{ESCAPE}[red]"
    }}
}}
"""


def assert_harmless(ended: Ended) -> None:
    """Nothing on either stream that a terminal acts upon; no traceback."""
    for text in (ended.out, ended.err):
        assert [c for c in text.replace("\n", "") if not c.isprintable()] == [], ascii(text)
        assert "Traceback" not in text


def prepare(tap: Tap) -> None:
    """Give the tap an alias and a limit with hostile comments, where this host's tools can."""
    subprocess.run(["ip", "link", "set", tap.name, "alias", f"{ESCAPE}[red]"], check=True)
    subprocess.run(["nft", "-f", "-"], input=RULES, text=True, check=True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("taps",),
        ("taps", "--json"),
        ("policer", "tap0"),
        ("policer", "tap0", "--json"),
        ("policer", HOSTILE_TAP),
        ("watch", "tap0", "--duration", "300ms", "--interval", "100ms"),
        ("watch", "tap0", "--duration", "300ms", "--json"),
        ("watch", HOSTILE_TAP),
        ("watch", f"*{ESCAPE}*"),
        ("cleanup",),
        ("doctor",),
    ],
    ids=lambda arguments: ascii(" ".join(arguments)),
)
def test_names_of_the_kernel(tap: Tap, arguments: tuple[str, ...]) -> None:
    prepare(tap)
    with create_tap(HOSTILE_TAP):
        ended = run(*arguments)
    assert_harmless(ended)
    if arguments == ("taps",):
        assert "\\x1b[31m\\u202e[x" in ended.out
    if arguments[1:] == (HOSTILE_TAP,):
        assert (ended.code, "\\x1b" in ended.err) == (1, True)


def test_names_of_processes(netns: Netns, tmp_path: Path) -> None:
    """Who changes a limit is named; a process has the name of the file that it was started from."""
    tool = tmp_path / f"{ESCAPE}tc"
    tc = subprocess.run(["which", "tc"], check=True, capture_output=True, text=True).stdout.strip()
    tool.symlink_to(tc)
    folder = tmp_path / "c"
    with make_tap("tap0") as tap:
        prepare(tap)
        with start("capture", "tap0", "-d", "60s", "-o", str(folder)) as running:
            running.wait_for(lambda _: (folder / "timeline.csv").exists())
            # It lives until its name was read: that of a process that has ended nobody knows.
            with subprocess.Popen([tool, "-batch", "-"], stdin=subprocess.PIPE, text=True) as changing:
                assert changing.stdin is not None
                changing.stdin.write("qdisc add dev tap0 root pfifo\nqdisc del dev tap0 root\n")
                changing.stdin.flush()
                running.wait_for(lambda _: "qdisc_del,pfifo qdisc" in (folder / "events.csv").read_text())
            assert changing.returncode == 0
            running.process.terminate()
            ended = running.end()
    assert_harmless(ended)
    events = (folder / "events.csv").read_text()
    assert "\\x1b" in events
    assert_harmless(Ended(0, events, ""))
    for name in ("manifest.json", "findings.json"):
        json.loads((folder / name).read_bytes().decode("ascii"))
    assert_harmless(run("diff", str(folder), str(folder)))
