"""What a run found, as figures that add up, as JSON, and as a table."""

from __future__ import annotations

import json
import os
import platform
import resource
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tests.chaos.checker import Findings, Kind, Violation

__all__ = ["Figures", "added", "from_json", "shortcomings", "show", "to_json"]

FOR_P99 = 100
"""Samples."""
PACKAGES = ("sqlalchemy", "psycopg", "pymemcache", "dogpile.cache", "advanced-alchemy")


@dataclass(slots=True)
class Figures:
    """Of one run, or of several of one strategy."""

    strategy: str
    seconds: float
    findings: Findings
    commits: int
    versions: int
    """Versions of rows that became visible."""
    unknown: int
    """COMMITs that came back with an error, or whose connection was lost."""
    outages: int
    """Transactions that were rolled back because a node was not there."""
    errors: int
    faults: dict[str, int]
    uncached: dict[str, list[float]]
    """By cause, how long keys stayed uncached, in milliseconds."""
    still_uncached: list[float]
    """Of keys that were not cached again when the run ended, how long they had not been, in milliseconds."""
    writers_met: dict[str, int]
    """Where in a transaction writers were that were killed or paused."""
    crashes: dict[str, int]
    """Processes that ended by themselves: the library or the rig is broken."""
    runs: int = 1
    memory_bytes: int = field(default_factory=lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)

    @property
    def violations(self) -> int:
        """How many reads were wrong."""
        return self.findings.violations

    @property
    def per_million(self) -> float:
        """Wrong reads per million."""
        return 1e6 * self.violations / max(1, self.findings.reads)

    @property
    def longest_seconds(self) -> float:
        """The longest time that a value had been outdated when a read of it began."""
        late = (self.findings.longest.get(kind, 0) for kind in (Kind.STALE, Kind.NON_MONOTONIC))
        return max(late, default=0) / 1e9


def added(runs: Sequence[Figures]) -> Figures:
    """Return several runs as one."""
    whole = runs[0]
    for other in runs[1:]:
        findings = Findings()
        findings.merge(whole.findings)
        findings.merge(other.findings)
        whole = Figures(
            strategy=whole.strategy if whole.strategy == other.strategy else "several",
            seconds=whole.seconds + other.seconds,
            findings=findings,
            commits=whole.commits + other.commits,
            versions=whole.versions + other.versions,
            unknown=whole.unknown + other.unknown,
            outages=whole.outages + other.outages,
            errors=whole.errors + other.errors,
            faults=_summed(whole.faults, other.faults),
            uncached={
                cause: whole.uncached.get(cause, []) + other.uncached.get(cause, [])
                for cause in sorted(whole.uncached.keys() | other.uncached.keys())
            },
            still_uncached=whole.still_uncached + other.still_uncached,
            writers_met=_summed(whole.writers_met, other.writers_met),
            crashes=_summed(whole.crashes, other.crashes),
            runs=whole.runs + other.runs,
            memory_bytes=max(whole.memory_bytes, other.memory_bytes),
        )
    return whole


def _summed(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in sorted(one.keys() | other.keys())}


# --- is there anything in it? ---

READS_PER_SECOND, COMMITS_PER_SECOND, HIT_SHARE = 300, 3, 0.1
"""A slow machine does several times as much of each; a rig that tests nothing does not."""
LONGEST_UNCACHED_SECONDS = 60.0


def shortcomings(one: Figures) -> list[str]:
    """Say for what a run, clean or not, proves nothing: too little was read, written, cached, or broken."""
    found = one.findings
    said = [f"{name}: the fault never struck" for name, count in one.faults.items() if not count]
    if found.reads < READS_PER_SECOND * one.seconds:
        said.append(f"{found.reads:,} reads in {one.seconds:.0f} s are too few")
    if one.commits < COMMITS_PER_SECOND * one.seconds:
        said.append(f"{one.commits:,} commits in {one.seconds:.0f} s are too few")
    if one.strategy == "ours" and found.hits < HIT_SHARE * found.reads:
        said.append(f"{found.hits:,} of {found.reads:,} reads from the cache are too few")
    uncached = [*one.uncached.get("return", []), *one.uncached.get("crash", []), *one.still_uncached]
    if max(uncached, default=0.0) > LONGEST_UNCACHED_SECONDS * 1000:
        said.append(f"a key was not cached again within {LONGEST_UNCACHED_SECONDS:.0f} s")
    return said


# --- JSON ---


def to_json(runs: Iterable[Figures]) -> str:
    """Return *runs*, with what they ran on."""
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "kernel": platform.release()}
    machine |= {package: _version(package) for package in PACKAGES}
    return json.dumps({"machine": machine, "runs": [_plain(one) for one in runs]}, indent=1) + "\n"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ImportError:
        return None


