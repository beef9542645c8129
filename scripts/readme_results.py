#!/usr/bin/env python3
"""Writes the table of measured results into README.md, between its two markers, from files of `clary bench --json`.

  readme_results.py README.md bench/results/<machine>/<file>.json ...

Figures in the README are never typed: run the benchmark, then this.
"""

import json
import re
import sys

BEGIN, END = "<!-- results -->", "<!-- end of results -->"


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


def main(readme, *paths):
    note = ("Median time of a whole call, speed-up over `exact`, share of the processor's measured peak for that preset's\n"
            "arithmetic, relative L2 error against float64.\n")
    body = "\n".join([BEGIN, note, *map(table, paths), END])
    with open(readme) as file:
        text = file.read()
    pattern = re.escape(BEGIN) + (r".*?" + re.escape(END) if END in text else "")
    with open(readme, "w") as file:
        file.write(re.sub(pattern, lambda _: body, text, flags=re.S))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
