"""python -m clary report: every row is in the page, the page needs nothing else, and bad files are named."""

from __future__ import annotations

import base64
import html
import json
import pathlib
import re
from typing import Any
from xml.etree import ElementTree

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from clary import report  # noqa: E402
from clary.__main__ import main  # noqa: E402

ROOT = pathlib.Path(__file__).parents[2]
CPP_RESULTS = [p for p in (ROOT / "bench" / "results").glob("*/users*.json") if '"compiler"' in p.read_text()]
USERS = CPP_RESULTS[0]  # of the C++ driver


def result(problem: str, threads: int, precision: str, seconds: float, error: float = 1e-3) -> dict[str, Any]:
    return {
        "problem": problem,
        "threads": threads,
        "precision": precision,
        "start": "int8" if precision == "auto" else precision,
        "time": {"median_s": seconds, "p10_s": seconds * 0.9, "p90_s": seconds * 1.2, "runs": 7},
        "errors": {"relative_l2": error, "relative_l1": error, "rmse": error, "cosine": 0.999, "rows": 9},
        "gops": 12.5,
        "peak_gops": 50.0,
        "peak_share": 0.25,
    }


def document() -> dict[str, Any]:
    """Three lengths, two numbers of threads, two presets and two peers; one result that was not timed."""
    times = {"auto": 1.0, "exact": 2.0, "sdpa_bf16": 4.0, "sdpa_f32": 3.0}
    results = [
        result(f"b1 hq2 l{n} d64 <bf16>", threads, name, n * 1e-3 * factor)
        for n in (64, 128, 256)
        for threads in (1, 2)
        for name, factor in times.items()
    ]
    untimed = {key: results[0][key] for key in ("threads", "errors")} | {"problem": "l9 checked", "precision": "int8"}
    heads = [
        {"batch": 0, "head": h, "precision": p, "raises": 0, "first_error": e, "last_error": e}
        for h, (p, e) in enumerate([("int8", 0.0123), ("exact", None)])
    ]
    return {
        "environment": {"cpu": "A <CPU>", "threads": [1, 2]},
        "results": [*results, untimed],
        "overhead": [{"call": "NumPy", "problem": "l1", "time": results[0]["time"]}],
        "layers": [{"layer": "layer7", "heads": heads}],
    }


def write(path: pathlib.Path, value: Any) -> pathlib.Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def make(tmp_path: pathlib.Path, *files: pathlib.Path) -> str:
    out = tmp_path / "r.html"
    assert main(["report", *map(str, files), "-o", str(out)]) == 0
    return out.read_text()


def cells(page: str) -> list[list[str]]:
    """Text of the rows of all tables."""
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.S)
    return [
        [
            html.unescape(re.sub(r"<[^>]*>", "", cell)).strip()
            for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.S)
        ]
        for row in rows
    ]


def pictures(page: str) -> dict[str, ElementTree.Element]:
    """The SVGs by title."""
    found = re.findall(r'<h3>([^<]*)</h3>\s*<p class="note">[^<]*</p>\s*<figure><img src="([^"]*)"', page)
    prefix = "data:image/svg+xml;base64,"
    assert all(url.startswith(prefix) for _, url in found)
    return {title: ElementTree.fromstring(base64.b64decode(url[len(prefix) :])) for title, url in found}


def axes(svg: ElementTree.Element) -> int:
    return sum(group.get("id", "").startswith("axes_") for group in svg.iter("{http://www.w3.org/2000/svg}g"))


def test_every_row_is_there(tmp_path: pathlib.Path) -> None:
    page = make(tmp_path, write(tmp_path / "a.json", document()))
    rows = cells(page)
    for r in document()["results"]:
        wanted = [r["problem"], str(r["threads"]), "auto (int8)" if r["precision"] == "auto" else r["precision"]]
        (row,) = [row for row in rows if row[:3] == wanted]
        if "time" in r:
            speedup = {"auto": "3.00", "exact": "1.50", "sdpa_bf16": "0.75", "sdpa_f32": "1.00"}[r["precision"]]
            assert row[5:9] == ["7", speedup, "12.5", "25 %"]
        else:
            assert row[3:9] == ["-"] * 6
        assert row[9:] == ["0.1 %", "0.1 %", "1.0e-03", "0.999000", "9"]
    assert ["NumPy", "l1", "64 ms", "57.6 ms", "76.8 ms"] in rows
    assert ["layer7", "0", "0", "int8", "1.23 %", "1.23 %"] in rows
    assert ["layer7", "0", "1", "exact", "-", "-"] in rows
    assert "A &lt;CPU&gt;" in page and "<CPU>" not in page and "<bf16>" not in page


def test_pictures(tmp_path: pathlib.Path) -> None:
    """One for each thing the file has data for, with a mark for each result."""
    drawn = pictures(make(tmp_path, write(tmp_path / "a.json", document())))
    assert list(drawn) == [
        "Speed",
        "Error against speed",
        "Share of the peak",
        "Growth with length",
        "Precision by layer and head",
    ]
    uses = {title: len(svg.findall(".//{*}use[@style]")) for title, svg in drawn.items()}
    assert uses["Speed"] >= 24 and uses["Share of the peak"] >= 24 and uses["Growth with length"] >= 72
    assert (
        axes(drawn["Growth with length"]) == 3 * 2
    )  # time, GOP/s and the share of the peak, for each number of threads


