# SPDX-License-Identifier: Apache-2.0
"""A live run: joins the kernel side, the host side and the analysis.

| module | does |
|---|---|
| `probe` | opens, reads and ends a run; what commands and notebooks use |
| `components` | makes the parts of a run from what was asked for |
| `hooks`, `tap` | attach to the taps and detach; one tap while it is watched |
| `event_loop` | waits for events of the taps and applies them |
| `readings` | turns counters into readings |
| `error_counts` | counts of packets that the programs could not treat correctly |
| `drop_attribution` | attributes drops: to the policer or to another program |
| `counter_check`, `inbound_totals` | compare the probe's counts with those that the kernel keeps |
| `host_cost`, `coverage` | CPU time of this host; intervals in which a tap was unwatched |
| `audit/` | declared and installed limits, joined; the effect of events on them |
"""
