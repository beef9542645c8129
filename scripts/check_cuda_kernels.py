#!/usr/bin/env python3
"""Reads what nvcc made of the CUDA kernels and compares it with the budgets in src/cuda/launch/*.cu.

  check_cuda_kernels.py <launch folder> <object>...   prints every fault, exits 1 when there is one
  check_cuda_kernels.py --table <object>...           prints what there is, as budget lines
  check_cuda_kernels.py --self-test                   plants faults and sees that they are caught

A budget line is a comment in the launch file of an architecture, one per attention kernel:

  // budget: wgmma s8 e4m3 128 | registers 168 | spills 0 | loop 560

registers: most per thread. spills: most accesses of local memory in the loop over full tiles. loop: most instructions of
that loop. Every kernel must have a line, and every line a kernel.

Apart from the numbers, SASS must hold the instructions that the design rests on (NEEDED), and in the loop of an overlapped
wgmma kernel most exponentials must lie between the wait for the scores and the wait for P V, or little would overlap. (ptxas
may sink some below the second wait where P V is short.)

Needs cuobjdump and nvdisasm: beside nvcc, on PATH, or where scripts/setup.sh puts them. Exits 77 without them.
"""

import collections
import os
import pathlib
import re
import shutil
import subprocess
import sys

ELEMENTS = ("s8", "s4", "f16", "bf16", "e4m3")  # in the order of Element in src/cuda/layout/target.h
PRODUCT = re.compile(r"\b(?:IMMA|HMMA|QMMA|IGMMA|HGMMA|QGMMA)\b")
NEEDED = {
    "mma": {"s8": "IMMA.16832.S8.S8", "s4": "IMMA.16864.S4.S4", "f16": "HMMA.16816.F32", "bf16": "HMMA.16816.F32.BF16",
            "e4m3": "QMMA.16832.F32.E4M3.E4M3", "copies": "LDGSTS.E.BYPASS.128", "matrices": "LDSM.16.M88.4"},
    "wgmma": {"s8": "IGMMA.64x128x32.S8.S8", "f16": "HGMMA.64x", "bf16": "HGMMA.64x", "e4m3": "QGMMA.64x",
              "copies": "UBLKCP", "registers": "USETMAXREG"},
}
SKIPPED = 77

Kernel = collections.namedtuple("Kernel", "arch family qk pv dim registers spills loop opcodes loop_text")


def tools():
    """The folder of cuobjdump and nvdisasm, or None."""
    folders = [os.path.dirname(shutil.which("cuobjdump") or ""), "/usr/local/cuda/bin",
               os.path.dirname(os.path.realpath(shutil.which("nvcc") or "/nowhere/nvcc")),
               *map(str, (pathlib.Path(__file__).parent.parent / "build/sass-tools").glob("nvidia/*/bin"))]
    return next((f for f in folders if f and all((pathlib.Path(f) / t).exists() for t in ("cuobjdump", "nvdisasm"))),
                None)


def cuobjdump(folder, *arguments):
    environment = dict(os.environ, PATH=f"{folder}:{os.environ['PATH']}")
    return subprocess.run(["cuobjdump", *arguments], env=environment, capture_output=True, text=True,
                          check=True).stdout


def parts_by_function(text):
    """Yields (architecture, mangled name, text) of every function in cuobjdump's output."""
    arch = "?"
    for piece in re.split(r"(?=arch = sm_|Function ?:? )", text):
        match = re.match(r"arch = (sm_\w+)", piece)
        if match:
            arch = match[1]
        match = re.match(r"Function ?:? ([^\s:]+)", piece)
        if match:
            yield arch, match[1], piece


def attention_kernel(name):
    """(family, qk, pv, dim) of a mangled name, or None when it is another kernel."""
    match = re.search(r"attention_kernelI.*?(Mma|Wgmma)ConfigIL\w+?ElementE(\d)EL\w+?_(\d)ELi(\d+)E", name)
    return match and (match[1].lower(), ELEMENTS[int(match[2])], ELEMENTS[int(match[3])], int(match[4]))


