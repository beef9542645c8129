"""python -m clary bench --against: finding and building a commit, two libraries in one process, and the verdict."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest
from clary import _against, _lib, _problem, _timing, bench
from clary.__main__ import main
from clary._timing import Timing


def git(folder: pathlib.Path, *arguments: str) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    return subprocess.run(
        ["git", "-C", str(folder), *names, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: pathlib.Path) -> pathlib.Path:
    """A repository that looks like Clary's, with two commits."""
    root = tmp_path / "checkout"
    (root / "include" / "clary").mkdir(parents=True)
    git(root.parent, "init", "--quiet", str(root))
    for text in ("old", "new"):
        (root / "include" / "clary" / "clary.h").write_text(text)
        git(root, "add", ".")
        git(root, "commit", "--quiet", "-m", text)
    return root


@pytest.fixture
def libraries(tmp_path: pathlib.Path) -> list[pathlib.Path]:
    """The library under test, and a copy of it elsewhere."""
    copy = tmp_path / "libclary.so"
    shutil.copy(_lib.library_path(), copy)
    return [copy, _lib.library_path()]


# ---- the commit --------------------------------------------------------------------------------------------------


def test_a_commit_is_found_and_extracted(checkout: pathlib.Path) -> None:
    found = _against.find("HEAD~1", checkout / "include")
    assert found.root == checkout and found.commit == git(checkout, "rev-parse", "HEAD~1")
    source = _against.extract(found)
    assert source == checkout / "build" / "against" / found.commit
    assert (source / "include" / "clary" / "clary.h").read_text() == "old"
    (source / "left").touch()
    assert (_against.extract(found) / "left").exists()  # once is enough
    assert list(source.parent.iterdir()) == [source]  # nothing partial is left
    assert not found.describe()["tree_is_changed"]
    (checkout / "include" / "clary" / "clary.h").write_text("newer")
    assert found.describe()["tree_is_changed"]
    assert found.describe()["tree_commit"] == git(checkout, "rev-parse", "HEAD")


