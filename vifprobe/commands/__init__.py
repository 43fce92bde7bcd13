# SPDX-License-Identifier: Apache-2.0
"""One file a command: parse options, wire the parts together, no logic of its own."""
