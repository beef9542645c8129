#!/usr/bin/env python3
"""tools/gpu_check.sh, gpu_peers.sh and gpu_torch.py on a machine that only pretends to have a GPU.

A made-up nvidia-smi, clary_gpu_check and torch stand on PATH and PYTHONPATH: what is seen is the order of the steps, what a
second run repeats, and how each end is told from the others. gpu_check_test.py <source folder>
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest
import zipfile

SOURCE = pathlib.Path(sys.argv.pop(1) if len(sys.argv) > 1 else ".").resolve()
PROGRAM = """#!/bin/bash
echo "$1" >>"$CALLS"
[ "$1" != "${FAILS:-}" ] || exit 1
[ "$1" != "${SLEEPS:-}" ] || sleep 60
case $1 in bench | variants) echo '{}' >"$2" ;; esac
echo "$1 done"
"""
TORCH = {
    "torch/__init__.py": """
bfloat16, __version__ = None, "0"
class Tensor:
    def transpose(self, *_): return self
def randn(*_, **__): return Tensor()
class cuda:
    synchronize = staticmethod(lambda: None)
    class Event:
        def __init__(self, **_): pass
        record = synchronize = lambda self: None
        elapsed_time = lambda self, other: 100.0
""",
    "torch/nn/__init__.py": "",
    "torch/nn/functional.py": "def scaled_dot_product_attention(q, k, v, is_causal): pass\n",
    "torch/nn/attention.py": """
import contextlib
class SDPBackend: CUDNN_ATTENTION, FLASH_ATTENTION = range(2)
sdpa_kernel = contextlib.nullcontext
""",
}
SAGE = """
def sageattn(q, k, v, tensor_layout, is_causal):
    assert tensor_layout == "HND"
    if is_causal: raise ValueError("not this shape")
"""


def write(path, text, mode=0o644):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def write_wheel(folder):
    folder.mkdir()
    with zipfile.ZipFile(folder / "sageattention-2.2.0-py3-none-any.whl", "w") as wheel:
        info = "sageattention-2.2.0.dist-info"
        wheel.writestr("sageattention.py", SAGE)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: sageattention\nVersion: 2.2.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: a\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"sageattention.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


class GpuCheck(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        shutil.copytree(SOURCE / "tools", self.folder / "tools", ignore=shutil.ignore_patterns("*.cpp", "*.h"))
        write(self.folder / "bin/nvidia-smi", "#!/bin/bash\necho made-up\n", 0o755)
        write(self.folder / "program", PROGRAM, 0o755)
        self.calls_file = self.folder / "calls"

    def run_script(self, *arguments, **variables):
        """(exit status, its output, the commands that the program was given)."""
        self.calls_file.write_text("")
        environment = dict(os.environ, PATH=f"{self.folder}/bin:{os.environ['PATH']}", CALLS=str(self.calls_file),
                           PROGRAM=str(self.folder / "program"), **variables)
        done = subprocess.run([self.folder / "tools/gpu_check.sh", *arguments], env=environment, capture_output=True,
                              text=True, check=False)
        return done.returncode, done.stdout + done.stderr, self.calls_file.read_text().split()

    def test_says_when_there_is_no_gpu(self):
        write(self.folder / "bin/nvidia-smi", "#!/bin/bash\nexit 9\n", 0o755)
        status, text, calls = self.run_script()
        self.assertEqual((status, calls), (3, []))
        self.assertIn("no GPU here", text)

    def test_runs_every_step_once(self):
        status, text, calls = self.run_script()
        self.assertEqual(status, 0, text)
        self.assertEqual(calls[:9], "devices compare lines mixed bad streams large bench variants".split())
        for name in ("gpu.json", "table.txt", "variants.json", "variants.txt", "machine.csv"):
            self.assertTrue((self.folder / "bench/results/gpu" / name).exists(), name)
        status, text, calls = self.run_script()
        self.assertEqual((status, calls), (0, []))
        self.assertIn("passed before", text)
        self.assertEqual(self.run_script("--again")[2][0], "devices")

    def test_times_nothing_that_is_wrong(self):
        status, text, calls = self.run_script(FAILS="mixed")
        self.assertEqual(status, 1)
        self.assertIn("large", calls)
        self.assertNotIn("bench", calls)
        self.assertRegex(text, "mixed +WRONG, status 1")
        status, text, calls = self.run_script()
        self.assertEqual((status, calls[:3]), (0, ["mixed", "bench", "variants"]))

    def test_stops_when_time_is_up_and_goes_on(self):
        status, text, calls = self.run_script(SLEEPS="bad", LIMIT_S="14")
        self.assertEqual((status, calls[-1]), (4, "bad"), text)
        self.assertRegex(text, "bad +not done: time is up")
        status, _, calls = self.run_script()
        self.assertEqual((status, calls[0]), (0, "bad"))

    def test_times_peers_that_are_given(self):
        for name, text in TORCH.items():
            write(self.folder / "modules" / name, text)
        write_wheel(self.folder / "peers")
        status, text, _ = self.run_script(PYTHONPATH=str(self.folder / "modules"), PEERS=str(self.folder / "peers"))
        self.assertEqual(status, 0, text)
        self.assertIn("flash-attn 3: skipped", text)
        rows = json.loads((self.folder / "bench/results/gpu/torch.json").read_text())["rows"]
        self.assertEqual({row["kernel"] for row in rows}, {"cuDNN", "flash", "SageAttention"})
        sage = [row for row in rows if row["kernel"] == "SageAttention"]
        self.assertEqual([row["causal"] for row in sage], [False] * 6)  # what it refuses is left out
        self.assertAlmostEqual(sage[0]["tops"], 4 * 32 * 8192**2 * 64 / 0.1 * 1e-12)

    def test_names_a_folder_without_peers(self):
        (self.folder / "empty").mkdir()
        done = subprocess.run([self.folder / "tools/gpu_peers.sh", self.folder / "empty", self.folder / "to"],
                              capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("holds no wheel", done.stdout)


if __name__ == "__main__":
    unittest.main()
