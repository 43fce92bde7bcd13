# SPDX-License-Identifier: Apache-2.0
"""What this host is set to do: interfaces, taps and who is behind them, and every limit that is set on them.

Everything here only looks: no request changes anything on the host, and no packet socket is opened. All of it answers
for the network namespace of the calling thread.

| module | answers |
|---|---|
| `links` | which interfaces are there, and their counters |
| `netns` | enter a namespace; which one holds an interface |
| `taps` | the taps, with domain, instance, port, bridge and QEMU process |
| `processes`, `libvirt` | who holds a tap open; what libvirt's live XML says |
| `tc`, `tc_*` | qdiscs, classes, filters and police actions on an interface |
| `nft`, `nft_rules` | limits and drop counters in nft chains hooked on an interface |
| `declared` | every limit that somebody asks for: libvirt, Open vSwitch |
| `ovs`, `ovsdb`, `meters` | what the Open vSwitch database holds of a port; its OpenFlow meters |
| `limits` | every installed limit, from tc and nft, in one shape |
| `counters` | all counters that a probe's count can be held against |
| `load`, `uplink` | what packets cost this host; the line by which they leave it |
| `events`, `changes`, `askers` | what changes on a link, and who changed it |
| `netlink`, `names` | shared foundations |
"""
