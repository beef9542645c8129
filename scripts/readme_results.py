#!/usr/bin/env python3
"""Writes the tables of measured results into README.md, between its two markers, from files of `clary bench --json`.

  readme_results.py README.md                    from the files that the first marker names, relative to the README
  readme_results.py README.md FILE.json ...      from these, and names them there
  readme_results.py --check README.md            writes nothing; the status is 1 where it would change something

Figures in the README are never typed: run the benchmark, then this.
"""

import json
import pathlib
import re
import sys

BEGIN, END = "<!-- results of", "<!-- end of results -->"
MARKED = re.compile(re.escape(BEGIN) + r"([^>]*)-->.*?" + re.escape(END), re.DOTALL)


def milliseconds(seconds):
    return f"{seconds * 1e3:.3g} ms"


def rows(result_file):
    """One line per problem: time of each preset, its speed-up over exact, and its error."""
    problems = {}
    for result in result_file["results"]:
        problems.setdefault(result["problem"], {})[result["precision"]] = result
    presets = list(dict.fromkeys(r["precision"] for r in result_file["results"]))
    yield "| problem | " + " | ".join(presets) + " |"
    yield "|---" * (len(presets) + 1) + "|"
    for problem, results in problems.items():
        base = results.get("exact", next(iter(results.values())))["time"]["median_s"]
        cells = []
        for preset in presets:
            if preset not in results:
                cells.append("")
                continue
            r = results[preset]
            time, share = r["time"]["median_s"], r.get("peak_share")
            speed = f"{milliseconds(time)}, {base / time:.2g}x" if preset != "exact" else milliseconds(time)
            peak = f", {share * 100:.0f} %" if share else ""
            cells.append(f"{speed}{peak}, {r['errors']['relative_l2']:.2g}")
        yield f"| `{problem}` | " + " | ".join(cells) + " |"


def table(path):
    with open(path) as file:
        result_file = json.load(file)
    e = result_file["environment"]
    threads = f"{e['threads']} thread" + ("s" if e["threads"] != 1 else "")
    head = f"{e['cpu']}, {e['isa']}, {threads}, {e['compiler']}, {e['date'][:10]}:"
    return "\n".join([head, "", *rows(result_file), ""])


def body(folder, names):
    """Everything between the markers, both included."""
    note = ("Median time of a whole call, speed-up over `exact`, share of the processor's measured peak for that preset's\n"
            "arithmetic, relative L2 error against float64.\n")
    begin = "\n  ".join([BEGIN, *names]) + " -->"
    return "\n".join([begin, note, *(table(folder / name) for name in names), END])


def main(arguments):
    """0: done, or in step; 1: --check, and the README is not what the files give."""
    check = arguments[:1] == ["--check"]
    readme, *names = arguments[check:]
    path = pathlib.Path(readme)
    text = path.read_text()
    found = MARKED.search(text)
    if found is None:
        sys.exit(f"{readme}: has no '{BEGIN} FILES -->' ... '{END}'")
    written = text[:found.start()] + body(path.parent, names or found[1].split()) + text[found.end():]
    if check:
        if written != text:
            print(f"{readme}: is not what its files give; run scripts/readme_results.py {readme}", file=sys.stderr)
        return int(written != text)
    path.write_text(written)
    return 0


if __name__ == "__main__":
    if not [argument for argument in sys.argv[1:] if argument != "--check"]:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1:]))
