"""The same load, faults and checker over what people use today: one table, one chart."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.chaos.figures import Figures
from tests.chaos.rig import Progress, Settings, run
from tests.chaos.rivals import NAMES

__all__ = ["Compared", "compare", "draw", "paired", "show_comparison"]

GOOD, BAD, PALE, INK = "#1b7f4b", "#c0392b", "#e6b0aa", "#1f2933"
SMALLEST = 0.5
"""Where the logarithmic axis of the chart begins: fewer stale reads per million than were ever measured."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One strategy, without faults and with them."""

    strategy: str
    calm: Figures
    fire: Figures


def compare(
    settings: Settings, strategies: Sequence[str], tell: Callable[[str], Callable[[Progress], None]]
) -> list[Compared]:
    """Run every one of *strategies* twice, once without faults and once with those of *settings*.

    Nobody stands still around a COMMIT: that would widen the gap in which the others are wrong.
    """
    settings = replace(settings, hold=0.0)
    compared = []
    for name in strategies:
        calm = _one(replace(settings, strategy=name, faults=frozenset()), tell(f"{NAMES[name]}, no faults: "))
        fire = _one(replace(settings, strategy=name), tell(f"{NAMES[name]}, under fire: "))
        compared.append(Compared(name, calm, fire))
    return compared


def _one(settings: Settings, tell: Callable[[Progress], None]) -> Figures:
    figures, logs = run(settings, tell)
    if logs is not None:  # wrong reads are what is counted here; the examples say enough
        shutil.rmtree(logs)
    return figures


def paired(runs: Sequence[Figures]) -> list[Compared]:
    """Return the pairs that `compare` wrote to a file, in their order."""
    return [Compared(calm.strategy, calm, fire) for calm, fire in zip(runs[::2], runs[1::2], strict=True)]


def show_comparison(compared: Sequence[Compared], console: Console) -> None:
    """Print the table."""
    table = Table(title="Wrong reads per million, and how long a value had been outdated", title_justify="left")
    table.add_column("")
    for name in ("no faults", "longest", "under fire", "longest", "reads", "from the cache", "commits"):
        table.add_column(name, justify="right")
    for one in compared:
        reads = one.calm.findings.reads + one.fire.findings.reads
        hits = one.calm.findings.hits + one.fire.findings.hits
        table.add_row(
            NAMES.get(one.strategy, one.strategy),
            *(cell for figures in (one.calm, one.fire) for cell in (f"{figures.per_million:,.1f}", _seconds(figures))),
            f"{reads:,}",
            f"{hits / max(1, reads):.0%}",
            f"{one.calm.commits + one.fire.commits:,}",
        )
    console.print(table)


def _seconds(figures: Figures) -> str:
    return f"{figures.longest_seconds:,.2f} s" if figures.violations else "-"


def draw(path: Path, compared: Sequence[Compared]) -> None:
    """Draw wrong reads per million as bars on a logarithmic axis, with the longest staleness beside them."""
    import matplotlib as mpl  # noqa: PLC0415 - only for the chart

    mpl.use("svg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "sa_writethrough", "font.size": 9})
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the choice of the format

    figure, axes = plt.subplots(figsize=(9, 0.75 * len(compared) + 1.1), layout="constrained")
    for place, one in zip(range(len(compared), 0, -1), compared, strict=True):
        for offset, figures, colour in ((0.19, one.calm, PALE), (-0.19, one.fire, BAD)):
            rate = figures.per_million
            axes.barh(place + offset, max(rate, SMALLEST), height=0.34, color=colour if rate else GOOD)
            said = f"{rate:,.0f} per million, up to {_seconds(figures)}" if rate else "0"
            axes.text(max(rate, SMALLEST) * 1.15, place + offset, said, va="center", color=INK, fontsize=8)
    axes.set_xscale("log")
    highest = max(figures.per_million for one in compared for figures in (one.calm, one.fire))
    axes.set_xlim(SMALLEST / 2, max(10.0, highest) * 40)
    axes.set_yticks(
        range(len(compared), 0, -1), [NAMES.get(one.strategy, one.strategy) for one in compared], fontsize=8
    )
    axes.set_xlabel("wrong reads per million; upper bar: without faults, lower bar: under fire")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)
