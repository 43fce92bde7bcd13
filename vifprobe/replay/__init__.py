# SPDX-License-Identifier: Apache-2.0
"""Recordings (pcap, pcapng) through the kernel's own program.

| module | does |
|---|---|
| `player` | runs a recording's frames through `bpf/progs/test_run.c` and makes a reading of it |
| `recording` | opens a file of either format and tells how far it has been read |
| `pcap`, `pcapng`, `packet` | the formats, and what they share |
| `window` | reads a file of any size in bounded memory |
| `notes` | what was noticed on the way |
"""
