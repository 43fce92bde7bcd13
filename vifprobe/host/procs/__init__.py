# SPDX-License-Identifier: Apache-2.0
"""Processes and threads: the process that holds a tap open, the role of a thread, the load of the CPUs."""
