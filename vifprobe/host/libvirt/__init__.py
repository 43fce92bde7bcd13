# SPDX-License-Identifier: Apache-2.0
"""libvirt: the live XML of running domains."""
