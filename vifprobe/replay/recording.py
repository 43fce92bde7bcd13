# SPDX-License-Identifier: Apache-2.0
"""A recording by its name: which format it is, how far it has been read, and its packets."""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from vifprobe.errors import CaptureError
from vifprobe.replay import pcap, pcapng
from vifprobe.replay.packet import Packet, Remarks
from vifprobe.replay.window import Window

STDIN = "-"
#: What people hand over instead of a recording, by its first bytes.
_OTHERS = {
    b"\x1f\x8b": ("it is compressed with gzip", "Unpack it on the way: gunzip -c FILE | vifprobe replay -"),
    b"\x28\xb5\x2f\xfd": ("it is compressed with zstd", "Unpack it on the way: zstdcat FILE | vifprobe replay -"),
    b"\xfd7zXZ": ("it is compressed with xz", "Unpack it on the way: xzcat FILE | vifprobe replay -"),
    b"BZh": ("it is compressed with bzip2", "Unpack it on the way: bzcat FILE | vifprobe replay -"),
    b"\x34\xcd\xb2\xa1": ("it is a variant of pcap", "Convert it: editcap FILE NEW"),
    b"\xa1\xb2\xcd\x34": ("it is a variant of pcap", "Convert it: editcap FILE NEW"),
    b"snoop\0": ("it is a snoop recording", "Convert it: editcap FILE NEW"),
}


class PacketFile:
    """An open recording. Raises CaptureError for what is none, or of no Ethernet, before there is anything to count.

    name: of the tap that it stands for. size_bytes: None for a pipe. remarks: grow on the way. first: the first packet,
    None where there is none; its bytes lie in the window until the second is asked for.
    """

    def __init__(self, source: FileIO, shown: str) -> None:
        self.shown = shown
        self.name = Path(shown).name if shown != STDIN else "stdin"
        found = os.fstat(source.fileno())
        self.size_bytes = found.st_size if stat.S_ISREG(found.st_mode) else None
        self._pipe = None if self.size_bytes is not None else _Pipe(source)
        self.window = Window(self._pipe or source, None if self._pipe else source.fileno())
        self.remarks = Remarks()
        self.window.need(4)
        start = bytes(self.window.memory[: self.window.end][:6])
        if start[:4] in pcap.MAGIC:
            self.format, self._packets = "pcap", pcap.packets
        elif start[:4] == pcapng.MAGIC:
            self.format, self._packets = "pcapng", pcapng.packets
        else:
            raise _other(shown, start)
        self._stream = self._told()
        self.first = next(self._stream, None)

    def stop(self) -> None:
        """End a read that waits for a pipe to be written to, as if it ended there. Safe in a signal handler."""
        if self._pipe is not None:
            self._pipe.stop()

    def close(self) -> None:
        """Free what belongs to reading a pipe."""
        if self._pipe is not None:
            self._pipe.close()

    def packets(self) -> Iterator[Packet]:
        """Each packet in the order of the file, once. CaptureError where it is damaged or not Ethernet."""
        if self.first is not None:
            yield self.first
            yield from self._stream

    def _told(self) -> Iterator[Packet]:
        """The packets; errors with the file's name."""
        try:
            yield from self._packets(self.window, self.remarks)
        except CaptureError as error:
            raise CaptureError(f"{self.shown}: {error.message}", *error.hints) from None
        except OSError as error:
            raise CaptureError(f"{self.shown}: {error.strerror}.", "What came before it was read.") from error


class _Pipe:
    """A source that a signal handler can end while it waits: Python takes up a read again that a signal broke off."""

    def __init__(self, source: FileIO) -> None:
        self._source = source
        self._stop_read, self._stop_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def readinto(self, buffer: memoryview, /) -> int | None:
        ready, _, _ = select.select([self._source.fileno(), self._stop_read], [], [])
        return 0 if self._stop_read in ready else self._source.readinto(buffer)

    def stop(self) -> None:
        os.write(self._stop_write, b"x")

    def close(self) -> None:
        os.close(self._stop_read)
        os.close(self._stop_write)


@contextmanager
def opened(path: str) -> Iterator[PacketFile]:
    """The recording of that name, `-` for standard input. CaptureError where it is none."""
    try:
        source = FileIO(sys.stdin.fileno(), closefd=False) if path == STDIN else FileIO(path)
        with source:
            file = PacketFile(source, path)
            try:
                yield file
            finally:
                file.close()
    except OSError as error:
        words = (error.strerror or str(error)).lower()
        raise CaptureError(f"{path}: {words}.", "Expected a pcap or pcapng file.") from error


def _other(shown: str, start: bytes) -> CaptureError:
    if not start:
        return CaptureError(f"{shown}: it is empty.", "A recording has a header at least.")
    for magic, words in _OTHERS.items():
        if start.startswith(magic):
            return CaptureError(f"{shown}: no pcap or pcapng file: {words[0]}.", words[1])
    return CaptureError(
        f"{shown}: no pcap or pcapng file: it begins with {start.hex(' ')}.", "Expected a recording of tcpdump -w."
    )
