# SPDX-License-Identifier: Apache-2.0
"""Texts that users read, and the pages, without words that a reader has to guess at. CONTRIBUTING.md, "Style"."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).parents[3]
#: What these once stood for: "rarely", "next to", "is not a", "is not available".
WORDS = re.compile(
    r"\bseldom\b|\bbeside\b|(?<!here )\bis no (?!longer)[a-z]|\bto be had\b|\bwhoever\b|\bcan't be meant\b"
)
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/findings.md",
    "docs/limitations.md",
    "docs/architecture.md",
    "docs/cost.md",
    "docs/flood.md",
    "docs/host-cost.md",
    "docs/incident.md",
    "docs/kernels.md",
    "docs/netlink.md",
    "docs/security.md",
)


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Strings of a module with a blank in them, docstrings left out; an f-string's parts one by one."""
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def test_texts_of_the_commands_are_plain() -> None:
    package = CHECKOUT / "vifprobe"
    found = [
        f"{path.relative_to(CHECKOUT)}:{line}: {text}"
        for path in sorted(package.rglob("*.py"))
        if not {"testing", "kernel"} & set(path.parts)
        for line, text in texts(path)
        if WORDS.search(text)
    ]
    assert found == []


def test_pages_are_plain() -> None:
    assert [(page, WORDS.findall((CHECKOUT / page).read_text())) for page in PAGES] == [(page, []) for page in PAGES]
