"""Packages that only some of the commands need."""

from __future__ import annotations

import importlib
from typing import Any


class MissingExtra(ImportError):
    """A package of an extra is not installed."""


def need(module: str, extra: str = "bench") -> Any:
    """The module. Raises: MissingExtra with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtra(f"needs the package {package} ({error}); pip install 'clary[{extra}]'") from None
