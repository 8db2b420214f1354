"""What is printed at the end: the table, what breaks the promise, and the ten lines. Owns no measurement."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from textwrap import indent

from rich.console import Console
from rich.table import Table

from sa_writethrough.demo.checking import Finding
from sa_writethrough.demo.latency import Latencies, quantile
from sa_writethrough.demo.mix import Tally

__all__ = ["print_findings", "print_snippet", "print_table", "snippet"]

_SNIPPET = (
    ("import sa_writethrough as wt", ""),
    ("class City(Base):", "a model that you have"),
    ('    __tablename__ = "city"', ""),
    ("    __writethrough__ = True", "new: it may be cached"),
    ("    id: Mapped[int] = mapped_column(primary_key=True)", ""),
    ("    population: Mapped[int]", ""),
    ('cache = wt.register(Session, "{store}")', "new: your sessionmaker, once, at start"),
    ("with Session.begin() as session:", "as ever: commits at the end"),
    ("    city = cache.get(session, City, 42)", "no SQL if it is in the cache"),
    ("    city.population += 1", "the commit updates the cache, too"),
)

_SHOWN = 5
_MILLISECOND = 1e-3
_Row = tuple[str, str, str]


def print_table(console: Console, tally: Tally, latencies: Latencies) -> None:
    """Print what happened."""
    table = Table(box=None, show_header=False, padding=(0, 2), pad_edge=False)
    table.add_column(min_width=42)
    table.add_column(justify="right", min_width=9)
    table.add_column(justify="right", min_width=9)
    for label, first, second in [*_counts(tally), *_latencies(latencies)]:
        table.add_row(label, first, second, style="" if label.startswith(" ") else "bold")
    stale = len(tally.findings) + len(latencies.findings)
    table.add_row("Stale reads found", f"{stale:,}", "", style="bold red" if stale else "bold green")
    console.print(table)


def _counts(tally: Tally) -> Iterator[_Row]:
    misses, saved = tally.reads - tally.hits, tally.reads - tally.statements
    yield "Reads, each checked against the database", f"{tally.reads:,}", ""
    yield "  hits, served from the cache", f"{tally.hits:,}", _share(tally.hits, tally.reads)
    yield "  served from the database", f"{misses:,}", _share(misses, tally.reads)
    yield "  entries evicted on purpose", f"{tally.evictions:,}", ""
    yield "SQL statements saved", f"{saved:,}", _share(saved, tally.reads)
    yield "Updates committed", f"{tally.updates:,}", ""
    yield "  rolled back on purpose", f"{tally.rollbacks:,}", ""
    if tally.conflicts:
        yield "  refused, the row had just changed", f"{tally.conflicts:,}", ""
    if tally.unavailable:
        yield "  aborted, the store did not answer", f"{tally.unavailable:,}", ""


def _latencies(latencies: Latencies) -> Iterator[_Row]:
    yield "Latency, by one thread afterwards", "median", "p99"
    for label, values in (("  hit", latencies.hits), ("  database read", latencies.database)):
        yield label, _duration(quantile(values, 0.5)), _duration(quantile(values, 0.99))


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""


def _duration(seconds: float) -> str:
    if math.isnan(seconds):
        return "-"
    return f"{seconds * 1e6:.0f} µs" if seconds < _MILLISECOND else f"{seconds * 1e3:.1f} ms"


def print_findings(console: Console, findings: Sequence[Finding]) -> None:
    """Print the first few reads that break the promise."""
    for finding in findings[:_SHOWN]:
        console.print(f"  {finding}", style="red", markup=False)
    if len(findings) > _SHOWN:
        console.print(f"  and {len(findings) - _SHOWN:,} more", style="red")


def snippet(store: str) -> str:
    """Return the ten lines that make an application do what the demonstration did; *store* is a URL."""
    lines = [(code.replace("{store}", store), comment) for code, comment in _SNIPPET]
    width = max(len(code) for code, comment in lines if comment)
    return "\n".join(f"{code:<{width}}  # {comment}" if comment else code for code, comment in lines)


def print_snippet(console: Console, store: str) -> None:
    """Print the ten lines; *store* is its URL without a password."""
    console.print("The same in your application:\n", style="bold")
    console.print(indent(snippet(store), "    "), markup=False, soft_wrap=True)
    if store.startswith("memory:"):
        console.print('\nmemory:// serves one process; for several give "memcached://host:11211".')
