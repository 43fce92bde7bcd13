# SPDX-License-Identifier: Apache-2.0
"""S1 to S5: what the SYNs of a tap prove. Estimates count with the end of their bound that speaks against a finding.

| pattern | says |
|---|---|
| S1 | SYN flood: many SYNs, nobody completes them |
| S2 | their sources are not the port's own addresses |
| S3 | a tool made them, no TCP stack |
| S4 | port scan or address sweep: each destination and port is tried once or a few times |
| S5 | the flood has one target |

S1 and S4 exclude each other. A flood that the policer lets through although it should not is P1 to P6, S6 is in
`bursts`.
"""

from __future__ import annotations

from collections.abc import Iterator

from vifprobe.analysis.findings.situation import Situation, finding_id
from vifprobe.analysis.findings.thresholds import FloodThresholds
from vifprobe.analysis.flood.addresses import words
from vifprobe.model.flood import Flood
from vifprobe.model.layout import Direction
from vifprobe.model.reading import Finding

#: Habits of initial sequence numbers that no TCP stack has, in words.
_SEQUENCES = {
    "zero": "the sequence number is always 0",
    "constant": "the sequence number is always the same",
    "incrementing": "sequence numbers are counted up",
    "destination": "the sequence number is the destination address, as of Mirai's scanner",
}
_HABITS = ("ip_id_", "source_port_", "window_", "ttl_")


def of(situation: Situation, direction: Direction) -> Iterator[Finding]:
    """The findings of one direction."""
    flood, t = situation.floods.get(direction), situation.flood_thresholds
    if flood is None or flood.high("syn_packets", 0) < t.syn_packets:
        return
    if not _is_unfinished(flood, t):
        yield from _s3(situation, flood, direction)
        return
    if _is_scan(flood, t):
        yield from _s4(situation, flood, direction)
    elif flood.low("syn_pps") >= t.flood_syn_pps:
        yield from _s1(situation, flood, direction)
        yield from _s5(flood, t, direction)
    yield from _s2(situation, flood, t, direction)
    yield from _s3(situation, flood, direction)


def completed_most(flood: Flood) -> float:
    """Handshakes completed, at most: as the flow table tells, else as the acknowledging packets allow."""
    unseen = flood.high("handshakes_evicted", 0)  # what became of these nobody saw
    return min(flood.high("handshakes_completed") + unseen, flood.high("handshakes_completed_max"))


def _base(flood: Flood) -> float:
    """SYNs that could have been answered: a policed one can't be, and a real client sends it again; one that was sent
    just now may still be. Handshakes are followed from before the policer: as many of its SYNs are young as of all.
    """
    syns = flood.value("syn_packets") or 0
    young = min(1.0, flood.high("half_open_young", 0) / syns) if syns else 0.0
    return (syns - (flood.value("syn_policed_packets") or 0)) * (1 - young)


def unfinished_share(flood: Flood) -> float | None:
    """Share of the SYNs that could have been answered of which no handshake came, at least; None where none could."""
    base = _base(flood)
    return 1 - min(1.0, completed_most(flood) / base) if base else None


def _is_unfinished(flood: Flood, t: FloodThresholds) -> bool:
    share = unfinished_share(flood)
    return share is not None and _base(flood) >= min(t.syn_packets, 10) and share >= t.unfinished_share


def _is_scan(flood: Flood, t: FloodThresholds) -> bool:
    if flood.low("syn_pps") < t.scan_syn_pps or flood.high("syn_per_endpoint") > t.scan_repeats:
        return False
    return flood.low("syn_pps") * flood.low("destination_top_share") < t.scan_pps_at_one


def _common(flood: Flood) -> dict[str, object]:
    """Evidence that all of them show."""
    names = ("syn_packets", "syn_pps", "syn_share", "syn_policed_packets", "synack_back_packets", "seconds")
    found: dict[str, object] = {name: _rounded(flood.value(name)) for name in names}
    found["handshakes_completed_at_most"] = round(completed_most(flood))
    return found


