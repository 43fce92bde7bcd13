# SPDX-License-Identifier: Apache-2.0
"""What each way of watching adds to a packet towards a guest: one tap floods another one through a bridge.

Nobody reads: a thousand frames fill the ring, all others are dropped there, which is the dearest way that there is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from bench_variant import EXIT, Variant

from vifprobe.kernel.attach import attach, load_empty
from vifprobe.kernel.features import Features, read_trace_fields
from vifprobe.kernel.libbpf import attach_typed_tracepoint, load_typed_tracepoint
from vifprobe.kernel.load import Programs
from vifprobe.kernel.settings import Settings, possible_cpus
from vifprobe.kernel.tables.counters import Counters
from vifprobe.model.layout import Direction, TapTrait
from vifprobe.testing.net.links import bridge_with
from vifprobe.testing.net.taps import Tap, private_netns, tap

_IN = Direction.INBOUND
_ENDS = ("net_dev_start_xmit", "net_dev_xmit")


@contextmanager
def taps() -> Iterator[tuple[Tap, Tap, Tap]]:
    """The guest's tap, the one that floods it, and one that nothing is sent to."""
    with private_netns(), tap("tap0") as guest, tap("tap9") as sender, tap("tap1") as idle, bridge_with(guest, sender):
        yield guest, sender, idle


def variants(guest: Tap, idle: Tap, features: Features) -> Iterator[Variant]:
    """floor: empty programs where `inbound` has its own. offered: counted as they come, not followed. elsewhere: what
    packets of other taps pay while one is followed.
    """
    floor = _Floor(guest, features)
    yield Variant("floor", floor.attached, lambda: floor.fds)
    yield _watched("offered", guest, features, follows=False)
    yield _watched("inbound", guest, features)
    yield _watched("timeline", guest, features, bin_ns=10_000_000)
    yield _watched("all", guest, features, bin_ns=10_000_000, deep=True)
    yield _watched("elsewhere", idle, features)


class _Floor:
    def __init__(self, on: Tap, features: Features) -> None:
        self._on = on
        ids = read_trace_fields().btf_ids
        points = [features.kfree_skb_btf_id, *(ids[name] for name in _ENDS)]
        self.fds = [load_typed_tracepoint("vifprobe_empty", EXIT, point) for point in points]
        self._hook = load_empty()

    @contextmanager
    def attached(self) -> Iterator[None]:
        with ExitStack() as stack:
            for fd in self.fds:
                stack.callback(os.close, attach_typed_tracepoint(fd))
            stack.callback(attach(self._hook, self._on.name, self._on.ifindex, _IN, None).detach)
            yield


def _watched(
    name: str, on: Tap, features: Features, follows: bool = True, bin_ns: int = 0, deep: bool = False
) -> Variant:
    fields = read_trace_fields() if follows else None
    settings = Settings(cpus=possible_cpus(), bin_ns=bin_ns, follow=fields, samples=deep, syn=deep)
    programs = Programs(settings, features)
    Counters(programs).watch(on.ifindex, 0, int(TapTrait.INBOUND) if follows else 0)

    @contextmanager
    def attached() -> Iterator[None]:
        with ExitStack() as stack:
            programs.attach_verdicts()
            stack.callback(programs.detach_verdicts)
            if follows:
                programs.attach_followers()
                stack.callback(programs.detach_followers)
            stack.callback(attach(programs.tc_program_fd(_IN), on.name, on.ifindex, _IN, None).detach)
            yield

    return Variant(name, attached, lambda: programs.loaded)