def main_loop(sass):
    """The instructions of the innermost loop with products: the one over full tiles. Of several, the longest."""
    code = [(int(m[1], 16), m[2]) for m in re.finditer(r"/\*([0-9a-f]{4,5})\*/\s+([^;]*);", sass)]
    loops = []
    for at, text in code:
        match = re.search(r"\bBRA(?:\.\w+)*\s+(?:!?U?P\d+,\s*)?`?\(?(0x[0-9a-f]+)", text)
        if match and int(match[1], 16) <= at:
            loops.append((int(match[1], 16), at))
    hot = [loop for loop in loops if any(loop[0] <= at <= loop[1] and PRODUCT.search(text) for at, text in code)]
    inner = [a for a in hot if not any(b != a and b[0] >= a[0] and b[1] <= a[1] for b in hot)]
    bodies = [[text for at, text in code if first <= at <= last] for first, last in inner]
    return max(bodies, key=len, default=[]), [text for _, text in code]


def opcode(text):
    return re.sub(r"^(@!?U?P\d+ )", "", text.strip()).split(" ")[0]


def kernels_of(folder, path):
    registers = {}
    for arch, name, text in parts_by_function(cuobjdump(folder, "-res-usage", path)):
        match = re.search(r"REG:(\d+)", text)
        if match:
            registers[arch, name] = int(match[1])
    for arch, name, text in parts_by_function(cuobjdump(folder, "-sass", path)):
        kind = attention_kernel(name)
        if kind:
            loop, code = main_loop(text)
            spills = sum(bool(re.search(r"\b(LDL|STL)\b", line)) for line in loop)
            yield Kernel(arch, *kind, registers[arch, name], spills, len(loop), {opcode(line) for line in code}, loop)


def budgets_of(text):
    """{(family, qk, pv, dim): (registers, spills, loop)} of a launch file."""
    lines = re.finditer(r"// budget: (\w+) (\w+) (\w+) (\d+) \| registers (\d+) \| spills (\d+) \| loop (\d+)", text)
    return {(m[1], m[2], m[3], int(m[4])): tuple(map(int, m.groups()[4:])) for m in lines}


def exponentials_by_wait(loop):
    """How many MUFU.EX2 follow each wait for products, in the order of the loop."""
    counts = []
    for text in loop:
        if "WARPGROUP.DEPBAR" in text:
            counts.append(0)
        elif "MUFU.EX2" in text and counts:
            counts[-1] += 1
    return counts


def faults_of_kernel(kernel, budget):
    name = f"{kernel.arch} {kernel.family} {kernel.qk} {kernel.pv} {kernel.dim}"
    for what, value, most in zip(("registers", "spills", "loop"), (kernel.registers, kernel.spills, kernel.loop), budget):
        if value > most:
            yield f"{name}: {what} {value}, the budget is {most}"
    if not any(PRODUCT.search(text) for text in kernel.loop_text):
        yield f"{name}: no loop with products found"
    needed = NEEDED[kernel.family]
    for what in (kernel.qk, kernel.pv, *(key for key in needed if key not in ELEMENTS)):
        if not any(op.startswith(needed[what]) for op in kernel.opcodes):
            yield f"{name}: no {needed[what]} in its SASS"
    if kernel.family == "wgmma" and not (kernel.pv == "e4m3" and kernel.dim > 128):
        counts = exponentials_by_wait(kernel.loop_text)
        if len(counts) != 2 or counts[0] < 16 or counts[0] < 1.5 * counts[1]:
            yield f"{name}: the softmax is not between the waits ({counts})"


def faults(kernels, budgets):
    """kernels: of one launch file. Every architecture it is compiled for must hold all that the budgets list."""
    for arch in sorted({kernel.arch for kernel in kernels}):
        kinds = [kernel[1:5] for kernel in kernels if kernel.arch == arch]
        for kind in budgets:
            if kind not in kinds:
                yield f"{arch}: there is a budget but no kernel for {kind}"
    for kernel in kernels:
        budget = budgets.get(kernel[1:5])
        if budget is None:
            yield f"{kernel.arch}: there is a kernel but no budget for {kernel[1:5]}"
        else:
            yield from faults_of_kernel(kernel, budget)
    if not kernels:
        yield "no attention kernels found"


