# SPDX-License-Identifier: Apache-2.0
"""Text for programs and browsers: JSON, CSV, the HTML page."""
