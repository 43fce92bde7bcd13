# SPDX-License-Identifier: Apache-2.0
"""Restricts imports as root to directories that nobody else can write.

The interpreter imports some modules before: sitecustomize from a PYTHONPATH, and with `python -m` also runpy and this
package from the current directory. This module cannot prevent that. The script `vifprobe` that scripts/setup makes has
`python -I` in its first line, which avoids both. Without -E, sudo clears PYTHONPATH.
"""

# Only modules that the interpreter has already loaded: even __future__ would be searched for on sys.path.
import os
import sys

TYPE_CHECKING = False  # as typing's
if TYPE_CHECKING:
    from collections.abc import Callable

#: Variables kept from another user's environment: the terminal, the language and the user.
_KEPT = ("TERM", "COLORTERM", "LANG", "LANGUAGE", "TZ", "COLUMNS", "LINES", "NO_COLOR", "USER", "LOGNAME")
_KEPT_BEGINNINGS = ("LC_", "SUDO_", "PKEXEC_", "DOAS_", "VIFPROBE_")
_BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "OMP_NUM_THREADS")
_LIBRARIES = ("click", "numpy", "pyroute2", "rich")

#: True if the process runs the command line; False in a program that uses the Python API.
is_command = False
#: Directories removed from sys.path, each with the reason.
dropped: dict[str, str] = {}


def command_line() -> "Callable[[], None]":
    """Return `main` of the command line, imported after `start`. Ends the process if that fails."""
    global is_command
    start()
    is_command = True
    try:
        from vifprobe.cli import main
    except ImportError as error:
        places = "".join(f"\n  Not imported from {place}: {why}." for place, why in dropped.items())
        sys.exit(f"Error: {error}.{places}\n  Install vifprobe again (scripts/setup in a checkout).")
    return main


def start() -> None:
    """Run `secure`. If it fails, end the process with an error on stderr."""
    try:
        secure()
    except OSError as error:
        sys.exit(f"Error: {error}")
    except Exception as error:
        from vifprobe.errors import TrustError

        if not isinstance(error, TrustError):
            raise
        sys.exit(f"Error: {error}")


def secure() -> None:
    """As root, import from now on only modules that nobody else can change.

    If another user became root (by sudo, for example), also remove that user's environment. If Python has already used
    that environment, start this program again. Raises TrustError if others can change this package or its libraries.
    """
    # numpy's library would start threads that vifprobe does not need, and that could not give up rights.
    for name in _BLAS_THREADS:
        os.environ.setdefault(name, "1")
    if os.geteuid() != 0:
        return
    found = sys.path[:]
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    standard = os.path.dirname(os.__file__)  # noqa: PTH120 - pathlib is not loaded yet
    # Only the standard library, while the other directories are checked.
    sys.path[:] = [standard, f"{sys.base_exec_prefix}/{sys.platlibdir}/{version}/lib-dynload"]
    trusted: list[str] = []
    try:
        trusted = _trusted(found)
        _leave_caller(trusted)
        _require_trusted(trusted)
    finally:
        sys.path += [entry for entry in trusted if entry not in sys.path]


def _trusted(entries: list[str]) -> list[str]:
    """Return the directories that nobody else can write. A missing one is left out: another user could create it."""
    from pathlib import Path

    from vifprobe.process.trust import problem

    kept = []
    for entry in entries:
        try:
            why = problem(Path(entry)) if os.path.isabs(entry) else "it depends on the current directory"  # noqa: PTH117
        except (FileNotFoundError, NotADirectoryError):
            continue
        if why:
            dropped[entry] = why
        else:
            kept.append(entry)
    return kept


def _leave_caller(trusted: list[str]) -> None:
    """Remove the environment of another user who became root. If Python or ld.so used it, start a new process."""
    from vifprobe.process.caller import foreign_caller
    from vifprobe.process.children import ENVIRONMENT, python_command

    if not foreign_caller():
        return
    is_followed = not sys.flags.isolated or any(name.startswith("LD_") for name in os.environ)
    for name in list(os.environ):
        if name not in _KEPT and not name.startswith(_KEPT_BEGINNINGS):
            del os.environ[name]
    os.environ |= dict.fromkeys(_BLAS_THREADS, "1")
    os.environ["PATH"] = ENVIRONMENT["PATH"]
    os.environ["HOME"] = "/root"
    if is_followed:
        command = python_command("vifprobe.__main__", trusted)
        os.execv(command[0], [*command, *sys.argv[1:]])  # noqa: S606 - this very program


def _require_trusted(trusted: list[str]) -> None:
    from importlib.machinery import PathFinder
    from pathlib import Path

    from vifprobe.errors import TrustError
    from vifprobe.process.trust import PACKAGE, problem

    specs = [PathFinder.find_spec(name, trusted) for name in _LIBRARIES]
    files = [Path(spec.origin).parent for spec in specs if spec is not None and spec.origin]
    for place in (PACKAGE, *files):
        if why := problem(place):
            raise TrustError(
                f"{place}: others can change what root would run: {why}.",
                "Remove that permission (chown, chmod go-w), or install vifprobe where only root can write.",
            )
