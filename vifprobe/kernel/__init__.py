# SPDX-License-Identifier: Apache-2.0
"""The kernel side: load, attach, features. The only importer of bcc, ctypes and mmap."""
