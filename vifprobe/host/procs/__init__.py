# SPDX-License-Identifier: Apache-2.0
"""Processes and threads: who holds a tap open, who a thread is, how loaded the CPUs are."""