def test_growth_without_peaks(tmp_path: pathlib.Path) -> None:
    """Panels of time and GOP/s are left."""
    value = document()
    for r in value["results"]:
        r.pop("peak_share", None)
    drawn = pictures(make(tmp_path, write(tmp_path / "a.json", value)))
    assert "Share of the peak" not in drawn and axes(drawn["Growth with length"]) == 2 * 2


def test_columns_that_a_file_has(tmp_path: pathlib.Path) -> None:
    """What clary bench --reads, --dense and --one-thread measured has columns, and only there."""
    value = document()
    value["results"][0] |= {"reads": {"gb_per_s": 17.26, "share": 0.857}}
    value["results"][0] |= {"one_thread": {"speedup": 1.957, "busy": 0.981}}
    value["results"][1] |= {"dense": {"density": 0.25, "over_density": 1.1404}}
    value["results"][2] |= {"dense": {"density": 0}}  # nothing is visible
    rows = cells(make(tmp_path, write(tmp_path / "a.json", value)))
    header = next(row for row in rows if row[0] == "problem")
    more = header[9:15]
    assert more == ["GB/s", "of plain reads", "density", "over density x dense", "x 1 thread", "busy"]
    first = rows.index(header) + 1
    assert [row[9:15] for row in rows[first : first + 3]] == [
        ["17.3", "85.7 %", "-", "-", "1.96", "98.1 %"],
        ["-", "-", "0.250", "1.140", "-", "-"],
        ["-", "-", "0.000", "-", "-", "-"],
    ]
    plain = cells(make(tmp_path, write(tmp_path / "a.json", document())))
    assert len(next(row for row in plain if row[0] == "problem")) == len(header) - 6


def test_committed_results(tmp_path: pathlib.Path) -> None:
    """A file of the C++ driver, which knows no peers: speed-ups are over exact."""
    page = make(tmp_path, USERS)
    rows = cells(page)
    committed = json.loads(USERS.read_text())
    results, threads = committed["results"], str(committed["environment"]["threads"])
    assert len(results) >= 40
    for r in results:
        name = r["precision"] if r["start"] == r["precision"] else f"{r['precision']} ({r['start']})"
        (row,) = [row for row in rows if row[:3] == [r["problem"], threads, name]]
        assert row[-1] == str(r["errors"]["rows"]) and row[-2] == f"{r['errors']['cosine']:.6f}"
        if r["precision"] == "exact":
            assert row[6] == "1.00"
    assert "relative to exact" in page and list(pictures(page)) == ["Speed", "Error against speed", "Share of the peak"]


def test_a_page_needs_nothing_else(tmp_path: pathlib.Path) -> None:
    page = make(tmp_path, write(tmp_path / "a.json", document()), USERS)
    assert not re.search(r"https?://|//[a-z]|<script|<link|@import|url\(", page)
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 8 and all(source.startswith("data:") for source in sources)
    for svg in pictures(page).values():  # nor do the pictures
        links = [value for element in svg.iter() for key, value in element.attrib.items() if key.endswith("href")]
        assert links and all(link.startswith("#") for link in links)


def test_from_a_run(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("rich")
    path = tmp_path / "run.json"
    lines = [f"hq2 l{n} d8" for n in (16, 32, 64)]
    assert main(["bench", *lines, "--repeat", "1", "--threads", "1", "--rows", "5", "--json", str(path)]) == 0
    page = make(tmp_path, path)
    named = [row for row in cells(page) if row[0] in lines]
    assert len(named) == 3 * 6 and "Growth with length" in pictures(page)


BROKEN = document()
BROKEN["results"][3].pop("errors")
NO_THREADS = document()
NO_THREADS["results"][0].pop("threads")
NO_PERCENTILE = document()
NO_PERCENTILE["results"][0]["time"].pop("p90_s")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "is no JSON"),
        ("[1]", "has no 'environment'"),
        ({"results": []}, "has no 'environment'"),
        ({"environment": {}, "results": []}, "has none of 'results'"),
        (BROKEN, "no errors in"),
        (NO_THREADS, "no threads"),
        (NO_PERCENTILE, "no p90_s in"),
        ({"environment": {}, "results": [1]}, "no problem in 1"),
        ({"environment": {}, "layers": [{"layer": "a", "heads": [{}]}]}, "no batch in"),
        ({"environment": {}, "layers": [{"layer": "a", "heads": []}]}, "no heads"),
        ({"environment": {}, "overhead": [{"call": "a"}]}, "no problem in"),
    ],
)
def test_bad_files(value: Any, message: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "bad.json", value)
    assert main(["report", str(path), "-o", str(tmp_path / "r.html")]) == 2
    error = capsys.readouterr().err
    assert message in error and "bad.json" in error
    assert not (tmp_path / "r.html").exists()


def test_missing_files(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "nowhere.json", "-o", str(tmp_path / "r.html")]) == 2
    assert "nowhere.json" in capsys.readouterr().err
    assert main(["report", str(USERS), "-o", "/nowhere/r.html"]) == 2
    assert "/nowhere/r.html" in capsys.readouterr().err


def test_rows_know_their_baseline() -> None:
    """Slower than SDPA is below one; without SDPA and without exact there is nothing to compare with."""
    rows = report._rows([result("l1", 1, "int8", 2.0), result("l1", 1, "sdpa_f32", 1.0), result("l2", 1, "int8", 1.0)])
    assert [row.speedup for row in rows] == [0.5, 1.0, None]
