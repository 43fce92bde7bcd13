# SPDX-License-Identifier: Apache-2.0
"""Limits and drop counters of nftables chains that are hooked on an interface."""
