# SPDX-License-Identifier: Apache-2.0
"""The compiler in a process of its own: LLVM's hundred MiB go with it, and a crash of it is an error message."""

from __future__ import annotations

import json
import shlex
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

#: Set to another command, by its absolute path, that answers on stdout as this file does: an emulated guest has its
#: host compile (scripts/vm).
VARIABLE = "VIFPROBE_COMPILER"
#: Seconds; the slowest machine seen (5.10 under emulation) took 41.
_LIMIT_SECONDS = 300
#: bcc makes the maps as it compiles. And files of vifprobe may be a user's.
_NEEDED = (Capability.BPF, Capability.PERFMON, Capability.NET_ADMIN, Capability.SYS_ADMIN, Capability.DAC_READ_SEARCH)


def compile_apart(text: str, directory: Path, flags: list[str]) -> Compiled:
    """Compile; KernelError where it can't be done. As compile_text, whose own words on stderr are passed on."""
    order = json.dumps({"text": text, "directory": str(directory), "flags": flags})
    command = _command()
    try:
        # A session of its own: Ctrl-C is for vifprobe, which ends cleanly, and needs the answer for that.
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
        "Its own words are above, if it had any. Seen where memory is short.",
    )


def _command() -> list[str]:
    """The compiler's command. What it answers is loaded into the kernel: nobody else may have a say in it."""
    command = shlex.split(setting(VARIABLE))
    if not command:
        # numpy may be where an isolated interpreter does not look, in root's own site-packages, say.
        return python_command("vifprobe.kernel.toolchain.compiler", [Path(np.__file__).parents[1]])
    try:
        why = problem(Path(command[0])) if command[0].startswith("/") else "it is no absolute path"
    except OSError as error:
        why = str(error.strerror)
    if why:
        raise KernelError(f"{VARIABLE}={command[0]}: not run: {why}.", "Unset it to compile with bcc here.")
    return command


def main() -> None:
    """Standard input to standard output, for compile_apart."""
    order = json.load(sys.stdin)
    try:
        answer = compile_text(order["text"], Path(order["directory"]), order["flags"]).to_json()
    except KernelError as error:
        answer = json.dumps({"error": [error.message, *error.hints]})
    sys.stdout.write(answer)
