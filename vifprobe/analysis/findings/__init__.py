# SPDX-License-Identifier: Apache-2.0
"""Findings: one module a group of patterns, their thresholds, and what they are drawn from."""
