#!/usr/bin/env python3
"""The rules of style that a program can check (HACKING.md lists them).

  check_style.py <repository>      prints `file:line: what` for every fault, exits 1 when there is one
  check_style.py --self-test       plants each fault and sees that it is caught
"""

import pathlib
import re
import subprocess
import sys
import tempfile

FOLDERS = ("src", "include", "tools", "tests", "examples", "bench")
SUFFIXES = {".h", ".hpp", ".cpp", ".c", ".cu", ".cuh"}
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 500
MAX_COLUMNS = 120
INTRINSICS = re.compile(r"#\s*include\s*[<\"]([a-z0-9]*intrin|arm_\w+)\.h[>\"]")
CUDA = re.compile(r"#\s*include\s*[<\"](cuda\w*|cublas\w*|cooperative_groups|mma)(\.h|\.cuh)?[>\"]")
SCOPE = re.compile(r"^\s*(template\s*<[^{}]*>\s*)?(inline\s+)?(namespace|class|struct|union|enum|extern)\b")


def without_comments_and_literals(text):
    """The same text, same line numbers, with comments and the insides of literals blanked."""
    pattern = re.compile(
        r'//[^\n]*|/\*.*?\*/|R"(?P<tag>[^(\s]*)\(.*?\)(?P=tag)"|"(?:\\.|[^"\\\n])*"|(?<![0-9A-Za-z_])\'(?:\\.|[^\'\\\n])*\'',
        re.DOTALL)
    return pattern.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def without_directives(code):
    return re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", lambda match: re.sub(r"[^\n]", " ", match[0]), code,
                  flags=re.MULTILINE)


def opens_scope(head):
    """Whether a brace after `head` opens a namespace or a type, whose contents are not one function."""
    if "=" in head.split("(")[0] and not SCOPE.match(head):
        return False
    match = SCOPE.match(head)
    # `struct Status f(` is a function that returns a struct; `struct alignas(64) X` is a type.
    return bool(match) and not re.search(r"\)\s*(const|noexcept|override|->.*)?\s*$", re.sub(r"alignas\([^)]*\)", "", head))


def functions(code):
    """Yields (first line, number of lines) of every outermost braced body that is not a namespace or a type."""
    code = without_directives(code)
    stack, start, line = [], 0, 1
    for i, char in enumerate(code):
        if char == "{":
            head = code[start:i]
            inside = bool(stack) and stack[-1] != "scope"
            kind = "inner" if inside else "scope" if opens_scope(head) else "body"
            first = line - head.lstrip().count("\n")
            stack.append(kind if kind != "body" else first)
            start = i + 1
        elif char == "}":
            kind = stack.pop() if stack else "scope"
            if isinstance(kind, int):
                yield kind, line - kind + 1
            start = i + 1
        elif char == ";":
            start = i + 1
        line += char == "\n"


def text_faults(name, text):
    """Yields (line, what) for the faults that need no other program."""
    lines = text.splitlines()
    if len(lines) > MAX_FILE_LINES:
        yield len(lines), f"file of {len(lines)} lines, at most {MAX_FILE_LINES}"
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_COLUMNS:
            yield number, f"line of {len(line)} columns, at most {MAX_COLUMNS}"
        if not line.isascii():
            yield number, "character outside ASCII"
        if re.search(r"\b(TODO|FIXME)\b", line):
            yield number, "unfinished work: finish it, or write it into the docs"
        if INTRINSICS.match(line.lstrip()) and not name.startswith("src/cpu/isa/"):
            yield number, "intrinsics header outside src/cpu/isa"
        if CUDA.match(line.lstrip()) and not name.startswith(("src/cuda/", "tests/cuda/")):
            yield number, "CUDA header outside src/cuda and tests/cuda"
    if name.endswith((".h", ".hpp", ".cuh")):
        guard = "#ifndef CLARY_CLARY_H" if name == "include/clary/clary.h" else "#pragma once"
        if guard not in lines:
            yield 1, f"header without `{guard}`"
    for first, count in functions(without_comments_and_literals(text)):
        if count > MAX_FUNCTION_LINES:
            yield first, f"function of {count} lines, at most {MAX_FUNCTION_LINES}"


