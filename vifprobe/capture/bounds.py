# SPDX-License-Identifier: Apache-2.0
"""Upper bounds of what is read of a capture folder. The writer keeps to them, so that its folders can be read.

A folder may come from someone else: without bounds, one sparse file or one number would ask for all of a host's memory.
"""

from __future__ import annotations

MIB = 1 << 20
#: manifest.json and findings.json: 200 taps take less than 1 MiB.
JSON_BYTES_MAX = 16 * MIB
#: A CSV file; timeline.csv of one tap grows by about 100 MiB an hour with bins of 10 ms.
CSV_BYTES_MAX = 512 * MIB
#: Rows are kept as Python objects, about 400 bytes each; those of timeline.csv as an array, 36 bytes each.
ROWS_MAX, TIMELINE_ROWS_MAX = 2_000_000, 8_000_000
#: samples.pcapng is hashed, but not read: 10 million samples, the most that can be asked for, take about 5 GiB.
SAMPLES_BYTES_MAX = 8192 * MIB
#: One line of a CSV file, and its cells.
LINE_BYTES_MAX, COLUMNS_MAX = MIB, 100
#: Objects in objects in JSON: what is written has 5.
JSON_DEPTH_MAX = 32
#: Taps of one capture.
TAPS_MAX = 4096
#: Nanoseconds from the start of a host or of a capture: 73 years. Sums and differences of two fit into 64 bits.
SPAN_BITS = 61
SPAN_NS_MAX = (1 << SPAN_BITS) - 1
