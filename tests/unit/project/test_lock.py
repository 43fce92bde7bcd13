# SPDX-License-Identifier: Apache-2.0
"""What scripts/setup installs: each package of one version, known by its hashes, from wherever the host gets it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[3]
LOCKS = {name: (CHECKOUT / "scripts" / "lock" / f"{name}.txt").read_text() for name in ("run", "dev")}


def entries(lock: str) -> list[str]:
    """Each requirement with its hashes, in one line."""
    return LOCKS[lock].replace("\\\n", " ").splitlines()


def wanted() -> dict[str, set[str]]:
    """Names of the packages in pyproject.toml, by the list that they are in. (tomllib came with Python 3.11.)"""
    text = (CHECKOUT / "pyproject.toml").read_text()
    lists = re.findall(r"^(requires|dependencies|report|dev) = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    return {name: set(re.findall(r'"([A-Za-z0-9_-]+)', listed)) for name, listed in lists}


def test_each_dependency_is_in_the_lock() -> None:
    listed = wanted()
    assert set(listed) == {"requires", "dependencies", "report", "dev"}
    assert all(listed.values())
    names = {lock: {re.split(r"==", entry)[0] for entry in entries(lock)} for lock in LOCKS}
    assert listed["requires"] | listed["dependencies"] | listed["report"] | {"editables"} <= names["run"]
    assert names["run"] | listed["dev"] <= names["dev"]


@pytest.mark.parametrize("lock", LOCKS)
def test_each_entry_has_one_version_and_hashes(lock: str) -> None:
    assert len(entries(lock)) > 10
    for entry in entries(lock):
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][^ ]*( ; [^\\]+?)?( +--hash=sha256:[0-9a-f]{64})+ *", entry), entry


@pytest.mark.parametrize("lock", LOCKS)
def test_no_address_and_no_path_is_in_it(lock: str) -> None:
    assert not re.search(r"://|^-[^-]|^--|@|/", LOCKS[lock], re.MULTILINE)