def _plain(one: Figures) -> dict[str, Any]:
    found = one.findings
    plain = {name: getattr(one, name) for name in Figures.__dataclass_fields__ if name != "findings"}
    return plain | {
        "reads": found.reads,
        "from_cache": found.hits,
        "violations": {kind.value: found.counts[kind] for kind in Kind},
        "longest_ns": {kind.value: by for kind, by in found.longest.items()},
        "examples": [asdict(example) | {"kind": example.kind.value, "source": int(example.source)} for example in found.examples],
        "per_million": one.per_million,
        "longest_seconds": one.longest_seconds,
        "percentiles_ms": {cause: percentiles(some) for cause, some in one.uncached.items()},
    }  # fmt: skip


def from_json(path: Path) -> list[Figures]:
    """Return the runs that a file has."""
    return [_figures(plain) for plain in json.loads(path.read_text(encoding="utf-8"))["runs"]]


def _figures(plain: dict[str, Any]) -> Figures:
    counts = Counter({Kind(name): count for name, count in plain["violations"].items() if count})
    longest = {Kind(name): by for name, by in plain["longest_ns"].items()}
    examples = [_violation(example) for example in plain["examples"]]
    findings = Findings(plain["reads"], plain["from_cache"], counts, longest, examples)
    rest = {name: plain[name] for name in Figures.__dataclass_fields__ if name != "findings"}
    return Figures(findings=findings, **rest)


def _violation(plain: dict[str, Any]) -> Violation:
    from tests.chaos.log import Source  # noqa: PLC0415 - beside its only use

    times, saw = tuple(plain["read"]), tuple(plain["saw"])
    return Violation(
        **plain | {"kind": Kind(plain["kind"]), "source": Source(plain["source"]), "read": times, "saw": saw}
    )


def percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    """Return p50, p99 where there are samples enough for it, and the maximum."""
    if not milliseconds:
        return {}
    p50, p99 = (float(one) for one in np.percentile(milliseconds, [50, 99]))
    found = {"p50": p50, "p99": p99, "max": max(milliseconds), "samples": len(milliseconds)}
    return found if len(milliseconds) >= FOR_P99 else {name: found[name] for name in found if name != "p99"}


# --- tables ---


def show(one: Figures, console: Console) -> None:
    """Print everything that a run found."""
    found = one.findings
    rows = [
        ("checked reads (rows)", f"{found.reads:,}"),
        ("of these from the cache", f"{found.hits:,} ({found.hits / max(1, found.reads):.1%})"),
        ("reads per second", f"{found.reads / one.seconds:,.0f}"),
        ("commits", f"{one.commits:,}, of {one.versions:,} versions of rows"),
        ("COMMITs that failed or whose outcome is unknown", f"{one.unknown:,}"),
        ("transactions rolled back for want of a node", f"{one.outages:,}"),
        ("other errors that the application saw", f"{one.errors:,}"),
        ("memory of the rig's own process", f"{one.memory_bytes / 1e6:,.0f} MB"),
    ]
    for cause, words in (("return", "after a node's return"), ("crash", "after a writer was killed in its COMMIT")):
        p = percentiles(one.uncached.get(cause, []))
        if p:
            said = ", ".join(f"{name} {p[name]:,.0f} ms" for name in ("p50", "p99", "max") if name in p)
            rows.append((f"uncached {words}", f"{said}, of {p['samples']:,.0f}"))
    if one.still_uncached:
        longest = max(one.still_uncached)
        rows.append(
            ("not cached again when the run ended", f"{len(one.still_uncached):,}, for {longest:,.0f} ms at most")
        )
    rows += [(f"violations: {kind.value}", f"{found.counts[kind]:,}") for kind in Kind]
    table = Table(title=f"{one.strategy}: {one.seconds / 60:.1f} minutes", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for what, figure in rows:
        table.add_row(what, figure)
    console.print(table)
    if one.faults:
        show_faults(one, console)
    for example in found.examples[:10]:
        console.print(str(example), markup=False, soft_wrap=True)
    for what, times in one.crashes.items():
        console.print(f"BROKEN: {what}, {times} times", markup=False)
    for what in shortcomings(one):
        console.print(f"TOO LITTLE: {what}", markup=False)


def show_faults(one: Figures, console: Console) -> None:
    """Print how often each class of faults struck."""
    table = Table(title="faults", title_justify="left")
    table.add_column("class")
    table.add_column("count", justify="right")
    table.add_column("per minute", justify="right")
    for name, count in one.faults.items():
        table.add_row(name, f"{count:,}", f"{60 * count / one.seconds:.1f}")
    console.print(table)
    if any(one.writers_met.values()):
        met = ", ".join(f"{state} {count:,}" for state, count in one.writers_met.items())
        console.print(f"writers killed or paused, by where they were: {met}", markup=False, highlight=False)
