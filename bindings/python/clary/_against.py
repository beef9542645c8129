"""`python -m clary bench --against REF`: the library of the working tree beside that of a commit, in one process."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from ctypes import POINTER, byref
from typing import Any

import numpy as np

from . import _arrays, _lib, _params, _problem, _timing
from ._problem import Array
from ._text import aligned, error_text, time_text

_NEEDED = (
    "last_error",
    "attention_params_init",
    "attention",
    "context_options_init",
    "context_create",
    "context_destroy",
)
_BUILD = ("-DCMAKE_BUILD_TYPE=Release", "-DCLARY_CUDA=OFF", "-DCLARY_BUILD_TOOLS=OFF", "-DCLARY_BUILD_TESTS=OFF")
_LOG_LINES = 20


# ---- building ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Checkout:
    """A working tree of Clary, and the commit to compare it with."""

    root: pathlib.Path
    ref: str
    commit: str

    def describe(self) -> dict[str, Any]:
        """Which two were compared, for the JSON file."""
        changed = _git(self.root, "status", "--porcelain", "--untracked-files=no")
        head = _git(self.root, "rev-parse", "HEAD")
        return {"ref": self.ref, "commit": self.commit, "tree_commit": head, "tree_is_changed": bool(changed)}


def _git(folder: pathlib.Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def find(ref: str, folder: pathlib.Path) -> Checkout:
    """Raises: ValueError when `folder` is in no checkout of Clary, or has no such commit."""
    if shutil.which("git") is None:
        raise ValueError("--against: there is no git")
    try:
        root = pathlib.Path(_git(folder, "rev-parse", "--show-toplevel"))
    except subprocess.CalledProcessError:
        raise ValueError(f"--against: {folder} is in no git checkout; run it in one of Clary") from None
    if not (root / "include" / "clary" / "clary.h").exists():
        raise ValueError(f"--against: {root} is no checkout of Clary; run it in one")
    try:
        commit = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", ref + "^{commit}")
    except subprocess.CalledProcessError:
        raise ValueError(f"--against: {ref!r} is no commit of {root}") from None
    return Checkout(root, ref, commit)


def extract(checkout: Checkout) -> pathlib.Path:
    """The sources of the commit, below build/against."""
    folder = checkout.root / "build" / "against" / checkout.commit
    if not folder.exists():
        partial = folder.with_name(f"{checkout.commit}.{os.getpid()}")
        partial.mkdir(parents=True)
        archive = partial / "sources.tar"
        _git(checkout.root, "archive", "--format=tar", f"--output={archive}", checkout.commit)
        shutil.unpack_archive(archive, partial)
        archive.unlink()
        partial.rename(folder)
    return folder


def build(name: str, source: pathlib.Path) -> pathlib.Path:
    """The shared library, built where it is not up to date. Raises: ValueError with the end of what the build said."""
    folder = source / "build" / "against-build"
    if shutil.which("cmake") is None:
        raise ValueError("--against: there is no cmake; scripts/setup.sh installs what a build needs")
    compilers = [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    if not any(map(shutil.which, compilers)):
        raise ValueError(f"--against: there is no C++ compiler ({', '.join(compilers)}); scripts/setup.sh installs one")
    print(f"building {name} in {folder}", file=sys.stderr, flush=True)
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    configure = ["cmake", "-S", str(source), "-B", str(folder), *generator, *_BUILD]
    make = ["cmake", "--build", str(folder), "--target", "clary", "--parallel", str(_timing.usable_cores())]
    for command in (configure, make):
        # Objects that both have in common are compiled once where there is a ccache: to it, both have the same paths.
        cache = {"CCACHE_BASEDIR": str(source), "CCACHE_NOHASHDIR": "1"}
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **cache}
        )
        if done.returncode:
            said = "\n".join(done.stdout.splitlines()[-_LOG_LINES:])
            raise ValueError(f"--against: {name} could not be built:\n{said}")
    return folder / "libclary.so"


# ---- two libraries in one process --------------------------------------------------------------------------------


class _Params(ctypes.Structure):
    """Room for the parameters of a library that knows more fields than this package."""

    _fields_ = [("params", _lib.AttentionParams), ("more", ctypes.c_char * 1024)]


class _Options(ctypes.Structure):
    _fields_ = [("options", _lib.ContextOptions), ("more", ctypes.c_char * 1024)]


class Library:
    """A libclary.so with a context of its own. Its symbols are its own, too: dlopen's default is RTLD_LOCAL."""

    def __init__(self, name: str, path: pathlib.Path, threads: int) -> None:
        """Raises: ValueError when its C interface is too old, OSError, Error."""
        self.name = name
        try:
            self._lib = _lib.declare(ctypes.CDLL(str(path)), _NEEDED)
        except AttributeError as error:
            raise ValueError(f"--against: the C interface of {name} lacks what is needed: {error}") from None
        room = _Options()
        self._lib.clary_context_options_init(ctypes.cast(byref(room), POINTER(_lib.ContextOptions)))
        room.options.threads = threads
        self._context = ctypes.c_void_p()
        options = ctypes.cast(byref(room), POINTER(_lib.ContextOptions))
        self._check(self._lib.clary_context_create(options, byref(self._context)))

    def close(self) -> None:
        self._lib.clary_context_destroy(self._context)

    def call(self, case: Case, out: Array) -> Callable[[], None]:
        """A call of clary_attention that writes to `out`."""
        room = _Params()
        params = ctypes.cast(byref(room), POINTER(_lib.AttentionParams))
        self._lib.clary_attention_params_init(params)
        last = _lib.AttentionParams.guard_rows
        if room.params.size < last.offset + last.size:
            raise ValueError(f"--against: the C interface of {self.name} is too old: its parameters are fewer")
        case.options.fill(room.params)
        extras = {name: case.view(array) for name, array in case.extras.items() if array is not None}
        for name, view in extras.items():
            setattr(room.params, name, ctypes.pointer(view))
        tensors = [case.view(array) for array in (case.q, case.k, case.v, out)]
        arguments = (*map(byref, tensors), None, params, self._context)
        attention, check, kept = self._lib.clary_attention, self._check, (room, extras, tensors, case)

        def run(kept: Any = kept) -> None:
            check(attention(*arguments))

        return run

    def _check(self, status: int) -> None:
        if status:
            raise _lib.Error(f"{self.name}: {_lib.text(self._lib.clary_last_error())}")