def _rounded(value: float | None) -> float | None:
    return value if value is None or value == int(value) else round(value, 4)


def _bounded(flood: Flood, *names: str) -> dict[str, object]:
    """Estimates with their bounds."""
    found: dict[str, object] = {}
    for name in names:
        known = flood.known(name)
        if known is not None:
            found[name] = _rounded(known.value)
            if known.error:
                found[f"{name}_error"] = _rounded(known.error)
    return found


def _s1(situation: Situation, flood: Flood, direction: Direction) -> Iterator[Finding]:
    target, whom = flood.leading("endpoint"), situation.set_up.word(direction)
    if situation.has_guest:
        whom = "from the guest" if direction is Direction.OUTBOUND else "at the guest"
    yield Finding(
        finding_id("S1", direction),
        "S1",
        "critical",
        f"SYN flood {whom}: {flood.value('syn_pps'):,.0f}/s, {_percent(flood.value('syn_share'))} of "
        f"packets, {_completed(flood)}",
        {
            **_common(flood),
            **_bounded(flood, "sources", "destinations", "destination_ports", "syn_per_endpoint", "source_entropy"),
            "top_target": target.key if target else None,
        },
        _stop_it(situation, direction),
    )


def _stop_it(situation: Situation, direction: Direction) -> str:
    if not situation.has_guest:
        return (
            "Find out whose packets these are: watch the taps of this host. SYN cookies (net.ipv4.tcp_syncookies) help "
            "the target, a filter near the source helps the line."
        )
    if direction is Direction.OUTBOUND:
        return (
            "Stop it at the guest, or drop its SYNs here; a limit in bits alone lets many through (see P6). The "
            "policer can't tell good SYNs from bad."
        )
    return "SYN cookies in the guest (net.ipv4.tcp_syncookies), and a filter upstream: until then the SYNs arrive here."


def _s2(situation: Situation, flood: Flood, t: FloodThresholds, direction: Direction) -> Iterator[Finding]:
    """By addresses or MACs that are known to be the port's, or by sources that can't be true.

    What is not a guest's port carries the packets of many: there only the latter prove anything.
    """
    if direction is not Direction.OUTBOUND or flood.low("syn_pps") < t.spoofed_pps:
        return
    proofs = []
    own = situation.own_addresses
    if situation.has_guest and flood.low("foreign_mac_share") >= t.spoofed_share:
        proofs.append(f"{_about(flood, 'foreign_mac_share')} have a MAC that is not the port's")
    if situation.has_guest and flood.low("unknown_source_share") >= t.spoofed_share:
        proofs.append(f"{_about(flood, 'unknown_source_share')} are not from the port's addresses")
    if flood.low("impossible_source_share") >= t.impossible_share:
        proofs.append(f"{_about(flood, 'impossible_source_share')} from addresses that no host has")
    many = flood.low("sources") >= t.spoofed_sources and not flood.high("synack_back_packets", 1)
    if situation.has_guest and not proofs and not own.ips and many:
        proofs.append(f"{_about(flood, 'sources')} sources behind one port, and none of them gets an answer")
    if not proofs:
        return
    yield Finding(
        finding_id("S2", direction),
        "S2",
        "critical",
        f"spoofed sources: {proofs[0]}",
        {
            "proofs": proofs,
            "own_addresses": words(own.ips),
            "known_from": list(own.sources),
            **_bounded(flood, "unknown_source_share", "foreign_mac_share", "impossible_source_share", "sources"),
            **_bounded(flood, "source_entropy", "syn_pps"),
            "top_sources": [one.key for one in flood.top if one.kind == "source"][:3],
        },
        "Port security or an anti-spoofing filter (libvirt's clean-traffic, Neutron's port_security_enabled) drops "
        "them. If this guest forwards for others, add their addresses to allowed_address_pairs.",
    )


