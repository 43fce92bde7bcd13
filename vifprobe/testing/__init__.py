# SPDX-License-Identifier: Apache-2.0
"""Test kit: packets whose class is known, taps in throw-away network namespaces, and a bounded flood into them.

| module | holds |
|---|---|
| `packets/` | raw Ethernet frames, the packet table, and independent opinions on the class of each |
| `net/` | private network namespaces, taps and what stands behind them |
| `traffic/` | bounded floods, real TCP connections, a VM's tap under load |
| `token_bucket` | the ideal token bucket in Python: what the one in bpf/ is compared with |
| `waiting` | wait for a condition with a deadline |

Everything that needs the kernel acts on the calling thread's network namespace: enter a private one first.
"""
