# SPDX-License-Identifier: Apache-2.0
"""S6: a guest that fills its bucket and empties it at once, again and again."""

from __future__ import annotations

from collections.abc import Iterator

from vifprobe.analysis.findings.situation import Situation, bits, finding_id, size, span
from vifprobe.model.layout import Direction
from vifprobe.model.reading import Finding


def of(situation: Situation, direction: Direction) -> Iterator[Finding]:
    """The findings of one direction."""
    seen, t = situation.bursts.get(direction), situation.flood_thresholds
    limit = situation.set_up.main_enforced(direction)
    if seen is None or seen.unknown_packets or limit is None or limit.rate_bps is None:
        return
    sharp = [
        one for one in seen.bursts if one.over_rate >= t.burst_over_rate and one.duration_ns <= t.burst_ms * 1_000_000
    ]
    if len(sharp) < t.bursts:
        return
    worst = max(sharp, key=lambda one: one.over_rate)
    packets = sum(one.packets for one in sharp)
    syns = sum(one.syn_packets for one in sharp)
    yield Finding(
        finding_id("S6", direction),
        "S6",
        "warning" if 2 * syns > packets else "info",
        f"bursts: {len(sharp)} times a full bucket was emptied at once, {size(worst.charged_bytes)} in "
        f"{span(worst.duration_ns)}: {worst.over_rate:.1f} times the rate",
        {
            "bursts": len(sharp),
            "rate_bps": limit.rate_bps,
            "burst_bytes": limit.at_once_bytes,
            "worst_charged_bytes": worst.charged_bytes,
            "worst_duration_ns": worst.duration_ns,
            "worst_over_rate": round(worst.over_rate, 2),
            "packets": packets,
            "syn_packets": syns,
            **{name: found.value for name, found in seen.measures()},
        },
        f"On average the limit holds. A burst of {size(limit.at_once_bytes or 0)} lets that much through at line rate "
        f"after each silence; with a smaller one the peaks come closer to {bits(limit.rate_bps)}.",
    )
