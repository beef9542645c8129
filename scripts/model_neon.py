#!/usr/bin/env python3
"""What the NEON kernels should reach on Neoverse V1 and V2, by llvm-mca: a model, not a measurement.

  model_neon.py [--sets neon,i8mm] [--presets int8] [--dims 64,128] [--cpus neoverse-v1,neoverse-v2]
  model_neon.py --self-test              disassembly and traces that are made up

Runs one call under qemu, instruction by instruction, and hands what whole units (16 rows x 256 keys: Q K^T, softmax,
P V, sums into O) executed to llvm-mca, with all data in L1 and every branch foreseen. Prints a table in Markdown: counts
per unit, cycles, and the share of the time that the multiplies alone would take on every pipe. `exact` and `bf16` have
many times the instructions: llvm-mca needs many minutes for a row of them.

Needs g++-aarch64-linux-gnu and qemu-user 7 (scripts/setup.sh tests), and llvm-mca-19 (Debian: llvm-19), which setup.sh
does not install. Exits 77 without them.
"""

import argparse
import collections
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "neon"
LIBRARY = BUILD / "libclary.so.0"
COMMAND = BUILD / "tools" / "clary"
MCA = "llvm-mca-19"
BINUTILS = "aarch64-linux-gnu-"
QEMU = ("qemu-aarch64", "-cpu", "max", "-L", "/usr/aarch64-linux-gnu")
SKIPPED = 77

MULTIPLIES = ("fmla", "sdot", "udot", "smmla", "usmmla", "bfmmla")
PIPES = 4  # vector pipes of both CPUs; each starts one of MULTIPLIES per cycle
ROWS, KEYS = 16, 256
CLASSES = {"neon": "Neon", "i8mm": "I8mm"}
# Elements of a Scheme as they are mangled: f32, bf16, i8 (src/kernel/scheme.h).
SCHEMES = {"exact": (0, 0), "bf16": (1, 1), "int8": (2, 2)}
# Multiply-adds of one instruction; bf16 without bfmmla is f32.
WORK = {("neon", "exact"): 4, ("neon", "bf16"): 4, ("neon", "int8"): 16,
        ("i8mm", "exact"): 4, ("i8mm", "bf16"): 16, ("i8mm", "int8"): 32}

Function = collections.namedtuple("Function", "address size name")


