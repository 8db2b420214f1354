"""What is explored: who takes part, and with which faults."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.exploration import programs as p
from tests.exploration.programs import Program, Registered, program_of
from tests.exploration.runs import Stop, Tree

__all__ = ["SCENARIOS", "ActorSpec", "Cast", "Scenario"]


@dataclass(frozen=True, slots=True)
class ActorSpec:
    """One process. Those of one *kind* run the same program."""

    name: str
    kind: str
    program: Program


@dataclass(frozen=True, slots=True)
class Scenario:
    """Actors on rows of one table, which have these columns a and b at first (None: there is no such row).

    short, full, deep: the budgets (losses, kills, timeouts, cuts) of the three depths.
    """

    name: str
    about: str
    actors: tuple[ActorSpec, ...]
    rows: tuple[tuple[int, int] | None, ...]
    short: tuple[int, int, int, int]
    full: tuple[int, int, int, int]
    deep: tuple[int, int, int, int]
    restarts: bool = False


class Cast:
    """The registrations and the trees of one scenario's programs."""

    def __init__(self, scenario: Scenario) -> None:
        self.registered: list[Registered] = []
        self._trees: list[Tree] = []
        kinds: dict[str, Tree] = {}
        for actor in scenario.actors:
            if actor.kind not in kinds:
                made = Registered(
                    getattr(actor.program, "model", p.Item), isolation=getattr(actor.program, "isolation", None)
                )
                self.registered.append(made)
                kinds[actor.kind] = Tree(program_of(made, actor.program))
            self._trees.append(kinds[actor.kind])
        self._kinds = list(kinds.values())

    @property
    def nodes(self) -> int:
        """How many different stops the programs made."""
        return sum(len(tree.stops) for tree in self._kinds)

    @property
    def runs(self) -> int:
        """How often a program was run from its start."""
        return sum(tree.runs for tree in self._kinds)

    def stop(self, index: int, node: int) -> Stop:
        """Return where an actor stands."""
        return self._trees[index].stops[node]

    def after(self, index: int, node: int, answer: Any) -> int:
        """Return where an actor stands after an answer."""
        return self._trees[index].after(node, answer)

    def recheck(self, most: int = 100) -> int:
        """Run a sample of what was tabled once more, from the start; raise if anything differs."""
        checked = 0
        for tree in self._kinds:
            numbers = range(len(tree.stops))
            for node in random.Random(0).sample(numbers, min(most, len(numbers))):
                tree.check(node)
                checked += 1
        return checked

    def epoch_of(self, key: str) -> str:
        """Return the epoch that a row's key belongs to."""
        return next(r.scope.epoch for r in self.registered if key.startswith(r.scope.prefix))

    def readers_of(self, key: str) -> Sequence[Registered]:
        """Return registrations, one of each version of the application, that read this key."""
        return list({r.model: r for r in self.registered if key.startswith(r.scope.prefix)}.values())

    def close(self) -> None:
        """Let go of everything."""
        for tree in self._kinds:
            tree.close()
        for registered in self.registered:
            registered.close()


def _cast(**programs: Program | tuple[int, Program]) -> tuple[ActorSpec, ...]:
    actors = []
    for name, given in programs.items():
        count, program = given if isinstance(given, tuple) else (1, given)
        actors += [ActorSpec(name if count == 1 else f"{name}{n + 1}", name, program) for n in range(count)]
    return tuple(actors)


def _two_and_two() -> Scenario:
    return Scenario(
        "two writers, two readers",
        "One row. One writer loads the row first and writes the other column, so its instance may be old.",
        _cast(W=p.writes(a=1), L=p.changes(b=2), R=(2, p.reads(1))),
        rows=((0, 0),),
        short=(1, 0, 0, 0),
        full=(2, 1, 0, 0),
        deep=(2, 1, 1, 1),
    )


def _three_and_one() -> Scenario:
    return Scenario(
        "three writers, one reader",
        "One row.",
        _cast(W=p.writes(a=1), X=p.writes(b=2), Y=p.writes(a=3), R=p.reads(1)),
        rows=((0, 0),),
        short=(1, 0, 0, 0),
        full=(2, 1, 0, 0),
        deep=(2, 1, 1, 1),
    )


SCENARIOS: dict[str, Callable[[], Scenario]] = {
    "2w2r": _two_and_two,
    "3w1r": _three_and_one,
}
