#!/usr/bin/env python3
"""What the NEON kernels should reach on Neoverse V1 and V2, by llvm-mca: a model, not a measurement.

  model_neon.py [--sets neon,i8mm] [--cpus neoverse-v1,neoverse-v2]     prints two tables in Markdown
  model_neon.py --self-test                                             plants loops and sees that they are found

Compiles each kernel unit to assembly with the flags of the `neon` preset, takes the innermost loops of one unit (16 rows
x 256 keys) and lets llvm-mca run them with all data in L1. First table: the loops. Second: all of a unit, the loops times
their turns and FRAME, against the time its products would take if every pipe multiplied in every cycle.

Needs g++-aarch64-linux-gnu and qemu's preset (scripts/setup.sh tests), and llvm-mca-19 (Debian: llvm-19), which setup.sh
does not install. Exits 77 without them.
"""

import argparse
import collections
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "neon"
MCA = "llvm-mca-19"
SKIPPED = 77
ROUNDS = 200  # of a loop in llvm-mca: its beginning and end are then 1 % at most

MULTIPLIES = ("fmla", "sdot", "udot", "usdot", "smmla", "usmmla", "bfdot", "bfmmla")
PIPES = 4  # vector pipes of both CPUs; each starts one of MULTIPLIES per cycle
# Cycles of a register tile outside its loop: 16 registers set to zero (4 pipes), 16 stored (2 pipes); with pairs of rows
# also 16 of split_rows (4 pipes).
FRAME = {"neon": 4 + 8, "i8mm": 4 + 8 + 4}

# Elements of a Scheme as they are mangled: f32, bf16, i8 (src/kernel/scheme.h).
SCHEMES = {"exact": (0, 0), "bf16": (1, 1), "int8": (2, 2)}
CODES_PER_STEP = {"exact": 1, "bf16": 2, "int8": 4}

Loop = collections.namedtuple("Loop", "function body")  # body: instructions, the branch back last


def innermost_loops(assembly):
    """Yields every loop that has no label in it, with the name of its function."""
    function, body, label = "", [], ""
    for line in assembly.splitlines():
        if match := re.match(r"([\w.$]+):", line):
            if match[1].startswith(".L"):
                label, body = match[1], []
            elif not match[1].startswith("."):
                function, label = match[1], ""
        elif re.match(r"\t[a-z]", line):
            body.append(line.strip())
            branch = re.match(r"(?:b\.?\w\w|cbn?z\s+\w+,|tbn?z\s+\w+, #?\d+,)\s+(\.L\d+)$", body[-1])
            if branch and label and branch[1] == label:
                yield Loop(function, tuple(body))


def opcodes(loop):
    return collections.Counter(line.split()[0] for line in loop.body)


def multiplies(loop):
    return sum(count for op, count in opcodes(loop).items() if op in MULTIPLIES)


def belongs(loop, preset, member):
    qk, pv = SCHEMES[preset]
    return member in loop.function and bool(re.search(rf"ElementE{qk}ELS\w+_{pv}EE", loop.function))


def advance(loop):
    """Bytes of the packed operand that a turn of a product's loop steps over: 4 steps x 64 for each vector of the group."""
    found = [re.search(r"^add\s+(x\d+), \1, #?(\d+)$", line) for line in loop.body]
    return max((int(match[2]) for match in found if match), default=0)


