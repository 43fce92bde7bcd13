# SPDX-License-Identifier: Apache-2.0
"""Compile `bpf/*.c` with bcc for this host, without kernel headers, and load the programs."""

from __future__ import annotations

import os
import struct
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vifprobe.errors import KernelError
from vifprobe.kernel import libbpf
from vifprobe.kernel.features import Features, missing_capabilities
from vifprobe.layout import DIRECTION_PLACEHOLDER, TAPS_MAX, Direction

#: Joined into one text, in this order: bcc rewrites map calls in its main source text only.
SOURCES = ("count.c", "observe.c", "verdict.c")

#: Table sizes of one watched tap, per CPU; see bpf/README.md for what they add up to.
CELLS_PER_TAP = 256
CELLS_MIN = 2048
BIN_LOG_ENTRIES = 4096


def source_directory() -> Path:
    """Where `bpf/` lies: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for place in (package / "bpf", package.parent / "bpf"):
        if (place / SOURCES[0]).is_file():
            return place
    raise KernelError(f"the programs' C source is not in {package / 'bpf'}.", "Install vifprobe again.")


def possible_cpus() -> int:
    """Highest CPU number that this kernel can ever use, plus one."""
    ranges = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(ranges.split(",")[-1].split("-")[-1]) + 1


def _or_none(number: int | None) -> int:
    return -1 if number is None else number


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


@dataclass(frozen=True)
class Settings:
    """What the C source is compiled for.

    taps: how many are watched. bin_ns: width of the timeline's bins, 0 for no timeline. cpus: of this machine.
    """

    taps: int = 1
    bin_ns: int = 0
    cpus: int = 0

    @property
    def cells_per_cpu(self) -> int:
        """Slots of each CPU's cell table: a power of two, roomy, so that a cell is found in the first slots."""
        return _power_of_two(max(CELLS_MIN, self.taps * CELLS_PER_TAP))

    @property
    def tap_slots(self) -> int:
        """Slots of the table of watched taps, a power of two."""
        return _power_of_two(max(64, 8 * self.taps))

    def flags(self, features: Features) -> list[str]:
        """The compiler's -D flags."""
        values = {
            "CPUS": self.cpus,
            "TAPS": self.taps,
            "TAP_SLOTS": self.tap_slots,
            "CELLS_PER_CPU": self.cells_per_cpu,
            "BIN_NS": self.bin_ns,
            "BIN_LOG": BIN_LOG_ENTRIES,
            "HAS_REASON": int(features.has_drop_reason),
            "SKB_IIF_OFFSET": features.skb_iif_offset_bytes,
            # -1: this kernel has no such reason, or none at all.
            "REASON_TC_INGRESS": _or_none(features.reason_number("TC_INGRESS")),
            "REASON_NETFILTER_DROP": _or_none(features.reason_number("NETFILTER_DROP")),
        }
        return [f"-D{name}={value}" for name, value in values.items()]


class Programs:
    """The compiled programs and their tables. Loading an unused program is left out (it costs start-up time)."""

    def __init__(self, settings: Settings, features: Features) -> None:
        self.settings = settings
        self.features = features
        if not 1 <= settings.taps <= TAPS_MAX:
            raise KernelError(f"{settings.taps} taps: between 1 and {TAPS_MAX} can be watched at once.")
        self._drop_fd = self._drop_link_fd = -1
        self._tc_fds: dict[Direction, int] = {}
        self._module = _compile(source_text(), settings.flags(features))

    def table(self, name: str) -> Any:
        """A map, as bcc's table object."""
        return self._module[name]

    def tc_program_fd(self, direction: Direction) -> int:
        """The tc program of one direction, loaded."""
        if direction not in self._tc_fds:
            code = _told_direction(self._module.dump_func(b"observe"), direction)
            try:
                fd = libbpf.load_tc_program(f"vifprobe_{direction.name.lower()}"[:15], code)
            except OSError as error:
                raise KernelError(f"this kernel does not take the tc program: {error.strerror}.") from error
            self._tc_fds[direction] = fd
        return self._tc_fds[direction]

    def attach_verdicts(self) -> None:
        """Attach the tracepoint that learns what was dropped. It goes away with the process."""
        try:
            if self._drop_fd < 0:
                code = self._module.dump_func(b"drop")
                self._drop_fd = libbpf.load_typed_tracepoint("vifprobe_drop", code, self.features.kfree_skb_btf_id)
            self._drop_link_fd = libbpf.attach_typed_tracepoint(self._drop_fd)
        except OSError as error:
            raise KernelError(f"tracepoint skb:kfree_skb: {error.strerror}.") from error

    def detach_verdicts(self) -> None:
        """The reverse; harmless when not attached."""
        if self._drop_link_fd >= 0:
            os.close(self._drop_link_fd)
            self._drop_link_fd = -1

    def close(self) -> None:
        """Free programs and maps."""
        self.detach_verdicts()
        for fd in (self._drop_fd, *self._tc_fds.values()):
            if fd >= 0:
                os.close(fd)
        self._drop_fd = -1
        self._tc_fds.clear()
        self._module.cleanup()


