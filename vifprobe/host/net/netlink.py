# SPDX-License-Identifier: Apache-2.0
"""Netlink requests to the kernel: sockets, requests and messages are pyroute2's, decoded by vifprobe.host.net.nla.

Kept here: what a message and a dump's end say, since pyroute2's Marshal takes a dump that failed (an error in
NLMSG_DONE) or changed under the reader (NLM_F_DUMP_INTR) for whole, decodes rows that nobody wants, and takes an
answer from any process. docs/netlink.md has what was measured. Everything here only asks: there is no request that
changes anything. pyroute2 is imported with the first request: 0.1 s that `report`, `diff` and --help don't pay.

Source: include/uapi/linux/netlink.h, net/netlink/af_netlink.c.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from vifprobe.errors import HostError

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

NLM_F_REQUEST = 0x1
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP = 0x300

NLMSG_ERROR = 2
NLMSG_DONE = 3

_NLM_F_CAPPED = 0x100
_NLM_F_ACK_TLVS = 0x200
_SOL_NETLINK = 270
_NETLINK_EXT_ACK = 11
_SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h
_NLMSGERR_ATTR_MSG = 1
_ATTRIBUTE_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")

#: The kernel caps the buffer of one dump part at 32 KiB (netlink_recvmsg: max_recvmsg_len), and of one notification at
#: what its sender allocated, so that nothing is ever cut short in this.
RECEIVE_BYTES = 128 * 1024

#: A dump has to wait for rtnl_lock, which a busy host may hold for seconds.
ANSWER_TIMEOUT_SECONDS = 10.0

_DUMP_TRIES = 8


class NetlinkError(HostError):
    """The kernel answered a request with an error. `errno` is its code; 0 for an invalid answer."""

    def __init__(self, message: str, *hints: str, code: int = 0) -> None:
        super().__init__(message, *hints)
        self.errno = code


class Message(NamedTuple):
    """One netlink message: nlmsg_type, _flags, _seq, _pid (in a notification: the sender's port), body."""

    type: int
    flags: int
    sequence: int
    port: int
    body: bytes

    def decoded(self, kind: int) -> Any:
        """Return the message, decoded by the class for messages like `kind` (RTM_NEWLINK, RTM_NEWQDISC, ...).

        Attributes are taken apart when they are asked for; `reading` turns what can't be true into NetlinkError.
        """
        from vifprobe.host.net import nla

        found = nla.MESSAGES[kind](_HEADER.pack(_HEADER.size + len(self.body), *self[:4]) + self.body)
        found.decode()
        return found


def encoded(kind: int, fields: dict[str, int], attributes: Iterable[tuple[str, object]] = ()) -> bytes:
    """Return the body of a request, encoded by the class for it."""
    from vifprobe.host.net import nla

    message: Any = nla.MESSAGES[kind]()
    message.update(fields)
    message["attrs"] = [list(one) for one in attributes]
    message.encode()
    return bytes(message.data[_HEADER.size :])


@contextmanager
def reading() -> Iterator[None]:
    """Convert pyroute2's NetlinkDecodeError to NetlinkError, in the block."""
    from vifprobe.host.net.nla import NetlinkDecodeError

    try:
        yield
    except NetlinkDecodeError as error:
        raise NetlinkError(f"netlink: {error.exception}.") from error


def align(length: int) -> int:
    """Round up to a multiple of 4: NLMSG_ALIGN and NLA_ALIGN."""
    return (length + 3) & ~3


def messages(data: bytes) -> Iterator[Message]:
    """Yield the messages of one datagram. Raises NetlinkError for an invalid length field."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, flags, sequence, port = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):
            raise NetlinkError(f"netlink: a message says {length} bytes where {len(data) - at} are left.")
        yield Message(kind, flags, sequence, port, data[at + _HEADER.size : at + length])
        at += align(length)


def port_of(data: bytes) -> int:
    """Return nlmsg_pid of a datagram's first message; 0 without one. All messages of one notification share it."""
    return int(_HEADER.unpack_from(data)[4]) if len(data) >= _HEADER.size else 0


def attribute_list(data: bytes, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield (type, value) of each attribute from `start` on, in order, without the flag bits of the type.

    Raises NetlinkError where a length field can't be true.
    """
    at = start
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size or at + length > len(data):
            raise NetlinkError(f"netlink: an attribute says {length} bytes where {len(data) - at} are left.")
        yield kind & _ATTRIBUTE_TYPE_MASK, data[at + _ATTRIBUTE.size : at + length]
        at += align(length)


def attributes(data: bytes, start: int = 0) -> dict[int, bytes]:
    """Return attribute type -> value; the last value where a type occurs twice."""
    return dict(attribute_list(data, start))


def text(value: bytes | None) -> str | None:
    """NUL-terminated string; bytes that are not UTF-8 are kept as surrogates; None where absent."""
    return None if value is None else os.fsdecode(value.split(b"\0", 1)[0])


def _route_socket() -> Any:
    """Return pyroute2's socket without an event loop. Raises OSError."""
    from pyroute2 import IPRSocket

    made = IPRSocket()
    _ = made.socket  # which opens it
    return made


def subscribe(groups: int, buffer_bytes: int) -> Any:
    """Return a non-blocking pyroute2 socket for the notifications of some groups. Raises NetlinkError."""
    try:
        made = _route_socket()
    except OSError as error:
        raise _no_socket(NETLINK_ROUTE, error) from error
    try:
        made.socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes)
    except OSError:  # not root: as much as net.core.rmem_max allows
        made.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    made.socket.setblocking(False)
    # Without pyroute2's bind, which uses a port that is not a process id.
    made.socket.bind((0, groups))
    return made


def _no_socket(protocol: int, error: OSError) -> NetlinkError:
    return NetlinkError(
        f"netlink protocol {protocol}: no socket ({error.strerror}).",
        "The kernel lacks it, or a sandbox (seccomp, RestrictAddressFamilies=) forbids AF_NETLINK.",
        code=error.errno or 0,
    )


class Netlink:
    """A netlink socket in the network namespace of the calling thread. One request at a time; not for two threads.

    Raises HostError where the socket can't be made, NetlinkError for what the kernel refuses.
    """

    def __init__(self, protocol: int = NETLINK_ROUTE) -> None:
        try:
            if protocol == NETLINK_ROUTE:
                self._opened = _route_socket()
                self._socket: socket.socket = self._opened.socket
            else:  # pyroute2's for it has an event loop (docs/netlink.md)
                self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
                self._opened = self._socket
            self._socket.bind((0, 0))
        except OSError as error:
            raise _no_socket(protocol, error) from error
        self._socket.settimeout(ANSWER_TIMEOUT_SECONDS)
        self._sequence = 0
        try:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        except OSError:  # before 4.12: error codes without a text
            return

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._opened.close()

    def get(self, kind: int, body: bytes) -> Message:
        """Send one request, return its answer. Raises NetlinkError with the kernel's code (ENODEV, ENOENT, ...)."""
        self._send(kind, NLM_F_REQUEST, body)
        for message in self._answers():
            return message
        raise NetlinkError(f"netlink request {kind}: no answer.")

    def dump(self, kind: int, body: bytes) -> list[Message]:
        """Return all rows of a table. The dump starts again when the kernel reports that the table changed meanwhile.

        Raises NetlinkError with EINTR where it was never still enough for one whole dump.
        """
        for _ in range(_DUMP_TRIES):
            self._send(kind, NLM_F_REQUEST | NLM_F_DUMP, body)
            rows, interrupted = [], False
            for message in self._answers():
                interrupted |= bool(message.flags & NLM_F_DUMP_INTR)
                rows.append(message)
            if not (interrupted or self._done_interrupted):
                return rows
        raise NetlinkError(
            f"netlink dump {kind}: the table changed during each of {_DUMP_TRIES} reads.",
            "Try again when fewer interfaces come and go.",
            code=errno.EINTR,
        )

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        self._done_interrupted = False
        header = _HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0)
        self._socket.send(header + body)
        self._is_dump = bool(flags & NLM_F_DUMP)

    def _receive(self) -> bytes:
        try:
            data, _, flags, sender = self._socket.recvmsg(RECEIVE_BYTES)
        except TimeoutError as error:
            raise NetlinkError(
                f"netlink: the kernel did not answer within {ANSWER_TIMEOUT_SECONDS:.0f} s.",
                "Something holds its network configuration lock; see `ps -eo stat,wchan,comm | grep rtnl`.",
                code=errno.ETIMEDOUT,
            ) from error
        except OSError as error:
            raise NetlinkError(f"netlink: {error.strerror}.", code=error.errno or 0) from error
        if flags & socket.MSG_TRUNC:
            raise NetlinkError(f"netlink: an answer longer than {RECEIVE_BYTES} bytes.")
        return data if sender[0] == 0 else b""  # only the kernel (port 0) answers; other processes can send, too

    def _answers(self) -> Iterator[Message]:
        while True:
            for message in messages(self._receive()):
                if message.sequence != self._sequence:
                    continue  # the rest of an earlier answer that nobody waited for
                if message.type == NLMSG_DONE:
                    self._done_interrupted = bool(message.flags & NLM_F_DUMP_INTR)
                if message.type in (NLMSG_DONE, NLMSG_ERROR):
                    _raise_code(message)
                    return
                yield message
                if not self._is_dump:
                    return


def _raise_code(message: Message) -> None:
    """Raise NetlinkError for an NLMSG_ERROR or NLMSG_DONE with an error code."""
    code = -struct.unpack_from("=i", message.body)[0] if len(message.body) >= 4 else 0
    if code <= 0:
        return
    reason = None
    if message.flags & _NLM_F_ACK_TLVS:
        reason = text(attributes(message.body, _error_attributes_at(message)).get(_NLMSGERR_ATTR_MSG))
    because = f" ({reason})" if reason else ""
    raise NetlinkError(f"netlink: {os.strerror(code)}{because}.", code=code)


def _error_attributes_at(message: Message) -> int:
    """Return the offset of the attributes: after the error code.

    In an NLMSG_ERROR, the header of the request follows the code, and its body unless that was left out.
    """
    if message.type == NLMSG_DONE or len(message.body) < 4 + _HEADER.size:
        return 4
    (request_length,) = struct.unpack_from("=I", message.body, 4)
    return 4 + (_HEADER.size if message.flags & _NLM_F_CAPPED else align(request_length))
