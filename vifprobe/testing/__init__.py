# SPDX-License-Identifier: Apache-2.0
"""Test kit: packets whose class is known, taps in throw-away network namespaces, and a bounded flood into them.

| module | holds |
|---|---|
| `frames`, `extensions` | builders of raw Ethernet frames, right or deliberately wrong |
| `rules` | an independent model of packet class and wire bytes |
| `table` | the packet table: every row and corner of the class rules (in `cases`), with what a probe must say of each |
| `netns` | private network namespaces |
| `taps` | taps, and TSO frames written to them |
| `macvtap` | macvtaps |
| `links` | nft ingress limits, bridges and veth pairs |
| `flood` | a writer bounded in frames and seconds |
| `waiting` | wait for a condition with a deadline |

Everything that needs the kernel acts on the calling thread's network namespace: enter a private one first.
"""
