# SPDX-License-Identifier: Apache-2.0
"""Everything that exists because of bcc: compile, cache, and change instructions before they are loaded.

The README beside this says why each module is there and what it brings.
"""