def _s3(situation: Situation, flood: Flood, direction: Direction) -> Iterator[Finding]:
    """Raise S3: headers that no TCP stack sends (no options, sequence numbers that are not random)."""
    t = situation.flood_thresholds
    if flood.low("syn_pps") < t.tool_pps or flood.high("sampled_syn_packets", 0) < t.syn_packets:
        return
    proofs = [text for word, text in _SEQUENCES.items() if flood.low(f"sequence_{word}_share") >= t.tool_share]
    if flood.low("no_options_share") >= t.tool_share:
        proofs.append("no TCP options, not even an MSS")
    if not proofs:
        return
    print_of = flood.leading("fingerprint")
    habits = [name for name in flood.measures if name.endswith("_share") and name.startswith(_HABITS)]
    yield Finding(
        finding_id("S3", direction),
        "S3",
        "warning",
        f"a tool made these SYNs, no TCP stack: {', '.join(proofs)}",
        {
            "proofs": proofs,
            "fingerprint": print_of.key if print_of else None,
            **_bounded(flood, "no_options_share", *(f"sequence_{word}_share" for word in _SEQUENCES), *habits),
            **_bounded(flood, "syn_pps", "sampled_syn_packets"),
        },
        f"No program that uses {'the guest' if situation.has_guest else 'its host'}'s own TCP sends such packets: look "
        "for malware or a load tester in it. The fingerprint serves as a filter.",
    )


def _s4(situation: Situation, flood: Flood, direction: Direction) -> Iterator[Finding]:
    destination, port = flood.leading("destination"), flood.leading("port")
    at_one = flood.low("destination_top_share") >= 0.5 and destination is not None
    what = f"port scan of {destination.key}" if at_one and destination else "address sweep"
    if not at_one and port is not None and 2 * port.packets > (flood.value("syn_packets") or 0):
        what += f" for port {port.key}"
    yield Finding(
        finding_id("S4", direction),
        "S4",
        "warning",
        f"{what}: {flood.value('syn_pps'):,.0f} SYNs/s, each to another {'port' if at_one else 'address or port'}, "
        f"{_completed(flood)}",
        {
            **_common(flood),
            **_bounded(flood, "syn_per_endpoint", "destinations", "destination_ports"),
            **_bounded(flood, "destination_entropy", "port_entropy", "destination_top_share"),
            "top_ports": [one.key for one in flood.top if one.kind == "port"][:5],
        },
        f"The {'guest' if situation.has_guest else 'sender'} looks for open services of others: an infected machine "
        "that spreads, or somebody's security scan. Ask its owner.",
    )


def _s5(flood: Flood, t: FloodThresholds, direction: Direction) -> Iterator[Finding]:
    target = flood.leading("endpoint")
    if target is None or flood.low("endpoint_top_share") < t.target_share:
        return
    yield Finding(
        finding_id("S5", direction),
        "S5",
        "info",
        f"the flood has one target: {target.key} gets {_about(flood, 'endpoint_top_share')}",
        {"target": target.key, "packets": target.packets, "packets_error": target.error_max}
        | _bounded(flood, "endpoint_top_share", "destinations", "destination_ports"),
        "A filter for this address and port stops the flood and nothing else; its owner will want to know.",
    )


def _completed(flood: Flood) -> str:
    most = 1 - (unfinished_share(flood) or 0.0)
    return f"at most {_percent(most)} completed" if most else "none completed"


def _percent(share: float | None) -> str:
    if share is None:
        return "? %"
    value = 100 * share
    return "<1 %" if 0 < value < 1 else ">99 %" if 99 < value < 100 else f"{value:.0f} %"


def _about(flood: Flood, name: str) -> str:
    """`about 98 % of the SYNs`, `100 % …` where it is exact, `about 65,500` for a number of something."""
    found = flood.known(name)
    if found is None:
        return "?"
    if flood.measures[name].unit != "of 1":
        return f"{'about ' if found.error else ''}{found.value:,.0f}"
    if found.error and found.value > 0.99:  # it may be all of them, or not quite
        return ">99 % of the SYNs" if found.low > 0.99 else f"at least {_percent(found.low)} of the SYNs"
    return f"{'about ' if found.error else ''}{_percent(found.value)} of the SYNs"
