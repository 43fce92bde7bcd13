# SPDX-License-Identifier: Apache-2.0
"""What this host is set to do: interfaces, taps and who is behind them, and every limit that is set on them.

Everything here only looks: no request changes anything on the host, and no packet socket is opened. All of it answers
for the network namespace of the calling thread.

| module | answers |
|---|---|
| `taps` | the taps, with domain, instance, port, bridge and QEMU process |
| `declared` | every limit that somebody asks for: libvirt, Open vSwitch |
| `limits` | every installed limit, from tc and nft, in one shape |
| `counters` | all counters that a probe's count can be held against |
| `net/` | interfaces, namespaces, neighbours; what changes on a link, and who changed it |
| `tc/`, `nft/` | qdiscs, filters, actions; nftables chains that are hooked on an interface |
| `ovs/`, `libvirt/` | what the Open vSwitch database and libvirt's live XML say of a port |
| `procs/` | who holds a tap open, and what packets cost this host |
"""
