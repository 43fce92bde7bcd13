# SPDX-License-Identifier: Apache-2.0
"""What escaped the programs is in the interval's reading, the run's, and the notes."""

from __future__ import annotations

import pytest

from vifprobe import Probe
from vifprobe.kernel import libbpf
from vifprobe.kernel.load import Programs
from vifprobe.model.layout import Direction
from vifprobe.render.export.jsonlines import reading_object
from vifprobe.testing.net.taps import Tap


@pytest.fixture
def attached(monkeypatch: pytest.MonkeyPatch) -> list[Programs]:
    """The programs of each Probe that is opened."""
    made: list[Programs] = []
    loading = Programs.attach_verdicts

    def attach(programs: Programs) -> None:
        made.append(programs)
        loading(programs)

    monkeypatch.setattr(Programs, "attach_verdicts", attach)
    return made


def test_late_verdicts_and_recursion_misses_are_told(
    tap: Tap, attached: list[Programs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They can't be had at will: the counts of one CPU and of one program are set, as the kernel would."""
    with Probe(tap.name, directions=(Direction.OUTBOUND,)) as probe:
        readings = probe.readings(0.1, 0.7)
        quiet = next(readings)
        (programs,) = attached
        programs.table("cpu_states", writable=True)["late_verdicts"][0] += 1009
        (drop,) = [fd for name, fd in programs.named() if name == "drop"]
        monkeypatch.setattr(libbpf, "recursion_misses", lambda fd: 13 * (fd == drop))
        *others, total = readings
    assert (quiet.late_verdicts, quiet.recursion_misses) == (0, 0)
    assert not [note for note in quiet.notes if "recursion" in note or "dropped after" in note]
    assert sum(reading.late_verdicts for reading in others) == total.late_verdicts == 1009
    assert sum(reading.recursion_misses for reading in others) == total.recursion_misses == 13
    assert [note for note in total.notes if note.startswith("1,009 packets were dropped after")]
    assert [note for note in total.notes if "13 events (recursion_misses)" in note]
    assert (reading_object(total)["late_verdicts"], reading_object(total)["recursion_misses"]) == (1009, 13)


def test_programs_that_are_gone_keep_their_count(
    tap: Tap, attached: list[Programs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libbpf, "recursion_misses", lambda fd: 7)
    with Probe(tap.name, directions=(Direction.OUTBOUND,)):
        (programs,) = attached
        before = programs.recursion_misses
        assert before == 7 * len(programs.loaded) > 0
        programs._unload("vifprobe_drop")
        assert programs.recursion_misses == before
