# SPDX-License-Identifier: Apache-2.0
"""Declared and installed limits of the watched taps, and the findings about them.

| module | does |
|---|---|
| `audit` | joins what the host is set to do, as the analysis wants it |
| `auditor` | audits the watched taps in a thread, while they are watched |
| `snapshot` | one audit of one tap, for `vifprobe policer` |
| `port_addresses` | addresses that the host knows to be those of a tap's guest |
| `limit_states` | whether each limit is in force, from reading to reading |
| `limit_events` | what netlink events mean for a tap's limits |
"""
