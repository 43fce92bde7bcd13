# SPDX-License-Identifier: Apache-2.0
"""Raw Ethernet frames and what a probe must say of each.

| module | holds |
|---|---|
| `frames`, `extensions` | builders of raw Ethernet frames, right or deliberately wrong |
| `syns` | SYNs as TCP stacks, flood tools and scanners write them |
| `table`, `case`, `cases/` | the packet table: every row and corner of the class rules, with the expected answer |
| `rules` | an independent model of packet class and wire bytes |
| `dissector` | tshark's opinion on a frame |
| `fuzz`, `shrink` | random frames, and the smallest frame that still shows a difference |
| `recording` | pcap and pcapng files, valid and invalid |
"""
