# SPDX-License-Identifier: Apache-2.0
"""A live run: joins the kernel side, the host side and the analysis.

| module | does |
|---|---|
| `probe` | opens, reads and ends a run; what commands and notebooks use |
| `components` | makes the parts of a run from what was asked for |
| `hooks`, `tap_hooks` | attach to all taps and detach; the hooks of one tap |
| `tap` | one tap while it is watched: its limits as they change |
| `event_loop`, `tap_events` | waits for events of the taps and applies them; which concern one tap |
| `readings` | turns counters into readings |
| `error_counts` | counts of packets that the programs could not treat correctly |
| `drop_attribution` | attributes drops: to the policer or to another program |
| `counter_check`, `inbound_totals` | compare the probe's counts with those that the kernel keeps |
| `host_cost`, `coverage` | CPU time of this host; intervals in which a tap was unwatched |
| `audit/` | declared and installed limits, joined; the effect of events on them |
"""
