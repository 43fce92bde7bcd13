# SPDX-License-Identifier: Apache-2.0
"""Plots of a capture as SVG text. matplotlib is imported here only, and only for `vifprobe report`: compute nodes that
watch and capture need none.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vifprobe.capture.rows import HostRow
from vifprobe.capture.tables import Bins
from vifprobe.errors import MissingPieceError
from vifprobe.model.layout import Direction, Verdict, size_range_bytes
from vifprobe.model.reading import Reading
from vifprobe.render.units import clean, clip, si

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Colours that people who see red and green alike tell apart (Okabe and Ito), darker for what was lost.
COLOURS = {
    Verdict.PASSED: "#009e73",
    Verdict.QUEUED: "#56b4e9",
    Verdict.POLICED: "#e69f00",
    Verdict.DROPPED: "#d55e00",
    Verdict.UNKNOWN: "#999999",
}
_COLUMNS_MAX = 400  # points along a timeline: bins are added up to fit
_SCOPES_MAX = 64
_LABEL_COLUMNS = 24
_GAPS_MAX = 100  # drawn into a plot; the table has more
_SIZE_INCHES = (9.0, 3.2)
_HOST_COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7", "#f0e442", "#999999")


def _axes(height: float = _SIZE_INCHES[1]) -> tuple[Any, Axes]:
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPieceError(
            f"the page's plots need matplotlib, which can't be imported: {error}.",
            "pip install 'vifprobe[report]', or copy the capture folder to a machine that has it: no root is needed.",
        ) from error
    # Text stays text: small, and it can be searched; the same capture gives the same page.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "vifprobe", "font.size": 9, "text.parse_math": False})
    figure = Figure(figsize=(_SIZE_INCHES[0], height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Any) -> str:
    out = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of glyphs and of room for names from the capture: nothing that helps a user
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def _label(text: str) -> str:
    """A name from the capture, short enough that it leaves room for the plot."""
    return clip(clean(text), _LABEL_COLUMNS)


def _engineering(axes: Axes, unit: str, on_x: bool = False) -> None:
    from matplotlib.ticker import EngFormatter

    (axes.xaxis if on_x else axes.yaxis).set_major_formatter(EngFormatter(unit=unit, sep=" "))


def timeline(
    bins: Bins,
    start_ns: int,
    bin_ns: int,
    measure: str = "packets",
    limit: float | None = None,
    moments: Sequence[tuple[float, str]] = (),
    gaps: Sequence[tuple[float, float]] = (),
) -> str:
    """Stacked rates by verdict over the seconds of the run; `bins` of one tap and direction.

    measure: packets (shown per second), frame_bytes (shown as bit/s) or syn_packets. limit: a line, in the shown unit.
    moments: (seconds, what happened). gaps: (from, to) seconds that nobody watched.
    """
    figure, axes = _axes()
    first = int(bins["start_ns"].min())
    count = (int(bins["start_ns"].max()) - first) // bin_ns + 1
    step = -(-count // _COLUMNS_MAX)
    seconds = (first - start_ns + np.arange(-(-count // step)) * step * bin_ns) / 1e9
    width = step * bin_ns / 1e9
    verdicts = [verdict for verdict in COLOURS if np.any(bins["verdict"] == verdict)]
    layers = [
        rates(bins[bins["verdict"] == verdict], first, bin_ns * step, len(seconds), measure) for verdict in verdicts
    ]
    edges = np.append(seconds, seconds[-1] + width)
    axes.stackplot(
        edges,
        [np.append(layer, layer[-1]) for layer in layers],
        step="post",
        colors=[COLOURS[verdict] for verdict in verdicts],
        labels=[verdict.name.lower() for verdict in verdicts],
    )
    if limit is not None:
        axes.axhline(limit, color="#000000", linestyle="--", linewidth=1, label="declared limit")
    for number, (begin, end) in enumerate(gaps[:_GAPS_MAX]):
        # A label that begins with _ is left out of the legend: one of them is enough.
        axes.axvspan(begin, end, color="#cc79a7", alpha=0.4, label="_" * (number > 0) + "not watched")
    for at, what in moments:
        axes.axvline(at, color="#0072b2", linewidth=0.8)
        place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "rotation": 90, "va": "top", "ha": "right"}
        axes.annotate(_label(what), (at, 1), size=7, **place)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds from the start")
    _engineering(axes, "bit/s" if measure == "frame_bytes" else "/s")
    axes.legend(loc="upper left", ncols=6, frameon=False, fontsize=8, bbox_to_anchor=(0, 1.12))
    return _svg(figure)


def rates(bins: Bins, first_ns: int, width_ns: int, columns: int, measure: str) -> npt.NDArray[np.float64]:
    """Return the rates of some bins in columns of `width_ns` from `first_ns` on; bytes as bits."""
    where = (bins["start_ns"] - first_ns) // width_ns
    sums = np.bincount(where, weights=bins[measure].astype(np.float64), minlength=columns)
    return sums * (8 if measure == "frame_bytes" else 1) * 1e9 / width_ns


def classes(reading: Reading, direction: Direction) -> str:
    """One bar a packet class, packets by verdict."""
    seen = sorted(reading.classes(direction), key=lambda code: reading.offered(direction, code).packets)
    figure, axes = _axes(height=0.8 + 0.25 * len(seen))
    rows = [(code.name.lower(), reading.where(direction, packet_class=code)) for code in seen]
    _stacked(axes, rows, flat=True)
    _engineering(axes, "", on_x=True)
    axes.set_xlabel("packets")
    return _svg(figure)


def sizes(reading: Reading, direction: Direction) -> str:
    """One bar a size bucket, packets by verdict; both edges written out."""
    cells = reading.where(direction)
    rows = []
    for bucket in np.unique(cells["size"]).tolist():
        lower, upper = size_range_bytes(bucket)
        name = "unknown" if lower is None else f"{lower}+" if upper is None else f"{lower}-{upper}"
        rows.append((name, cells[cells["size"] == bucket]))
    figure, axes = _axes()
    _stacked(axes, rows, flat=False)
    axes.tick_params(axis="x", labelrotation=60)
    axes.set_xlabel("frame bytes")
    _engineering(axes, "")
    return _svg(figure)


def _stacked(axes: Axes, rows: Sequence[tuple[str, Any]], flat: bool) -> None:
    labels = [label for label, _ in rows]
    base = np.zeros(len(rows))
    for verdict, colour in COLOURS.items():
        values = np.array([cells["packets"][cells["verdict"] == verdict].sum() for _, cells in rows], dtype=float)
        if not values.any():
            continue
        if flat:
            axes.barh(labels, values, left=base, color=colour, label=verdict.name.lower())
        else:
            axes.bar(labels, values, bottom=base, color=colour, label=verdict.name.lower())
        base += values
    for place, total in enumerate(base):  # a class of 7 packets beside a flood of a million is seen by its number only
        text, at = si(total), (total, place) if flat else (place, total)
        sides = ("left", "center") if flat else ("center", "bottom")
        axes.annotate(f" {text}" if flat else text, at, size=7, ha=sides[0], va=sides[1])
    axes.legend(frameon=False, fontsize=8, loc="lower right" if flat else "upper right")


def host(rows: Sequence[HostRow]) -> str:
    """CPU time by scope over the run, in cores; scopes that use the most, the rest together."""
    figure, axes = _axes()
    edges, by_scope = cores(rows)
    layers = _largest(by_scope, len(_HOST_COLOURS))
    axes.stackplot(
        edges,
        [np.append(values, values[-1]) for values in layers.values()],
        step="post",
        labels=[_label(scope.replace("_", " ")) for scope in layers],
        colors=_HOST_COLOURS[: len(layers)],
    )
    axes.set_ylabel("cores")
    axes.set_xlabel("seconds from the start")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", ncols=4, frameon=False, fontsize=8)
    return _svg(figure)


def cores(rows: Sequence[HostRow]) -> tuple[list[float], dict[str, npt.NDArray[np.float64]]]:
    """Edges of at most _COLUMNS_MAX columns in seconds, one more than columns, and cores used in each by scope.

    Intervals are added up to fit, and scopes beyond _SCOPES_MAX, which no run has.
    """
    moments = sorted({(row.start_ns, row.duration_ns) for row in rows if row.duration_ns})
    step = -(-len(moments) // _COLUMNS_MAX)
    columns = -(-len(moments) // step)
    places = {moment: number // step for number, moment in enumerate(moments)}
    spans = np.zeros(columns)
    for (_, duration_ns), place in places.items():
        spans[place] += duration_ns
    by_scope: dict[str, npt.NDArray[np.float64]] = {}
    for row in rows:
        if row.cpu_ns is not None and row.duration_ns:
            scope = row.scope if row.scope in by_scope or len(by_scope) < _SCOPES_MAX else "more scopes"
            used = by_scope.setdefault(scope, np.zeros(columns))
            used[places[row.start_ns, row.duration_ns]] += row.cpu_ns
    edges = [start / 1e9 for start, _ in moments[::step]] + [sum(moments[-1]) / 1e9]
    return edges, {scope: used / spans for scope, used in by_scope.items()}


def _largest(by_scope: Mapping[str, npt.NDArray[np.float64]], most: int) -> dict[str, npt.NDArray[np.float64]]:
    ranked = sorted(by_scope, key=lambda scope: -by_scope[scope].sum())
    if len(ranked) <= most:
        return {scope: by_scope[scope] for scope in ranked}
    rest = sum((by_scope[scope] for scope in ranked[most - 1 :]), np.zeros(len(by_scope[ranked[0]])))
    return {**{scope: by_scope[scope] for scope in ranked[: most - 1]}, "the rest": rest}
