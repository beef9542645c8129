"""`python -m clary report`: JSON files of both benchmark drivers as one HTML page that needs nothing else."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from typing import Any

from . import _plots
from ._extra import need
from ._text import error_text, time_text

DESCRIPTION = """\
One self-contained HTML page from JSON files of 'clary bench --json' and 'python -m clary bench --json'. Speed against
peers, error against speed, share of the peak, growth with length where a file has problems that differ in l alone,
overhead, and what auto chose for each head."""

# What `clary bench --reads`, `--dense` and `--one-thread` add to a result.
_EXTRAS = {
    "GB/s": ("reads", "gb_per_s", "{:.3g}"),
    "of plain reads": ("reads", "share", "{:.1%}"),
    "density": ("dense", "density", "{:.3f}"),
    "over density x dense": ("dense", "over_density", "{:.3f}"),
    "x 1 thread": ("one_thread", "speedup", "{:.2f}"),
    "busy": ("one_thread", "busy", "{:.1%}"),
}
_TIME, _ERRORS = ("median_s", "p10_s", "p90_s", "runs"), ("relative_l2", "relative_l1", "rmse", "cosine", "rows")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=pathlib.Path, metavar="results.json")
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True, metavar="report.html")


def run(options: argparse.Namespace) -> int:
    """Raises: ValueError naming the file, OSError, MissingExtra."""
    options.output.write_text(page([load(path) for path in options.files]))
    print(f"{options.output}: {options.output.stat().st_size / 1024:.0f} KiB from {len(options.files)} files")
    return 0


@dataclasses.dataclass(frozen=True)
class Row:
    """One result. speedup: over the faster SDPA where the file has one for the problem, else over "exact".

    extras: columns that not every file has, with what is in them.
    """

    problem: str
    threads: int
    preset: str
    start: str
    time: dict[str, Any] | None
    errors: dict[str, Any]
    gops: float | None
    peak_share: float | None
    speedup: float | None
    extras: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        if self.start in ("", self.preset) or self.preset.startswith("sdpa"):
            return self.preset
        return f"{self.preset} ({self.start})"


@dataclasses.dataclass(frozen=True)
class File:
    """One JSON file. against: what speed-ups are over."""

    name: str
    environment: dict[str, Any]
    rows: list[Row]
    overhead: list[dict[str, Any]]
    layers: list[dict[str, Any]]
    against: str

    def threads(self) -> list[int]:
        return sorted({row.threads for row in self.rows})

    def extras(self) -> list[str]:
        """The columns of this file beside those of every file."""
        return [name for name in _EXTRAS if any(name in row.extras for row in self.rows)]


def load(path: pathlib.Path) -> File:
    """Raises: ValueError naming the file and what is wrong with it, OSError."""
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: is no JSON ({error})") from None
    if not isinstance(document, dict) or not isinstance(document.get("environment"), dict):
        raise ValueError(f"{path}: has no 'environment'; files of clary bench --json have one")
    if not any(document.get(part) for part in ("results", "overhead", "layers")):
        raise ValueError(f"{path}: has none of 'results', 'overhead' and 'layers' in it")
    try:
        results = [_checked(result, document["environment"]) for result in document.get("results", [])]
        overhead = document.get("overhead", [])
        for entry in overhead:
            _require(entry, ("call", "problem", "time"))
            _require(entry["time"], _TIME)
        layers = document.get("layers", [])
        for layer in layers:
            _require(layer, ("layer", "heads"))
            if not layer["heads"]:
                raise KeyError(f"no heads in {layer['layer']}")
            for head in layer["heads"]:
                _require(head, ("batch", "head", "precision", "first_error", "last_error"))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: a result is not what clary bench writes ({error})") from None
    peers = any(result["precision"].startswith("sdpa") for result in results)
    against = "the faster SDPA" if peers else "exact"
    return File(path.name, document["environment"], _rows(results), overhead, layers, against)


def _require(entry: Any, keys: tuple[str, ...]) -> None:
    for key in keys:
        if not isinstance(entry, dict) or key not in entry:
            raise KeyError(f"no {key} in {str(entry)[:60]}")


def _checked(result: Any, environment: dict[str, Any]) -> dict[str, Any]:
    """A result with the number of threads in it."""
    _require(result, ("problem", "precision", "errors"))
    _require(result["errors"], _ERRORS)
    if "time" in result:
        _require(result["time"], _TIME)
        _require(result, ("gops",))
    threads = result.get("threads", environment.get("threads"))
    if not isinstance(threads, int):
        raise KeyError("no threads")
    return {**result, "threads": threads}


def _rows(results: list[dict[str, Any]]) -> list[Row]:
    fastest: dict[tuple[str, int, bool], float] = {}  # of SDPA, and of exact
    for r in results:
        is_peer = r["precision"].startswith("sdpa")
        if "time" in r and (is_peer or r["precision"] == "exact"):
            which = (r["problem"], r["threads"], is_peer)
            fastest[which] = min(fastest.get(which, float("inf")), r["time"]["median_s"])
    rows = []
    for r in results:
        exact = fastest.get((r["problem"], r["threads"], False))
        base = fastest.get((r["problem"], r["threads"], True), exact)
        speedup = base / r["time"]["median_s"] if "time" in r and base is not None else None
        rows.append(
            Row(
                r["problem"],
                r["threads"],
                r["precision"],
                r.get("start", ""),
                r.get("time"),
                r["errors"],
                r.get("gops"),
                r.get("peak_share"),
                speedup,
                _extras(r),
            )
        )
    return rows


def _extras(result: dict[str, Any]) -> dict[str, str]:
    found = {}
    for name, (part, key, form) in _EXTRAS.items():
        value = result.get(part, {}).get(key)
        if value is not None:
            found[name] = form.format(value).replace("%", " %")
    return found


def page(files: list[File]) -> str:
    """The HTML. Raises: MissingExtra."""
    jinja2 = need("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"seconds": time_text, "error": error_text}
    drawn = [(file, _plots.draw(file)) for file in files]
    return str(environment.get_template("report.html.j2").render(files=drawn))
