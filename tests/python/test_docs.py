"""What is written runs: every Python block of the pages, the examples; and the site builds without warnings."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
import warnings

import pytest
from diffusers.models import attention_dispatch

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples/python").glob("*.py"))
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: pathlib.Path) -> list[tuple[int, str]]:
    """(line, code) of each Python block."""
    text = page.read_text()
    return [(text.count("\n", 0, match.start(1)) + 1, match.group(1)) for match in BLOCK.finditer(text)]


WITH_CODE = [page for page in PAGES if blocks(page)]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_every_python_block_runs(page, tmp_path, monkeypatch):
    """In order, in one namespace a page, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "page"}
    # A model that sets its backend sets that of all models that have none, for as long as the process lives.
    registry = attention_dispatch._AttentionBackendRegistry
    before, _ = registry.get_active_backend()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for line, code in blocks(page):
                padded = "\n" * (line - 1) + code  # a traceback then names the line of the page
                exec(compile(padded, str(page), "exec"), namespace)  # noqa: S102
    finally:
        registry.set_active_backend(before)


def test_the_pages_of_every_host_have_code():
    hosts = {
        "index",
        "arrays",
        "pytorch",
        "transformers",
        "sentence-transformers",
        "diffusers",
        "comfyui",
        "sageattention",
    }
    assert {page.stem for page in WITH_CODE} >= hosts | {"onnx", "benchmarks"}


def test_a_block_that_fails_is_seen(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("text\n\n```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError):
        test_every_python_block_runs(page, tmp_path, monkeypatch)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_every_example_runs(example, tmp_path):
    run = subprocess.run([sys.executable, str(example)], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


def test_there_are_five_examples():
    assert len(EXAMPLES) >= 5


RESULTS = [sys.executable, str(ROOT / "scripts/readme_results.py")]


def test_the_readme_is_in_step_with_its_results():
    run = subprocess.run([*RESULTS, "--check", str(ROOT / "README.md")], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_a_typed_figure_is_seen_and_replaced(tmp_path):
    readme, text = tmp_path / "README.md", (ROOT / "README.md").read_text()
    shutil.copytree(ROOT / "bench/results", tmp_path / "bench/results")
    readme.write_text(text.replace(" ms, ", "1 ms, ", 1))
    run = subprocess.run([*RESULTS, "--check", str(readme)], capture_output=True, text=True)
    assert run.returncode == 1 and "is not what its files give" in run.stderr
    assert subprocess.run([*RESULTS, str(readme)]).returncode == 0
    assert readme.read_text() == text
    one = "bench/results/amd-epyc-zen3-2vcpu/square-1thread.json"
    assert subprocess.run([*RESULTS, str(readme), one]).returncode == 0
    assert readme.read_text().count(".json") == 1 and "avx512bf16, 1 thread" not in readme.read_text()
    readme.write_text("nothing")
    run = subprocess.run([*RESULTS, str(readme)], capture_output=True, text=True)
    assert run.returncode == 1 and "has no '<!-- results of" in run.stderr


def test_the_site_builds_without_warnings(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0 and "WARNING" not in run.stderr, run.stderr
    assert (tmp_path / "site/python/pytorch/index.html").exists()
