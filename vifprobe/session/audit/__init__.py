# SPDX-License-Identifier: Apache-2.0
"""Declared and installed limits of the watched taps, and the findings about them.

| module | does |
|---|---|
| `audit` | joins declared and installed limits in the terms of the analysis |
| `auditor` | audits the watched taps in a thread, while they are watched |
| `tap_audit` | the audit of one tap: its limits, its changes, its findings |
| `snapshot` | one audit of one tap, for `vifprobe policer` |
| `port_addresses` | known addresses of a tap's guest |
| `limit_states` | state of each limit (in force or not), from reading to reading |
| `limit_events` | netlink events as events of a tap's limits |
"""
