# SPDX-License-Identifier: Apache-2.0
"""Where an OVSDB server is: `unix:FILE`, `tcp:HOST:PORT` or `ssl:HOST:PORT`, and the connection to it.

Source: ovsdb(7), Connection Methods.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vifprobe.process.capabilities import Capability, raised

_INTERNET = re.compile(r"(tcp|ssl):(?:\[([0-9A-Fa-f:.%\w]{2,64})\]|([^:\[\]]{1,255}))(?::([0-9]{1,5}))?")
_PORT = 6640  # IANA's for OVSDB, where none is given
_REMOTES_MAX = 8


@dataclass(frozen=True)
class Keys:
    """Files with the own key and certificate, and the authority's certificate, for `ssl:`; "" where not set."""

    private_key: str = ""
    certificate: str = ""
    ca_certificate: str = ""


@dataclass(frozen=True)
class Remote:
    """One server. name: as it was written. path: of its socket; None for one of the network."""

    name: str
    path: Path | None = None
    host: str = ""
    port: int = 0
    keys: Keys | None = None

    def connect(self, seconds: float) -> socket.socket:
        """Return a connection. Raises OSError (TimeoutError after `seconds`)."""
        if self.path is not None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            try:
                connection.settimeout(seconds)
                with raised(Capability.DAC_OVERRIDE):
                    connection.connect(os.fspath(self.path))
            except BaseException:
                connection.close()
                raise
            return connection
        connection = socket.create_connection((self.host, self.port), seconds)
        if self.keys is None:
            return connection
        try:
            return _encrypted(connection, self.keys)
        except BaseException:
            connection.close()
            raise


def _encrypted(connection: socket.socket, keys: Keys) -> socket.socket:
    """Return the connection with TLS. Open vSwitch compares no host names: its authority signs only its own."""
    import ssl  # takes 10 ms, and is seldom needed

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(keys.ca_certificate)
    context.load_cert_chain(keys.certificate, keys.private_key)
    return context.wrap_socket(connection)


def unix(path: Path) -> Remote:
    """Return the server behind a socket of this host."""
    return Remote(os.fspath(path), path)


def parse(text: str, keys: Keys) -> tuple[list[Remote], list[str]]:
    """Return the servers in `METHOD[,METHOD...]`, and why others can't be asked."""
    found, problems = [], []
    for part in [one.strip() for one in text[:2000].split(",") if one.strip()][:_REMOTES_MAX]:
        internet = _INTERNET.fullmatch(part)
        if part.startswith("unix:/"):
            found.append(Remote(part, Path(part.removeprefix("unix:"))))
        elif internet is None:
            problems.append(f"{part[:80]!a} is not unix:FILE, tcp:HOST:PORT or ssl:HOST:PORT.")
        elif internet[1] == "ssl" and not all((keys.private_key, keys.certificate, keys.ca_certificate)):
            problems.append(f"{part}: Open vSwitch's database names no key and certificates (`ovs-vsctl get-ssl`).")
        else:
            port = int(internet[4] or _PORT)
            encrypted = keys if internet[1] == "ssl" else None
            found.append(Remote(part, None, internet[2] or internet[3], port, encrypted))
    return found, problems


def names(remotes: Iterable[Remote]) -> str:
    """Return the servers in words."""
    return ", ".join(one.name for one in remotes)
