"""What is done with the result: a table, a JSON file, a chart."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.runner import Measured

PACKAGES = ("sqlalchemy", "psycopg", "pymemcache", "dogpile.cache", "msgspec", "advanced-alchemy")
GOOD, BAD, PALE, INK = "#1b7f4b", "#c0392b", "#8895a3", "#1f2933"


def machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    found: dict[str, Any] = {"cpu": _cpu(), "cores": os.cpu_count(), "python": platform.python_version()}
    found["kernel"] = platform.release()
    return {**found, **{package: _version(package) for package in PACKAGES}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def show(measured: Sequence[Measured], surroundings: dict[str, Any]) -> None:
    """Print the table."""
    console = Console() if sys.stdout.isatty() else Console(width=150)
    table = Table(
        title="Speed, as ratios of medians with their 95 % interval; undisturbed: of the lower quartiles",
        title_justify="left",
    )
    for name in ("what", "against"):
        table.add_column(name, overflow="fold")
    for name in ("µs or bytes", "limit", "measured", "interval", "undisturbed", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for one in measured:
        low, high = one.interval
        colour = "green" if one.holds else "red"
        table.add_row(
            escape(one.row.what),
            escape(one.row.against),
            f"{_costs(one)[0]:,.0f} / {_costs(one)[1]:,.0f}",
            "" if one.row.limit is None else f"{one.row.limit:.2f}",
            f"{one.ratio:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{one.undisturbed:.3f}",
            "" if one.row.limit is None else f"[{colour}]{'PASS' if one.holds else 'over'}[/]",
        )
    console.print(table)
    console.print(", ".join(f"{name} {value}" for name, value in surroundings.items()))


def _costs(one: Measured) -> tuple[float, float]:
    """Return the medians, in microseconds or bytes."""
    factor = 1 if one.row.in_bytes else 1e6
    return median(one.ours) * factor, median(one.theirs) * factor


def write_json(path: Path, measured: Sequence[Measured], surroundings: dict[str, Any]) -> None:
    """Write everything that the table says, and the lower quartiles' ratio."""
    rows = [
        {
            "what": one.row.what,
            "against": one.row.against,
            "unit": "bytes" if one.row.in_bytes else "us",
            "ours": _costs(one)[0],
            "theirs": _costs(one)[1],
            "limit": one.row.limit,
            "ratio": one.ratio,
            "interval": one.interval,
            "undisturbed": one.undisturbed,
            "rounds": len(one.ours),
            "holds": one.holds,
        }
        for one in measured
    ]
    path.write_text(json.dumps({"machine": surroundings, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def draw(path: Path, measured: Sequence[Measured]) -> None:
    """Draw the ratios as bars, each with its interval and its limit."""
    import matplotlib as mpl  # noqa: PLC0415 - only for the chart

    mpl.use("svg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "sa_writethrough", "font.size": 9})
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the choice of the format

    figure, axes = plt.subplots(figsize=(9, 0.48 * len(measured) + 1.2), layout="constrained")
    places = range(len(measured), 0, -1)
    for place, one in zip(places, measured, strict=True):
        low, high = one.interval
        axes.barh(place, one.ratio, height=0.55, color=PALE if one.row.limit is None else GOOD if one.holds else BAD)
        axes.hlines(place, low, high, color=INK, linewidth=1.5)
        if one.row.limit is not None:
            axes.vlines(one.row.limit, place - 0.4, place + 0.4, color=INK, linewidth=1.5, linestyles=":")
        axes.text(max(high, one.row.limit or 0.0) + 0.02, place, f"{one.ratio:.2f}", va="center", color=INK)
    axes.axvline(1, color="#8895a3", linewidth=1)
    axes.set_yticks(list(places), [f"{one.row.what}\nagainst {one.row.against}" for one in measured], fontsize=7.5)
    axes.set_xlabel("cost as a ratio; 1 is what it is compared with; dotted: at most")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)