def print_table(folder, paths):
    for path in paths:
        rows = {}
        for k in kernels_of(folder, path):
            old = rows.get(k[1:5], (0, 0, 0))
            rows[k[1:5]] = tuple(map(max, old, (k.registers, k.spills, k.loop)))
        print(path)
        for (family, qk, pv, dim), (registers, spills, loop) in rows.items():
            print(f"// budget: {family} {qk} {pv} {dim} | registers {registers} | spills {spills} | loop {loop}")


def self_test():
    good = Kernel("sm_90a", "wgmma", "s8", "e4m3", 128, 168, 0, 500,
                  {"IGMMA.64x128x32.S8.S8", "QGMMA.64x128x32.F32.E4M3.E4M3", "UBLKCP.S.G", "USETMAXREG.DEALLOC"},
                  ["IGMMA", "QGMMA", "WARPGROUP.DEPBAR"] + ["MUFU.EX2"] * 64 + ["WARPGROUP.DEPBAR"])
    budgets = {good[1:5]: (168, 0, 520)}
    planted = [
        (good, budgets, None),
        (good._replace(registers=200), budgets, "registers 200"),
        (good._replace(spills=2), budgets, "spills 2"),
        (good._replace(loop=600), budgets, "loop 600"),
        (good._replace(opcodes=good.opcodes - {"UBLKCP.S.G"}), budgets, "no UBLKCP"),
        (good._replace(opcodes=good.opcodes - {"IGMMA.64x128x32.S8.S8"}), budgets, "no IGMMA"),
        (good._replace(loop_text=["IGMMA", "WARPGROUP.DEPBAR", "WARPGROUP.DEPBAR"] + ["MUFU.EX2"] * 64), budgets,
         "not between the waits"),
        (good._replace(loop_text=["IGMMA", "WARPGROUP.DEPBAR"] + ["MUFU.EX2"] * 32 + ["WARPGROUP.DEPBAR"] +
                       ["MUFU.EX2"] * 32), budgets, "not between the waits"),
        (good, {}, "no budget"),
        (good, {**budgets, ("wgmma", "s8", "e4m3", 64): (1, 1, 1)}, "no kernel"),
    ]
    wrong = 0
    for kernel, given, expected in planted:
        found = list(faults([kernel], given))
        if (found != []) if expected is None else not any(expected in fault for fault in found):
            wrong += 1
            print(f"expected {expected!r}, got {found}")
    name = "_ZN5clary4cuda16attention_kernelINS0_4Sm90ENS0_11WgmmaConfigILNS0_7ElementE0ELS4_4ELi128ELi128ELi4EEEEEvNS0_15AttentionParamsE"
    if attention_kernel(name) != ("wgmma", "s8", "e4m3", 128) or attention_kernel("_Z11pack_kernelI4Sm80E") is not None:
        wrong += 1
        print("names are not understood")
    loop, _ = main_loop("/*0000*/ MOV R0, R1 ;\n/*0010*/ HMMA R0 ;\n/*0020*/ @P0 BRA 0x10 ;\n/*0030*/ BRA 0x0 ;\n")
    if loop != ["HMMA R0 ", "@P0 BRA 0x10 "]:
        wrong += 1
        print(f"the wrong loop: {loop}")
    print(f"{len(planted) + 2} planted cases, {wrong} judged wrongly")
    return 1 if wrong else 0


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    folder = tools()
    if folder is None:
        print("no cuobjdump and nvdisasm: scripts/setup.sh tests installs them")
        return SKIPPED
    if sys.argv[1] == "--table":
        print_table(folder, sys.argv[2:])
        return 0
    found, count = [], 0
    for path in sys.argv[2:]:
        launch = pathlib.Path(sys.argv[1]) / re.sub(r"\.o$", "", pathlib.Path(path).name)
        if not cuobjdump(folder, "-lelf", path).strip():  # cmake/cuda_targets.cmake: an nvcc that is older than the GPU
            print(f"{launch.name}: PTX alone, nothing to read")
            continue
        kernels = list(kernels_of(folder, path))
        count += len(kernels)
        found += [f"{launch.name}: {fault}" for fault in faults(kernels, budgets_of(launch.read_text()))]
    if count == 0:
        found.append("no attention kernels found")
    print("\n".join(found + [f"{count} kernels, {len(found)} faults"]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