def find_loops(assembly, preset):
    """Name of a step -> the loops that the compiler made of it."""
    loops = list(innermost_loops(assembly))
    unit = [loop for loop in loops if belongs(loop, preset, "run_unit")]
    softmax = unit + [loop for loop in loops if belongs(loop, preset, "Softmax")]
    # Fixed-point scores are inlined into a unit; the others have a function.
    scores = unit if preset == "int8" else [loop for loop in loops if belongs(loop, preset, "7natural")]
    ops = {loop: opcodes(loop) for loop in (*scores, *softmax)}
    # A register tile's loop multiplies each of its 16 accumulators at least twice; the epilogues that do convert.
    tiles, values = ([loop for loop in these if multiplies(loop) >= 32 and not ops[loop]["scvtf"] and not ops[loop]["fcmge"]]
                     for these in (scores, unit))
    if scores is unit:
        values = values[1:]
    found = {"Q K^T": tiles[:1], "P V": [loop for loop in values if advance(loop) == 1024][:1],
             "P V, rest of 16 to 48 channels": [loop for loop in values if advance(loop) < 1024]}
    if preset == "int8":
        found["scores"] = [loop for loop in unit if ops[loop]["sqxtn"] and ops[loop]["scvtf"]]
        found["maxima"] = [loop for loop in unit if ops[loop]["smax"] and not ops[loop]["tbl"]]
        found["exponentials"] = [loop for loop in softmax if ops[loop]["tbl"]]
        found["sums into O"] = [loop for loop in unit if ops[loop]["fmul"] == 32 and ops[loop]["scvtf"]]
    else:
        found["scores"] = [loop for loop in scores if ops[loop]["fmla"] == 16]
        found["maxima"] = [loop for loop in softmax if ops[loop]["fcmgt"] == 4 and not ops[loop]["bsl"]]
        found["exponentials"] = [loop for loop in softmax if ops[loop]["fcmge"] and not ops[loop]["fdiv"]]
        found["sums into O"] = [loop for loop in unit if ops[loop]["fmla"] == 16]
    missing = [step for step, these in found.items() if not these]
    if missing:
        raise LookupError(f"{preset}: no loop for {', '.join(missing)}")
    return found


def turns(step, preset, dim):
    """Turns of a step's loop for a unit of 16 rows x 256 keys; a product's loop takes four steps of 4 rows x 16 lanes."""
    codes, fixed = CODES_PER_STEP[preset], preset == "int8"
    return {
        "Q K^T": 4 * 16 * dim / (4 * codes), "P V": 4 * dim / 16 * 256 / (4 * codes), "scores": 16 * 4,
        "maxima": 16 * 256 / (64 if fixed else 16), "exponentials": 16 * 256 / (64 if fixed else 32),
        "sums into O": 16 * dim / 64,
    }.get(step, 0)


def cycles(loop, cpu):
    command = [MCA, "-mtriple=aarch64", f"-mcpu={cpu}", f"-iterations={ROUNDS}"]
    text = subprocess.run(command, input="\n".join(loop.body) + "\n", capture_output=True, text=True, check=True).stdout
    return int(re.search(r"Total Cycles:\s+(\d+)", text)[1]) / ROUNDS


def compile_unit(name):
    """The assembly of a kernel unit, by the command that the preset has for it."""
    commands = json.loads((BUILD / "compile_commands.json").read_text())
    (entry,) = (c for c in commands if c["file"].endswith(f"src/cpu/kernels_{name}.cpp"))
    words = [word for word in shlex.split(entry["command"]) if not word.endswith("ccache")]
    words[words.index("-o") + 1] = "-"
    words[words.index("-c")] = "-S"
    return subprocess.run(words, cwd=entry["directory"], capture_output=True, text=True, check=True).stdout


def table(rows):
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def loop_row(name, preset, step, loops, cpus):
    """The slowest of the loops on the first CPU."""
    loop = max(loops, key=lambda loop: cycles(loop, cpus[0]))
    times = [cycles(loop, cpu) for cpu in cpus]
    shares, what = ["-"] * len(cpus), "-"
    if step.startswith(("Q K", "P V")):
        shares = [f"{100 * multiplies(loop) / PIPES / time:.0f} %" for time in times]
        op = next(op for op in opcodes(loop) if op in MULTIPLIES)
        what = f"{opcodes(loop)[op]} {op}"
    return [name, preset, step, str(len(loop.body)), what, *(f"{time:.1f}" for time in times), *shares]


