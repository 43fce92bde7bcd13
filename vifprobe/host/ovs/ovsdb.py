# SPDX-License-Identifier: Apache-2.0
"""Asking an OVSDB server, bounded in time and size. It only ever selects.

Source: RFC 7047 (JSON-RPC 1.0 over a stream, without any framing; 5.1 for values, 4.1.3 for `transact`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vifprobe.errors import HostError
from vifprobe.host.ovs.remotes import Remote, unix

#: A server that is alive answers within some milliseconds, for hundreds of ports too.
ANSWER_SECONDS = 1.0
#: 2,000 ports with all columns that are asked for take about 3 MB.
ANSWER_BYTES_MAX = 32 * 1024 * 1024

_RECEIVE_BYTES = 256 * 1024
_ID = "vifprobe"

Row = Mapping[str, Any]


class OvsdbError(HostError):
    """The server can't be reached, does not answer in time, or its answer is invalid. absent: there is no socket."""

    def __init__(self, message: str, *hints: str, absent: bool = False) -> None:
        super().__init__(message, *hints)
        self.absent = absent


class UnknownColumnError(OvsdbError):
    """The server's schema is older than the question."""


def select(path: Path, database: str, tables: Mapping[str, Sequence[str]]) -> dict[str, list[dict[str, Any]]]:
    """All rows of some tables with these columns, from one transaction: they belong together.

    Values as :func:`scalar`, :func:`strings`, :func:`references` and :func:`mapping` take them. Raises OvsdbError.
    """
    wanted = [Wanted(table, tuple(columns)) for table, columns in tables.items()]
    return dict(zip(tables, rows_of(unix(path), database, wanted), strict=True))


@dataclass(frozen=True)
class Wanted:
    """Rows of a table. where: conditions that all hold (RFC 7047, 5.1), so that the server sends no others."""

    table: str
    columns: tuple[str, ...]
    where: tuple[tuple[str, str, Any], ...] = ()


def rows_of(remote: Remote, database: str, wanted: Sequence[Wanted]) -> list[list[dict[str, Any]]]:
    """Return the rows of each, from one transaction. Raises OvsdbError."""
    operations = [
        {"op": "select", "table": one.table, "where": list(one.where), "columns": list(one.columns)} for one in wanted
    ]
    results = _transact(remote, [database, *operations])
    found: list[list[dict[str, Any]]] = []
    for one, result in zip(wanted, [*results, *[None] * len(wanted)], strict=False):
        if isinstance(result, dict) and "error" in result:
            detail = str(result.get("details") or result["error"])[:200]
            kind = UnknownColumnError if "column" in detail.lower() else OvsdbError
            raise kind(f"{remote.name}: {detail!a}.")
        rows = result.get("rows") if isinstance(result, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise OvsdbError(f"{remote.name}: the answer holds no rows of {one.table}.")
        found.append(rows)
    return found


def _transact(remote: Remote, params: Sequence[Any]) -> list[Any]:
    deadline = time.monotonic() + ANSWER_SECONDS
    request = json.dumps({"method": "transact", "params": params, "id": _ID}).encode()
    try:
        with remote.connect(ANSWER_SECONDS) as connection:
            connection.sendall(request)
            answer = _answer(remote.name, connection, deadline)
    except TimeoutError:
        raise OvsdbError(f"{remote.name}: no answer within {ANSWER_SECONDS:g} s.") from None
    except OSError as error:
        absent = error.errno in (errno.ENOENT, errno.ECONNREFUSED)
        raise OvsdbError(f"{remote.name}: {error.strerror or error}.", absent=absent) from error
    if answer.get("error"):
        raise OvsdbError(f"{remote.name}: the server says {str(answer['error'])[:200]!a}.")
    result = answer.get("result")
    if not isinstance(result, list):
        raise OvsdbError(f"{remote.name}: the answer is not a list of results.")
    return result


def _answer(path: str, connection: socket.socket, deadline: float) -> dict[str, Any]:
    """Return the answer to the request; other messages of the server (`echo`) are skipped."""
    received = bytearray()
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        data = connection.recv(_RECEIVE_BYTES)
        if not data:
            raise OvsdbError(f"{path}: the server closed the connection without an answer.")
        received += data
        if len(received) > ANSWER_BYTES_MAX:
            raise OvsdbError(f"{path}: an answer longer than {ANSWER_BYTES_MAX} bytes: not read.")
        if received[:1] != b"{":
            raise OvsdbError(f"{path}: the answer is not JSON: {bytes(received[:40])!a}.")
        # Without framing, only a closing brace can end a message: anything else is not worth parsing.
        if received.rstrip().endswith(b"}"):
            for message in _messages(path, received):
                if message.get("id") == _ID and "method" not in message:
                    return message


def _messages(path: str, received: bytearray) -> Iterable[dict[str, Any]]:
    """The whole messages in what was received; they are taken out of it."""
    try:
        text = received.decode()
    except UnicodeDecodeError:
        raise OvsdbError(f"{path}: the answer is not UTF-8.") from None
    decoder, at, found = json.JSONDecoder(), 0, []
    # ValueError: incomplete (a brace in the middle), or invalid; the deadline ends both.
    with contextlib.suppress(ValueError):
        while at < len(text):
            try:
                message, at = decoder.raw_decode(text, at)
            except RecursionError:
                raise OvsdbError(f"{path}: the answer is nested too deeply.") from None
            if not isinstance(message, dict):
                raise OvsdbError(f"{path}: the answer is not a JSON object.")
            found.append(message)
            while at < len(text) and text[at].isspace():
                at += 1
    del received[: len(text[:at].encode())]
    return found


def elements(value: Any) -> list[Any]:
    """The elements of a set; a set of one is sent as that one (RFC 7047, 5.1)."""
    if isinstance(value, list) and len(value) == 2 and value[0] == "set" and isinstance(value[1], list):
        return list(value[1])
    return [] if value is None else [value]


def scalar(value: Any) -> Any:
    """The one element of a column that holds one or none."""
    return next(iter(elements(value)), None)


def whole(value: Any) -> int:
    """A whole number of at most 63 bits, as OVSDB's are (RFC 7047, 3.1); 0 where it is absent or something else."""
    found = scalar(value)
    return found if isinstance(found, int) and not isinstance(found, bool) and 0 <= found < 1 << 63 else 0


def strings(value: Any) -> list[str]:
    """The texts in a set."""
    return [one for one in elements(value) if isinstance(one, str)]


def references(value: Any) -> list[str]:
    """UUIDs of the rows that a column points to."""
    return [
        one[1]
        for one in elements(value)
        if isinstance(one, list) and len(one) == 2 and one[0] in ("uuid", "named-uuid") and isinstance(one[1], str)
    ]


def mapping(value: Any) -> dict[Any, Any]:
    """A map column; what is no pair is left out."""
    if not (isinstance(value, list) and len(value) == 2 and value[0] == "map" and isinstance(value[1], list)):
        return {}
    pairs = [pair for pair in value[1] if isinstance(pair, list) and len(pair) == 2]
    return {key: found for key, found in pairs if isinstance(key, (str, int))}
