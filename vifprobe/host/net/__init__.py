# SPDX-License-Identifier: Apache-2.0
"""rtnetlink: links, neighbours, namespaces, and events with who caused them."""
