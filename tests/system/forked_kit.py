# SPDX-License-Identifier: Apache-2.0
"""vifprobe in a copy of the test's process, which has imported everything already: a hundred runs are quick."""

from __future__ import annotations

import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import NamedTuple

from vifprobe.cli import COMMANDS, group, main

#: SIGALRM ends it then: a code of -14.
DEADLINE_SECONDS = 60
_IMPORTED = [group.get_command(None, name) for name in COMMANDS]  # type: ignore[arg-type]  # takes no context


class Forked(NamedTuple):
    """How a run ended. grown_kib: peak of its memory over what the test's own process had."""

    code: int
    out: str
    err: str
    grown_kib: int


def forked(*arguments: str, folder: Path, before: Callable[[], None] = lambda: None) -> Forked:
    """`vifprobe ARGUMENTS...`. folder: for its output. before: called in the new process."""
    out, err = folder / "forked.stdout", folder / "forked.stderr"
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    child = os.fork()
    if not child:
        _become(arguments, out, err, before)
    _, status, used = os.wait4(child, 0)
    grown_kib = used.ru_maxrss - pages * resource.getpagesize() // 1024
    told, complained = (path.read_text(errors="replace") for path in (out, err))
    return Forked(os.waitstatus_to_exitcode(status), told, complained, grown_kib)


def _become(arguments: tuple[str, ...], out: Path, err: Path, before: Callable[[], None]) -> None:
    """Never returns."""
    code = 70
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        for fd, path, mode in ((0, "/dev/null", os.O_RDONLY), (1, str(out), flags), (2, str(err), flags)):
            opened = os.open(path, mode, 0o600)
            os.dup2(opened, fd)
            os.close(opened)
        signal.alarm(DEADLINE_SECONDS)
        for fd, name in ((1, "stdout"), (2, "stderr")):
            stream = TextIOWrapper(open(fd, "wb", buffering=0, closefd=False), encoding="utf-8", write_through=True)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
        sys.argv = ["vifprobe", *arguments]
        before()
        main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 71
    except BaseException:
        os.write(2, traceback.format_exc().encode(errors="replace"))
    finally:
        os._exit(code)
