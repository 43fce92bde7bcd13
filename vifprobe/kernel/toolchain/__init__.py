# SPDX-License-Identifier: Apache-2.0
"""Code that is needed only because of bcc: compile, cache, and change instructions before they are loaded.

The README in this folder has the reason for each module, with measurements.
"""