def _told_direction(code: bytes, direction: Direction) -> bytes:
    """The tc program's code with the direction in place of the placeholder: `r = imm64` instructions, 16 bytes."""
    placeholder = struct.pack("<i", DIRECTION_PLACEHOLDER)
    patched, found = bytearray(code), 0
    for at in range(0, len(code), 8):
        # BPF_LD | BPF_IMM | BPF_DW is 0x18; source register 0: a plain number, no map.
        if code[at] == 0x18 and code[at + 1] >> 4 == 0 and code[at + 4 : at + 8] == placeholder:
            patched[at + 4 : at + 8] = struct.pack("<i", direction)
            found += 1
    if not found:
        raise KernelError("the compiled tc program has no place for its direction.", "bcc compiled it in a new way?")
    return bytes(patched)


def source_text() -> str:
    """The joined C text, with #line so that messages name file and line."""
    directory = source_directory()
    return "".join(f'#line 1 "{directory / name}"\n{(directory / name).read_text()}' for name in SOURCES)


def import_bcc() -> Any:
    """The distribution's bcc module, or a KernelError that says where it comes from."""
    try:
        import bcc
    except ImportError as error:
        raise KernelError(
            f"Python's bcc module can't be imported: {error}.",
            "It comes from the distribution: python3-bpfcc (Debian, Ubuntu), python3-bcc (RHEL, Fedora, SUSE).",
            "The package named bcc on PyPI is an unrelated project: never install that one.",
            "In a virtual environment, make it with --system-site-packages on the system's own python3.",
        ) from error
    if not hasattr(bcc, "BPF"):
        raise KernelError(
            f"{bcc.__file__} is not the BPF Compiler Collection: it is PyPI's unrelated package bcc.",
            "Remove it (pip uninstall bcc) and install python3-bpfcc (Debian, Ubuntu) or python3-bcc (RHEL, Fedora).",
        )
    return bcc


def _compile(text: str, flags: list[str]) -> Any:
    missing = missing_capabilities()
    if missing:
        raise KernelError(
            f"not permitted: this process lacks {', '.join(missing)}.",
            "Loading BPF programs and attaching them to a tap needs root: run it with sudo.",
        )
    directory = source_directory()
    # bcc looks there for kernel headers: bpf/include stands in for them, see bpf/README.md.
    os.environ["BCC_KERNEL_SOURCE"] = str(directory)
    bcc = import_bcc()
    system = [f"-I/usr/include/{sysconfig.get_config_var('MULTIARCH') or ''}", "-I/usr/include"]
    include = [f"-I{directory}", f"-I{directory / 'include'}", *system]
    try:
        return bcc.BPF(text=text, cflags=[*include, *flags, "-Wno-macro-redefined"])
    except Exception as error:  # bcc raises plain Exception, the compiler's own words go to stderr
        raise KernelError(
            f"bcc could not compile or create the tables: {error}.",
            "Seen with missing linux-libc-dev (linux/types.h) and with too little memory for the tables.",
        ) from error
