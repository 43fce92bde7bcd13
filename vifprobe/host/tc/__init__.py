# SPDX-License-Identifier: Apache-2.0
"""Qdiscs, classes, filters and actions of an interface, as tc shows them."""
