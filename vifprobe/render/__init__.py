# SPDX-License-Identifier: Apache-2.0
"""Data to text: screens, lines, JSON, CSV. No I/O but the stream that is given."""
