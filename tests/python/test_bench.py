"""python -m clary bench: the grammar, the numbers, what SDPA is given, and the JSON file."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from typing import Any

import numpy as np
import oracle
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("rich")

import clary  # noqa: E402
from clary import _extra, _problem, _timing, bench  # noqa: E402
from clary.__main__ import main  # noqa: E402

ROOT = pathlib.Path(__file__).parents[2]
PROBLEMS = sorted((ROOT / "bench" / "problems").glob("*.txt"))

# ---- grammar -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("l7", {"lq": 7, "lk": 7}),
        ("b2 hq8 hkv2 lq1 lk9 d40", {"b": 2, "hq": 8, "hkv": 2, "lq": 1, "lk": 9, "d": 40, "dv": 40}),
        ("h3 dv5", {"hq": 3, "hkv": 3, "dv": 5}),
        ("bf16", {"dtype": "bf16"}),
        ("bf16 bf16", {"dtype": "bf16", "precision": "bf16"}),
        ("f16 int8_f16 bshd", {"dtype": "f16", "precision": "int8_f16", "layout": "bshd"}),
        ("precision=bf16", {"dtype": "f32", "precision": "bf16"}),
        ("causal", {"causal": "bottom_right"}),
        ("causal=top_left window128,-1", {"causal": "top_left", "window": (128, -1)}),
        ("causal=-3", {"causal": -3, "offset": -3}),
        ("lq2 lk5", {"causal": False, "offset": 3}),
        ("scale-0.5 softcap30 guard0.02 seed7", {"scale": -0.5, "softcap": 30.0, "guard": 0.02, "seed": 7}),
        ("alibi sinks data=outliers", {"alibi": True, "sinks": True, "data": "outliers"}),
        (
            "mask=additive:0.25:hq mask_dtype=input",
            {"mask": "additive", "keep": 0.25, "broadcast": "hq", "mask_input_type": True},
        ),
    ],
)
def test_grammar(line: str, fields: dict[str, Any]) -> None:
    problem = _problem.parse(line)
    assert {name: getattr(problem, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "is empty"),
        ("l7 wombat", "word 'wombat': is not one of the grammar"),
        ("x5", "word 'x5'"),
        ("d0", "word 'd0': must have an integer >= 1"),
        ("l1.5", "word 'l1.5': must have an integer"),
        ("l1e3", "word 'l1e3'"),
        ("causal=left", "word 'causal=left'"),
        ("causal=", "word 'causal='"),
        ("window5", "windowLEFT,RIGHT"),
        ("window5,-2", "word 'window5,-2'"),
        ("mask=round", "allowed are bool, additive"),
        ("mask=bool:1.5", "within 0 to 1"),
        ("mask=bool:0.5:xy", "letters of bhqk"),
        ("softcapinf", "finite number"),
        ("scalenan", "finite number"),
        ("data=real", "allowed are normal"),
        ("precision=int2", "allowed are exact"),
        ("lens_q=1,2 lens_k=1,2", "word 'lens_q=1,2': is not served from Python"),
        ("out=f32 bf16", "word 'out=f32': is not served from Python"),
        ("hq3 hkv2", "hq must be a multiple of hkv"),
        ("d1025", "at most 1024"),
        ("hq1024 l1000000 d1024", "2\\^31"),
    ],
)
def test_grammar_refuses(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _problem.parse(line)


def test_problem_files() -> None:
    """The ones that are there parse, and the default is found."""
    assert {path.name for path in PROBLEMS} >= {"users.txt", "growth.txt", "square.txt"}
    for path in PROBLEMS:
        assert _problem.read(path)
    users = bench.problems_folder() / "users.txt"
    assert users.read_text() == (ROOT / "bench" / "problems" / "users.txt").read_text()


def test_problem_file_with_a_wrong_line(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("# a comment\nl7 # another\nl7 wombat\n")
    with pytest.raises(ValueError, match=r"p\.txt:3: .*wombat"):
        _problem.read(path)
    path.write_text("# nothing\n")
    with pytest.raises(ValueError, match="has no problem"):
        _problem.read(path)


# ---- numbers -----------------------------------------------------------------------------------------------------


def committed() -> list[dict[str, Any]]:
    """Results of the C++ driver that a test can repeat: small, f32, and of arithmetic that has not changed since."""
    folder = ROOT / "bench" / "results" / "amd-epyc-zen3-2vcpu"
    documents = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    results = [
        r for document in documents if "compiler" in document.get("environment", {}) for r in document["results"]
    ]
    return [r for r in results if r["precision"] == "int8" and " f32" in r["problem"] and "l4096" not in r["problem"]]


def test_same_numbers_as_the_other_driver() -> None:
    """INT8 is the same bit for bit on every instruction set, so errors agree when inputs, rows and definitions do."""
    results = committed()
    assert len(results) >= 4
    for result in results:
        p = _problem.parse(result["problem"])
        q, k, v = _problem.tensors(p)
        mask = _problem.mask(p)
        total, count = p.b * p.hq * p.lq, result["errors"]["rows"]
        n = np.arange(count)  # the rows that the other driver takes: one in each part, at a place that walks
        begin, end = n * total // count, (n + 1) * total // count
        flat = begin + ((0.5 + n * 0.6180339887498949) % 1 * (end - begin)).astype(np.int64)
        rows = np.stack(np.unravel_index(flat, (p.b, p.hq, p.lq)), -1)
        exact = _problem.exact_rows(p, q, k, v, mask, rows)
        out = clary.attention(q, k, v, mask=mask, causal=p.causal, precision="int8")
        errors = bench.error_measures(out[tuple(rows.T)].astype(np.float64), exact)
        for name in ("relative_l2", "relative_l1", "rmse", "cosine"):
            assert errors[name] == pytest.approx(result["errors"][name], rel=1e-9), (result["problem"], name)
        assert _problem.visible_scores(p, mask) == result["visible_scores"]


FEATURES = [
    "b2 hq4 hkv2 lq33 lk50 d16 causal",
    "lq50 lk33 d16 causal",
    "l40 d16 causal=top_left mask=bool:0.3",
    "lq30 lk64 hq2 hkv2 d16 dv24 causal=5 window10,3 alibi bshd",
    "b3 hq2 hkv1 l40 d16 mask=additive:0.5:h alibi bf16",
    "b2 hq2 hkv2 l300 d24 dv8 mask=block:0.5 window100,-1 data=outliers",
    "b4 hq2 hkv2 lq20 lk90 d16 mask=key_padding:0.4 scale0.5 data=peaked",
    "lq1 lk100 hq4 hkv1 d16 causal f16",
    "b2 l50 d16 mask=additive:0.7 mask_dtype=input bf16 bshd",
    "lq20 lk70 hq2 hkv2 d16 data=constant window-1,4",
    "l30 hq2 hkv2 d16 softcap5 sinks scale0.7 causal",
]


@pytest.mark.parametrize("line", FEATURES)
def test_definition_against_the_oracle(line: str) -> None:
    """exact_rows of every row, and the count of visible scores, against a definition that shares no code."""
    p = _problem.parse(line)
    q, k, v = _problem.tensors(p)
    mask = _problem.mask(p)
    window = None if p.window == (-1, -1) else p.window
    extras = {"alibi_slopes": _problem.alibi_slopes(p), "sinks": _problem.sinks(p)}
    options: dict[str, Any] = {"causal": p.causal, "window": window, "mask": mask, "scale": p.scale}
    wanted, _ = oracle.attention(q, k, v, **options, softcap=p.softcap, **extras)
    rows = _problem.sample_rows(p, 1 << 30)
    assert len(rows) == len(set(map(tuple, rows))) == p.b * p.hq * p.lq
    got = _problem.exact_rows(p, q, k, v, mask, rows)
    np.testing.assert_allclose(got, wanted[tuple(rows.T)], rtol=1e-12, atol=1e-13)
    # Values of one in every row that sees anything; scores of zero: the sum of exp is the number of visible keys.
    _, lse = oracle.attention(q * 0, k, v, causal=p.causal, window=window, mask=None if mask is None else seen(mask))
    assert _problem.visible_scores(p, mask) == pytest.approx(np.exp(lse).sum(), rel=1e-9)


def seen(mask: Any) -> Any:
    return mask if mask.dtype == bool else mask > -np.inf


def test_sampled_rows_are_spread() -> None:
    """No multiple of the number of heads is in step with the rows."""
    for heads in (1, 32, 64, 128):
        rows = _problem.sample_rows(_problem.parse(f"b1 h{heads} l2048"), 64)
        assert len(rows) == 64 and len(set(rows[:, 2])) == 64 and len(set(rows[:, 1])) == min(heads, 64)
        assert rows[:, 2].min() < 100 and rows[:, 2].max() > 1900


@pytest.mark.parametrize("line", FEATURES[:-1])
def test_sdpa_gets_the_same_problem(line: str) -> None:
    """SDPA in f32 and Clary's exact, as they are timed, both compute the definition."""
    case = bench.Case(line, 1 << 30)
    calls = [case.sdpa("f32"), case.clary("exact", 1)]
    assert calls[0] is not None
    sdpa_errors, clary_errors = (case.errors(call) for call in calls)
    assert sdpa_errors["relative_l2"] < 1e-6 and sdpa_errors["rows"] == len(case.rows)
    limit = {"f32": 2e-6, "f16": 1e-3, "bf16": 5e-3}[case.problem.dtype]
    assert clary_errors["relative_l2"] < limit
    bf16 = case.sdpa("bf16")
    assert bf16 is not None
    assert case.errors(bf16)["relative_l2"] < 2e-2


