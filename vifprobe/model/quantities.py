# SPDX-License-Identifier: Apache-2.0
"""Kinds of whole numbers in the tables of a capture. A plain ``int`` there is a count of our own: 0 to 2^63 - 1."""

from __future__ import annotations

from typing import Annotated

#: Nanoseconds on the monotonic clock from the capture's start; negative for what began just before it.
Moment = Annotated[int, "from the capture's start"]

#: A value that the kernel or somebody's configuration gives, or a sum of some: of 64 bits each, rates in bytes times 8.
Foreign = Annotated[int, "given by others"]

#: The difference of two such values: negative where a gauge, such as a queue's backlog, has become smaller.
Change = Annotated[int, "difference"]

#: A number that the kernel gives something, of 32 bits.
Code = Annotated[int, "the kernel's number"]
