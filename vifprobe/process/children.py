# SPDX-License-Identifier: Apache-2.0
"""Programs that this process starts: found in trusted directories, and given nothing of its own environment.

The current directory, PATH, PYTHONPATH, LD_LIBRARY_PATH, TMPDIR or BCC_* may be under somebody else's control.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from vifprobe.process.trust import PACKAGE, problem

#: Where distributions keep programs; what an administrator has added comes last.
DIRECTORIES = ("/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin")
#: All that a child gets.
ENVIRONMENT = {"PATH": ":".join(DIRECTORIES), "LANG": "C", "LC_ALL": "C", "HOME": "/"}
#: Where it starts: nobody else can write there, and it is never deleted.
WORKING_DIRECTORY = "/"


def program(name: str) -> str | None:
    """Path of a program that nobody else can change; None where no trusted directory has it."""
    for directory in DIRECTORIES:
        path = Path(directory, name)
        with suppress(OSError):
            if path.is_file() and os.access(path, os.X_OK) and not problem(path):
                return str(path)
    return None


def python_command(module: str, libraries: Iterable[str | Path] = ()) -> list[str]:
    """Command that runs `main` of one of this package's modules in an isolated interpreter (see `isolated`).

    libraries: directories to import from where the interpreter's own have no such module.
    """
    script = PACKAGE / "process" / "isolated.py"
    return [sys.executable, "-I", str(script), module, os.pathsep.join(map(str, libraries))]
