# SPDX-License-Identifier: Apache-2.0
"""docs/findings.md against the code that raises findings: each code, severity and evidence key is on both sides."""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from click.testing import CliRunner

from vifprobe.analysis import tolerance
from vifprobe.analysis.findings import raised, thresholds
from vifprobe.commands.explain import command, page_text
from vifprobe.render.text.explain import Entry, entries

FOLDER = Path(raised.__file__).parent
CODE = re.compile(r"[PS][0-9]+")
ENTRIES = entries(page_text())
#: Makes words for a title, from a dict that is no evidence.
WORDS = "_who"
#: Keys of records inside the evidence, explained at the top of the page for all entries.
RECORDS = {"source", "kind", "device", "rate_bps", "burst_bytes", "rate_pps", "where", "protocol"}


class Raiser:
    """The functions of one module, and what each one writes into a finding."""

    def __init__(self, path: Path) -> None:
        self.tree = ast.parse(path.read_text())
        self.functions = {one.name: one for one in self.tree.body if isinstance(one, ast.FunctionDef)}
        self.constants = {
            target.id: node.value.value
            for node in self.tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }

    def codes(self, function: ast.FunctionDef) -> set[str]:
        """Codes that this function gives to `Finding`."""
        found = set()
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Finding":
                code = node.args[1]
                value = code.value if isinstance(code, ast.Constant) else self.constants[ast.unparse(code)]
                found.add(str(value))
        return found

    def keys(self, function: ast.FunctionDef, seen: frozenset[str] = frozenset()) -> set[str]:
        """Keys of the dicts that this function, and the functions of its module that it calls, make."""
        found: set[str] = set()
        for node in ast.walk(function):
            if isinstance(node, ast.Dict):
                keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
                found |= {key for key in keys if isinstance(key, str)}
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                name = node.func.id
                if name == "_bounded":
                    found |= {str(one.value) for one in node.args if isinstance(one, ast.Constant)}
                elif name in self.functions and name not in (*seen, WORDS) and not self.codes(self.functions[name]):
                    found |= self.keys(self.functions[name], seen | {name})
        return found


def raisers() -> dict[str, set[str]]:
    """Each code that the modules of analysis/findings raise, with the keys of its evidence."""
    found: dict[str, set[str]] = {}
    for path in sorted(FOLDER.glob("*.py")):
        module = Raiser(path)
        for function in module.functions.values():
            for code in module.codes(function):
                found.setdefault(code, set()).update(module.keys(function) - RECORDS)
    return found


RAISED = raisers()


def documented(entry: Entry) -> set[str]:
    """Names in backticks of an entry's list: its evidence."""
    items = [block for block in entry.body if block.startswith("- ")]
    return {name for item in items for name in re.findall(r"`([a-z0-9_*]+)`", item.split(":")[0])}


def test_each_code_that_is_raised_has_an_entry_and_the_other_way_round() -> None:
    assert len(RAISED) > 20
    assert sorted(RAISED) == sorted(ENTRIES)


def test_every_constant_that_looks_like_a_code_is_one() -> None:
    """Also in the modules that treat some codes differently from others."""
    package = FOLDER.parents[1]
    named = set()
    for path in (*package.glob("session/**/*.py"), *package.glob("analysis/**/*.py"), *package.glob("render/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value):
                named.add(node.value)
    assert named <= set(ENTRIES)


@pytest.mark.parametrize("code", sorted(RAISED))
def test_each_evidence_key_is_explained(code: str) -> None:
    known = documented(ENTRIES[code])
    assert [key for key in sorted(RAISED[code]) if not any(fnmatch(key, name) for name in known)] == []


@pytest.mark.parametrize("code", sorted(ENTRIES))
def test_each_explained_key_is_in_the_code(code: str) -> None:
    """Names of measures and records stand elsewhere in the analysis; a name that is nowhere is a leftover."""
    text = "".join(path.read_text() for path in FOLDER.parent.rglob("*.py"))
    for name in documented(ENTRIES[code]):
        word = re.escape(name).replace(r"\*", "[a-z]+")
        plain = re.search(rf"\b{word}\b", text)
        made = re.search(r"passed_peak_[0-9]+ms_bps|(ip_id|source_port|window|ttl|sequence)_.*_share", name)
        assert plain or made, f"{code}: {name}"


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=list(ENTRIES))
def test_each_entry_says_severity_meaning_proof_and_what_to_do(entry: Entry) -> None:
    text = "\n".join(entry.body)
    places = [text.find(f"**{label}:**") for label in ("Severity", "Meaning", "Proof", "What to do")]
    assert -1 not in places
    assert places == sorted(places)
    severity = next(block for block in entry.body if block.startswith("**Severity:**"))
    assert re.search("critical|warning|info", severity)


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=list(ENTRIES))
def test_each_threshold_that_an_entry_names_is_one(entry: Entry) -> None:
    names = set(re.findall(r"\b[A-Z]+_[A-Z_]+[A-Z]\b", "\n".join(entry.body))) - {"FULL_RING", "TCX_NEXT"}
    assert [name for name in names if not hasattr(thresholds, name) and not hasattr(tolerance, name)] == []


def test_codes_are_in_order() -> None:
    codes = list(ENTRIES)
    assert codes == sorted(codes, key=lambda code: (code[0], int(code[1:])))


def test_explain_prints_one_entry_for_80_columns() -> None:
    told = CliRunner().invoke(command, ["P11"])
    assert told.exit_code == 0
    assert told.output.startswith("P11 the installed limit is not the declared one\n\nSeverity: critical")
    assert "\n- `unit_mistake`: " in told.output
    assert "**" not in told.output
    assert max(map(len, told.output.splitlines())) <= 80


@pytest.mark.parametrize("typed", ["p11", "P11-outbound", " P11 "])
def test_explain_takes_small_letters_and_a_finding_s_id(typed: str) -> None:
    assert CliRunner().invoke(command, [typed]).output == CliRunner().invoke(command, ["P11"]).output


def test_explain_without_a_code_lists_all() -> None:
    told = CliRunner().invoke(command, [])
    assert told.exit_code == 0
    for code, entry in ENTRIES.items():
        assert f"\n{code:<4}{entry.title.split()[0]}" in f"\n{told.output}"
    assert max(map(len, told.output.splitlines())) <= 80
