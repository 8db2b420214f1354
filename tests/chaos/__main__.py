"""python -m tests.chaos [run|compare|report] ..."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.status import Status

from tests.chaos.checker import Kind
from tests.chaos.comparison import compare, draw, paired, show_comparison
from tests.chaos.faults import OF_THE_CACHE
from tests.chaos.figures import Figures, added, from_json, shortcomings, show, to_json
from tests.chaos.rig import ALL_FAULTS, Progress, Settings, run
from tests.chaos.rivals import NAMES

LINE_SECONDS = 10.0


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    whole = argparse.ArgumentParser(
        prog="python -m tests.chaos", description="The library under fire: every read is checked."
    )
    commands = whole.add_subparsers(dest="command", required=True)
    load = argparse.ArgumentParser(add_help=False)
    load.add_argument("--minutes", type=float, default=1.0, help="of a run (default 1)")
    load.add_argument(
        "--faults", nargs="+", choices=sorted(ALL_FAULTS), metavar="CLASS", help=", ".join(sorted(ALL_FAULTS))
    )
    load.add_argument(
        "--period", type=float, default=10.0, help="seconds between two faults of a class, about (default 10)"
    )
    load.add_argument("--readers", type=int, default=3)
    load.add_argument("--writers", type=int, default=8)
    load.add_argument("--keys", type=int, default=1000)
    load.add_argument("--slow", type=float, default=0.02, help="share of slow COMMITs (default 0.02)")
    load.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    one = commands.add_parser("run", parents=[load], help="put the library under fire (this is done without a command)")
    one.add_argument("--control", action="store_true", help="read the database directly: must be clean")
    one.add_argument("--without-verified-fill", action="store_true", help="break the library on purpose")
    one.add_argument("--expect-stale", type=int, metavar="N", help="fail if fewer than N stale reads were found")
    one.add_argument("--no-faults", action="store_true")
    several = commands.add_parser("compare", parents=[load], help="do the same with what people use today")
    several.add_argument(
        "--strategies", nargs="+", choices=list(NAMES), default=list(NAMES), metavar="NAME", help=", ".join(NAMES)
    )
    several.add_argument("--chart", type=Path, metavar="FILE", help="draw the result as SVG")
    report = commands.add_parser("report", help="add up the figures of several runs")
    report.add_argument("files", type=Path, nargs="+", metavar="FILE")
    report.add_argument("--json", type=Path, metavar="FILE", help="write the sum")
    report.add_argument("--chart", type=Path, metavar="FILE", help="draw a comparison's result as SVG")
    return whole


def settings_of(chosen: argparse.Namespace) -> Settings:
    """Return what the command line asks for."""
    return Settings(
        seconds=60 * chosen.minutes,
        faults=frozenset(chosen.faults or ALL_FAULTS),
        period=chosen.period,
        readers=chosen.readers,
        writers=chosen.writers,
        keys=chosen.keys,
        slow=chosen.slow,
    )


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
    """Do one run; 1 if a read was wrong, or too few were where that is expected, or if the run proves nothing."""
    settings = settings_of(chosen)
    if chosen.no_faults:
        settings = replace(settings, faults=frozenset())
    if chosen.control:
        settings = replace(settings, strategy="direct", faults=settings.faults - OF_THE_CACHE)
    if chosen.without_verified_fill:
        settings = replace(settings, verified=False)
    teller = Teller(console)
    try:
        figures, logs = run(settings, teller)
    finally:
        teller.close()
    show(figures, console)
    write([figures], chosen.json)
    if logs is not None and chosen.expect_stale:
        shutil.rmtree(logs)
    elif logs is not None:
        console.print(f"The logs are in {logs}", markup=False)
    if chosen.expect_stale:
        as_expected = figures.findings.counts[Kind.STALE] >= chosen.expect_stale
    else:
        as_expected = not figures.violations
    return int(not as_expected or bool(figures.crashes) or bool(shortcomings(figures)))


def compare_all(chosen: argparse.Namespace, console: Console) -> int:
    """Run every strategy; 1 if a read through the library, or from the database, was wrong."""
    tellers: list[Teller] = []

    def teller(what: str) -> Teller:
        for one in tellers:
            one.close()
        tellers.append(Teller(console, what))
        return tellers[-1]

    try:
        compared = compare(settings_of(chosen), chosen.strategies, teller)
    finally:
        for one in tellers:
            one.close()
    show_comparison(compared, console)
    runs = [figures for one in compared for figures in (one.calm, one.fire)]
    write(runs, chosen.json)
    if chosen.chart is not None:
        draw(chosen.chart, compared)
    return int(
        any(one.violations for one in runs if one.strategy in {"ours", "direct"}) or any(one.crashes for one in runs)
    )


def report(chosen: argparse.Namespace, console: Console) -> int:
    """Add up runs of one strategy; show a comparison again."""
    runs = [one for path in chosen.files for one in from_json(path)]
    if len({one.strategy for one in runs}) > 1:
        compared = paired(runs)
        show_comparison(compared, console)
        if chosen.chart is not None:
            draw(chosen.chart, compared)
        return 0
    whole = added(runs)
    show(whole, console)
    write([whole], chosen.json)
    return int(bool(whole.violations or whole.crashes or shortcomings(whole)))


def write(runs: list[Figures], path: Path | None) -> None:
    """Write the figures, where that is wanted."""
    if path is not None:
        path.write_text(to_json(runs), encoding="utf-8")


def main() -> int:
    """Run the command line."""
    words = sys.argv[1:]
    if not words or words[0] not in {*COMMANDS, "-h", "--help"}:
        words = ["run", *words]
    chosen = parser().parse_args(words)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop everything, as after Ctrl-C
    console = Console() if sys.stdout.isatty() else Console(width=140)
    try:
        return COMMANDS[chosen.command](chosen, console)
    except KeyboardInterrupt:
        console.print("stopped")
        return 130


COMMANDS = {"run": run_one, "compare": compare_all, "report": report}

if __name__ == "__main__":
    sys.exit(main())
