"""`python -m clary`: info, bench and report."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from . import _lib, bench, core, report
from ._extra import MissingExtra


def main(arguments: Sequence[str] | None = None) -> int:
    """0: done; 2: something was wrong, which is on the error stream."""
    parser = argparse.ArgumentParser(prog="python -m clary", description="Attention in 4 and 8 bits on CPUs.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="this machine as the library sees it")
    for name, module in (("bench", bench), ("report", report)):
        summary = module.DESCRIPTION.partition(".")[0]
        command = commands.add_parser(name, help=summary, description=module.DESCRIPTION)
        module.add_arguments(command)
    options = parser.parse_args(arguments)
    try:
        if options.command == "info":
            return _info()
        return bench.run(options) if options.command == "bench" else report.run(options)
    except (ValueError, OSError, MissingExtra, _lib.Error) as error:
        print(f"clary {options.command}: {error}", file=sys.stderr)
        return 2


def _info() -> int:
    for name, value in dataclasses.asdict(core.info()).items():
        if isinstance(value, dict):
            value = ", ".join(f"{key}{'' if there else ' (not on this CPU)'}" for key, there in value.items())
        print(f"{name:8} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