def unit_row(name, preset, dim, found, cpus):
    """Share of the multiplies' own time in that of the products, and in that of everything."""
    ideal = sum(turns(step, preset, dim) * multiplies(found[step][0]) / PIPES for step in ("Q K^T", "P V"))
    cells = []
    for cpu in cpus:
        times = {step: turns(step, preset, dim) * cycles(loops[0], cpu) for step, loops in found.items()}
        products = times["Q K^T"] + times["P V"] + (4 * 16 + 4 * dim / 16) * FRAME[name]
        rest = sum(times[step] for step in ("scores", "maxima", "exponentials", "sums into O"))
        cells += [f"{100 * ideal / products:.0f} %", f"{100 * ideal / (products + rest):.0f} %"]
    return [name, preset, str(dim), f"{ideal:.0f}", *cells]


def model(name, cpus):
    """Rows of both tables for one set."""
    assembly = compile_unit(name)
    found = {preset: find_loops(assembly, preset) for preset in SCHEMES}
    loops = [loop_row(name, preset, step, these, cpus) for preset in SCHEMES for step, these in found[preset].items()]
    units = [unit_row(name, preset, dim, found[preset], cpus) for preset in SCHEMES for dim in (64, 128)]
    return loops, units


def self_test():
    loop = "\n".join(["\tsdot\tv0.4s, v1.16b, v2.4b[0]"] * 64)
    assembly = "\n".join([
        "_ZN3FooE:", ".L1:", "\tadd\tx0, x0, 1", ".L2:", loop, "\tcmp\tx0, x1", "\tbne\t.L2", "\tb\t.L1",
        "_ZN3BarE:", ".L2:", "\tret", ".L3:", "\tcbnz\tx0, .L3", "\tfmla\tv0.4s, v1.4s, v2.4s", "\tb.ne\t.L2"])
    loops = list(innermost_loops(assembly))
    assert [loop.function for loop in loops] == ["_ZN3FooE", "_ZN3BarE"], loops
    assert opcodes(loops[0]) == {"sdot": 64, "cmp": 1, "bne": 1} and multiplies(loops[0]) == 64
    assert loops[1].body == ("cbnz\tx0, .L3",)
    name = "_ZN5clary6AttendINS_4NeonENS_6SchemeILNS_7ElementE2ELS3_2EEEE8run_unitERKNS_4UnitENS5_4TileE"
    assert belongs(Loop(name, ()), "int8", "run_unit") and not belongs(Loop(name, ()), "bf16", "run_unit")
    assert not belongs(Loop(name.replace("ELS3_2E", "ELS3_1E"), ()), "int8", "run_unit")  # int8_f16
    try:
        find_loops(assembly, "int8")
    except LookupError as error:
        assert "no loop for Q K^T" in str(error)
    else:
        raise AssertionError("loops that are not there were not missed")
    assert turns("Q K^T", "int8", 64) * 16 * 4 * 4 * 4 == 16 * 256 * 64  # rows x keys x channels
    assert turns("P V", "bf16", 128) * 16 * 4 * 4 * 2 == 16 * 256 * 128


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sets", default="neon,i8mm")
    parser.add_argument("--cpus", default="neoverse-v1,neoverse-v2")
    parser.add_argument("--self-test", action="store_true")
    options = parser.parse_args()
    if options.self_test:
        return self_test()
    for program in (MCA, "aarch64-linux-gnu-g++"):
        if not shutil.which(program):
            print(f"model_neon: there is no {program}; on Debian: apt-get install llvm-19 g++-aarch64-linux-gnu")
            sys.exit(SKIPPED)
    subprocess.run(["cmake", "--preset", "neon"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    cpus = options.cpus.split(",")
    loops, units = zip(*(model(name, cpus) for name in options.sets.split(",")))
    short = [cpu.removeprefix("neoverse-").upper() for cpu in cpus]
    header = ["set", "preset", "step", "instructions", "multiplies"]
    print(table([header + [f"cycles {c}" for c in short] + [f"share {c}" for c in short], *sum(loops, [])]), end="\n\n")
    header = ["set", "preset", "head dim", "cycles of multiplies"]
    print(table([header + sum(([f"products {c}", f"all {c}"] for c in short), []), *sum(units, [])]))
    return None


if __name__ == "__main__":
    main()
