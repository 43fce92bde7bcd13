# SPDX-License-Identifier: Apache-2.0
"""Which of root's rights `watch` and `capture` keep once they count, and what must go on without the others."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from command_kit import Running, environment, run, start

from vifprobe.kernel import libbpf
from vifprobe.kernel.attach import has_tcx
from vifprobe.testing.net.netns import Netns, private_netns
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.packets import frames as f
from vifprobe.testing.traffic.flood import flood
from vifprobe.testing.waiting import wait_until

Require = Callable[[str, object, str], None]

SYN = f.eth(f.ipv4(f.tcp(f.TcpFlag.SYN)), f.EtherType.IPV4)
FRAMES = 2003
#: r0 = 0 (TCX_PASS); exit
PASS = bytes.fromhex("b700000000000000 9500000000000000")
# Numbers of include/uapi/linux/capability.h.
DAC_READ_SEARCH, NET_ADMIN, SYS_PTRACE, PERFMON, BPF = (1 << number for number in (2, 12, 19, 38, 39))
IN_EFFECT = DAC_READ_SEARCH | NET_ADMIN | PERFMON | BPF
KEPT = {
    "CapPrm": IN_EFFECT | SYS_PTRACE,
    "CapBnd": IN_EFFECT | SYS_PTRACE,
    "CapInh": 0,
    "CapAmb": 0,
    "NoNewPrivs": 1,
}
_WORD = re.compile(r"^(\w+):\t(\w+)$", re.MULTILINE)


def rights_of(task: Path) -> dict[str, int]:
    """Of one thread; none where it has ended."""
    try:
        found = dict(_WORD.findall((task / "status").read_text()))
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {name: int(found[name], 16) for name in ("CapEff", *KEPT)}


def wait_for_rights(running: Running, kept: dict[str, int], in_effect: int, more: int) -> None:
    """Until each thread has these, `more` of them in effect now and then. One that loads programs ends with them."""

    def is_given_up() -> bool:
        assert running.process.poll() is None, running.end()
        tasks = [rights_of(task) for task in Path(f"/proc/{running.process.pid}/task").iterdir()]
        return all(
            {name: one[name] for name in kept} == kept and one["CapEff"] & ~more == in_effect for one in tasks if one
        )

    wait_until(is_given_up, 60)


def wait_for_usual_rights(running: Running) -> None:
    """What root keeps where Open vSwitch is no other user's."""
    wait_for_rights(running, KEPT, IN_EFFECT, more=SYS_PTRACE)


