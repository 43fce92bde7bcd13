# SPDX-License-Identifier: Apache-2.0
"""From counted cells and bins to rows and back: nothing is lost, and every order is total."""

from __future__ import annotations

import numpy as np
import pytest
from capture_kit import BIN_NS, FLOOD, FLOOD_PACKETS, OUT, REASONS, SYMBOLS, bins_like, cell, cells, plain, random_cells
from hypothesis import given

from vifprobe.capture.rows import DropRow
from vifprobe.capture.tables import (
    bins_of,
    cells_of,
    drop_rows,
    has_known_bucket,
    histogram_rows,
    lost_rows,
    timeline_rows,
    without,
)
from vifprobe.model.layout import BIN, SIZE_EDGES_BYTES, PacketClass, Verdict, size_bucket
from vifprobe.model.reading import Cells, count


@given(random_cells())
def test_histogram_rows_give_the_cells_back(table: Cells) -> None:
    rows = histogram_rows(table, "tap0")
    assert plain(cells_of(rows)) == plain(without(table, "tap", "reason", "location"))
    lost = lost_rows(table, "tap0", REASONS)
    assert plain(cells_of(rows, lost)) == plain(without(table, "tap", "location"))
    assert count(cells_of(rows)) == count(table)


@given(random_cells())
def test_histogram_keys_are_unique_and_in_a_total_order(table: Cells) -> None:
    keys = [(*row[:4], row[4] is None, row[4] or 0, *row[6:8]) for row in histogram_rows(table, "tap0")]
    assert keys == sorted(set(keys))
    assert histogram_rows(table[::-1], "tap0") == histogram_rows(table, "tap0")


@pytest.mark.parametrize("bucket", range(len(SIZE_EDGES_BYTES)))
def test_both_edges_of_each_bucket_hold_what_they_say(bucket: int) -> None:
    """Edge - 1, edge and edge + 1 land where the row's own edges say."""
    edge = int(SIZE_EDGES_BYTES[bucket])
    for frame in (max(edge - 1, 0), edge + 1, edge):
        (row,) = histogram_rows(cells(cell(5, frame)), "tap0")
        assert row.size_min_bytes is not None
        assert row.size_min_bytes <= frame
        assert row.size_max_bytes is None or frame <= row.size_max_bytes
        assert has_known_bucket(row)
        assert cells_of([row])["size"] == [size_bucket(frame)]
    assert (row.size_max_bytes is None) == (bucket == len(SIZE_EDGES_BYTES) - 1)


def test_foreign_bucket_edges_are_known_as_such() -> None:
    (row,) = histogram_rows(cells(cell(5, 60)), "tap0")
    assert not has_known_bucket(row._replace(size_min_bytes=57))
    assert not has_known_bucket(row._replace(size_max_bytes=None))


def test_cells_of_several_taps_get_their_names() -> None:
    table = cells(cell(5, tap=3), cell(7, tap=1))
    rows = histogram_rows(table, {1: "tapb", 3: "tapa"})
    assert [(row.tap, row.packets) for row in rows] == [("tapa", 5), ("tapb", 7)]


def test_the_tap_number_of_a_reading_means_nothing() -> None:
    table = cells(cell(5, tap=3), cell(7, tap=1))
    assert [row.packets for row in histogram_rows(table, "tap0")] == [12]


def test_drops_are_summed_by_reason_and_function() -> None:
    assert drop_rows(FLOOD, "tap0", REASONS, SYMBOLS.get) == [
        DropRow("tap0", OUT, "NETFILTER_DROP", "0x00000099", 113, 113 * 98),
        DropRow("tap0", OUT, "TC_INGRESS", "nf_hook_slow", 68_744, 68_744 * 54),
    ]


def test_unknown_reason_is_empty_and_unnamed_reason_a_number() -> None:
    table = cells(
        cell(5, verdict=Verdict.POLICED),
        cell(7, verdict=Verdict.DROPPED, reason=0x30007, location=0xFFFFFFFF),
        cell(11, verdict=Verdict.PASSED, reason=6),
    )
    assert [row[2:5] for row in drop_rows(table, "tap0", REASONS)] == [("", "", 5), ("0x30007", "0xffffffff", 7)]


