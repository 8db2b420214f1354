"""What is explored: who takes part, and with which faults."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.exploration import programs as p
from tests.exploration.programs import Program, Registered, program_of
from tests.exploration.runs import Stop, Tree

__all__ = ["A_TO_B", "SCENARIOS", "ActorSpec", "Cast", "Scenario", "cast"]


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
    restarts: a loss may also be a restart of the store, which ends every epoch and empties it at once.
    pipelined: a message looks at its epoch at one moment, and at its entry at a later one.
    lossless: the store loses values alone, and fills are not verified, as in the in-process store on SQLite.
    """

    name: str
    about: str
    actors: tuple[ActorSpec, ...]
    rows: tuple[tuple[int, int] | None, ...]
    short: tuple[int, int, int, int] = (0, 0, 0, 0)
    full: tuple[int, int, int, int] = (0, 0, 0, 0)
    deep: tuple[int, int, int, int] = (0, 0, 0, 0)
    restarts: bool = False
    lossless: bool = False
    pipelined: bool = False


class Cast:
    """The registrations and the trees of one scenario's programs."""

    def __init__(self, scenario: Scenario) -> None:
        self.registered: list[Registered] = []
        self._trees: list[Tree] = []
        kinds: dict[str, Tree] = {}
        for actor in scenario.actors:
            if actor.kind not in kinds:
                made = Registered(
                    getattr(actor.program, "model", p.Item),
                    isolation=getattr(actor.program, "isolation", None),
                    lossless=scenario.lossless,
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


def cast(**programs: Program | tuple[int, Program]) -> tuple[ActorSpec, ...]:
    """Return actors by name; of a number and a program as many of one kind."""
    actors = []
    for name, given in programs.items():
        count, program = given if isinstance(given, tuple) else (1, given)
        actors += [ActorSpec(name if count == 1 else f"{name}{n + 1}", name, program) for n in range(count)]
    return tuple(actors)


A_TO_B = ((0, 0),)
"""One row that is there."""

SCENARIOS: dict[str, Scenario] = {}


def _add(name: str, about: str, actors: tuple[ActorSpec, ...], rows: Any = A_TO_B, **options: Any) -> None:
    SCENARIOS[name] = Scenario(name, about, actors, rows, **options)


_add(
    "2w2r",
    "Two writers, one of which loads the row first and writes the other column, so that its instance may be old; "
    "two readers; one row.",
    cast(W=p.writes(a=1), L=p.changes(b=2), R=(2, p.reads(1))),
    short=(1, 0, 0, 0),
    full=(2, 1, 1, 1),
    deep=(2, 2, 2, 2),
)
_add(
    "3w1r",
    "Three writers and a reader; one row.",
    cast(W=p.writes(a=1), X=p.writes(b=2), Y=p.writes(a=3), R=p.reads(1)),
    short=(1, 1, 0, 0),
    full=(2, 1, 1, 1),
    deep=(2, 2, 2, 2),
)
_add(
    "savepoint rolled back",
    "A writer of two rows, whose change of the second, and second change of the first, are inside a savepoint that is "
    "rolled back; a writer of the second row; a reader of both in one call, and one of the second.",
    cast(S=p.writes_two_with_savepoint(release=False), X=p.writes(2, a=7), M=p.reads(1, 2), R=p.reads(2)),
    rows=((0, 0), (0, 0)),
    short=(0, 0, 0, 0),
    full=(1, 1, 1, 1),
    deep=(2, 1, 1, 1),
)
_add(
    "savepoint released",
    "The same, and the savepoint is released.",
    cast(S=p.writes_two_with_savepoint(release=True), X=p.writes(2, a=7), M=p.reads(1, 2), R=p.reads(2)),
    rows=((0, 0), (0, 0)),
    short=(0, 0, 0, 0),
    full=(1, 1, 1, 1),
    deep=(2, 1, 1, 1),
)
_add(
    "delete and insert",
    "One process deletes a row and inserts it again, in two transactions on one connection; two readers.",
    cast(D=p.one_after_another(p.deletes(1), p.inserts(1, 3, 4)), R=(2, p.reads(1))),
    short=(1, 1, 0, 0),
    full=(2, 1, 1, 1),
    deep=(2, 2, 2, 2),
)
_add(
    "insert against delete",
    "A row that is not there: two processes insert it, a third deletes it, a fourth reads it twice.",
    cast(I=p.inserts(1, 1, 1), J=p.inserts(1, 2, 2), D=p.deletes(1), R=p.one_after_another(p.reads(1), p.reads(1))),
    rows=(None,),
    short=(0, 1, 0, 0),
    full=(1, 1, 1, 1),
    deep=(2, 1, 1, 2),
)
_add(
    "unknown commit",
    "A writer that loses its connection in COMMIT and tries again with another value; another writer, and a reader.",
    cast(W=p.one_after_another(p.writes(a=1), p.writes(a=2)), X=p.writes(b=3), R=p.reads(1)),
    short=(1, 0, 0, 1),
    full=(1, 1, 1, 2),
    deep=(2, 1, 2, 2),
)
_add(
    "unanswered store",
    "A store that answers late or never: an unacknowledged announcement, a lease that nobody knows of.",
    cast(W=p.writes(a=1), L=p.changes(b=2), R=p.one_after_another(p.reads(1), p.reads(1))),
    short=(0, 0, 1, 0),
    full=(1, 1, 2, 1),
    deep=(2, 1, 2, 1),
)
_add(
    "rolled back",
    "A writer that rolls back, one that commits, a reader that reads twice.",
    cast(B=p.writes_and_rolls_back(a=1), W=p.writes(b=2), R=p.one_after_another(p.reads(1), p.reads(1))),
    short=(1, 1, 0, 0),
    full=(2, 1, 1, 1),
    deep=(2, 2, 2, 2),
)
_add(
    "outer transaction",
    "A session that commits inside somebody else's transaction, which is rolled back; a writer, and a reader.",
    cast(O=p.writes_inside_outer_transaction(a=1), W=p.writes(b=2), R=p.reads(1)),
    short=(1, 1, 0, 0),
    full=(2, 1, 1, 1),
    deep=(2, 2, 2, 2),
)
_add(
    "own writes",
    "A session that reads, inside its transaction, what it wrote; a writer, and a reader.",
    cast(O=p.writes_and_reads_back(a=1), W=p.writes(b=2), R=p.reads(1)),
    short=(1, 1, 0, 0),
    full=(2, 1, 1, 1),
    deep=(2, 2, 2, 2),
)
_add(
    "repeatable read",
    "A reader in REPEATABLE READ whose snapshot is older than its read; two writers, and a reader.",
    cast(S=p.repeatable(p.reads_late_in_transaction(2, 1)), W=p.writes(a=1), X=p.writes(b=2), R=p.reads(1)),
    rows=((0, 0), (0, 0)),
    short=(1, 0, 0, 0),
    full=(2, 1, 1, 1),
    deep=(2, 2, 2, 2),
)
_add(
    "late in a transaction",
    "The same reader in READ COMMITTED, which does fill.",
    cast(S=p.reads_late_in_transaction(2, 1), W=p.writes(a=1), L=p.changes(b=2), R=p.reads(1)),
    rows=((0, 0), (0, 0)),
    short=(0, 0, 0, 0),
    full=(2, 1, 1, 1),
    deep=(2, 1, 2, 1),
)
_add(
    "unnamed rows",
    "A statement that changes rows which nobody can list, and so closes their epoch; a writer and a reader; the store "
    "may restart.",
    cast(B=p.writes_all(b=9), W=p.writes(a=1), R=(2, p.reads(1))),
    restarts=True,
    pipelined=True,
    short=(0, 1, 0, 0),
    full=(1, 1, 1, 1),
    deep=(2, 1, 1, 1),
)
_add(
    "rolling deploy",
    "A writer and a reader of the older version of a model, which knows one column less, beside one of each of the new.",
    cast(W=p.writes(b=1), R=p.reads(1), V=p.old(p.writes(a=2)), Q=p.old(p.reads(1))),
    short=(0, 0, 0, 0),
    full=(1, 1, 1, 1),
    deep=(2, 1, 1, 1),
)
_add(
    "eviction",
    "An operator evicts the row; a writer, and two readers.",
    cast(E=p.evicts(1), W=p.writes(a=1), R=(2, p.reads(1))),
    short=(1, 1, 0, 0),
    full=(2, 1, 1, 1),
    deep=(2, 2, 2, 2),
)
_add(
    "store that keeps tombstones",
    "Fills that are not verified, on a store that loses no tombstone: two writers, a reader, an eviction; a COMMIT's "
    "outcome may be unknown.",
    cast(W=p.writes(a=1), L=p.changes(b=2), E=p.evicts(1), R=p.reads(1)),
    lossless=True,
    short=(0, 1, 0, 0),
    full=(1, 1, 1, 1),
    deep=(2, 2, 2, 2),
)
