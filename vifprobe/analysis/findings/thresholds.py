# SPDX-License-Identifier: Apache-2.0
"""From which number on a finding is raised: all of them, in one place, each with its reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches

from vifprobe.errors import UsageError

#: A link change is named as what came before a removal if it did so by at most this (ovs-vswitchd acts within 10 ms;
#: on a loaded host its main loop takes longer).
LINK_CHANGE_BEFORE_NS = 1_000_000_000

#: A removal that is heard of this close to when the limit was seen to be gone, at most, is that of this limit.
TOLD_LATE_NS = 10_000_000_000
#: A gap between two policers is told from this length on, or as soon as more passed than the limit would have let
#: through: a program that changes a limit deletes and adds within milliseconds, on a loaded host in tenths of a second.
GAP_NS = 1_000_000_000

#: P1: share of packets that others than the tap's limit dropped, from which on nobody can say that nothing limits.
#: Firewalls drop some packets of every guest.
LIMIT_LIKE_SHARE = 0.01

#: P4: share of what passed from which traffic beside the policer is more than ARP and other housekeeping.
HOLE_SHARE = 0.01
#: P5: a policer that saw less than this share of what should have come to it, of at least so many packets.
SHADOW_SHARE = 0.5
SHADOW_PACKETS = 1_000

#: P6: wire rate over configured rate. An ordinary mix is at 1.08 (mean frame of 526 bytes), full frames at 1.03, SYNs
#: at 2.1; 1.25 is reached by frames that are charged for 150 bytes.
WIRE_OVER_RATE = 1.25

#: P7: packets a second, their mean charged size, and CPUs (vhost, softirq, the guest's own process) that carry them.
#: At 1514 bytes a frame, 100,000 packets are 1.2 Gbit/s; a host core forwards some 500,000 to 1,000,000.
OVERLOAD_PPS = 100_000
OVERLOAD_MEAN_BYTES = 200
OVERLOAD_CPUS = 0.25

#: P8: share of packets policed, and frame rate over configured rate, from which the tap's own counters mislead.
#: A guest whose TCP meets the limit loses about 1 %.
POLICED_SHARE = 0.1
COUNTED_OVER_RATE = 1.25

#: P9: packets offered after a policer came over those before it; at least so many before; how long both are looked at,
#: and in how many intervals of which length: the median of one starved or catching-up interval proves nothing.
AMPLIFIED = 1.3
AMPLIFIED_PPS = 500
AMPLIFIED_SIDE_NS = 5_000_000_000
AMPLIFIED_INTERVALS = 2
AMPLIFIED_INTERVAL_NS = 90_000_000

#: P16: share of packets that are in no cell from which on the figures can't be relied on.
MISSED_SHARE = 0.001

#: P19: a burst that lasts less than this at its rate. TCP sends its window in bursts, one a round trip: through a
#: network, 20 ms is a short one. And the share of a second's bytes that Open vSwitch (ovs-vswitchd.conf.db(5),
#: ingress_policing_burst) and Neutron (QoS guide, "burst size") advise.
BURST_NS = 20_000_000
BURST_WANTED = 0.8

#: P21: share of the conntrack table from which a flood fills the rest in seconds.
CONNTRACK_SHARE = 0.9

#: P10: frames longer than the bucket, policed to the last one.
NEVER_CONFORM_PACKETS = 10

#: P14: frames that found the ring full, and their share of what went to the guest.
RING_PACKETS = 100
RING_SHARE = 0.001

#: P15: share of the uplink's speed, and packets dropped there.
UPLINK_SHARE = 0.95
UPLINK_DROPS = 100


@dataclass(frozen=True)
class FloodThresholds:
    """From which numbers on S1 to S6 are raised; `--threshold NAME=VALUE` sets one. Shares are of 1.

    An estimate counts with the end of its bound that speaks against the finding.
    """

    #: S1, S4: packets that prove something. Fewer are chance.
    syn_packets: float = 100
    #: S1: SYNs a second that nobody completes. Real clients whose server does not answer send one again after 1, 3 and
    #: 7 s: so many of them at once are behind no tap.
    flood_syn_pps: float = 500
    #: S1, S4: share of the SYNs (that were not policed) of which no handshake came. Of real clients most are answered;
    #: crawlers and peer-to-peer programs try many dead addresses.
    unfinished_share: float = 0.8
    #: S4: SYNs a second, and for each destination and port: a scanner tries each once, or a few times.
    scan_syn_pps: float = 50
    scan_repeats: float = 3
    #: S4: more to one destination is a flood, even if no port gets a second one.
    scan_pps_at_one: float = 10_000
    #: S2: share of the SYNs whose source is not the port's own, at so many SYNs a second.
    spoofed_share: float = 0.5
    spoofed_pps: float = 20
    #: S2, where no address of the port is known: so many sources at one MAC, share of sources that no host can have.
    spoofed_sources: float = 1_000
    impossible_share: float = 0.05
    #: S3: share of the SYNs that keep to something that no TCP stack does, at so many SYNs a second.
    tool_share: float = 0.8
    tool_pps: float = 20
    #: S5: share of a flood's SYNs that one service (address and port) gets.
    target_share: float = 0.8
    #: S6: how often a full bucket was emptied at once, how many times the rate that was, and in how long at most.
    bursts: float = 3
    burst_over_rate: float = 2
    burst_ms: float = 100


def flood_thresholds(settings: Iterable[str], base: FloodThresholds | None = None) -> FloodThresholds:
    """From texts like ``flood_syn_pps=2000``. Raises UsageError, with the closest name for one that there is not."""
    known, values = [field.name for field in fields(FloodThresholds)], {}
    for text in settings:
        name, _, value = (part.strip() for part in text.partition("="))
        if name not in known:
            closest = get_close_matches(name, known, 1, 0)[0]
            raise UsageError(f"unknown threshold {ascii(name)[:60]}.", f"The closest is {closest}.", f"All: {known}.")
        try:
            values[name] = float(value)
        except ValueError:
            values[name] = -1.0
        if not 0 <= values[name] < float("inf"):
            raise UsageError(f"invalid threshold {ascii(text)[:60]}.", f"Write {name}=NUMBER, 0 or more.")
    return replace(base or FloodThresholds(), **values)
