# SPDX-License-Identifier: Apache-2.0
"""What a VM's tap sends, what its policer does with it, and whether the limit is really there.

``with vifprobe.Probe("tap0") as probe: for reading in probe.readings(seconds=1): ...`` watches live;
``vifprobe.load("capture/").readings()`` gives the same :class:`Reading` from a capture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vifprobe.version import __version__

if TYPE_CHECKING:
    from vifprobe.analysis.reading import Reading
    from vifprobe.capture.reader import load
    from vifprobe.probe import Probe

__all__ = ["Probe", "Reading", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import on first use: numpy, bcc and the rest take longer than most commands need them."""
    if name == "Probe":
        from vifprobe.probe import Probe

        return Probe
    if name == "Reading":
        from vifprobe.analysis.reading import Reading

        return Reading
    if name == "load":
        from vifprobe.capture.reader import load

        return load
    raise AttributeError(f"module 'vifprobe' has no attribute {name!r}")
