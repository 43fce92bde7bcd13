# SPDX-License-Identifier: Apache-2.0
"""Run the compiler in a separate process, so that its end frees LLVM's memory and a crash is only an error."""

from __future__ import annotations

import ctypes
import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from vifprobe.errors import KernelError
from vifprobe.kernel.toolchain.compile import compile_text
from vifprobe.kernel.toolchain.compiled import Compiled
from vifprobe.process.caller import setting
from vifprobe.process.capabilities import Capability, inherited
from vifprobe.process.children import ENVIRONMENT, WORKING_DIRECTORY, python_command
from vifprobe.process.trust import problem

#: Environment variable for another command with an absolute path, which answers on stdout as this file does. An
#: emulated guest lets its host compile in this way (scripts/vm).
VARIABLE = "VIFPROBE_COMPILER"
#: Seconds; the slowest machine seen (5.10 under emulation) took 41.
_LIMIT_SECONDS = 300
#: bcc creates the maps as it compiles. DAC_READ_SEARCH: vifprobe's files can belong to a user.
_NEEDED = (Capability.BPF, Capability.PERFMON, Capability.NET_ADMIN, Capability.SYS_ADMIN, Capability.DAC_READ_SEARCH)

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h


def compile_apart(text: str, directory: Path, flags: list[str]) -> Compiled:
    """Run compile_text in a separate process; its output on stderr is passed on. Raises KernelError."""
    order = json.dumps({"text": text, "directory": str(directory), "flags": flags})
    command = _command()
    try:
        # In a new session, so that Ctrl-C goes to vifprobe alone, which needs the result to end cleanly.
        with inherited(*_NEEDED):
            done = subprocess.run(
                command,
                input=order,
                cwd=WORKING_DIRECTORY,
                env=ENVIRONMENT,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
                timeout=_LIMIT_SECONDS,
            )
        answer = json.loads(done.stdout) if done.returncode == 0 else {}
        if "error" in answer:
            raise KernelError(*answer["error"])
        if answer:
            return Compiled.from_json(done.stdout)
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    except (subprocess.TimeoutExpired, OSError, ValueError, KeyError, TypeError) as error:
        how = str(error)
    raise KernelError(
        f"the compiler ended without a result: {how}.",
        "Its messages, if any, are above. A known cause is too little memory.",
    )


def _command() -> list[str]:
    """Return the compiler's command. Others must not be able to change it: its output is loaded into the kernel."""
    command = shlex.split(setting(VARIABLE))
    if not command:
        # numpy can be outside an isolated interpreter's path, in root's own site-packages, for example.
        return python_command("vifprobe.kernel.toolchain.compiler", [Path(np.__file__).parents[1]])
    try:
        why = problem(Path(command[0])) if command[0].startswith("/") else "not an absolute path"
    except OSError as error:
        why = str(error.strerror)
    if why:
        raise KernelError(f"{VARIABLE}={command[0]}: not run: {why}.", "Unset it to compile with bcc here.")
    return command


def main() -> None:
    """Compile from standard input to standard output, for compile_apart."""
    # Nobody reads the answer if the run is killed. The thread that started this one waits for it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    order = json.load(sys.stdin)
    try:
        answer = compile_text(order["text"], Path(order["directory"]), order["flags"]).to_json()
    except KernelError as error:
        answer = json.dumps({"error": [error.message, *error.hints]})
    sys.stdout.write(answer)
