# SPDX-License-Identifier: Apache-2.0
"""Text for people: the live screen, interval lines, summaries."""
