# SPDX-License-Identifier: Apache-2.0
"""Traffic into taps.

| module | holds |
|---|---|
| `flood` | a writer bounded in frames and seconds, which knows exactly how many it wrote |
| `connections` | real TCP connections of the running kernel |
| `scenario` | a VM's tap as a compute node has it: limited, on a bridge, with a guest that can flood |
"""
