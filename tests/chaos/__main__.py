"""python -m tests.chaos [run|compare|report] ..."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.status import Status

from tests.chaos.faults import SLOW_COMMIT
from tests.chaos.figures import Figures, added, from_json, show, to_json
from tests.chaos.rig import ALL_FAULTS, Progress, Settings, run

LINE_SECONDS = 10.0
COMMANDS = ("run", "compare", "report")


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    whole = argparse.ArgumentParser(prog="python -m tests.chaos", description="The library under fire, every read checked.")
    commands = whole.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="put one strategy under fire (what is done without a command)")
    one.add_argument("--minutes", type=float, default=1.0)
    one.add_argument("--control", action="store_true", help="read the database directly: must be clean")
    one.add_argument("--without-verified-fill", action="store_true", help="break the library on purpose: must not be clean")
    one.add_argument("--no-faults", action="store_true")
    one.add_argument("--faults", nargs="+", choices=sorted(ALL_FAULTS), metavar="CLASS", help=", ".join(sorted(ALL_FAULTS)))
    one.add_argument("--period", type=float, default=10.0, help="seconds between faults of a class, about (default 10)")
    one.add_argument("--readers", type=int, default=3)
    one.add_argument("--writers", type=int, default=6)
    one.add_argument("--keys", type=int, default=1000)
    one.add_argument("--slow", type=float, default=0.03, help="share of slow COMMITs")
    one.add_argument("--json", type=Path, metavar="FILE")
    report = commands.add_parser("report", help="add up the figures of several runs")
    report.add_argument("files", type=Path, nargs="+", metavar="FILE")
    report.add_argument("--json", type=Path, metavar="FILE", help="write the sum")
    return whole


class Teller:
    """Shows a run's progress: on a terminal all the time, elsewhere a line every ten seconds."""

    def __init__(self, console: Console, what: str = "") -> None:
        self._console, self._what, self._next = console, what, 0.0
        self._status: Status | None = console.status("starting") if console.is_terminal else None

    def __call__(self, progress: Progress) -> None:
        """Show *progress*."""
        if self._status is not None:
            self._status.start()
            self._status.update(f"{self._what}{progress}")
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + LINE_SECONDS
            self._console.print(f"{self._what}{progress}", markup=False, highlight=False)

    def close(self) -> None:
        """Stop showing."""
        if self._status is not None:
            self._status.stop()


def run_one(chosen: argparse.Namespace, console: Console) -> int:
    """Do one run; 1 if a read was wrong, or a process ended by itself."""
    settings = Settings(
        seconds=60 * chosen.minutes,
        strategy="direct" if chosen.control else "ours",
        faults=frozenset() if chosen.no_faults else frozenset(chosen.faults or ALL_FAULTS),
        period=chosen.period,
        readers=chosen.readers,
        writers=chosen.writers,
        keys=chosen.keys,
        verified=not chosen.without_verified_fill,
        slow=chosen.slow,
    )
    teller = Teller(console)
    try:
        figures, logs = run(settings, teller)
    finally:
        teller.close()
    return finish([figures], figures, console, chosen.json, logs)


def finish(runs: list[Figures], figures: Figures, console: Console, json: Path | None, logs: Path | None = None) -> int:
    """Show *figures* and return the exit code."""
    show(figures, console)
    if json is not None:
        json.write_text(to_json(runs), encoding="utf-8")
    if logs is not None:
        console.print(f"The logs are in {logs}", markup=False)
    return int(bool(figures.violations or figures.crashes))


def main() -> int:
    """Run the command line."""
    words = sys.argv[1:]
    if not words or words[0] not in {*COMMANDS, "-h", "--help"}:
        words = ["run", *words]
    chosen = parser().parse_args(words)
    console = Console(width=None if sys.stdout.isatty() else 120)
    if chosen.command == "report":
        whole = added([one for path in chosen.files for one in from_json(path)])
        return finish([whole], whole, console, chosen.json)
    try:
        return run_one(chosen, console)
    except KeyboardInterrupt:
        console.print("stopped")
        return 130


if __name__ == "__main__":
    sys.exit(main())
