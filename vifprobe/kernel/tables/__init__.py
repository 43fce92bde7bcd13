# SPDX-License-Identifier: Apache-2.0
"""Read what the programs count: maps as numpy arrays, without a system call for each cell.

| module | reads |
|---|---|
| `maps`, `mapped`, `ring` | maps in general, mapped arrays, mapped rings |
| `counters`, `cells` | packets by key |
| `timeline` | time bins |
| `samples`, `syn` | sampled headers; SYN measures |
| `inflight` | inbound packets in flight: between the hook and their verdict |
| `sched`, `slices` | CPU time and context switches |
| `swapped` | translates hooks into the guest's directions |
"""
