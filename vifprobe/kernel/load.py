# SPDX-License-Identifier: Apache-2.0
"""The programs and tables of `bpf/*.c`, made for this host: sized, compiled (or taken from the cache), loaded."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vifprobe.errors import KernelError
from vifprobe.kernel import libbpf
from vifprobe.kernel.btf import Btf
from vifprobe.kernel.features import Features, missing_capabilities
from vifprobe.kernel.police import police_function
from vifprobe.kernel.settings import Settings
from vifprobe.kernel.symbols import function_ranges
from vifprobe.kernel.tables.maps import Tables
from vifprobe.kernel.toolchain.cache import compiled
from vifprobe.kernel.toolchain.instructions import MapOf, Number, ValueOf, linked
from vifprobe.kernel.toolchain.source import source_directory, source_text
from vifprobe.model.layout import TAPS_MAX, Bucket, Direction, Loaded

#: The function that runs netfilter chains (bpf/progs/nf_hook_slow.c).
_RUNS_CHAINS = "nf_hook_slow"


class Programs:
    """The tables, and the programs that share them. A program is loaded when it is first asked for."""

    def __init__(self, settings: Settings, features: Features) -> None:
        self.settings = settings
        self.features = features
        self.unfollowed = ""
        if not 1 <= settings.taps <= TAPS_MAX:
            raise KernelError(f"{settings.taps} taps: between 1 and {TAPS_MAX} can be watched at once.")
        if missing := missing_capabilities():
            raise KernelError(
                f"not permitted: this process lacks {', '.join(missing)}.",
                "Loading BPF programs and attaching them to a tap needs root: run it with sudo.",
            )
        self._fds: dict[str, int] = {}
        self._misses_before = 0  # of programs that were unloaded
        # Of this run only: whoever does not know it cannot choose keys that hash to one place. Odd, so that no two keys
        # have the same product.
        self._cell_factor = secrets.randbits(64) | 1
        self._compiled = compiled(source_text(), source_directory(), settings.flags(features))
        self._tables = Tables(self._compiled.maps)
        states = self.table("cpu_states", writable=True)
        states["cpu"] = np.arange(len(states))

    def table(self, name: str, writable: bool = False) -> npt.NDArray[np.void]:
        """A table's values as a numpy array: the kernel's own memory, no copy."""
        return self._tables.rows(name, writable)

    def set_bucket(self, tap_number: int, direction: Direction, bucket: Bucket) -> None:
        """Hold a tap's packets of one direction against this limit from now on, beginning with a full bucket.

        Where the tap's traits have the direction's LIMIT: see Counters.watch.
        """
        self._write_bucket("buckets", tap_number * len(Direction) + direction, bucket)

    def set_what_if(self, tap_number: int, direction: Direction, number: int, bucket: Bucket) -> None:
        """Try this limit out on a tap's packets of one direction; before they are counted."""
        place = (tap_number * len(Direction) + direction) * self.settings.what_ifs + number
        self._write_bucket("what_if_buckets", place, bucket)

    def _write_bucket(self, table: str, number: int, bucket: Bucket) -> None:
        value = self._tables.blank(table)
        value["charge"] = bucket.charge
        value["mult"], value["shift"] = bucket.ratio
        value["burst_ns"] = value["uncertain_ns"] = bucket.burst_ns
        full_at_ns = 0 if self.settings.tstamp_clock or self.settings.replay else time.monotonic_ns()
        value["empty_ns"] = np.int64(full_at_ns - bucket.burst_ns).astype(np.uint64)
        try:
            self._tables.write(table, number, value)
        except OSError as error:
            raise KernelError(f"the ideal bucket could not be set: {error.strerror}.") from error

    def tc_program_fd(self, direction: Direction) -> int:
        """The tc program of one direction: the one program, with the direction written where it asks for it."""
        program = f"vifprobe_{direction.name.lower()}"
        if program in self._fds:  # asked for by each of hundreds of taps: to write the code anew takes milliseconds
            return self._fds[program]
        code = self._code("observe", direction)
        return self._load(program, lambda name: libbpf.load_tc_program(name, code))

    def replay_program_fd(self, direction: Direction) -> int:
        """The program for a file's frames, as if they came through the tap in this direction."""
        code = self._code("replay", direction)
        return self._load(f"vifprobe_replay_{direction.name.lower()}", lambda name: libbpf.load_tc_program(name, code))

    def load(self, directions: Iterable[Direction]) -> None:
        """Have what will be attached loaded, so that attaching it takes no time."""
        self._load_drop()
        for direction in directions:
            self.tc_program_fd(direction)

    def attach_verdicts(self) -> None:
        """Attach the tracepoint that learns what was dropped, of the taps in the calling thread's network namespace.

        It goes away with the process.
        """
        fd = self._load_drop()
        try:
            self._fds["link"] = libbpf.attach_typed_tracepoint(fd)
        except OSError as error:
            raise KernelError(f"tracepoint skb:kfree_skb: {error.strerror}.") from error

    def _load_drop(self) -> int:
        code = self._code("drop")
        btf_id = self.features.kfree_skb_btf_id
        return self._load("vifprobe_drop", lambda name: libbpf.load_typed_tracepoint(name, code, btf_id))

    def watch_chains(self) -> None:
        """From now on, note for which packets a chain of their own device is run; harmless when called again.

        Needed for taps that the tracepoints count. KernelError where it can't be done. It goes away with the process.
        """
        if "chain link" in self._fds:
            return
        (runs,) = function_ranges(_RUNS_CHAINS)
        if runs == (0, 0):
            raise KernelError("/proc/kallsyms is hidden.")
        states = self.table("cpu_states", writable=True)
        states["hooks_from"], states["hooks_end"] = runs
        with Btf() as btf:
            btf_id = btf.function_id(_RUNS_CHAINS)
        if btf_id is None:
            raise KernelError(f"this kernel's type information has no {_RUNS_CHAINS}.")
        try:
            fd = libbpf.load_function_entry("vifprobe_chain", self._code("chain"), btf_id)
            self._fds["vifprobe_chain"] = fd
            self._fds["chain link"] = libbpf.attach_typed_tracepoint(fd)
        except OSError as error:
            self.unwatch_chains()
            raise KernelError(f"{_RUNS_CHAINS} can't be watched: {error.strerror}.") from error

    def unwatch_chains(self) -> None:
        """The reverse; harmless when not watched."""
        for held in ("chain link", "vifprobe_chain"):
            self._unload(held)

    def watch_police(self) -> None:
        """From now on, mark the packets that the kernel's police action shoots; harmless when called again.

        KernelError where it can't be watched. It goes away with the process.
        """
        if "police link" in self._fds:
            return
        function = police_function()
        try:
            code, found = self._code("police"), (function.btf_id, function.btf_fd)
            fd = self._load("vifprobe_police", lambda name: libbpf.load_function_exit(name, code, *found))
            self._fds["police link"] = libbpf.attach_typed_tracepoint(fd)
        except OSError as error:
            raise KernelError(f"the police action can't be watched: {error.strerror}.") from error
        finally:
            function.close()

    def unwatch_police(self) -> None:
        """The reverse; harmless when not watched. act_police can be unloaded again."""
        for held in ("police link", "vifprobe_police"):
            self._unload(held)

    def load_followers(self) -> None:
        """Have the programs that follow inbound packets loaded; KernelError where this kernel does not take one.

        At once, as far as there are CPUs: the kernel's verifier takes some 50 ms for each.
        """
        follow = self.settings.follow
        assert follow is not None  # noqa: S101 - whoever follows packets has asked for these programs
        with ThreadPoolExecutor() as pool:
            loading = [
                pool.submit(self._trace, "on_start_xmit", follow.btf_ids["net_dev_start_xmit"]),
                pool.submit(self._load_drop),
                # What remembers a packet is larger than what only counts it.
                pool.submit(self.tc_program_fd, Direction.INBOUND),
                pool.submit(self._trace, "on_xmit", follow.btf_ids["net_dev_xmit"]),
            ]
        for loaded in loading:
            loaded.result()
        if self.settings.trace is not None:
            self.load_tracepoints()

    def attach_followers(self) -> None:
        """Attach what sees inbound packets come to the driver and leave it, in the calling thread's network namespace.

        Goes away with the process.
        """
        follow = self.settings.follow
        assert follow is not None  # noqa: S101 - whoever follows packets has asked for these programs
        ends = (
            ("on_xmit", "net_dev_xmit"),
            ("on_start_xmit", "net_dev_start_xmit"),
        )  # in this order: none stays half seen
        for name, tracepoint in ends:
            try:
                fd = self._trace(name, follow.btf_ids[tracepoint])
                self._fds[f"{name} link"] = libbpf.attach_typed_tracepoint(fd)
            except OSError as error:
                raise KernelError(f"tracepoint net:{tracepoint}: {error.strerror}.") from error
        try:
            code, function = self._code("on_gso_segmented"), follow.btf_ids["__skb_gso_segment"]
            self._fds["vifprobe_on_gso_segmented"] = libbpf.load_function_exit(
                "vifprobe_on_gso_segmented", code, function, 0
            )
            self._fds["on_gso_segmented link"] = libbpf.attach_typed_tracepoint(self._fds["vifprobe_on_gso_segmented"])
        except OSError:  # no CONFIG_FUNCTION_TRACER, or not permitted
            fd = self._trace("on_consume_skb", follow.btf_ids["consume_skb"])
            self._fds["on_gso_segmented link"] = libbpf.attach_typed_tracepoint(fd)

    def detach_followers(self) -> None:
        """See no more packets come to the driver; those in its hands still end. Harmless when not attached."""
        for held in ("on_gso_segmented link", "on_start_xmit link"):
            self._unload(held)

    def attach_tracepoints(self) -> None:
        """Attach the tracepoint way: taps with a TRACED trait, in the calling thread's network namespace, are counted
        by it. Goes away with the process.
        """
        for name, fd in self.load_tracepoints().items():
            if f"{name} link" in self._fds:
                continue
            try:
                self._fds[f"{name} link"] = libbpf.attach_typed_tracepoint(fd)
            except OSError as error:
                raise KernelError(f"tracepoint for {name}: {error.strerror}.") from error

    def detach_tracepoints(self) -> None:
        """The reverse; harmless when not attached. The programs go too: they know one network namespace."""
        for name in ("trace_outbound", "trace_inbound"):
            for held in (f"{name} link", f"vifprobe_{name}"):
                self._unload(held)

    def load_tracepoints(self) -> dict[str, int]:
        """Have their programs ready, so that attaching them takes no time; fds by name."""
        trace = self.settings.trace
        assert trace is not None  # noqa: S101 - whoever asks for a trait has asked for these programs
        return {
            "trace_outbound": self._trace("trace_outbound", trace.btf_ids["netif_receive_skb"]),
            "trace_inbound": self._trace("trace_inbound", trace.btf_ids["net_dev_queue"]),
        }

    def _trace(self, name: str, btf_id: int) -> int:
        code = self._code(name)
        return self._load(f"vifprobe_{name}", lambda program: libbpf.load_typed_tracepoint(program, code, btf_id))

    def detach_verdicts(self) -> None:
        """No verdicts from now on; harmless when not attached."""
        self.unwatch_police()
        self.unwatch_chains()
        self._unload("link")
        self._unload("on_xmit link")

    @property
    def loaded(self) -> tuple[int, ...]:
        """Fds of the programs that are loaded."""
        return tuple(fd for _, fd in self.named())

    def named(self) -> list[tuple[str, int]]:
        """The same, each after its name without the `vifprobe_`."""
        return [(name[9:], fd) for name, fd in self._fds.items() if name.startswith("vifprobe_")]

    def close(self) -> None:
        """Free programs and tables; harmless when called again."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        self._tables.close()

    def _code(self, function: str, direction: Direction = Direction.OUTBOUND) -> bytes:
        """A program's code, to be loaded into the kernel.

        direction: of a tc program. Tracepoints: for packets of the calling thread's network namespace.
        """
        constants = {
            Loaded.DIRECTION: Number(direction),
            Loaded.NETNS: Number(_own_netns()),
            Loaded.CELL_FACTOR: Number(self._cell_factor),
            Loaded.SHARED: ValueOf(self._tables.fd("shared")),
            Loaded.PER_CPU_PLACE: MapOf(self._tables.fd("per_cpu_place")),
        }
        return linked(self._compiled.code[function], self._tables.fds, constants)

    def _unload(self, name: str) -> None:
        if name in self._fds:
            fd = self._fds.pop(name)
            if name.startswith("vifprobe_"):
                self._misses_before += libbpf.recursion_misses(fd)
            os.close(fd)

    @property
    def recursion_misses(self) -> int:
        """Events that the kernel kept from the programs, since the first of them was loaded (since 5.12; before, 0)."""
        loaded = [fd for name, fd in self._fds.items() if name.startswith("vifprobe_")]
        return self._misses_before + sum(map(libbpf.recursion_misses, loaded))

    def _load(self, name: str, load: libbpf.Load) -> int:
        if name not in self._fds:
            try:
                self._fds[name] = load(name)
            except OSError as error:
                raise KernelError(f"this kernel does not take the program {name}: {error.strerror}.") from error
        return self._fds[name]


def make_programs(settings: Settings, features: Features) -> Programs:
    """The programs; where this kernel does not take those that follow inbound packets, the ones that only count them.

    `settings.follow` of the programs then is None, and `unfollowed` says why.
    """
    programs = Programs(settings, features)
    if settings.follow is None:
        return programs
    try:
        programs.load_followers()
    except KernelError as error:
        programs.close()
        programs = Programs(replace(settings, follow=None), features)
        programs.unfollowed = error.message
    return programs


def _own_netns() -> int:
    """The number in `net:[4026531840]`; 0 without CONFIG_NET_NS."""
    try:
        return Path("/proc/thread-self/ns/net").stat().st_ino
    except FileNotFoundError:
        return 0
