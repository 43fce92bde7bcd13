# SPDX-License-Identifier: Apache-2.0
"""Private network namespaces and the devices in them.

| module | holds |
|---|---|
| `netns` | private network namespaces |
| `taps`, `tun`, `macvtap` | taps, tuns and macvtaps, opened as QEMU or a VPN opens them |
| `cable` | a guest with its own TCP stack behind a tap |
| `links` | nft ingress limits, bridges and veth pairs |
| `netlink_bytes` | netlink attributes as bytes |
"""