def format_faults(root, names):
    """Yields what clang-format would change, as `file:line: what`."""
    if not names:
        return
    result = subprocess.run(["clang-format-14", "--dry-run", "-Werror", *names], cwd=root, capture_output=True, text=True)
    for line in result.stderr.splitlines():
        match = re.match(r"(.+?):(\d+):\d+: error: .*", line)
        if match:
            yield f"{match[1]}:{match[2]}: not as clang-format-14 writes it"
    if result.returncode != 0 and "error:" not in result.stderr:
        yield f"clang-format-14 failed: {result.stderr.strip()}"


def sources(root):
    return sorted(str(path.relative_to(root)) for folder in FOLDERS for path in (root / folder).rglob("*")
                  if path.suffix in SUFFIXES and path.is_file())


def faults(root):
    names = sources(root)
    found = [f"{name}:{line}: {what}" for name in names
             for line, what in text_faults(name, (root / name).read_text(encoding="utf-8"))]
    return found + list(format_faults(root, names)), len(names)


def body(lines):
    return "int f() {\n" + "  f();\n" * (lines - 3) + "  return 1;\n}\n"


# (file, contents, what must be reported; None: nothing)
PLANTED = [
    ("src/a.cpp", body(60), None),
    ("src/a.cpp", body(61), "function of 61 lines"),
    ("src/a.cpp", "namespace a {\nstruct B {\n  int c() {\n" + "    c();\n" * 60 + "    return 1;\n  }\n};\n}  // namespace a\n",
     "function of 63 lines"),
    ("src/a.cpp", "namespace a {\n" + "int b();\n" * 80 + "}  // namespace a\n", None),
    ("src/a.cpp", 'const char* a = "{ // ";\nchar b = \'{\';\n#define C {\n', None),
    ("src/a.cpp", "int a;\n" * 501, "file of 501 lines"),
    ("src/a.cpp", "// " + "x" * 118 + "\n", "line of 121 columns"),
    ("src/a.cpp", "// \u00e9\n", "outside ASCII"),
    ("src/a.cpp", "// TO" "DO: more\n", "unfinished work"),
    ("src/cpu/a.cpp", "#include <immintrin.h>\n", "intrinsics header"),
    ("tools/a.cpp", "#include <arm_neon.h>\n", "intrinsics header"),
    ("src/cpu/isa/a.cpp", "#include <immintrin.h>\n", None),
    ("src/a.cpp", "#include <cuda_runtime.h>\n", "CUDA header"),
    ("src/cuda/a.cpp", "#include <cuda_runtime.h>\n", None),
    ("tests/cuda/a.cpp", "#include <cuda_runtime.h>\n", None),
    ("src/a.h", "int a;\n", "without `#pragma once`"),
    ("src/a.h", "#pragma once\nint a;\n", None),
    ("src/cuda/a.cu", body(61), "function of 61 lines"),
    ("src/cuda/a.cuh", "int a;\n", "without `#pragma once`"),
    ("tools/a.cu", "#include <cuda_fp8.h>\n", "CUDA header"),
    ("src/a.cpp", "int  a;\n", "not as clang-format-14 writes it"),
]


def self_test():
    style = (pathlib.Path(__file__).parent.parent / ".clang-format").read_text()
    wrong = 0
    for name, contents, expected in PLANTED:
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            (root / ".clang-format").write_text(style)
            (root / name).parent.mkdir(parents=True)
            (root / name).write_text(contents, encoding="utf-8")
            found, _ = faults(root)
        caught = len(found) == 1 and expected in found[0] if expected else not found
        if not caught:
            wrong += 1
            print(f"expected {expected!r} for {contents[:60]!r}, got {found}")
    print(f"{len(PLANTED)} planted cases, {wrong} judged wrongly")
    return 1 if wrong else 0


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    found, count = faults(pathlib.Path(sys.argv[1]).resolve())
    for fault in found:
        print(fault)
    if count == 0:
        print("no sources found")
    else:
        print(f"{count} files, {len(found)} faults")
    return 1 if found or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
