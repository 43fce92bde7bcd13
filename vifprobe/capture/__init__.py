# SPDX-License-Identifier: Apache-2.0
"""The capture folder: what is in it (rows, manifest), how it is written, how it is read back.

`rows` and `csvio` define the tables, `tables` makes their rows from counted cells, `folder` keeps files safe,
`writer` and `reader` join them. Nothing here looks at the kernel or the host.
"""
