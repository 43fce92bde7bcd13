# SPDX-License-Identifier: Apache-2.0
"""findings.json: the conclusions of a capture, each with its proof and the tap it is about."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from vifprobe.capture.jsonio import JsonObject, dump, load
from vifprobe.capture.manifest import FINDINGS
from vifprobe.errors import CaptureError
from vifprobe.model.reading import Finding
from vifprobe.model.untrusted_text import quoted


def findings_json(findings: Iterable[tuple[str, Finding]]) -> bytes:
    """The content of findings.json: each finding with the name of the tap that it is about."""
    return dump([{**asdict(finding), "tap": tap} for tap, finding in findings])


def findings_from_json(data: bytes) -> list[tuple[str, Finding]]:
    """The findings in the content of findings.json, each with its tap's name. Raises CaptureError."""
    content = load(FINDINGS, data)
    if not isinstance(content, list):
        raise CaptureError(f"{FINDINGS}: the content is {quoted(content)}.", "Expected a list.")
    found = []
    for i, each in enumerate(content):
        keys = JsonObject(FINDINGS, f"[{i}]", each)
        finding = Finding(
            id=keys.get("id", str),
            pattern=keys.get("pattern", str),
            severity=keys.get("severity", str),
            title=keys.get("title", str),
            evidence=keys.get("evidence", dict),
            advice=keys.get("advice", str),
        )
        found.append((keys.get("tap", str), finding))
    return found
