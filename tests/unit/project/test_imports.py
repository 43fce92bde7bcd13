# SPDX-License-Identifier: Apache-2.0
"""Which part of vifprobe imports which: one way only, so that a newcomer knows what a change can touch."""

from __future__ import annotations

import ast
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[3]
PACKAGE = CHECKOUT / "vifprobe"

#: What each part may import of vifprobe, itself left out. `commands` and what stands above it may import anything but
#: `testing`. `host` and `kernel` use `process` for rights and for programs that they start; `testing` needs no more
#: than the terms.
ALLOWED: dict[str, set[str]] = {
    "version": set(),
    "errors": set(),
    "model": {"errors"},
    "process": {"errors"},
    "analysis": {"errors", "model"},
    "capture": {"errors", "model", "version", "analysis"},
    "render": {"errors", "model", "analysis", "capture"},
    "kernel": {"errors", "model", "process"},
    "host": {"errors", "model", "process"},
    "session": {"errors", "model", "process", "analysis", "kernel", "host"},
    "replay": {"errors", "model", "analysis", "kernel"},
    "testing": {"errors", "model"},
}
ABOVE = {
    "commands": {*ALLOWED} - {"testing"},
    "cli": {*ALLOWED, "commands"} - {"testing"},
    "__main__": {"process"},
    "__init__": {"version", "model", "session", "capture"},
}
#: Single modules that may import one more. errors: each text in a message is made safe. startup: it takes the command
#: line's place, once it has made sure where that is imported from.
SINGLE = {
    ("vifprobe.errors", "vifprobe.model.untrusted_text"),
    ("vifprobe.process.startup", "vifprobe.cli"),
}
#: bcc, ctypes and mmap are the kernel side's. These make one system call each that Python's library lacks.
FOREIGN = {"bcc", "ctypes", "mmap"}
FOREIGN_SINGLE = {
    ("vifprobe.host.nft.legacy", "ctypes"),  # getsockopt with a request in its buffer
    ("vifprobe.process.capabilities", "ctypes"),  # capget(2), capset(2), prctl(2)
    ("vifprobe.host.net.netns", "ctypes"),  # setns(2): os.setns came with Python 3.12
    ("vifprobe.host.net.link_storm", "ctypes"),  # SO_ATTACH_FILTER takes the address of a program
    ("vifprobe.host.net.uplink", "ctypes"),  # SIOCETHTOOL takes the address of a command
    ("vifprobe.testing.net.netns", "ctypes"),  # unshare(2), setns(2): os.unshare came with Python 3.12
}

#: Folders of more than 18 entries, and how many they may have: one file a hook or a header, one a command's behaviour.
LARGE = {"tests/system": 32, "scripts/lab": 23}


def name_of(path: Path) -> str:
    """As it is imported; a package's own code as PACKAGE.__init__."""
    return ".".join(path.relative_to(CHECKOUT).with_suffix("").parts)


def part_of(module: str) -> str:
    """The part of vifprobe that a module stands in."""
    return module.split(".")[1]


def is_module(name: str) -> bool:
    path = CHECKOUT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def imported(text: str, of: str) -> Iterator[str]:
    """Modules that a module's text imports anywhere in it, also for types alone, by their full names."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{of}: a relative import"
            full = [f"{node.module}.{one.name}" for one in node.names]
            yield from ((name if is_module(name) else node.module or "") for name in full)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
EDGES = {(module, name) for module, path in MODULES.items() for name in imported(path.read_text(), module)}


def wrong(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those of the edges within vifprobe that no rule allows."""
    rules = {**ALLOWED, **ABOVE}
    return {
        (module, name)
        for module, name in edges
        if name.startswith("vifprobe.")
        and part_of(name) not in {part_of(module), *rules.get(part_of(module), set())}
        and (module, name) not in SINGLE
    }


def test_parts_import_one_way() -> None:
    assert len(EDGES) > 1000  # all of them were looked at
    assert wrong(EDGES) == set()


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("vifprobe.model.reading", "def late():\n    from vifprobe.render import units"),
        ("vifprobe.analysis.gaps", "from vifprobe.kernel.tables.counters import Counters"),
        ("vifprobe.host.declared", "from vifprobe import kernel"),
        ("vifprobe.kernel.load", "import vifprobe.host.net.links"),
        ("vifprobe.commands.watch", "from vifprobe.testing.net import taps"),
        ("vifprobe.errors", "from vifprobe.model import layout"),
        ("vifprobe.new_part.module", "from vifprobe import errors"),
    ],
)
def test_a_wrong_import_is_found(module: str, text: str) -> None:
    assert wrong({(module, name) for name in imported(text, module)})


def test_allowed_parts_are_without_a_circle() -> None:
    """What a part may import, may not import that part."""
    done: set[str] = set()
    while rest := {part for part in ALLOWED if part not in done}:
        ready = {part for part in rest if ALLOWED[part] <= done}
        assert ready, f"a circle among {rest}"
        done |= ready


def test_single_exceptions_are_in_use() -> None:
    assert SINGLE | FOREIGN_SINGLE <= EDGES


def test_what_errors_need_imports_nothing() -> None:
    """`model` imports `errors`: the module that `errors` needs must not."""
    assert not [name for module, name in EDGES if module == "vifprobe.model.untrusted_text" and "vifprobe" in name]


def test_bcc_ctypes_and_mmap_are_the_kernel_sides() -> None:
    found = {(module, name.split(".")[0]) for module, name in EDGES if name.split(".")[0] in FOREIGN}
    outside = {one for one in found if part_of(one[0]) != "kernel"}
    assert {name for module, name in found - outside} == FOREIGN
    assert outside == FOREIGN_SINGLE


def test_analysis_and_model_work_with_numpy_alone() -> None:
    third = {"bcc", "click", "rich", "jinja2", "matplotlib", "pyroute2"}
    found = {(module, name) for module, name in EDGES if name.split(".")[0] in third}
    assert not [one for one in found if part_of(one[0]) in {"model", "analysis", "errors"}]


def test_nothing_is_loose_at_the_top() -> None:
    files = {path.name for path in PACKAGE.iterdir() if path.is_file()}
    assert files - {"py.typed"} == {"__init__.py", "__main__.py", "cli.py", "errors.py", "version.py"}


def test_folders_can_be_taken_in_at_a_glance() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("no git checkout: what else lies in the folders is not known")
    inside: dict[Path, set[str]] = defaultdict(set)
    for line in tracked.stdout.splitlines():
        path = Path(line)
        for folder in path.parents:
            inside[folder].add(path.relative_to(folder).parts[0])
    large = {str(folder): len(entries) for folder, entries in inside.items() if len(entries) > 18}
    assert {folder: size for folder, size in large.items() if size > LARGE.get(folder, 18)} == {}
