"""`python -m clary bench`: Clary beside PyTorch's scaled_dot_product_attention, in one process, error beside speed."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import math
import pathlib
import platform
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from . import _against, _layers, _problem, _timing, core
from ._extra import need
from ._params import PRECISIONS
from ._problem import Array, Problem
from ._text import aligned, error_text, time_text

_PRESETS = "exact,bf16,int8,auto"
_TINY = "b1 hq1 hkv1 l1 d8 f32 exact"
_BLOCK = 100  # calls that one time of --overhead covers: a clock takes longer than a part of a call

DESCRIPTION = """\
Speed of described problems, beside PyTorch's scaled_dot_product_attention (SDPA) in bf16 and f32, with the error of all
of them against float64. A time is that of one whole call, as a caller sees it: checks, quantisation, output. Prepared
outside the clock is what a caller would prepare once: inputs in the type and layout of each call; for SDPA also one
additive mask in its type, which holds masks, windows, ALiBi, and causality unless is_causal says the same."""


def problems_folder() -> pathlib.Path:
    """Where the problem files are: in the package where it is installed, beside it in a checkout."""
    here = pathlib.Path(__file__).resolve()
    installed = here.parent / "problems"
    return installed if installed.is_dir() else here.parents[3] / "bench" / "problems"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "problem", nargs="*", help="a described problem, such as: hq32 hkv8 l4096 d128 causal bf16; several when quoted"
    )
    add("--file", type=pathlib.Path, help="problems from a file, one a line (default: users.txt, models people run)")
    add("--precision", metavar="LIST", help=f"presets to time (default: the one of the problem, or {_PRESETS})")
    add("--threads", metavar="LIST", help="numbers of threads (default 1,all)")
    add("--seconds", type=_positive(float), metavar="S", help="time for each call (default 1)")
    add("--repeat", type=_positive(int), metavar="N", help="times to run each call, instead of --seconds")
    add("--rows", type=_positive(int), metavar="N", help="rows to compare with float64 (default 64)")
    add("--json", type=pathlib.Path, metavar="FILE", help="write the results, for python -m clary report")
    add(
        "--slower",
        type=_positive(float),
        metavar="PERCENT",
        help="with --against: how much slower a problem may be (default 5)",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--against",
        metavar="REF",
        help="in a git checkout: build this commit and the working tree, time both in turns (default: short.txt, one "
        "thread); the status is 1 when a problem became slower",
    )
    mode.add_argument("--overhead", action="store_true", help="microseconds per call of a tiny problem, one thread")
    mode.add_argument(
        "--precisions",
        type=pathlib.Path,
        metavar="FILE",
        help="what auto chooses for each head of the tensors P.q, P.k, P.v in a .safetensors file",
    )


def _positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text}: must be more than 0")
        return value

    convert.__name__ = kind.__name__
    return convert


def run(options: argparse.Namespace) -> int:
    """Raises: ValueError, OSError, MissingExtra with what was wrong."""
    if options.json is not None:
        options.json.open("a").close()  # before the measurement takes its time
    if options.slower and options.against is None:
        raise ValueError("--slower: has a meaning with --against only")
    if options.against is not None:
        return _compare(options)
    need("torch")
    if options.precisions is not None:
        _refuse(options, "--precisions", "problem", "file", "precision", "threads", "seconds", "repeat", "rows")
        layers = _layers.measure(options.precisions)
        print(_layers.text(layers))
        _write(options, {"layers": layers}, [core.info().threads])
    elif options.overhead:
        _refuse(options, "--overhead", "precision", "threads", "rows")
        _write(options, {"overhead": _overhead(_lines(options, [_TINY]), options)}, [1])
    else:
        _bench(_lines(options, None), options)
    return 0


def _refuse(options: argparse.Namespace, mode: str, *names: str) -> None:
    """Options that a mode has no use for."""
    for name in names:
        if getattr(options, name):
            raise ValueError(f"{name if name == 'problem' else '--' + name}: has no meaning with {mode}")


def _lines(options: argparse.Namespace, default: list[str] | None, file: str = "users.txt") -> list[str]:
    """The problems to run. Words of one problem may come as arguments of their own."""
    if options.problem and options.file is not None:
        raise ValueError("problem: give either a described problem or --file")
    if options.seconds and options.repeat:
        raise ValueError("--seconds: give either that or --repeat")
    if options.problem:
        spaced = [" " in text.strip() for text in options.problem]
        lines = options.problem if all(spaced) else [" ".join(options.problem)]
        for line in lines:
            _problem.parse(line)
        return list(lines)
    if default is not None and options.file is None:
        return default
    return _problem.read(options.file or problems_folder() / file)


def _threads(text: str) -> list[int]:
    cores = _timing.usable_cores()
    numbers = []
    for word in text.split(","):
        if word != "all" and not (word.isdecimal() and int(word) > 0):
            raise ValueError(f"--threads: has {word!r}, allowed are numbers from 1 and 'all'")
        numbers.append(cores if word == "all" else int(word))
    return list(dict.fromkeys(numbers))


def _presets(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in PRECISIONS:
            raise ValueError(f"--precision: has {name!r}, allowed are {', '.join(PRECISIONS)}")
    return list(dict.fromkeys(names))


def environment(threads: Sequence[int]) -> dict[str, Any]:
    """The machine and the versions, for the JSON file."""
    info = core.info()
    flags = ""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        flags = next((line.partition(":")[2] for line in cpuinfo.read_text().splitlines() if line[:5] == "flags"), "")
    return {
        "driver": "python -m clary bench",
        "version": info.version,
        "cpu": info.cpu,
        "cpu_flags": flags.split(),
        "isa": info.isa,
        "cores": _timing.usable_cores(),
        "threads": list(threads),
        "torch": _version("torch"),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _version(package: str) -> str:
    """Empty: it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _write(options: argparse.Namespace, document: dict[str, Any], threads: Sequence[int]) -> None:
    if options.json is not None:
        document = {"environment": environment(threads)} | document
        options.json.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


