# SPDX-License-Identifier: Apache-2.0
"""Pages that name functions and files: each name is looked up in the code, and each link leads to a file."""

from __future__ import annotations

import ast
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[3]
PAGES = [*CHECKOUT.glob("docs/*.md"), CHECKOUT / "README.md", *CHECKOUT.glob("CONTRIBUTING.md")]
ARCHITECTURE = CHECKOUT / "docs/architecture.md"
REFERENCE = re.compile(r"`([\w./-]+\.(?:py|c|h)):([A-Za-z_][\w.]*)`")
FILE = re.compile(r"`((?:vifprobe|bpf|tests|scripts|docs)/[\w./-]*)`")
C_DEFINITION = re.compile(r"^(?:static |int |void )[^\n;{}=]*?\b(\w+)\([^;{}]*\)\n\{\n.*?^\}", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([\w./-]+?)(?:#[\w-]*)?\)")


@cache
def python_functions(path: Path) -> dict[str, str]:
    """Source of each function, class and method by its dotted name."""
    text = path.read_text()
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = ast.get_source_segment(text, node) or ""
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    found[f"{node.name}.{inner.name}"] = ast.get_source_segment(text, inner) or ""
    return found


@cache
def c_functions(path: Path) -> dict[str, str]:
    """Source of each function that is defined in a C file: from its head to the brace in the first column."""
    return {match[1]: match[0] for match in C_DEFINITION.finditer(path.read_text())}


def source_of(file: str, name: str) -> str:
    """Source of a function; "" where the file or the function is not there."""
    path = CHECKOUT / file
    if not path.is_file():
        return ""
    return (python_functions(path) if path.suffix == ".py" else c_functions(path)).get(name, "")


@pytest.mark.parametrize("page", PAGES, ids=[path.name for path in PAGES])
def test_each_function_that_a_page_names_is_where_it_says(page: Path) -> None:
    named = REFERENCE.findall(page.read_text())
    assert [f"{file}:{name}" for file, name in named if not source_of(file, name)] == []


@pytest.mark.parametrize("page", PAGES, ids=[path.name for path in PAGES])
def test_each_file_and_link_of_a_page_is_there(page: Path) -> None:
    text = page.read_text()
    links = [page.parent / link for link in LINK.findall(text) if "//" not in link]
    paths = [*links, *(CHECKOUT / file for file in FILE.findall(text))]
    assert [str(path) for path in paths if not path.exists()] == []


def test_the_finder_of_functions_sees_what_is_moved() -> None:
    assert "cell->packets++" in source_of("bpf/lib/count.c", "add")
    assert source_of("bpf/lib/count.c", "no_such_function") == ""
    assert source_of("bpf/no_such_file.c", "add") == ""
    assert source_of("vifprobe/model/reading.py", "Reading.no_such_method") == ""


def jumps() -> list[tuple[list[tuple[str, str]], str]]:
    """The rows of the table of numbers: functions from the screen to C, and the line that counts."""
    _, _, table = ARCHITECTURE.read_text().partition("| number on the screen |")
    rows = [row for row in table.split("\n\n")[0].splitlines() if REFERENCE.search(row)]
    return [(REFERENCE.findall(row), re.findall(r"`([^`]+)` \|$", row)[0]) for row in rows]


def test_three_numbers_lead_to_their_line_of_c_in_three_jumps() -> None:
    found = jumps()
    assert len(found) >= 3
    for functions, line in found:
        assert functions[0][0].startswith("vifprobe/render/")
        assert len(functions) - 1 <= 3
        assert functions[-1][0].startswith("bpf/")
        assert line in source_of(*functions[-1]), line


#: What ties a function to the next one of its row: a call, or the name of the table that carries the number.
TIES = {
    ("totals", "Reading.offered"): "reading.offered(",
    ("totals", "Reading.counts"): "counts_of(",
    ("missed", "_missed"): "reading.missed",
    ("Reading.offered", "CellTable.read"): "self.where(",
    ("Reading.counts", "verdict_of"): "self.where(direction, verdict",
    ("CellTable.read", "add"): "self._cells",
    ("verdict_of", "settle"): "return VERDICT_POLICED",
    ("_missed", "Counters.snapshot"): "snapshot.missed_packets",
    ("Counters.snapshot", "count_missed"): "misses",
}


def test_each_jump_is_written_in_the_code() -> None:
    for functions, _ in jumps():
        for here, there in pairwise(functions):
            assert TIES[here[1], there[1]] in source_of(*here), f"{here[1]} -> {there[1]}"
