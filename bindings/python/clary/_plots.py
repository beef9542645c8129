"""The pictures of a report, as SVG in data URLs."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ._extra import need

if TYPE_CHECKING:
    from .report import File, Row

# Colours of Okabe and Ito, which differ for every kind of colour vision; peers have hollow marks.
_STYLES = {
    "exact": ("#0072B2", "o"),
    "bf16": ("#E69F00", "s"),
    "int8_f16": ("#CC79A7", "^"),
    "int8": ("#009E73", "D"),
    "int4": ("#D55E00", "v"),
    "bf16x3": ("#F0E442", "p"),
    "auto": ("#000000", "x"),
    "sdpa_bf16": ("#8A5A00", "P"),
    "sdpa_f32": ("#56B4E9", "P"),
}
_OTHER = ("#777777", "*")
_SETTINGS = {
    "font.size": 9,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "clary",
    "legend.frameon": False,
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """title and note are text, url a data URL."""

    title: str
    note: str
    url: str


def draw(file: File) -> list[Picture]:
    """What the file has data for. Raises: MissingExtra."""
    need("matplotlib").use("Agg")
    pyplot = need("matplotlib.pyplot")
    pictures = []
    with pyplot.rc_context(_SETTINGS):
        if any(row.speedup is not None for row in file.rows):
            note = f"Median times, relative to {file.against}; right of the line is faster."
            axis = f"times as fast as {file.against}"
            pictures.append(Picture("Speed", note, _dots(pyplot, file, "speedup", axis)))
            note = "Each mark is one problem. Down is more accurate, right is faster."
            pictures.append(Picture("Error against speed", note, _error_against_speed(pyplot, file, axis)))
        if any(row.peak_share is not None for row in file.rows):
            note = "GOP/s over what the same threads reach on registers, in the arithmetic of the preset."
            pictures.append(Picture("Share of the peak", note, _dots(pyplot, file, "peak_share", "% of the peak")))
        families = _families(file.rows)
        if families:
            note = "Problems that differ in length alone. Medians; bands reach from the 10th to the 90th percentile."
            pictures.append(Picture("Growth with length", note, _growth(pyplot, families)))
        if file.layers:
            note = "What auto chose for each head. Numbers: error sampled at the first precision, relative L2 in %."
            pictures.append(Picture("Precision by layer and head", note, _layers(pyplot, file.layers)))
    return pictures


def _style(preset: str) -> dict[str, Any]:
    colour, marker = _STYLES.get(preset, _OTHER)
    hollow = preset.startswith("sdpa")
    return {"color": colour, "marker": marker, "markerfacecolor": "white" if hollow else colour, "markersize": 6}


def _presets(rows: Sequence[Row]) -> list[str]:
    there = {row.preset for row in rows}
    return [name for name in _STYLES if name in there] + sorted(there - set(_STYLES))


def _problems(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.problem for row in rows))


def _threads_text(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"


def _legend(figure: Any, axes: Any, presets: Sequence[str]) -> None:
    for preset in presets:
        axes.plot([], [], linestyle="none", label=preset, **_style(preset))
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles))
    figure.legend(unique.values(), unique.keys(), loc="outside upper center", ncols=8)


def _ratio_axis(axis: Any) -> None:
    """A logarithmic axis that is written in plain numbers."""
    ticker = need("matplotlib.ticker")
    low, high = axis.get_view_interval()
    axis.set_major_locator(ticker.LogLocator(base=2) if high > 4 * low else ticker.MaxNLocator(6))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(ticker.NullLocator())


def _dots(pyplot: Any, file: File, field: str, label: str) -> str:
    """A line for each problem, a panel for each number of threads, a mark for each preset."""
    problems, counts = _problems(file.rows), file.threads()
    height = 1.3 + 0.3 * len(problems)
    figure, panels = pyplot.subplots(
        1, len(counts), figsize=(4.2 + 3.4 * len(counts), height), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, threads in zip(panels[0], counts):
        for row in file.rows:
            value = getattr(row, field)
            if row.threads == threads and value is not None:
                x = value * 100 if field == "peak_share" else value
                panel.plot(x, problems.index(row.problem), **_style(row.preset))
        panel.set_title(_threads_text(threads))
        panel.set_xlabel(label)
        if field == "peak_share":
            panel.set_xlim(left=0)
        else:
            panel.set_xscale("log", base=2)
            _ratio_axis(panel.xaxis)
            panel.axvline(1, color="#555555", linewidth=1)
    panels[0][0].set_yticks(range(len(problems)), problems, family="monospace", size=8)
    panels[0][0].set_ylim(len(problems) - 0.5, -0.5)
    _legend(figure, panels[0][0], _presets(file.rows))
    return _url(pyplot, figure)


def _error_against_speed(pyplot: Any, file: File, label: str) -> str:
    counts = file.threads()
    figure, panels = pyplot.subplots(
        1, len(counts), figsize=(1 + 4.6 * len(counts), 4.2), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, threads in zip(panels[0], counts):
        for row in file.rows:
            if row.threads == threads and row.speedup is not None and row.errors["relative_l2"] > 0:
                panel.plot(row.speedup, row.errors["relative_l2"], linestyle="none", **_style(row.preset))
        panel.set_title(_threads_text(threads))
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        _ratio_axis(panel.xaxis)
        panel.axvline(1, color="#555555", linewidth=1)
        panel.set_xlabel(label)
    panels[0][0].set_ylabel("relative L2 error against float64")
    _legend(figure, panels[0][0], _presets(file.rows))
    return _url(pyplot, figure)


_Family = tuple[str, int]  # the problem without its length, threads


def _families(rows: Sequence[Row]) -> dict[_Family, dict[int, list[Row]]]:
    """Rows by family and length, where a family has at least three lengths."""
    families: dict[_Family, dict[int, list[Row]]] = {}
    for row in rows:
        length = re.search(r"(?:^| )l(\d+)(?= |$)", row.problem)
        if length is None or row.time is None:
            continue
        rest = " ".join((row.problem[: length.start()] + row.problem[length.end() :]).split())
        families.setdefault((rest, row.threads), {}).setdefault(int(length[1]), []).append(row)
    return {family: lengths for family, lengths in families.items() if len(lengths) >= 3}


def _growth(pyplot: Any, families: dict[_Family, dict[int, list[Row]]]) -> str:
    """Time above, GOP/s and the share of the peak below, a column for each family."""
    columns = len(families)
    rows = [row for by_length in families.values() for each in by_length.values() for row in each]
    kinds: dict[str, Callable[[Row], float | None]] = {"time, ms": _milliseconds, "GOP/s": lambda row: row.gops}
    if any(row.peak_share is not None for row in rows):
        kinds["% of the peak"] = lambda row: math.nan if row.peak_share is None else 100 * row.peak_share
    figure, panels = pyplot.subplots(
        len(kinds),
        columns,
        figsize=(0.8 + 3.3 * columns, 1 + 2.7 * len(kinds)),
        sharex="col",
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for column, ((rest, threads), by_length) in enumerate(families.items()):
        lengths = sorted(by_length)
        for panel, value in zip(panels[:, column], kinds.values()):
            _lines(panel, by_length, value)
        top, bottom = panels[0][column], panels[-1][column]
        top.set_title(f"{rest}\n{_threads_text(threads)}", size=9, family="monospace")
        _bands(top, by_length)
        top.set_xscale("log", base=2)
        top.set_yscale("log")
        bottom.set_xticks(lengths, [str(n) for n in lengths], rotation=45)
        bottom.set_xlabel("queries and keys")
    for panel, label in zip(panels[:, 0], kinds):
        panel.set_ylabel(label)
        if label != "time, ms":
            panel.set_ylim(bottom=0)
    _legend(figure, panels[0][0], _presets(rows))
    return _url(pyplot, figure)


def _milliseconds(row: Row, key: str = "median_s") -> float:
    return 1e3 * row.time[key] if row.time is not None else math.nan


def _by_preset(by_length: dict[int, list[Row]]) -> dict[str, list[tuple[int, Row]]]:
    """Points in the order of length."""
    points = [(n, row) for n in sorted(by_length) for row in by_length[n]]
    names = _presets([row for _, row in points])
    return {name: [(n, row) for n, row in points if row.preset == name] for name in names}


def _lines(panel: Any, by_length: dict[int, list[Row]], value: Callable[[Row], float | None]) -> None:
    for preset, points in _by_preset(by_length).items():
        style = _style(preset) | {"markersize": 4, "linewidth": 1.2}
        panel.plot([n for n, _ in points], [value(row) for _, row in points], **style)


def _bands(panel: Any, by_length: dict[int, list[Row]]) -> None:
    for preset, points in _by_preset(by_length).items():
        low, high = ([_milliseconds(row, key) for _, row in points] for key in ("p10_s", "p90_s"))
        colour = _style(preset)["color"]
        panel.fill_between([n for n, _ in points], low, high, color=colour, alpha=0.15, linewidth=0)


def _layers(pyplot: Any, layers: Sequence[dict[str, Any]]) -> str:
    """A row for each layer and batch entry, a cell for each head."""
    keys = [(layer["layer"], b) for layer in layers for b in sorted({head["batch"] for head in layer["heads"]})]
    several = any(b > 0 for _, b in keys)
    heads = 1 + max(head["head"] for layer in layers for head in layer["heads"])
    figure, axes = pyplot.subplots(figsize=(2.2 + 0.62 * heads, 1.6 + 0.42 * len(keys)), layout="constrained")
    used = set()
    for layer in layers:
        for head in layer["heads"]:
            y, x = keys.index((layer["layer"], head["batch"])), head["head"]
            colour = _STYLES.get(head["precision"], _OTHER)[0]
            used.add(head["precision"])
            axes.add_patch(pyplot.Rectangle((x - 0.47, y - 0.44), 0.94, 0.88, color=colour, alpha=0.35, linewidth=0))
            error = head["first_error"]
            axes.text(x, y, "-" if error is None else f"{100 * error:#.2g}", ha="center", va="center", size=8)
    axes.set_xlim(-0.6, heads - 0.4)
    axes.set_ylim(len(keys) - 0.4, -0.6)
    axes.set_xticks(range(heads))
    axes.set_yticks(range(len(keys)), [f"{name}, entry {b}" if several else name for name, b in keys])
    axes.set_xlabel("head")
    axes.grid(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    names = [name for name in _STYLES if name in used] + sorted(used - set(_STYLES))
    patches = [pyplot.Rectangle((0, 0), 1, 1, color=_STYLES.get(name, _OTHER)[0], alpha=0.35) for name in names]
    figure.legend(patches, names, loc="outside upper center", ncols=6)
    return _url(pyplot, figure)


def _url(pyplot: Any, figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
