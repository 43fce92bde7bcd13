# SPDX-License-Identifier: Apache-2.0
"""Load the programs and tables of `bpf/*.c` for this host: sized, compiled (or read from the cache), loaded."""

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
from vifprobe.kernel.symbols import function_ranges, generic_xdp
from vifprobe.kernel.tables.maps import Tables
from vifprobe.kernel.toolchain.cache import compiled
from vifprobe.kernel.toolchain.instructions import MapOf, Number, ValueOf, linked
from vifprobe.kernel.toolchain.source import source_directory, source_text
from vifprobe.model.layout import TAPS_MAX, Bucket, Direction, Loaded

#: The function that runs netfilter chains (bpf/progs/nf_hook_slow.c).
_RUNS_CHAINS = "nf_hook_slow"


class Programs:
    """The tables, and the programs that share them. A program is loaded at its first use.

    Raises KernelError for a wrong number of taps, missing capabilities, or refused tables.

    - settings, features: that the programs were compiled for.
    - unfollowed: why inbound packets are not followed; "" where they are, or where that was not asked for.
    """

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
        # Random for each run: a sender that does not know it can't choose keys with the same hash. Odd, so that no two
        # keys have the same product.
        self._cell_factor = secrets.randbits(64) | 1
        self._compiled = compiled(source_text(), source_directory(), settings.flags(features))
        self._tables = Tables(self._compiled.maps)
        states = self.table("cpu_states", writable=True)
        states["cpu"] = np.arange(len(states))

    def table(self, name: str, writable: bool = False) -> npt.NDArray[np.void]:
        """Return the values of a table as a numpy array: kernel memory, no copy."""
        return self._tables.rows(name, writable)

    def set_bucket(self, tap_number: int, direction: Direction, bucket: Bucket) -> None:
        """Compare a tap's packets of one direction with this limit from now on, starting with a full bucket.

        Takes effect where the tap's traits have the direction's LIMIT: see Counters.watch. Raises KernelError.
        """
        self._write_bucket("buckets", tap_number * len(Direction) + direction, bucket)

    def set_what_if(self, tap_number: int, direction: Direction, number: int, bucket: Bucket) -> None:
        """Set a what-if limit of a tap and direction, before the tap is counted. Raises KernelError.

        number: of the limit, from 0.
        """
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
        """Return the fd of the tc program of one direction. Both are one program with another constant."""
        program = f"vifprobe_{direction.name.lower()}"
        if program in self._fds:  # used by each of hundreds of taps: linking the code again takes milliseconds
            return self._fds[program]
        code = self._code("observe", direction)
        return self._load(program, lambda name: libbpf.load_tc_program(name, code))

    def replay_program_fd(self, direction: Direction) -> int:
        """Return the fd of the program for a file's frames, which counts them as packets of this direction."""
        code = self._code("replay", direction)
        return self._load(f"vifprobe_replay_{direction.name.lower()}", lambda name: libbpf.load_tc_program(name, code))

    def load(self, directions: Iterable[Direction]) -> None:
        """Load the programs that will be attached, so that attaching them takes no time."""
        self._load_drop()
        for direction in directions:
            self.tc_program_fd(direction)

    def attach_verdicts(self) -> None:
        """Attach the program on skb:kfree_skb, which sees drops in the calling thread's network namespace.

        The link is removed with the process. Raises KernelError.
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
        """Record from now on which packets run a netfilter chain of their own device; harmless when called again.

        Needed for taps that the tracepoints count. The link is removed with the process. Raises KernelError where the
        function can't be watched.
        """
        if "chain link" in self._fds:
            return
        (runs,) = function_ranges(_RUNS_CHAINS)
        if runs == (0, 0):
            raise KernelError("/proc/kallsyms shows no addresses.")
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
        """Undo watch_chains; harmless when not watched."""
        for held in ("chain link", "vifprobe_chain"):
            self._unload(held)

    def watch_police(self) -> None:
        """Mark from now on the packets that the kernel's police action drops; harmless when called again.

        The link is removed with the process. Raises KernelError where the action can't be watched.
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
        """Undo watch_police, so that act_police can be unloaded; harmless when not watched."""
        for held in ("police link", "vifprobe_police"):
            self._unload(held)

    def load_followers(self) -> None:
        """Load the programs that follow inbound packets. Raises KernelError where this kernel refuses one.

        They are loaded in parallel: the kernel's verifier takes some 50 ms for each.
        """
        follow = self.settings.follow
        assert follow is not None  # noqa: S101 - only called with `follow` in the settings
        with ThreadPoolExecutor() as pool:
            loading = [
                pool.submit(self._trace, "on_start_xmit", follow.btf_ids["net_dev_start_xmit"]),
                pool.submit(self._load_drop),
                # The program that records packets in flight is larger than the one that only counts them.
                pool.submit(self.tc_program_fd, Direction.INBOUND),
                pool.submit(self._trace, "on_xmit", follow.btf_ids["net_dev_xmit"]),
            ]
        for loaded in loading:
            loaded.result()
        if self.settings.trace is not None:
            self.load_tracepoints()

    def attach_followers(self) -> None:
        """Attach the programs that see inbound packets enter and leave the driver.

        They work in the calling thread's network namespace. The links are removed with the process. Raises KernelError.
        """
        follow = self.settings.follow
        assert follow is not None  # noqa: S101 - only called with `follow` in the settings
        ends = (
            ("on_xmit", "net_dev_xmit"),
            ("on_start_xmit", "net_dev_start_xmit"),
        )  # in this order: a packet whose start is seen has its end seen, too
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
        """Stop following new inbound packets; those in the driver still get their end. Harmless when not attached."""
        for held in ("on_gso_segmented link", "on_start_xmit link"):
            self._unload(held)

    def attach_tracepoints(self) -> None:
        """Attach the tracepoint programs that count taps with a TRACED trait.

        They work in the calling thread's network namespace. The links are removed with the process. Raises KernelError.
        """
        for name, fd in self.load_tracepoints().items():
            if f"{name} link" in self._fds:
                continue
            try:
                self._fds[f"{name} link"] = libbpf.attach_typed_tracepoint(fd)
            except OSError as error:
                raise KernelError(f"tracepoint for {name}: {error.strerror}.") from error

    def detach_tracepoints(self) -> None:
        """Undo attach_tracepoints; harmless when not attached. Unloads the programs: they are for one namespace."""
        for name in ("trace_outbound", "trace_inbound"):
            for held in (f"{name} link", f"vifprobe_{name}"):
                self._unload(held)

    def load_tracepoints(self) -> dict[str, int]:
        """Load the tracepoint programs, so that attaching them takes no time; return their fds by name."""
        trace = self.settings.trace
        assert trace is not None  # noqa: S101 - only called with `trace` in the settings
        return {
            "trace_outbound": self._trace("trace_outbound", trace.btf_ids["netif_receive_skb"]),
            "trace_inbound": self._trace("trace_inbound", trace.btf_ids["net_dev_queue"]),
        }

    def _trace(self, name: str, btf_id: int) -> int:
        code = self._code(name)
        return self._load(f"vifprobe_{name}", lambda program: libbpf.load_typed_tracepoint(program, code, btf_id))

    def detach_verdicts(self) -> None:
        """Stop recording verdicts; harmless when not attached."""
        self.unwatch_police()
        self.unwatch_chains()
        self._unload("link")
        self._unload("on_xmit link")

    @property
    def loaded(self) -> tuple[int, ...]:
        """Return the fds of the loaded programs."""
        return tuple(fd for _, fd in self.named())

    def named(self) -> list[tuple[str, int]]:
        """Return (name without `vifprobe_`, fd) of the loaded programs."""
        return [(name[9:], fd) for name, fd in self._fds.items() if name.startswith("vifprobe_")]

    def close(self) -> None:
        """Free programs and tables; harmless when called again."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        self._tables.close()

    def _code(self, function: str, direction: Direction = Direction.OUTBOUND) -> bytes:
        """Return the code of a program, ready to load. Tracepoint programs are for the thread's network namespace.

        - function: name of the program in bpf/progs.
        - direction: of a tc program; unused in others.
        """
        constants = {
            Loaded.DIRECTION: Number(direction),
            Loaded.NETNS: Number(_own_netns()),
            Loaded.CELL_FACTOR: Number(self._cell_factor),
            Loaded.SHARED: ValueOf(self._tables.fd("shared")),
            Loaded.PER_CPU_PLACE: MapOf(self._tables.fd("per_cpu_place")),
        }
        if function == "drop":  # reading the kernel's symbols takes some 50 ms
            places = zip((Loaded.XDP_RUN, Loaded.XDP_DO, Loaded.XDP_TX), generic_xdp(), strict=True)
            constants |= {name: Number(place) for name, place in places}
        return linked(self._compiled.code[function], self._tables.fds, constants)

    def _unload(self, name: str) -> None:
        if name in self._fds:
            fd = self._fds.pop(name)
            if name.startswith("vifprobe_"):
                self._misses_before += libbpf.recursion_misses(fd)
            os.close(fd)

    @property
    def recursion_misses(self) -> int:
        """Return the number of events since loading for which the kernel did not run the programs (0 before 5.12)."""
        loaded = [fd for name, fd in self._fds.items() if name.startswith("vifprobe_")]
        return self._misses_before + sum(map(libbpf.recursion_misses, loaded))

    def _load(self, name: str, load: libbpf.Load) -> int:
        if name not in self._fds:
            try:
                self._fds[name] = load(name)
            except OSError as error:
                raise KernelError(f"this kernel refuses the program {name}: {error.strerror}.") from error
        return self._fds[name]


def make_programs(settings: Settings, features: Features) -> Programs:
    """Return the programs, without those that follow inbound packets where this kernel refuses them.

    `settings.follow` of the result is None then, and `unfollowed` has the reason. Raises KernelError as Programs does.
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
    """Return the inode of the thread's network namespace (`net:[4026531840]`); 0 without CONFIG_NET_NS."""
    try:
        return Path("/proc/thread-self/ns/net").stat().st_ino
    except FileNotFoundError:
        return 0
