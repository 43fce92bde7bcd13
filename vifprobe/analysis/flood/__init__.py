# SPDX-License-Identifier: Apache-2.0
"""SYN-flood measures: from exact cells, and from sampled headers with error bounds. Pure numpy, bounded memory."""
