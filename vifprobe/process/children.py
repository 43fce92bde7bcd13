# SPDX-License-Identifier: Apache-2.0
"""Programs that this process starts: found in trusted directories, and started without this process's environment.

Another user may control the current directory, PATH, PYTHONPATH, LD_LIBRARY_PATH, TMPDIR or BCC_*.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from vifprobe.process.trust import PACKAGE, problem

#: Directories of the distribution's programs; those of the administrator come last.
DIRECTORIES = ("/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin")
#: The whole environment of a child process.
ENVIRONMENT = {"PATH": ":".join(DIRECTORIES), "LANG": "C", "LC_ALL": "C", "HOME": "/"}
#: Directory in which a child starts: nobody else can write there, and it is never deleted.
WORKING_DIRECTORY = "/"


def program(name: str) -> str | None:
    """Return the path of a program that nobody else can change; None if no trusted directory has it."""
    for directory in DIRECTORIES:
        path = Path(directory, name)
        with suppress(OSError):
            if path.is_file() and os.access(path, os.X_OK) and not problem(path):
                return str(path)
    return None


def python_command(module: str, libraries: Iterable[str | Path] = ()) -> list[str]:
    """Return the command that runs `main` of a module of this package in an isolated interpreter (see `isolated`).

    libraries: directories to import from, if the interpreter's own directories lack a module.
    """
    script = PACKAGE / "process" / "isolated.py"
    return [sys.executable, "-I", str(script), module, os.pathsep.join(map(str, libraries))]