def rows(path: Path) -> list[dict[str, str]]:
    """Of a CSV file, as far as it is there."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def python(text: str, *arguments: str, **changes: str) -> str:
    """What a Python program prints, which has this package. changes: of the environment."""
    command = [sys.executable, "-c", text, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(**changes), timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_watch_gives_up_what_it_does_not_need_in_every_thread(tap: Tap) -> None:
    with start("watch", tap.name, "--json", "--interval", "100ms") as running:
        running.wait_for_lines(1)
        wait_for_usual_rights(running)
        flood([tap.fd], [SYN], count=FRAMES, seconds=20)
        running.tell(signal.SIGTERM)
        ended = running.end()
    assert (ended.code, ended.err) == (0, "")
    assert ended.objects[-1]["outbound"]["offered"]["packets"] == FRAMES


@pytest.mark.usefixtures("netns")
def test_in_another_namespace_too() -> None:
    """It is entered before, and there is no going back: the process ends there."""
    with ExitStack() as stack:
        other: Netns = stack.enter_context(private_netns(enter=False))
        with other.entered():
            tap = stack.enter_context(make_tap("tap7"))
        command = ("watch", "tap7", "--netns", other.path, "--json", "--interval", "100ms")
        running = stack.enter_context(start(*command))
        running.wait_for_lines(1)
        wait_for_usual_rights(running)
        flood([tap.fd], [SYN], count=FRAMES, seconds=20)
        running.tell(signal.SIGTERM)
        ended = running.end()
    assert (ended.code, ended.err) == (0, "")
    assert ended.objects[-1]["outbound"]["offered"]["packets"] == FRAMES


def test_a_capture_in_a_folder_of_another_user_is_whole(tap: Tap, tmp_path: Path) -> None:
    """Root owns what it writes there, and still finds who holds the tap (a process with all rights) and who does what
    to it.
    """
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    os.chown(home, 1000, 1000)
    folder = home / "evidence"
    with start("capture", tap.name, "-d", "60s", "-o", str(folder)) as running:
        wait_until(lambda: (folder / "manifest.json").exists() or running.process.poll() is not None, 60)
        wait_for_usual_rights(running)

        def is_found() -> bool:
            flood([tap.fd], [SYN], count=100, seconds=20)
            return any(row["pid"] == str(os.getpid()) for row in rows(folder / "host.csv"))

        wait_until(is_found, 30)
        subprocess.run(["tc", "qdisc", "add", "dev", tap.name, "clsact"], check=True)
        wait_until(lambda: any(row["by_comm"] == "tc" for row in rows(folder / "events.csv")), 30)
        running.tell(signal.SIGTERM)
        ended = running.end()
    assert (ended.code, ended.err) == (0, "")
    assert '"complete": true' in (folder / "manifest.json").read_text()
    assert {path.stat().st_uid for path in (folder, *folder.iterdir())} == {0}


def test_a_program_that_is_put_ahead_is_named_and_passed(tap: Tap, tmp_path: Path, require: Require) -> None:
    """Attaching again takes rights that are kept; so does the name of a program that somebody else has loaded."""
    require("kernel", has_tcx(tap.ifindex), "tcx")
    folder = tmp_path / "evidence"
    with ExitStack() as stack, start("capture", tap.name, "-d", "60s", "-o", str(folder)) as running:
        wait_until(lambda: (folder / "manifest.json").exists() or running.process.poll() is not None, 60)
        wait_for_usual_rights(running)
        program = libbpf.load_tc_program("stranger", PASS)
        stack.callback(os.close, program)
        stack.callback(os.close, libbpf.attach_tcx(program, tap.ifindex, ingress=True))
        wait_until(lambda: any("stranger" in row["detail"] for row in rows(folder / "events.csv")), 30)
        flood([tap.fd], [SYN], count=FRAMES, seconds=20)
        running.tell(signal.SIGTERM)
        ended = running.end()
    assert (ended.code, ended.err) == (0, "")
    counted = [row for row in rows(folder / "histogram.csv") if row["direction"] == "outbound"]
    assert sum(int(row["packets"]) for row in counted) == FRAMES


def test_a_filter_that_went_with_its_qdisc_is_hung_again(tap: Tap) -> None:
    """On kernels without tcx; while there is no qdisc, tracepoints count."""
    qdisc = ["tc", "qdisc", "add", "dev", tap.name, "clsact"]
    subprocess.run(qdisc, check=True)
    with start("watch", tap.name, "--json", "--interval", "100ms") as running:
        running.wait_for_lines(1)
        wait_for_usual_rights(running)
        for command in ("del", "add", "del"):
            subprocess.run([*qdisc[:2], command, *qdisc[3:]], check=True)
            seen = len(running.lines)
            running.wait_for_lines(seen + 3)
            flood([tap.fd], [SYN], count=FRAMES, seconds=20)
        running.tell(signal.SIGTERM)
        ended = running.end()
    assert (ended.code, ended.err) == (0, "")
    assert ended.objects[-1]["outbound"]["offered"]["packets"] == 3 * FRAMES


@pytest.mark.usefixtures("tap")
def test_what_is_kept_is_enough_to_open_a_probe() -> None:
    """As for a tap that comes later: programs are compiled, loaded and attached."""
    text = """
import vifprobe
from vifprobe.process import startup
from vifprobe.session import rights
from vifprobe.model.layout import Direction
startup.is_command = True
rights.plan()
rights.give_up()
with vifprobe.Probe("tap0", bin_ns=10_000_000, samples=100, host=True) as probe:
    assert len(list(probe.readings(0.05, 0.1)))
    assert probe.take_host()
    print(*sorted(direction.name for direction in probe.hooks["tap0"]))
"""
    assert python(text, VIFPROBE_CACHE="") == "INBOUND OUTBOUND\n"


@pytest.mark.usefixtures("tap")
def test_with_few_rights_none_is_missed(require: Require) -> None:
    """What a process has not got, it can't give up: no error, and the sets hold what it has."""
    require("kernel", shutil.which("setpriv"), "setpriv (util-linux)")
    few = NET_ADMIN | BPF | PERFMON
    prefix = ["setpriv", "--bounding-set=-all,+net_admin,+bpf,+perfmon", "--inh-caps=-all"]
    with start("watch", "tap0", "--json", "--interval", "100ms", prefix=prefix) as running:
        running.wait_for_lines(1)
        kept = {**KEPT, "CapPrm": few, "CapBnd": few}
        wait_for_rights(running, kept, few, more=0)
        running.tell(signal.SIGTERM)
        ended = running.end()
    assert (ended.code, ended.err) == (0, "")


