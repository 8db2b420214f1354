"""The search: every state that a world can reach, breadth first, so that the first violation is one of the shortest.

Identical actors may change places: of states that differ in that alone one is kept. So it is of states that differ in
what no longer matters (`sameness`), and of those that differ in the faults left alone the ones that cover the others:
whatever can happen with fewer can happen with more.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, permutations, product
from typing import Any, NamedTuple

from tests.exploration import remote
from tests.exploration.sameness import Sameness
from tests.exploration.scenarios import Scenario
from tests.exploration.states import ACTORS, BUDGET, DATABASE, FAULTS, MESSAGES, STORE, Budget, Move, State, in_order
from tests.exploration.world import World

__all__ = ["Result", "Step", "explore", "replay"]

_BITS = 24
"""Of one part's number. A world has far fewer parts of a kind; `_packed` would find out."""


class Step(NamedTuple):
    """One move of a schedule: which of the possible ones it was, what it was, and where it led."""

    choice: int
    move: Move
    state: State


@dataclass(slots=True)
class Result:
    """What an exploration came to.

    states, transitions: met. nodes: different stops of the programs, found in *runs* of real code from its start, of
    which *rechecked* were run a second time and did the same. reads: that ended, of these *hits*. depth: of the search.
    complete: nothing is left to explore within the budget.
    """

    name: str
    budget: Budget
    states: int = 0
    transitions: int = 0
    nodes: int = 0
    runs: int = 0
    rechecked: int = 0
    reads: int = 0
    hits: int = 0
    depth: int = 0
    seconds: float = 0.0
    complete: bool = True
    violation: str | None = None
    schedule: list[Step] = field(default_factory=list)


def explore(world: World, *, seconds: float | None = None) -> Result:
    """Search until everything was seen, something is wrong, or *seconds* have passed."""
    return _Search(world).run(seconds)


def replay(world: World, choices: Sequence[int]) -> tuple[list[Step], str | None]:
    """Return the steps that *choices* lead to, and what is wrong at their end."""
    state, steps, wrong = world.first(), [], None
    for choice in choices:
        move, state, wrong = next(islice(world.moves(state), choice, None))
        steps.append(Step(choice, move, state))
        wrong = wrong or world.wrong(state)
    return steps, wrong or world.stuck(state)


