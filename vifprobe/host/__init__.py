# SPDX-License-Identifier: Apache-2.0
"""Configuration of this host: interfaces, taps with their guests, and all limits that are set on them.

Everything here only reads: no request changes the host, and no packet socket is opened. All results are for the network
namespace of the calling thread.

| module | answers |
|---|---|
| `taps` | the taps, with domain, instance, port, bridge and QEMU process |
| `declared` | every declared limit: user, libvirt, Open vSwitch |
| `limits` | every installed limit, from tc and nft, in one shape |
| `counters` | all kernel counters that a probe's counts can be compared with |
| `net/` | interfaces, namespaces, neighbours; what changes on a link, and who changed it |
| `tc/`, `nft/` | qdiscs, filters, actions; nftables chains that are hooked on an interface |
| `ovs/`, `libvirt/` | a port's data in the Open vSwitch database and in libvirt's live XML |
| `procs/` | the process that holds a tap, and the CPU time of packets |
"""
