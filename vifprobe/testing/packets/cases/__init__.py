# SPDX-License-Identifier: Apache-2.0
"""The rows of the packet table, one file a layer. `vifprobe.testing.packets.table` joins what their `cases()` give."""
