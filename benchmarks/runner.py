"""One row is two costs; the runner measures them in turn and compares them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from statistics import median, quantiles

__all__ = ["Measured", "Row", "measure"]

RESAMPLES = 1000


@dataclass(frozen=True)
class Row:
    """What is compared with what. *ours* and *theirs* return a cost: seconds of one operation, or bytes of one row.

    *limit*: what the ratio is to be at most; None where it is only told.
    *rounds* multiplies the runner's: a single commit to the disk says less than a batch of reads.
    """

    what: str
    against: str
    limit: float | None
    ours: Callable[[], float]
    theirs: Callable[[], float]
    rounds: int = 1
    in_bytes: bool = False


@dataclass(frozen=True)
class Measured:
    """The costs of a row, round by round."""

    row: Row
    ours: Sequence[float]
    theirs: Sequence[float]

    @property
    def ratio(self) -> float:
        return median(self.ours) / median(self.theirs)

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the ratio: the percentile bootstrap over whole rounds, always with the same seed."""
        rounds, random = list(zip(self.ours, self.theirs, strict=True)), Random(0)
        ratios = []
        for _ in range(RESAMPLES):
            ours, theirs = zip(*random.choices(rounds, k=len(rounds)), strict=True)
            ratios.append(median(ours) / median(theirs))
        ratios.sort()
        return ratios[RESAMPLES // 40], ratios[-RESAMPLES // 40 - 1]

    @property
    def undisturbed(self) -> float:
        """The ratio of the lower quartiles: what else ran on the core slowed down most of these rounds the least."""
        if len(self.ours) == 1:
            return self.ratio
        return quantiles(self.ours, n=4)[0] / quantiles(self.theirs, n=4)[0]

    @property
    def holds(self) -> bool:
        return self.row.limit is None or self.ratio <= self.row.limit


def measure(
    rows: Sequence[Row], *, passes: int, rounds: int, progress: Callable[[Row], None] = lambda _row: None
) -> list[Measured]:
    """Return the costs of *rows*. Every pass visits every row, and every round of a visit measures both sides.

    The order alternates from round to round; each visit begins with a round that warms up and does not count.
    """
    costs: list[tuple[list[float], list[float]]] = [([], []) for _ in rows]
    for _ in range(passes):
        for row, (ours, theirs) in zip(rows, costs, strict=True):
            row.ours(), row.theirs()
            for number in range(rounds * row.rounds):
                if number % 2:
                    theirs.append(row.theirs())
                    ours.append(row.ours())
                else:
                    ours.append(row.ours())
                    theirs.append(row.theirs())
            progress(row)
    return [Measured(row, ours, theirs) for row, (ours, theirs) in zip(rows, costs, strict=True)]
