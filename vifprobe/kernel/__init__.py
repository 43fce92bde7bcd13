# SPDX-License-Identifier: Apache-2.0
"""The kernel side: compile, load, attach, read counters. The only importer of bcc, ctypes and mmap."""