def _encode(array: Array, dtype: str) -> Array:
    """f32 as it is stored. bf16 is in uint16, so that nothing but NumPy is needed; the arrays have no NaN."""
    if dtype != "bf16":
        return array.astype({"f32": np.float32, "f16": np.float16}[dtype])
    bits = array.view(np.uint32)
    return np.asarray((bits + 0x7FFF + (bits >> 16 & 1)) >> 16, np.uint16)


def _from_bf16(array: Array) -> Array:
    return (array.astype(np.uint32) << 16).view(np.float32)


class Case:
    """A problem and its arrays."""

    def __init__(self, line: str, rows: int) -> None:
        self.line, p = line, _problem.parse(line)
        self.problem = p
        stored = [_encode(array, p.dtype) for array in _problem.tensors(p)]
        mask = _problem.mask(p)
        if mask is not None and mask.dtype != bool and p.mask_input_type:
            mask = _encode(mask, p.dtype)
        self.extras = {"mask": mask, "alibi_slopes": _problem.alibi_slopes(p), "sinks": _problem.sinks(p)}
        window = None if p.window == (-1, -1) else p.window
        self.options = _params.options(
            p.layout, p.precision or "auto", p.causal, p.scale, p.softcap, window, p.guard, 16
        )
        self._rows = _problem.sample_rows(p, rows)
        q, k, v = (self.values(array) for array in stored)
        seen = None if mask is None or mask.dtype == bool else self.values(mask)
        self._exact = _problem.exact_rows(p, q, k, v, mask if seen is None else seen, self._rows)
        self.q, self.k, self.v = (self._laid_out(array) for array in stored)

    def _laid_out(self, array: Array) -> Array:
        return np.ascontiguousarray(array.swapaxes(1, 2)) if self.problem.layout == "bshd" else array

    def empty(self) -> Array:
        p = self.problem
        shape = (p.b, p.lq, p.hq, p.dv) if p.layout == "bshd" else (p.b, p.hq, p.lq, p.dv)
        return np.empty(shape, self.q.dtype)

    @staticmethod
    def values(array: Array) -> Array:
        return _from_bf16(array) if array.dtype == np.uint16 else np.asarray(array, np.float32)

    @staticmethod
    def view(array: Array) -> _lib.Tensor:
        steps = [step // array.itemsize for step in array.strides]
        kinds = {"float32": _arrays.F32, "float16": _arrays.F16, "uint16": _arrays.BF16, "bool": _arrays.BOOL}
        return _arrays.tensor(array.ctypes.data, array.shape, steps, kinds[array.dtype.name])

    def error(self, out: Array) -> float:
        """Relative L2, of sampled rows."""
        natural = out.swapaxes(1, 2) if self.problem.layout == "bshd" else out
        got = self.values(natural[tuple(self._rows.T)]).astype(np.float64)
        return float(np.linalg.norm(got - self._exact)) / max(float(np.linalg.norm(self._exact)), 1e-300)


# ---- the comparison ----------------------------------------------------------------------------------------------

Timer = Callable[[], tuple[_timing.Timing, _timing.Timing]]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """base: of the commit; tree: of the working tree. ratio: of medians, more than 1 is slower than the commit."""

    base: _timing.Timing
    tree: _timing.Timing
    ratio: float
    timed_again: bool
    slower: bool


def judge(time: Timer, limit: float) -> Verdict:
    """Times once, and again where the ratio is beyond `limit`: what is slower is so both times, a neighbour is not."""
    base, tree = time()
    again = tree.median_s / base.median_s > limit
    if again:
        base, tree = time()
    ratio = tree.median_s / base.median_s
    return Verdict(base, tree, ratio, again, ratio > limit)


@dataclasses.dataclass(frozen=True)
class Times:
    """How to compare. limit: the largest ratio that is not slower."""

    seconds: float
    repeat: int | None
    threads: int
    rows: int
    limit: float

    def of(self, calls: Sequence[Callable[[], None]]) -> tuple[_timing.Timing, _timing.Timing]:
        base, tree = _timing.in_turns(calls, self.seconds, self.repeat, lambda _: None)
        return base, tree


def compare(line: str, libraries: Sequence[Library], times: Times) -> dict[str, Any]:
    """The result of one problem. libraries: the commit's and the tree's."""
    case = Case(line, times.rows)
    outs = [case.empty() for _ in libraries]
    calls = [library.call(case, out) for library, out in zip(libraries, outs)]
    for call in calls:
        call()
    base_error, tree_error = (case.error(out) for out in outs)
    verdict = dataclasses.asdict(judge(lambda: times.of(calls), times.limit))
    return {"problem": line, "threads": times.threads, **verdict, "base_error": base_error, "tree_error": tree_error}


def run(lines: Sequence[str], ref: str, times: Times) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Builds both and compares: results, and what the JSON file holds. Raises: ValueError, OSError, Error."""
    checkout = find(ref, pathlib.Path.cwd())
    base, tree = build(ref, extract(checkout)), build("the working tree", checkout.root)
    libraries = [Library(ref, base, times.threads), Library("the working tree", tree, times.threads)]
    results = []
    for n, line in enumerate(lines, 1):
        print(f"timing {n}/{len(lines)} {line}", file=sys.stderr, flush=True)
        results.append(compare(line, libraries, times))
    for library in libraries:
        library.close()
    return results, {"against": checkout.describe() | {"limit": times.limit}, "comparisons": results}


def table(results: Sequence[dict[str, Any]], ref: str, percent: float) -> str:
    """p10, p90: of the tree's times, over the commit's median."""
    rows = [["", ref, "tree", "ratio", "p10", "p90", f"rel. L2 {ref}", "tree", ""]]
    for r in results:
        base, tree = r["base"], r["tree"]
        relative = [tree[key] / base["median_s"] for key in ("median_s", "p10_s", "p90_s")]
        rows.append(
            [
                r["problem"],
                time_text(base["median_s"]),
                time_text(tree["median_s"]),
                *(f"{value:.3f}" for value in relative),
                error_text(r["base_error"]),
                error_text(r["tree_error"]),
                "slower" if r["slower"] else "timed again" if r["timed_again"] else "",
            ]
        )
    slower = sum(r["slower"] for r in results)
    return f"{aligned(rows)}\n\n{slower} of {len(results)} more than {percent:g} % slower than {ref}"