def test_lost_rows_tell_which_packets_each_reason_took() -> None:
    rows = lost_rows(FLOOD, "tap0", REASONS)
    assert [(row.packet_class, row.verdict, row.reason_code, row.reason, row.packets) for row in rows] == [
        (PacketClass.TCP_SYN, Verdict.POLICED, 6, "TC_INGRESS", 68_744),
        (PacketClass.ICMP, Verdict.DROPPED, 9, "NETFILTER_DROP", 113),
    ]


def test_more_lost_than_counted_is_refused() -> None:
    rows, lost = histogram_rows(FLOOD, "tap0"), lost_rows(FLOOD, "tap0", REASONS)
    with pytest.raises(ValueError, match="more packets were lost than counted"):
        cells_of(rows, [lost[0]._replace(packets=68_745)])


@given(random_cells())
def test_drops_add_up_to_what_was_policed_and_dropped(table: Cells) -> None:
    lost = np.isin(table["verdict"], [Verdict.POLICED, Verdict.DROPPED])
    rows = drop_rows(table, "tap0", REASONS)
    assert sum(row.packets for row in rows) == count(table[lost]).packets
    assert sum(row.frame_bytes for row in rows) == count(table[lost]).frame_bytes


def test_timeline_and_histogram_add_up_to_the_same() -> None:
    bins = bins_like(FLOOD, 0, 12_345_678_901)
    rows = timeline_rows(bins, {0: "tap0"}, 12_345_678_901, BIN_NS)
    histogram = histogram_rows(FLOOD, "tap0")
    assert sum(row.packets for row in rows) == sum(row.packets for row in histogram) == FLOOD_PACKETS
    assert sum(row.frame_bytes for row in rows) == sum(row.frame_bytes for row in histogram)
    for verdict in Verdict:
        in_time = sum(row.packets for row in rows if row.verdict == verdict)
        assert in_time == sum(row.packets for row in histogram if row.verdict == verdict)
    syn = sum(row.packets for row in histogram if row.packet_class == PacketClass.TCP_SYN)
    assert sum(row.syn_packets for row in rows) == syn == 100_003


def test_timeline_is_relative_in_time_order_and_without_empty_bins() -> None:
    bins = np.array([(0, 0, 1, 30, 7, 1, 0), (1, 0, 1, 20, 0, 0, 0), (1, 1, 2, 10, 5, 1, 5)], dtype=BIN)
    rows = timeline_rows(bins, {0: "a", 1: "b"}, 20, 10)
    assert [(row.tap, row.start_ns, row.duration_ns, row.packets) for row in rows] == [
        ("b", -10, 10, 5),
        ("a", 10, 10, 7),
    ]


def test_bins_come_back_on_the_monotonic_clock_and_add_up() -> None:
    bins = np.array([(0, 0, 1, 10, 5, 300, 5), (1, 0, 2, 10, 7, 420, 0), (0, 0, 1, 20, 11, 660, 2)], dtype=BIN)
    late = np.array([(0, 0, 1, 10, 2, 120, 1)], dtype=BIN)
    names = {0: "a", 1: "b"}
    rows = [*timeline_rows(bins, names, 13, 10), *timeline_rows(late, names, 13, 10)]
    back = bins_of(rows, {"a": 0, "b": 1}, 13)
    assert back.tolist() == [(0, 0, 1, 10, 7, 420, 6), (1, 0, 2, 10, 7, 420, 0), (0, 0, 1, 20, 11, 660, 2)]


def test_nothing_gives_nothing() -> None:
    assert histogram_rows(cells(), "tap0") == []
    assert len(cells_of([])) == len(bins_of([], {}, 0)) == 0
    assert timeline_rows(np.zeros(0, BIN), {}, 0, 1) == []
