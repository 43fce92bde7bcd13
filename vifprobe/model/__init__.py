# SPDX-License-Identifier: Apache-2.0
"""Terms of all other packages: codes, records, readings, limits, units. Imports numpy and the errors only."""
