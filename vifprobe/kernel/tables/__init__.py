# SPDX-License-Identifier: Apache-2.0
"""Read what the programs count: maps as numpy arrays, without a system call a cell.

| module | reads |
|---|---|
| `maps`, `mapped`, `ring` | maps in general, mapped arrays, mapped rings |
| `counters`, `cells` | packets by key |
| `timeline` | time bins |
| `samples`, `syn` | sampled headers; SYN measures |
| `inflight` | inbound packets between the hook and their end |
| `sched`, `slices` | CPU time and context switches |
| `swapped` | turns hooks into the guest's directions |
"""
