# SPDX-License-Identifier: Apache-2.0
"""Conclusions about a tap's limits, each with the numbers that prove it. Without its proof no finding is raised.

| pattern | in |
|---|---|
| P1, P4, P11, P12, P13: how limits are set | set_up |
| P2, P3, P9: what changed, and what came of it | events |
| P5, P6, P7, P8, P10, P14, P15: what the traffic shows | traffic |
| P16: packets that could not be counted | missed |
| P17: programs that decide packets before they are counted | ahead |
| P19, P20, P23: what an installed limit or the kind of a port shows by itself | installed |
| P21: the table of connection tracking | conntrack |
| S1 to S5: what its SYNs are | flood |
| S6: what its bursts are | bursts |

Pure: what is known comes in a :class:`Situation`. The numbers from which on something counts are in `thresholds`.
"""

from __future__ import annotations

from vifprobe.analysis.findings import ahead, bursts, conntrack, events, flood, installed, missed, set_up, traffic
from vifprobe.analysis.findings.situation import Situation
from vifprobe.model.reading import Finding

_PARTS = (
    *(missed, ahead),
    *(set_up, installed, events, traffic, flood, bursts, conntrack),
)
_ORDER = {"critical": 0, "warning": 1, "info": 2}


def findings(situation: Situation) -> tuple[Finding, ...]:
    """All findings, the worst first; the same one keeps its id as long as it holds."""
    found = [
        finding for part in _PARTS for direction in situation.directions for finding in part.of(situation, direction)
    ]
    return tuple(sorted(found, key=_place))


def _place(one: Finding) -> tuple[int, str, int, str]:
    return _ORDER.get(one.severity, 0), one.pattern[0], int(one.pattern[1:]), one.id