@pytest.mark.usefixtures("tap")
def test_new_links_and_who_holds_a_program_are_still_found(tap: Tap, require: Require) -> None:
    """The process itself holds the link. What it made before is not new."""
    require("kernel", has_tcx(tap.ifindex), "tcx")
    text = """
import sys
from vifprobe.process import startup
from vifprobe.session import rights
from vifprobe.kernel.tcx import NewLinks, program_holders, program_name, tcx_program_ids
startup.is_command = True
rights.plan()
links = NewLinks()
rights.give_up()
(number,) = tcx_program_ids(int(sys.argv[1]), ingress=True)
print(program_name(number), *program_holders([number], 30)[number])
from vifprobe.kernel.attach import load_empty
from vifprobe.kernel import libbpf
libbpf.attach_tcx(load_empty(), int(sys.argv[1]), ingress=True)
assert links.is_new()
"""
    with ExitStack() as stack:
        program = libbpf.load_tc_program("stranger", PASS)
        stack.callback(os.close, program)
        stack.callback(os.close, libbpf.attach_tcx(program, tap.ifindex, ingress=True))
        told = python(text, str(tap.ifindex))
    assert told.startswith("stranger ")
    assert f"(pid {os.getpid()})" in told


@pytest.mark.usefixtures("tap")
def test_the_python_api_leaves_a_program_its_rights() -> None:
    text = """
import os, pathlib, vifprobe
def rights():
    words = pathlib.Path("/proc/thread-self/status").read_text().splitlines()
    return [one for one in words if one.startswith(("Cap", "NoNewPrivs"))]
before = rights()
with vifprobe.Probe("tap0") as probe:
    assert len(list(probe.readings(0.05, 0.1)))
    assert rights() == before, rights()
assert rights() == before
print("same")
"""
    assert python(text) == "same\n"


def test_the_addresses_of_kernel_functions_stay_known() -> None:
    """They are shown to who had CAP_SYSLOG when the list was opened."""
    text = """
from vifprobe.process import startup
from vifprobe.session import rights
from vifprobe.kernel import symbols
startup.is_command = True
rights.plan()
before = symbols.function_ranges("__netif_receive_skb_core")
rights.give_up()
assert symbols.function_ranges("__netif_receive_skb_core") == before
assert before == ((0, 0),) or symbols.function_at(before[0][0]) is not None
print("same")
"""
    assert python(text) == "same\n"


def test_open_vswitch_of_another_user_is_reached_and_so_it_is_by_what_is_started(tmp_path: Path) -> None:
    """ovs-ofctl gets CAP_DAC_OVERRIDE, and nothing else."""
    text = """
import pathlib, socket, subprocess, sys
from vifprobe.process import capabilities
from vifprobe.process.capabilities import Capability
path = sys.argv[1]
assert capabilities.belongs_to_another(pathlib.Path(path))
capabilities.plan(overrides=True)
capabilities.give_up()
def connect():
    with socket.socket(socket.AF_UNIX) as made:
        made.connect(path)
try:
    connect()
    sys.exit("it can do so at any time")
except PermissionError:
    pass
with capabilities.raised(Capability.DAC_OVERRIDE):
    connect()
child = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
child += "; print(open('/proc/self/status').read())"
with capabilities.inherited(Capability.DAC_OVERRIDE):
    told = subprocess.run([sys.executable, "-Ic", child, path], capture_output=True, text=True, check=True).stdout
assert subprocess.run([sys.executable, "-Ic", child, path], stderr=subprocess.DEVNULL).returncode
print(*(int(one.split()[1], 16) for one in told.splitlines() if one.startswith(("CapEff", "CapPrm"))))
"""
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(str(path := tmp_path / "db.sock"))
        server.listen()
        path.chmod(0o700)
        os.chown(path, 1000, 1000)
        assert python(text, str(path)) == "2 2\n"


def test_what_is_started_gets_no_rights_for_being_user_0() -> None:
    """SECBIT_NOROOT."""
    text = """
import subprocess
from vifprobe.process import capabilities
capabilities.plan()
capabilities.give_up()
told = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
print(*(int(one.split()[1], 16) for one in told.splitlines() if one.startswith("Cap") and "Bnd" not in one))
"""
    assert python(text) == "0 0 0 0\n"


def test_doctor_says_what_a_run_keeps_and_what_is_lacking(require: Require) -> None:
    require("kernel", shutil.which("setpriv"), "setpriv (util-linux)")
    found = {one["name"]: one for one in run("doctor", "--json").objects}
    for name in ("CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN", "CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE"):
        assert found[name]["state"] == "ok"
        assert found[name]["detail"].startswith("kept")
    assert "no_new_privs" in found["rights"]["detail"]
    ended = run("doctor", "--json", prefix=["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-all"])
    lacking = {one["name"]: one for one in ended.objects}["CAP_SYS_PTRACE"]
    assert (lacking["state"], ended.code) == ("degraded", 0)
    assert "process" in lacking["cost"]
