"""One run: start everything, let it be used and broken for a while, stop everything, check every read."""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.chaos import schema
from tests.chaos.checker import Findings, check
from tests.chaos.client import Board, Figure, Role, Spec, State
from tests.chaos.faults import CLASSES, SLOW_COMMIT, Cause, Faults
from tests.chaos.figures import Figures
from tests.chaos.fleet import Fleet, Seat
from tests.chaos.log import COMMIT, PROBE, READ, records
from tests.chaos.world import World

__all__ = ["ALL_FAULTS", "Progress", "Settings", "run"]

ALL_FAULTS = frozenset({fault.name for fault in CLASSES} | {SLOW_COMMIT})
HOLDING = frozenset({"writer killed", "writer paused"})
SETTLE_SECONDS = 15.0
PART = 2_000_000
"""Reads that are checked at once: what bounds the memory."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run is."""

    seconds: float
    strategy: str = "ours"
    faults: frozenset[str] = ALL_FAULTS
    period: float = 10.0
    """About as often does each class of faults strike, in seconds."""
    readers: int = 3
    writers: int = 8
    keys: int = 1000
    verified: bool = True
    slow: float = 0.02
    """Share of the transactions with a slow COMMIT, where that fault is wanted."""
    hold: float = 0.03
    """Share of the transactions that stand still around their COMMIT, where writers are killed or paused."""
    read_pause: float = 0.0
    write_pause: float = 0.05

    @property
    def probes(self) -> bool:
        """Whether it is measured how long keys stay uncached: that needs a strategy that tells hits from misses."""
        return self.strategy == "ours" and bool(self.faults)


@dataclass(slots=True)
class Progress:
    """How far a run is."""

    seconds: float
    of: float
    board: Board
    faults: Faults
    reads: int = field(init=False)
    commits: int = field(init=False)
    hits: int = field(init=False)

    def __post_init__(self) -> None:
        self.reads, self.hits, self.commits = (
            self.board.total(figure) for figure in (Figure.READS, Figure.HITS, Figure.COMMITS)
        )

    def __str__(self) -> str:
        share = self.hits / self.reads if self.reads else 0.0
        return (
            f"{self.seconds:5.0f} of {self.of:.0f} s: {self.reads:,} rows read ({share:.0%} from the cache),"
            f" {self.commits:,} commits, {sum(self.faults.counts.values()):,} faults"
        )


def run(settings: Settings, tell: Callable[[Progress], None] = lambda _progress: None) -> tuple[Figures, Path | None]:
    """Return a run's figures, and, where a read was wrong, the directory with its logs; without that it is removed."""
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))
    keep = False
    try:
        figures = _run(settings, directory, tell)
        keep = bool(figures.violations)
        return figures, directory if keep else None
    finally:
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)


def _run(settings: Settings, directory: Path, tell: Callable[[Progress], None]) -> Figures:
    multiprocessing.get_context("forkserver").set_forkserver_preload(["tests.chaos.load", "tests.chaos.rivals"])
    roles = [Role.READER] * settings.readers + [Role.WRITER] * settings.writers + [Role.CONTROL]
    roles += [Role.PROBE] if settings.probes else []
    board = Board(directory / "board", len(roles))
    with World() as world:
        schema.create(world.postgres.dsn, settings.keys)

        def spec(seat: Seat, number: int) -> Spec:
            return Spec(
                role=seat.role,
                slot=seat.slot,
                number=number,
                directory=directory,
                database=world.postgres.url if seat.role is Role.CONTROL else world.url,
                caches=world.node_addresses,
                strategy=settings.strategy,
                version=seat.version,
                keys=settings.keys,
                slow=settings.slow if SLOW_COMMIT in settings.faults else 0.0,
                hold=settings.hold if settings.faults & HOLDING else 0.0,
                verified=settings.verified,
                pause=settings.read_pause if seat.role is Role.READER else settings.write_pause,
            )

        fleet = Fleet(board, roles, spec)
        faults = Faults(world, fleet, settings.faults, settings.period, settings.keys)
        try:
            began = time.monotonic()
            fleet.start()
            faults.start()
            while (now := time.monotonic() - began) < settings.seconds:
                tell(Progress(now, settings.seconds, board, faults))
                time.sleep(min(0.5, settings.seconds - now))
        finally:
            faults.end()
            world.heal()
            fleet.end()
        world.settle(SETTLE_SECONDS)
        committed = schema.history(world.postgres.dsn)
    return _figures(settings, directory, board, fleet, faults, committed)


def _figures(
    settings: Settings, directory: Path, board: Board, fleet: Fleet, faults: Faults, committed: np.ndarray
) -> Figures:
    commits = list(records(sorted(directory.glob("commits-*.log")), COMMIT))
    versions = schema.versions_of(committed, commits)
    counts = {name: faults.counts[name] for name in sorted(settings.faults)}
    if SLOW_COMMIT in counts:
        counts[SLOW_COMMIT] = board.total(Figure.SLOW)
    probes = np.concatenate([np.zeros(0, PROBE), *records(sorted(directory.glob("probes-*.log")), PROBE)])
    findings = checked(directory, versions)
    # Of a read of many rows the log only knows whether all of them were hits: the readers themselves count rows.
    findings.hits = min(findings.reads, board.total(Figure.HITS))
    return Figures(
        strategy=settings.strategy,
        seconds=settings.seconds,
        findings=findings,
        commits=board.total(Figure.COMMITS),
        versions=len(versions) - settings.keys,
        unknown=board.total(Figure.UNKNOWN),
        outages=board.total(Figure.OUTAGES),
        errors=board.total(Figure.ERRORS),
        faults=counts,
        uncached={cause.name.lower(): _milliseconds(probes, cause) for cause in Cause},
        still_uncached=_still_uncached(probes),
        writers_met={state.name.lower(): faults.writers_met[state] for state in State},
        crashes=dict(fleet.crashes + faults.errors),
    )


def _milliseconds(probes: np.ndarray, cause: Cause) -> list[float]:
    some = probes[(probes["cause"] == cause) & (probes["until"] > 0)]
    return [round(float(since), 1) for since in (some["until"] - some["since"]) / 1e6]


def _still_uncached(probes: np.ndarray) -> list[float]:
    some = probes[probes["until"] < 0]
    return [round(float(since), 1) for since in (-some["until"] - some["since"]) / 1e6]


def checked(directory: Path, versions: np.ndarray) -> Findings:
    """Check every read that is written down in *directory*, a part of the keys at a time."""
    paths = sorted(directory.glob("reads-*.log"))
    total = sum(len(some) for some in records(paths, READ))
    parts = max(1, -(-total // PART))
    control = sorted(directory.glob("control-*.log"))
    findings = Findings()
    for part in range(parts):
        reads = _part_of(paths, part, parts)
        witnessed = _part_of(control, part, parts)
        findings.merge(check(versions, np.concatenate([reads, witnessed])))
        findings.reads -= len(witnessed)
    return findings


def _part_of(paths: list[Path], part: int, parts: int) -> np.ndarray:
    some = [one[one["key"] % parts == part] for one in records(paths, READ)]
    return np.concatenate([np.zeros(0, READ), *some])
