# SPDX-License-Identifier: Apache-2.0
"""rtnetlink: links, neighbours, namespaces, and events with the processes that caused them."""
