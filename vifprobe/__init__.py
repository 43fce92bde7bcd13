# SPDX-License-Identifier: Apache-2.0
"""What a VM's tap sends, what its policer does with it, and whether the limit is really there.

``with vifprobe.Probe("tap0") as probe: for reading in probe.readings(seconds=1): ...`` watches live;
``vifprobe.load("capture/").readings()`` gives the same :class:`Reading` from a capture.
"""

# No imports of the standard library: a command first restricts where these come from (vifprobe/process/startup.py).
from vifprobe.version import __version__

TYPE_CHECKING = False  # as typing's
if TYPE_CHECKING:
    from typing import Any

    from vifprobe.capture.reader import load
    from vifprobe.model.layout import Direction, PacketClass, Verdict
    from vifprobe.model.reading import Reading
    from vifprobe.session.probe import Probe

__all__ = ["Direction", "PacketClass", "Probe", "Reading", "Verdict", "__version__", "load"]

#: Name -> the module that has it: imported on first use, since numpy and the rest take longer than most commands need.
_HOMES = {
    "Direction": "vifprobe.model.layout",
    "PacketClass": "vifprobe.model.layout",
    "Probe": "vifprobe.session.probe",
    "Reading": "vifprobe.model.reading",
    "Verdict": "vifprobe.model.layout",
    "load": "vifprobe.capture.reader",
}


def __getattr__(name: str) -> "Any":
    """What `__all__` lists."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'vifprobe' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
