"""The package as it is installed: its wheel, its types, its style."""

from __future__ import annotations

import ast
import os
import pathlib
import subprocess
import sys
import zipfile

import clary
import pytest

ROOT = pathlib.Path(__file__).parents[2]
SOURCES = sorted(p for folder in ("bindings", "examples/python", "tests/python") for p in (ROOT / folder).rglob("*.py"))
MAX_FUNCTION_LINES, MAX_FILE_LINES = 60, 500


@pytest.fixture(scope="module")
def wheel() -> pathlib.Path:
    path = os.environ.get("CLARY_WHEEL")
    if not path:
        pytest.skip("CLARY_WHEEL names no wheel; scripts/test.sh builds one")
    return pathlib.Path(path)


def test_the_wheel_serves_every_python(wheel):
    assert "-py3-none-" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    data = {"clary/libclary.so", "clary/py.typed", "clary/problems/users.txt", "clary/templates/report.html.j2"}
    assert data | {"clary/core.py", "clary/_gpu.py"} <= set(names)
    assert [name for name in names if ".so" in name] == ["clary/libclary.so"]
    assert not [name for name in names if name.endswith((".h", ".hpp", ".cpp", ".a", ".cmake"))]


def test_the_wheel_needs_nothing_but_the_c_library(wheel):
    show = subprocess.run(
        [sys.executable, "-m", "auditwheel", "show", str(wheel)], capture_output=True, text=True, check=True
    )
    assert '"manylinux_' in show.stdout and "libstdc++" not in show.stdout, show.stdout


def test_the_installed_package_is_that_of_the_wheel(wheel):
    assert ROOT not in pathlib.Path(clary.__file__).parents or "site-packages" in clary.__file__
    assert clary.info().library == str(pathlib.Path(clary.__file__).parent / "libclary.so")


@pytest.mark.parametrize(
    "command", [["mypy"], ["ruff", "check"], ["ruff", "format", "--check"]], ids=lambda command: " ".join(command)
)
def test_types_and_style(command):
    environment = {**os.environ, "MYPYPATH": str(ROOT / "bindings/python")}
    run = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def faults(name: str, text: str) -> list[str]:
    found = [f"{name}: {len(text.splitlines())} lines"] if len(text.splitlines()) > MAX_FILE_LINES else []
    if not text.isascii():
        found.append(f"{name}: characters outside ASCII")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            # Documentation and a long list of arguments are not what makes a function hard to follow.
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            if lines > MAX_FUNCTION_LINES:
                found.append(f"{name}:{node.lineno}: {node.name} has {lines} lines")
    return found


def test_functions_and_files_are_short():
    assert len(SOURCES) > 20
    assert not [fault for path in SOURCES for fault in faults(str(path.relative_to(ROOT)), path.read_text())]


def test_long_functions_are_seen():
    assert faults("x.py", "def f():\n" + "    a = 1\n" * 61) == ["x.py:1: f has 61 lines"]
    assert faults("x.py", "a = 1\n" * 501) and faults("x.py", "a = '\u00e9'\n")


def test_importing_costs_nothing_of_the_hosts():
    hosts = ("torch", "transformers", "diffusers", "onnx", "jax")
    code = f"import sys, clary; print([name for name in {hosts} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
