#!/usr/bin/env python3
"""Checks that code compiled for one instruction set cannot end up in the hands of another CPU.

Each src/cpu/kernels_<name>.cpp has its own compile flags. An inline function that two units share (std::vector's, say)
is a weak symbol in both, and the linker keeps either: the one with AVX-512 in it, perhaps, for a CPU without. So every
weak function that such a unit defines must carry in its name the type of its own instruction set. Constants may be
shared: they are the same whatever the flags.

  check_kernel_symbols.py <static library>      check_kernel_symbols.py --self-test <C++ compiler>
"""

import os
import re
import subprocess
import sys
import tempfile

# Unit name -> the type that must be named (a pattern). AMX's emulation is made of Scalar and has its flags.
OWN_TYPE = {
    "scalar": "Scalar", "avx2": "Avx2", "avxvnni": "AvxVnni", "avx512vnni": "Avx512Vnni", "avx512bf16": "Avx512Bf16",
    "amx": "Amx", "amx_emulated": "(AmxEmulated|Scalar)", "neon": "Neon", "i8mm": "I8mm",
}
WEAK = "W"  # nm's letter for weak functions; V and u are data


def weak_functions(path):
    """Yields (unit name, demangled symbol) for every weak function in the kernel objects of an archive or object."""
    listing = subprocess.run(["nm", "-A", "-C", "--defined-only", path], check=True, capture_output=True, text=True)
    for line in listing.stdout.splitlines():
        match = re.match(r".*kernels_(\w+)\.cpp\.o:\s*[0-9a-f]* (\w) (.*)", line)
        if match and match[2] == WEAK:
            yield match[1], match[3]


def units(path):
    names = subprocess.run(["nm", "-A", path], check=True, capture_output=True, text=True).stdout
    return sorted(set(re.findall(r"kernels_(\w+)\.cpp\.o:", names)))


def faults(path):
    return [f"kernels_{unit}.cpp: {symbol}" for unit, symbol in weak_functions(path)
            if not re.search(rf"\bclary::{OWN_TYPE[unit]}\b", symbol)]


def check(path):
    seen = units(path)
    unknown = [unit for unit in seen if unit not in OWN_TYPE]
    if not seen or unknown:
        print(f"no kernel objects in {path}" if not seen else f"units without a known type: {unknown}")
        return 1
    found = faults(path)
    for fault in found:
        print(f"weak function that other units may share: {fault}")
    print(f"{len(seen)} kernel units ({', '.join(seen)}), {len(found)} faults")
    return 1 if found else 0


SHARED = "#include <vector>\nint f(std::vector<int>& v) { v.push_back(1); return (int)v.size(); }\n"
OWN = """namespace clary { struct Avx2 {}; struct Amx {};
template <class Isa> __attribute__((noinline)) int g(int i) { return i + 1; } template int g<%s>(int); }\n"""


def self_test(compiler):
    """A shared inline function and another set's instance are caught; a set's own instance is not."""
    expected = {SHARED: True, OWN % "Amx": True, OWN % "Avx2": False}
    with tempfile.TemporaryDirectory() as folder:
        for source, faulty in expected.items():
            path = os.path.join(folder, "kernels_avx2.cpp")
            with open(path, "w") as file:
                file.write(source)
            subprocess.run([compiler, "-std=c++20", "-O0", "-c", path, "-o", path + ".o"], check=True)
            if units(path + ".o") != ["avx2"] or bool(faults(path + ".o")) != faulty:
                print(f"the check is wrong about:\n{source}")
                return 1
    print(f"{len(expected)} planted cases judged rightly")
    return 0


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--self-test":
        sys.exit(self_test(sys.argv[2]))
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(check(sys.argv[1]))
