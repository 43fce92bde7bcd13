# SPDX-License-Identifier: Apache-2.0
"""By how much two limits may differ and be the same, and by how much more may pass than a limit lets through.

All who ask whether a limit is the declared one, or whether it holds, ask here.

- Two rates are the same within 1 %. A policer keeps whole bytes per second (tcf_police_params.rate), and the programs
  that set it round to kbit/s: half a kbit/s is 0.5 % of 100 kbit/s. The smallest mistake that is made, kilo against
  kibi, is 2.4 %.
- Two bursts are the same within 3 % and 200 bytes. Whether their unit holds 1000 or 1024 differs between releases of
  the programs that set them, and changes nothing that a guest could use; the kernel keeps a burst as a time in ticks of
  64 ns, and two of these are 200 bytes at 12.5 Gbit/s.
- Passed may be above rate x time + burst by 2 %: 1 % as the installed rate may be so much above the declared one and is
  the same; 1 % as counts and time are not read at one instant (10 ms of a second, on a busy host).
"""

from __future__ import annotations

SAME_RATE = 0.01
SAME_BURST = 0.03
BURST_ROUNDING_BYTES = 200
ABOVE = SAME_RATE + 0.01


def same_rate(declared: float, installed: float) -> bool:
    """Return True if two rates are the same but for rounding."""
    return abs(declared - installed) <= SAME_RATE * declared


def same_burst(declared: int | None, installed: int | None) -> bool | None:
    """Return True if two bursts in bytes are the same but for rounding; None where one is not known."""
    if declared is None or installed is None:
        return None
    return abs(declared - installed) <= SAME_BURST * declared + BURST_ROUNDING_BYTES


def most(rate: float, seconds: float, burst: float) -> float:
    """The most that passes in a time under a limit that holds: in bits or in packets, as all of the three are."""
    return (rate * seconds + burst) * (1 + ABOVE)