def test_what_sdpa_has_not() -> None:
    case = bench.Case(FEATURES[-1], 8)
    assert case.without_peer() == "softcap, sinks" and case.sdpa("f32") is None
    assert case.errors(case.clary("exact", 1))["relative_l2"] < 2e-6


def test_errors_are_noticed() -> None:
    """A wrong output has a large error: the figures beside the speeds measure something."""
    case = bench.Case("l64 d16", 64)
    call = case.clary("exact", 1)
    wrong = dataclasses.replace(call, run=lambda: call.run() * 1.1)
    assert case.errors(wrong)["relative_l2"] == pytest.approx(0.1, rel=1e-4)


# ---- timing ------------------------------------------------------------------------------------------------------


def test_turns() -> None:
    """Every call runs as often as asked, in turns; medians and percentiles are those of the samples."""
    order: list[int] = []
    shares: list[float] = []
    timings = _timing.in_turns([lambda: order.append(0), lambda: order.append(1)], 1, 3, shares.append)
    assert [timing.runs for timing in timings] == [3, 3] and shares[-1] == 1
    assert order[-12:] == [0, 0, 1, 1] * 3
    assert dataclasses.astuple(_timing.summary([1.0, 2.0, 3.0])) == (2.0, pytest.approx(1.2), pytest.approx(2.8), 3)


