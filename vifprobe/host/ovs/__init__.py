# SPDX-License-Identifier: Apache-2.0
"""Open vSwitch: what its database holds of a port."""
