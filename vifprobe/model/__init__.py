# SPDX-License-Identifier: Apache-2.0
"""What everything else speaks of: codes, records, readings, limits, units. Imports numpy and the errors only."""
