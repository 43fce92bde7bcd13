# SPDX-License-Identifier: Apache-2.0
"""One file for each command: it parses options and connects the parts, and holds no other logic."""