def test_peaks() -> None:
    one = _timing.Peaks(clary.info().isa, 1, 0.01)
    f32, int8 = one.of("exact", 64, 64), one.of("int8", 64, 64)
    assert 0 < f32 < math.inf and one.of("exact", 64, 64) == f32
    assert f32 <= one.of("bf16x3", 64, 64) <= one.of("bf16", 64, 64)
    assert min(int8, f32) <= one.of("int8_f16", 64, 64) <= max(int8, one.of("bf16", 64, 64))


# ---- the command -------------------------------------------------------------------------------------------------


def test_a_run_writes_json(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.json"
    threads = torch.get_num_threads()
    lines = ["hq2 hkv1 l80 d16 causal bf16", "l40 d8 softcap5"]
    assert main(["bench", *lines, "--repeat", "2", "--rows", "10", "--threads", "1,2", "--json", str(path)]) == 0
    assert torch.get_num_threads() == threads
    document = json.loads(path.read_text())
    assert set(document["environment"]) >= {"cpu", "cpu_flags", "isa", "threads", "torch", "version", "date"}
    presets = ["exact", "bf16", "int8", "auto"]
    wanted = [(lines[0], n, name) for n in (1, 2) for name in [*presets, "sdpa_bf16", "sdpa_f32"]]
    wanted += [(lines[1], n, name) for n in (1, 2) for name in presets]
    assert [(r["problem"], r["threads"], r["precision"]) for r in document["results"]] == wanted
    for r in document["results"]:
        assert r["errors"]["rows"] == 10 and 0 <= r["errors"]["relative_l2"] < 0.05
        assert 0 < r["time"]["p10_s"] <= r["time"]["median_s"] <= r["time"]["p90_s"] and r["time"]["runs"] == 2
        assert r["peak_share"] == pytest.approx(r["gops"] / r["peak_gops"])
        assert ("speedup_over_sdpa" in r) == (r["problem"] == lines[0])
    fastest = [
        max(r["speedup_over_sdpa"] for r in document["results"][i : i + 6] if "sdpa" in r["precision"]) for i in (0, 6)
    ]
    assert fastest == [1, 1]
    out = capsys.readouterr().out
    assert out.count("rel. L2") == 4 and "SDPA has no softcap" in out


@pytest.mark.parametrize(("more", "presets"), [([], ["int8"]), (["--precision", "exact,bf16"], ["exact", "bf16"])])
def test_words_of_one_problem(more: list[str], presets: list[str], tmp_path: pathlib.Path) -> None:
    """They need no quotes, and their precision is the one to time unless --precision says otherwise."""
    path = tmp_path / "r.json"
    assert main(["bench", "hq2", "l20", "int8", "--repeat", "1", "--threads", "1", *more, "--json", str(path)]) == 0
    results = json.loads(path.read_text())["results"]
    assert {r["problem"] for r in results} == {"hq2 l20 int8"}
    assert [r["precision"] for r in results] == [*presets, "sdpa_bf16", "sdpa_f32"]


def test_overhead(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.json"
    assert main(["bench", "--overhead", "--repeat", "2", "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    calls = [entry["call"] for entry in document["overhead"]]
    assert calls == ["clary.attention, NumPy", "clary.attention, torch", "clary.plan().run, NumPy", "SDPA, torch"]
    assert all(1e-7 < entry["time"]["median_s"] < 1e-2 for entry in document["overhead"])
    assert capsys.readouterr().out.count(" us") == 12
    assert document["environment"]["threads"] == [1]


def safetensors(path: pathlib.Path, tensors: dict[str, Any]) -> None:
    header: dict[str, Any] = {"__metadata__": {"layout": "bhsd", "softmax_scale": "0.25"}}
    body = b""
    for name, array in tensors.items():
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [len(body), len(body) + array.nbytes],
        }
        body += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def test_precisions(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A head whose keys INT8 cannot tell apart moves to more bits, the other one does not."""
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((1, 2, 512, 16)).astype(np.float32) for _ in range(3))
    k[:, 1, :, 0] *= 200  # the scales of the keys are those of a channel that the queries do not look at
    q[:, 1, :, 0] = 0
    safetensors(tmp_path / "m.safetensors", {"a.q": q, "a.k": k, "a.v": v, "other": q})
    path = tmp_path / "r.json"
    assert main(["bench", "--precisions", str(tmp_path / "m.safetensors"), "--json", str(path)]) == 0
    (layer,) = json.loads(path.read_text())["layers"]
    assert layer["layer"] == "a" and [head["head"] for head in layer["heads"]] == [0, 1]
    first, second = layer["heads"]
    assert first["precision"] == "int8" and first["raises"] == 0 and 0 < first["first_error"] < 0.02
    assert second["precision"] != "int8" and second["raises"] > 0 and second["first_error"] > 0.02
    assert "heads int8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["l7", "wombat"], "wombat"),
        (["l7", "--file", "x.txt"], "either"),
        (["--file", "nowhere.txt"], "nowhere.txt"),
        (["l7", "--threads", "0"], "--threads: has '0'"),
        (["l7", "--precision", "exact,int2"], "--precision: has 'int2'"),
        (["l7", "--json", "/nowhere/r.json"], "/nowhere/r.json"),
        (["l7", "--seconds", "1", "--repeat", "2"], "--seconds"),
        (["--overhead", "l7 causal"], "--overhead"),
        (["--overhead", "--rows", "5"], "--rows: has no meaning"),
        (["--precisions", "x.safetensors", "l7"], "problem: has no meaning"),
        (["--precisions", "x.safetensors", "--threads", "1"], "--threads: has no meaning"),
        (["--precisions", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--precisions", str(ROOT / "README.md")], "no safetensors file"),
    ],
)
def test_wrong_commands(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--repeat", "0"], ["--seconds", "nan"], ["--rows", "-1"], ["--wombat"], ["--seconds", "x"]]
)
def test_wrong_options(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "l7", *arguments])
    assert "usage" in capsys.readouterr().err


def test_missing_extra() -> None:
    with pytest.raises(_extra.MissingExtra, match=r"needs the package wombat.*pip install 'clary\[bench\]'"):
        _extra.need("wombat.sub")


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert clary.info().cpu in out and clary.info().isa in out