@pytest.mark.parametrize("ref", ["nowhere", "--help", "HEAD:include", ""])
def test_what_is_no_commit(
    ref: str, checkout: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(checkout)
    assert main(["bench", f"--against={ref}"]) == 2
    assert f"{ref!r} is no commit of" in capsys.readouterr().err


def test_no_checkout(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(ValueError, match="is in no git checkout"):
        _against.find("HEAD", tmp_path)
    git(tmp_path, "init", "--quiet")
    with pytest.raises(ValueError, match="is no checkout of Clary"):
        _against.find("HEAD", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="there is no git"):
        _against.find("HEAD", tmp_path)


def program(folder: pathlib.Path, name: str, text: str = "exit 0") -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_build(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a cmake that writes down what it is asked, and one that fails."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"there is no cmake.*setup\.sh"):
        _against.build("x", tmp_path)
    program(tmp_path, "cmake", f'echo "$@" >> {tmp_path}/asked')
    with pytest.raises(ValueError, match="there is no C\\+\\+ compiler"):
        _against.build("x", tmp_path)
    program(tmp_path, "g++")
    folder = tmp_path / "build" / "against-build"
    assert _against.build("x", tmp_path) == folder / "libclary.so"
    configure, make = (tmp_path / "asked").read_text().splitlines()
    assert "-DCLARY_CUDA=OFF" in configure and "-DCLARY_BUILD_TESTS=OFF" in configure and "Release" in configure
    assert make == f"--build {folder} --target clary --parallel {_timing.usable_cores()}"
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    with pytest.raises(ValueError, match=r"no C\+\+ compiler \(no-such-compiler\)"):
        _against.build("x", tmp_path)
    monkeypatch.delenv("CXX")
    program(tmp_path, "cmake", "echo first; echo 'x.h:1: error: wombat' >&2; exit 1")
    with pytest.raises(ValueError, match="abc123 could not be built:\nfirst\nx.h:1: error: wombat"):
        _against.build("abc123", tmp_path)


# ---- two libraries -----------------------------------------------------------------------------------------------

LINES = [
    "hq4 hkv2 lq33 lk50 d16 causal int8",
    "b2 lq20 lk300 d40 dv24 mask=key_padding:0.5 bf16 exact bshd",
    "hq2 l70 d8 mask=additive:0.6:h alibi sinks f16 exact",
    "hq2 hkv1 l40 d16 mask=additive:0.6 mask_dtype=input window10,3 softcap5 bf16 bf16",
]


@pytest.mark.parametrize("line", LINES)
def test_two_libraries_compute_the_problem(line: str, libraries: list[pathlib.Path]) -> None:
    loaded = [_against.Library(name, path, 1) for name, path in zip(("copy", "tree"), libraries)]
    result = _against.compare(line, loaded, _against.Times(1.0, 2, 1, 50, 1e9))
    for library in loaded:
        library.close()
    assert result["base_error"] == result["tree_error"]
    assert result["tree_error"] < (2e-2 if "int8" in line or "bf16" in line else 1e-3)
    assert result["base"]["runs"] == result["tree"]["runs"] == 2
    assert result["ratio"] == result["tree"]["median_s"] / result["base"]["median_s"]
    assert not result["slower"] and not result["timed_again"]


def test_libraries_are_two(libraries: list[pathlib.Path]) -> None:
    """What one is called for does not happen in the other: its functions lie elsewhere, and so do its failures."""
    copy, tree = (_against.Library(name, path, 1) for name, path in zip(("copy", "tree"), libraries))
    case = _against.Case("l4 d8 exact", 4)
    wrong = copy.call(case, np.empty((1, 1, 3, 8), np.float32))
    with pytest.raises(_lib.Error, match="copy: .*out"):
        wrong()
    tree.call(case, case.empty())()
    assert "out" in _lib.text(copy._lib.clary_last_error()) and not tree._lib.clary_last_error()
    copy.close()
    tree.close()


def test_a_library_without_the_functions(tmp_path: pathlib.Path) -> None:
    """Any other shared library has none of them."""
    library = next(pathlib.Path(np.__file__).parent.rglob("_multiarray_umath*.so"))
    shutil.copy(library, tmp_path / "libclary.so")
    with pytest.raises(ValueError, match="the C interface of old lacks what is needed: .*clary_last_error"):
        _against.Library("old", tmp_path / "libclary.so", 1)


def test_parameters_that_are_fewer(libraries: list[pathlib.Path], monkeypatch: pytest.MonkeyPatch) -> None:
    library = _against.Library("old", libraries[0], 1)

    class Old:
        """Sets a size as a library would that knows no guard."""

        clary_attention_params_init = staticmethod(
            lambda params: setattr(params.contents, "size", _lib.AttentionParams.guard.offset)
        )

    real = library._lib
    monkeypatch.setattr(library, "_lib", Old)
    case = _against.Case("l4 d8", 4)
    with pytest.raises(ValueError, match="the C interface of old is too old"):
        library.call(case, case.empty())
    monkeypatch.setattr(library, "_lib", real)
    library.close()


# ---- the verdict -------------------------------------------------------------------------------------------------


def timer(*pairs: tuple[float, float]) -> Any:
    left = list(pairs)

    def time() -> tuple[Timing, Timing]:
        base, tree = left.pop(0)
        return Timing(base, base, base, 5), Timing(tree, tree, tree, 5)

    return time


@pytest.mark.parametrize(
    ("pairs", "ratio", "timed_again", "slower"),
    [
        ([(1.0, 1.05)], 1.05, False, False),  # at the limit
        ([(2.0, 1.0)], 0.5, False, False),
        ([(1.0, 1.06), (1.0, 1.01)], 1.01, True, False),  # it was the machine
        ([(1.0, 1.06), (2.0, 2.2)], 1.1, True, True),
        ([(1.0, 9.0), (1.0, 1.051)], 1.051, True, True),
    ],
)
def test_verdict(pairs: list[tuple[float, float]], ratio: float, timed_again: bool, slower: bool) -> None:
    verdict = _against.judge(timer(*pairs), 1.05)
    assert (verdict.ratio, verdict.timed_again, verdict.slower) == (pytest.approx(ratio), timed_again, slower)


def test_command(
    checkout: pathlib.Path,
    libraries: list[pathlib.Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From the command line to the status and the JSON file, with made-up times."""
    monkeypatch.chdir(checkout)
    built = []
    monkeypatch.setattr(_against, "build", lambda name, *_: built.append(name) or libraries[len(built) - 1])
    times = iter([(1.0, 1.0), (1.0, 1.2), (1.0, 1.2)] * 2)
    monkeypatch.setattr(_against.Times, "of", lambda self, calls: timer(next(times))())
    path = checkout / "r.json"
    lines = ["l5 d8 int8", "l6 d8 bf16 exact"]
    assert main(["bench", *lines, "--against", "HEAD~1", "--json", str(path), "--rows", "3"]) == 1
    assert built == ["HEAD~1", "the working tree"]
    out = capsys.readouterr().out
    assert "1 of 2 more than 5 % slower than HEAD~1" in out and "1.200" in out
    document = json.loads(path.read_text())
    assert document["against"]["commit"] == git(checkout, "rev-parse", "HEAD~1") and document["environment"]["cpu"]
    assert [(r["problem"], r["slower"]) for r in document["comparisons"]] == [(lines[0], False), (lines[1], True)]
    built.clear()
    assert main(["bench", *lines, "--against", "HEAD~1", "--slower", "25"]) == 0
    assert "0 of 2 more than 25 % slower" in capsys.readouterr().out


@pytest.mark.parametrize(("slow", "status"), [("the working tree", 1), ("HEAD~1", 0)])
def test_a_slow_library_is_found(
    slow: str,
    status: int,
    checkout: pathlib.Path,
    libraries: list[pathlib.Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Really timed, with a library that does everything four times; where that is the commit's, nothing is slower."""
    monkeypatch.chdir(checkout)
    monkeypatch.setattr(_against, "build", lambda name, *_: libraries[name == "the working tree"])
    real = _against.Library.call

    def call(self: _against.Library, case: _against.Case, out: _problem.Array) -> Any:
        once = real(self, case, out)
        return (lambda: [once() for _ in range(4)]) if self.name == slow else once

    monkeypatch.setattr(_against.Library, "call", call)
    path = checkout / "r.json"
    command = ["bench", "hq4 l300 d64 exact", "--against", "HEAD~1", "--slower", "40", "--repeat", "15"]
    assert main([*command, "--json", str(path)]) == status
    (result,) = json.loads(path.read_text())["comparisons"]
    assert result["slower"] == bool(status)
    assert result["ratio"] > 1.4 if status else result["ratio"] < 1 / 1.4
    assert f"{status} of 1 more than 40 % slower than HEAD~1" in capsys.readouterr().out


def test_short_list() -> None:
    """Every preset, the main ones at both head dims, and what people run."""
    problems = [_problem.parse(line) for line in _problem.read(bench.problems_folder() / "short.txt")]
    both = {(name, d) for name in ("exact", "int8", "int8_f16", "bf16") for d in (64, 128)}
    assert {(p.precision, p.d) for p in problems} >= both | {("int4", 128), ("auto", 64)}
    assert {p.mask for p in problems} >= {None, "block", "key_padding"} and any(p.causal for p in problems)
    assert min(p.lq for p in problems) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against", "HEAD", "--precision", "int8"], "--precision: has no meaning with --against"),
        (["--against", "HEAD", "--threads", "1,2"], "--threads: must be one number"),
        (["--against", "HEAD", "l7 wombat"], "wombat"),
        (["--slower", "3"], "--slower: has a meaning with --against only"),
    ],
)
def test_wrong_commands(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err