def output_of(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def kernel_functions(symbols, isa, preset):
    """Functions of one set and preset that work on units, from the output of nm -S."""
    qk, pv = SCHEMES[preset]
    found = []
    for line in symbols.splitlines():
        words = line.split()
        if len(words) != 4 or not re.search(f"{CLASSES[isa]}E", words[3]):
            continue
        if re.search(rf"(Attend|attend_item|Pipeline|Softmax|Scores|Accumulate)I.*ElementE{qk}ELS\w+_{pv}EE", words[3]):
            found.append(Function(int(words[0], 16), int(words[1], 16), words[3]))
    return found


def parse_disassembly(text):
    """Address -> instruction as llvm-mca reads it: targets become offsets."""
    instructions = {}
    for line in text.splitlines():
        if match := re.match(r"\s+([0-9a-f]+):\t(.*)", line):
            instruction = match[2].split("//")[0].strip()
            target = "#4096" if instruction.startswith("adrp") else "#8"
            instructions[int(match[1], 16)] = re.sub(r"\b[0-9a-f]+ <[^>]*>", target, instruction)
    return instructions


def executed(log, base):
    """Addresses in the library of the instructions that qemu's log shows, in their order."""
    return [int(address, 16) - base for address in re.findall(r"\[\w+/(\w+)/", log)]


def whole_units(addresses, entry):
    """The instructions from the third unit to the last but one, and how many units these are."""
    starts = [i for i, address in enumerate(addresses) if address == entry]
    if len(starts) < 4:
        raise LookupError(f"{len(starts)} units were run, too few")
    return addresses[starts[2]:starts[-1]], len(starts) - 3


def trace(isa, preset, dim):
    functions = kernel_functions(output_of(BINUTILS + "nm", "-S", LIBRARY), isa, preset)
    (entry,) = (f.address for f in functions if "run_unit" in f.name)
    loaded = output_of(*QEMU, "-E", "LD_TRACE_LOADED_OBJECTS=1", COMMAND)
    base = int(re.search(r"libclary\S* => \S+ \((0x\w+)\)", loaded)[1], 16)
    ranges = ",".join(f"{base + f.address:#x}+{f.size:#x}" for f in functions)
    with tempfile.TemporaryDirectory() as folder:
        log = pathlib.Path(folder) / "log"
        output_of(*QEMU, "-singlestep", "-d", "exec,nochain", "-dfilter", ranges, "-D", log, COMMAND, "check",
                  f"lq32 lk1024 d{dim}", "--precision", preset, "--rows", "1", "--threads", "1", "--isa", isa)
        return whole_units(executed(log.read_text(), base), entry)


def kind(instruction):
    name, _, operands = instruction.partition("\t") if "\t" in instruction else instruction.partition(" ")
    if name in MULTIPLIES and re.search(r"v\d+\.\w+, *v\d+\.", operands):
        return "multiplies"
    if name.startswith("ld"):
        return "loads"
    if name.startswith("st"):
        return "stores"
    return "other vector" if re.search(r"\b[vqdsh]\d+\b", operands) else "scalar"


def cycles(instructions, cpu):
    command = [MCA, "-mtriple=aarch64", f"-mcpu={cpu}", "-iterations=1"]
    text = subprocess.run(command, input="\n".join(instructions) + "\n", capture_output=True, text=True, check=True).stdout
    return int(re.search(r"Total Cycles:\s+(\d+)", text)[1])


def row(isa, preset, dim, disassembly, cpus):
    addresses, units = trace(isa, preset, dim)
    instructions = [disassembly[address] for address in addresses]
    counts = collections.Counter(map(kind, instructions))
    ideal = 2 * ROWS * KEYS * dim / WORK[isa, preset] / PIPES
    times = [cycles(instructions, cpu) / units for cpu in cpus]
    return [isa, preset, str(dim), f"{ideal:.0f}",
            *(f"{counts[what] / units:.0f}" for what in ("multiplies", "other vector", "loads", "stores", "scalar")),
            *(f"{time:.0f}" for time in times), *(f"{100 * ideal / time:.0f} %" for time in times)]


def table(rows):
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def self_test():
    text = "\n".join(["0000000000000010 <f>:", "      10:\tadrp\tx0, 5000 <g+0x4>", "      14:\tb.ne\t10 <f>  // b.any",
                      "      18:\tsdot\tv0.4s, v1.16b, v2.4b[0]"])
    assert parse_disassembly(text) == {
        0x10: "adrp\tx0, #4096", 0x14: "b.ne\t#8", 0x18: "sdot\tv0.4s, v1.16b, v2.4b[0]"}
    kinds = {"sdot\tv0.4s, v1.16b, v2.4b[0]": "multiplies", "fmla\tv0.4s, v1.4s, v2.s[1]": "multiplies",
             "ldp\tq0, q1, [x0]": "loads", "str\tq0, [x1, #16]": "stores", "dup\tv0.4s, w1": "other vector",
             "add\tx0, x1, #0x40": "scalar", "b.ne\t#8": "scalar"}
    assert {instruction: kind(instruction) for instruction in kinds} == kinds
    log = "Trace 0: 0x7f [0000000000000000/0000005500000010/80000001/ff000201]\nTrace 0: 0x7f [00/0000005500000014/80/ff]\n"
    assert executed(log, 0x5500000000) == [0x10, 0x14]
    units = [1, 2, 1, 3, 1, 4, 4, 1, 5, 1]
    assert whole_units(units, 1) == ([1, 4, 4, 1, 5], 2)
    try:
        whole_units(units, 5)
    except LookupError as error:
        assert "1 units" in str(error)
    else:
        raise AssertionError("units that were not run were not missed")
    name = "_ZN5clary6AttendINS_4NeonENS_6SchemeILNS_7ElementE2ELS3_2EEEE8run_unitERKNS_4UnitENS5_4TileE"
    symbols = f"0000000000000010 0000000000000020 t {name}\n0000000000000030 0000000000000008 T _ZN5clary4NeonEv\n"
    assert kernel_functions(symbols, "neon", "int8") == [Function(16, 32, name)]
    assert not kernel_functions(symbols, "neon", "bf16") and not kernel_functions(symbols, "i8mm", "int8")
    assert not kernel_functions(symbols.replace("ELS3_2E", "ELS3_1E"), "neon", "int8")  # int8_f16


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sets", default="neon,i8mm")
    parser.add_argument("--presets", default="int8")
    parser.add_argument("--dims", default="64,128")
    parser.add_argument("--cpus", default="neoverse-v1,neoverse-v2")
    parser.add_argument("--self-test", action="store_true")
    options = parser.parse_args()
    if options.self_test:
        return self_test()
    for program in (MCA, "aarch64-linux-gnu-g++", QEMU[0]):
        if not shutil.which(program):
            print(f"model_neon: there is no {program}; on Debian: apt-get install llvm-19 g++-aarch64-linux-gnu qemu-user")
            sys.exit(SKIPPED)
    if not COMMAND.exists():
        sys.exit("model_neon: build it first: cmake --preset neon && cmake --build --preset neon --target clary_command")
    disassembly = parse_disassembly(output_of(BINUTILS + "objdump", "-d", "--no-show-raw-insn", LIBRARY))
    cpus = options.cpus.split(",")
    short = [cpu.removeprefix("neoverse-").upper() for cpu in cpus]
    rows = [["set", "preset", "head dim", "cycles of multiplies", "multiplies", "other vector", "loads", "stores", "scalar",
             *(f"cycles {cpu}" for cpu in short), *(f"share {cpu}" for cpu in short)]]
    for isa in options.sets.split(","):
        for preset in options.presets.split(","):
            for dim in map(int, options.dims.split(",")):
                rows.append(row(isa, preset, dim, disassembly, cpus))
    print(table(rows))


if __name__ == "__main__":
    main()