class _Search:
    """One search. A state is known by its parts but for the budget: with more faults left it covers the one with less."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._sameness = Sameness(world)
        self._symmetries = list(_symmetries(world.scenario))
        self._memo: dict[Any, Any] = {}
        # By the number of a budget: the numbers of those that it covers, itself included, as bits.
        self._covered = list(_covered(world))
        # Of every state that was explored: what it is known by, its budget, and the state that it was reached from.
        self._known: list[int] = []
        self._budgets = array("I")
        self._parents = array("I")

    def run(self, seconds: float | None) -> Result:
        world, began = self._world, time.monotonic()
        result = Result(world.scenario.name, world.budget)
        packed, first = self._canonical(world.first())
        seen = {packed: self._covered[first[BUDGET]]}
        layer = [(self._number(packed, first, 0), first)]
        while layer:
            result.depth += 1
            following: list[tuple[int, State]] = []
            for number, state in layer:
                stuck = True
                for move, reached, wrong_move in world.moves(state):
                    stuck = stuck and move.kind in FAULTS
                    result.transitions += 1
                    packed, canonical = self._canonical(reached)
                    budgets = seen.get(packed, 0)
                    if wrong_move is None and budgets >> canonical[BUDGET] & 1:
                        continue
                    following.append((self._number(packed, canonical, number), canonical))
                    wrong = wrong_move or world.wrong(canonical)
                    if wrong is not None:
                        return self._ended(result, began, wrong, following[-1][0])
                    seen[packed] = budgets | self._covered[canonical[BUDGET]]
                if stuck and (wrong := world.stuck(state)) is not None:
                    return self._ended(result, began, wrong, number)
            if seconds is not None and time.monotonic() - began > seconds and following:
                result.complete = False
                break
            layer = following
        return self._ended(result, began, None, 0)

    def _ended(self, result: Result, began: float, wrong: str | None, last: int) -> Result:
        world = self._world
        result.states, result.violation = len(self._known), wrong
        result.hits, result.reads = world.hits, world.reads
        result.schedule = self._schedule(self._path(last), wrong)
        result.nodes, result.runs = world.cast.nodes, world.cast.runs
        result.rechecked = world.cast.recheck()
        result.seconds = time.monotonic() - began
        return result

    # --- schedules ----------------------------------------------------------------------------------------------------

    def _number(self, packed: int, state: State, parent: int) -> int:
        """Keep an explored state, and return its number."""
        self._known.append(packed)
        self._budgets.append(state[BUDGET])
        self._parents.append(parent)
        return len(self._known) - 1

    def _path(self, last: int) -> list[int]:
        """Return the states that lead to *last*, without the first."""
        path = []
        while last != 0:
            path.append(last)
            last = self._parents[last]
        return path[::-1]

    def _schedule(self, path: Sequence[int], violation: str | None) -> list[Step]:
        """Return the moves along *path* as one history, in which no actors change places."""
        schedule: list[Step] = []
        state = self._world.first()
        for place, number in enumerate(path):
            last = place == len(path) - 1
            for choice, (move, reached, wrong) in enumerate(self._world.moves(state)):
                packed, canonical = self._canonical(reached)
                if packed != self._known[number] or canonical[BUDGET] != self._budgets[number]:
                    continue
                if (
                    last
                    and violation is not None
                    and not (wrong or self._world.wrong(reached) or self._world.stuck(reached))
                ):
                    continue
                schedule.append(Step(choice, move, reached))
                break
            state = schedule[-1].state
        return schedule

    # --- states that are the same -------------------------------------------------------------------------------------

    def _canonical(self, state: State) -> tuple[int, State]:
        """Return what a state is known by, and the representative."""
        state = self._sameness(state)
        packed = _packed(state)
        for index in range(len(self._symmetries)):
            other = self._renamed(state, index)
            if (other_packed := _packed(other)) < packed:
                packed, state = other_packed, other
        return packed, state

    def _renamed(self, state: State, index: int) -> State:
        names, world = self._symmetries[index], self._world
        key = (index, state[DATABASE], state[STORE], state[MESSAGES])
        parts = self._memo.get(key)
        if parts is None:
            database = world.databases.values[state[DATABASE]]
            open_ = tuple(database.open[names.index(i)] for i in range(len(names)))
            messages = world.messages.values[state[MESSAGES]]
            parts = self._memo[key] = (
                world.databases(database._replace(open=open_)),
                world.stores(remote.renamed(world.stores.values[state[STORE]], names)),
                world.messages(in_order([remote.renamed(message, names) for message in messages])),
            )
        actors = [state[ACTORS + names.index(i)] for i in range(len(names))]
        return (*parts, state[BUDGET], *actors)


def _packed(state: State) -> int:
    assert max(state) < 1 << _BITS
    packed = state[DATABASE] << 2 * _BITS | state[STORE] << _BITS | state[MESSAGES]
    for number in state[ACTORS:]:
        packed = packed << _BITS | number
    return packed


def _covered(world: World) -> Iterator[int]:
    """Number every budget that can be left, and yield for each the numbers of those with no more of anything, as bits."""
    numbers = {left: world.budgets(Budget(*left)) for left in product(*(range(most + 1) for most in world.budget))}
    for mine in world.budgets.values:
        yield sum(
            1 << number for left, number in numbers.items() if all(a <= b for a, b in zip(left, mine, strict=True))
        )


def _symmetries(scenario: Scenario) -> Iterator[tuple[int, ...]]:
    """Yield the ways in which actors of one kind can change places: to each number the new one."""
    kinds = [actor.kind for actor in scenario.actors]
    for names in permutations(range(len(kinds))):
        if names != tuple(range(len(kinds))) and all(kinds[i] == kinds[n] for i, n in enumerate(names)):
            yield names