# ---- problems ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Call:
    """One way to compute a problem. start: what it begins with, where the name does not say."""

    name: str
    start: str
    run: Callable[[], Any]


class Case:
    """A problem and its tensors."""

    def __init__(self, line: str, rows: int) -> None:
        self.torch = need("torch")
        self.line, self.problem = line, _problem.parse(line)
        self.mask = _problem.mask(self.problem)
        dtype = self._dtype(self.problem.dtype)
        if self.mask is not None and self.mask.dtype != bool and self.problem.mask_input_type:
            self.mask = self.torch.from_numpy(self.mask).to(dtype).float().numpy()
        self.q, self.k, self.v = (self.torch.from_numpy(array).to(dtype) for array in _problem.tensors(self.problem))
        self.rows = _problem.sample_rows(self.problem, rows)
        q, k, v = (tensor.float().numpy() for tensor in (self.q, self.k, self.v))
        self.exact = _problem.exact_rows(self.problem, q, k, v, self.mask, self.rows)
        self.scores = _problem.visible_scores(self.problem, self.mask)

    def clary(self, precision: str, threads: int) -> Call:
        p = self.problem
        q, k, v = (self._laid_out(tensor) for tensor in (self.q, self.k, self.v))
        mask = None if self.mask is None else self.torch.from_numpy(np.ascontiguousarray(self.mask))
        if mask is not None and p.mask_input_type and mask.dtype != self.torch.bool:
            mask = mask.to(q.dtype)
        keywords: dict[str, Any] = {
            "layout": p.layout,
            "causal": p.causal,
            "window": None if p.window == (-1, -1) else p.window,
            "scale": p.scale,
            "softcap": p.softcap,
            "mask": mask,
            "alibi_slopes": self._tensor(_problem.alibi_slopes(p)),
            "sinks": self._tensor(_problem.sinks(p)),
            "precision": precision,
            "guard": p.guard,
            "threads": threads,
        }
        start = core.plan(q, k, v, **keywords).info.start
        return Call(precision, start, lambda: core.attention(q, k, v, **keywords))

    def sdpa(self, dtype: str) -> Call | None:
        """None: SDPA has no such feature."""
        p, torch = self.problem, self.torch
        if self.without_peer():
            return None
        kind = self._dtype(dtype)
        q, k, v = (self._laid_out(tensor.to(kind)) for tensor in (self.q, self.k, self.v))
        if p.layout == "bshd":
            q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        plain = self.mask is None and not p.alibi and p.window == (-1, -1)
        is_causal = plain and p.causal is not False and p.offset == 0 and p.lq > 1
        keywords: dict[str, Any] = {
            "attn_mask": None if is_causal else self._additive(kind),
            "is_causal": is_causal,
            "scale": p.scale,
            "enable_gqa": p.hq != p.hkv,
        }
        attend = torch.nn.functional.scaled_dot_product_attention
        return Call(f"sdpa_{dtype}", "exact" if dtype == "f32" else "bf16", lambda: attend(q, k, v, **keywords))

    def without_peer(self) -> str:
        """What SDPA cannot be given; empty: nothing."""
        return ", ".join(name for name in ("softcap", "sinks") if getattr(self.problem, name))

    def errors(self, call: Call) -> dict[str, Any]:
        """Of the sampled rows, against float64."""
        out = call.run()
        if self.problem.layout == "bshd" and not call.name.startswith("sdpa"):
            out = out.transpose(1, 2)
        b, h, i = self.torch.from_numpy(self.rows).unbind(-1)
        return error_measures(out[b, h, i].double().numpy(), self.exact) | {"rows": len(self.rows)}

    def _additive(self, dtype: Any) -> Any:
        """Masks, windows, causality and ALiBi as one tensor to add; None when it would be all zeros."""
        p = self.problem
        seen = _problem.visible(p)
        bias: Array | None = self.mask
        if bias is not None and bias.dtype == bool:
            bias = np.where(bias, np.float32(0), np.float32(-np.inf))
        slopes = _problem.alibi_slopes(p)
        if slopes is not None:
            distance = np.abs(np.arange(p.lq)[:, None] + p.offset - np.arange(p.lk)).astype(np.float32)
            far = -slopes[None, :, None, None] * distance
            bias = far if bias is None else bias + far
        if seen is not None:
            bias = np.where(seen, np.float32(0) if bias is None else bias, np.float32(-np.inf))
        if bias is None:
            return None
        return self.torch.from_numpy(np.ascontiguousarray(bias.reshape((1,) * (4 - bias.ndim) + bias.shape))).to(dtype)

    def _laid_out(self, tensor: Any) -> Any:
        return tensor.transpose(1, 2).contiguous() if self.problem.layout == "bshd" else tensor

    def _tensor(self, array: Array | None) -> Any:
        return None if array is None else self.torch.from_numpy(array)

    def _dtype(self, name: str) -> Any:
        return {"f32": self.torch.float32, "f16": self.torch.float16, "bf16": self.torch.bfloat16}[name]


def error_measures(out: Array, exact: Array) -> dict[str, float]:
    """docs/benchmarks.md defines them."""
    d = out - exact
    norm, norms = float(np.linalg.norm(exact)), float(np.linalg.norm(out) * np.linalg.norm(exact))
    return {
        "relative_l2": float(np.linalg.norm(d)) / max(norm, 1e-300),
        "relative_l1": float(np.abs(d).sum()) / max(float(np.abs(exact).sum()), 1e-300),
        "rmse": float(np.sqrt(np.mean(d * d))) if d.size else 0.0,
        "cosine": float((out * exact).sum()) / norms if norms else 1.0,
        "max_abs": float(np.abs(d).max(initial=0)),
    }


@contextlib.contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    torch = need("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


def measure(case: Case, presets: Sequence[str], threads: int, peaks: _timing.Peaks, times: Any) -> list[dict[str, Any]]:
    """One result for each way to compute the problem. times: calls -> a Timing for each."""
    with _torch_threads(threads):
        calls = [case.clary(preset, threads) for preset in presets]
        calls += [call for call in map(case.sdpa, ("bf16", "f32")) if call is not None]
        errors = [case.errors(call) for call in calls]
        timings = times([call.run for call in calls])
    peers = [timing.median_s for call, timing in zip(calls, timings) if call.name.startswith("sdpa")]
    results = []
    for call, error, timing in zip(calls, errors, timings):
        gops = 2 * case.scores * (case.problem.d + case.problem.dv) / timing.median_s * 1e-9
        peak = peaks.of(call.start, case.problem.d, case.problem.dv)
        result = {
            "problem": case.line,
            "threads": threads,
            "precision": call.name,
            "start": call.start,
            "time": dataclasses.asdict(timing),
            "errors": error,
            "visible_scores": case.scores,
            "gops": gops,
            "peak_gops": peak,
            "peak_share": gops / peak,
        }
        if peers:
            result["speedup_over_sdpa"] = min(peers) / timing.median_s
        results.append(result)
    return results


def _bench(lines: list[str], options: argparse.Namespace) -> None:
    chosen, thread_counts = options.precision and _presets(options.precision), _threads(options.threads or "1,all")
    info = core.info()
    all_peaks = {threads: _timing.Peaks(info.isa, threads) for threads in thread_counts}
    results: list[dict[str, Any]] = []
    print(f"Clary {info.version} on {info.cpu}, {info.isa}; torch {need('torch').__version__}\n")
    with _progress() as progress:
        for n, line in enumerate(lines, 1):
            task = progress.add_task(f"{n}/{len(lines)} {line}", total=len(thread_counts))
            case = Case(line, options.rows or 64)
            presets = chosen or _presets(case.problem.precision or _PRESETS)
            for turn, threads in enumerate(thread_counts):

                def advance(share: float, task: Any = task, turn: int = turn) -> None:
                    progress.update(task, completed=turn + share)

                def times(calls: Any, advance: Any = advance) -> list[_timing.Timing]:
                    return _timing.in_turns(calls, options.seconds or 1.0, options.repeat, advance)

                measured = measure(case, presets, threads, all_peaks[threads], times)
                results += measured
                print(table(case, measured), flush=True)
                _write(options, {"results": results}, thread_counts)  # what there is survives an interrupted run
            progress.remove_task(task)


def _progress() -> Any:
    """A bar on the error stream."""
    progress, console = need("rich.progress"), need("rich.console").Console(stderr=True)
    columns = [progress.TextColumn("{task.description}"), progress.BarColumn(20), progress.TimeElapsedColumn()]
    return progress.Progress(*columns, console=console, transient=True)


def table(case: Case, results: Sequence[dict[str, Any]]) -> str:
    """Results of one problem and one number of threads in words."""
    header = ["", "median", "p10", "p90", "x SDPA", "GOP/s", "of peak", "runs", "rel. L2", "rel. L1", "RMSE", "cosine"]
    rows = [header]
    for r in results:
        name = r["precision"] if r["start"] == r["precision"] or "sdpa" in r["precision"] else "{precision} ({start})"
        time, error = r["time"], r["errors"]
        rows.append(
            [
                name.format(**r),
                *(time_text(time[key]) for key in ("median_s", "p10_s", "p90_s")),
                f"{r['speedup_over_sdpa']:.2f}" if "speedup_over_sdpa" in r else "-",
                f"{r['gops']:.4g}",
                f"{100 * r['peak_share']:.0f} %",
                str(time["runs"]),
                error_text(error["relative_l2"]),
                error_text(error["relative_l1"]),
                f"{error['rmse']:.1e}",
                f"{error['cosine']:.6f}",
            ]
        )
    threads = results[0]["threads"]
    title = f"{case.line}, {threads} thread{'s' if threads > 1 else ''} (error of {results[0]['errors']['rows']} rows)"
    missing = f"\n  SDPA has no {case.without_peer()}" if case.without_peer() else ""
    return f"{title}\n{aligned(rows)}{missing}\n"


# ---- against a commit --------------------------------------------------------------------------------------------


def _compare(options: argparse.Namespace) -> int:
    """1 when a problem became slower."""
    _refuse(options, "--against", "precision")
    counts = _threads(options.threads or "1")
    if len(counts) > 1:
        raise ValueError("--threads: must be one number with --against")
    percent = options.slower or 5.0
    times = _against.Times(options.seconds or 1.0, options.repeat, counts[0], options.rows or 64, 1 + percent / 100)
    results, document = _against.run(_lines(options, None, "short.txt"), options.against, times)
    print(_against.table(results, options.against, percent))
    _write(options, document, counts)
    return 1 if any(result["slower"] for result in results) else 0


# ---- overhead ----------------------------------------------------------------------------------------------------


def _overhead(lines: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    results = []
    for line in lines:
        results += measure_overhead(line, options.seconds or 1.0, options.repeat)
    rows = [["", "median", "p10", "p90", "blocks"]]
    for r in results:
        time = r["time"]
        spread = [f"{time[key] * 1e6:.2f} us" for key in ("median_s", "p10_s", "p90_s")]
        rows.append([f"{r['call']}: {r['problem']}", *spread, str(time["runs"])])
    print(f"Time of one call, one thread, in blocks of {_BLOCK}\n{aligned(rows)}")
    return results


def measure_overhead(line: str, seconds: float, repeat: int | None) -> list[dict[str, Any]]:
    """Seconds per call, the work included, from NumPy arrays, from tensors, of a plan, and of SDPA."""
    torch, p = need("torch"), _problem.parse(line)
    if p != Problem(b=p.b, hq=p.hq, hkv=p.hkv, lq=p.lq, lk=p.lk, d=p.d, dv=p.dv, precision=p.precision, seed=p.seed):
        raise ValueError(f"--overhead: '{line}': only sizes, f32, the precision and the seed can be given")
    arrays = _problem.tensors(p)
    tensors = tuple(map(torch.from_numpy, arrays))
    keywords: dict[str, Any] = {"precision": p.precision or "auto", "threads": 1}
    plan = core.plan(*arrays, **keywords)
    attend = torch.nn.functional.scaled_dot_product_attention
    gqa = {"enable_gqa": True} if p.hq != p.hkv else {}
    calls: dict[str, Callable[[], Any]] = {
        "clary.attention, NumPy": lambda: core.attention(*arrays, **keywords),
        "clary.attention, torch": lambda: core.attention(*tensors, **keywords),
        "clary.plan().run, NumPy": lambda: plan.run(*arrays),
        "SDPA, torch": lambda: attend(*tensors, **gqa),
    }

    def block(call: Callable[[], Any]) -> Callable[[], None]:
        def run_block() -> None:
            for _ in range(_BLOCK):
                call()

        return run_block

    with _torch_threads(1):
        timings = _timing.in_turns([block(call) for call in calls.values()], seconds, repeat, lambda _: None)
    results = []
    for name, timing in zip(calls, timings):
        fields = dataclasses.asdict(timing)
        each = {key: value if key == "runs" else value / _BLOCK for key, value in fields.items()}
        results.append({"call": name, "problem": line, "time": each})
    return results
