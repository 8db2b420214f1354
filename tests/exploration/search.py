"""The search: every state that a world can reach, breadth first, so that the first violation is one of the shortest.

Identical actors may change places: of states that differ in that alone one is kept.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, permutations
from typing import Any, NamedTuple

from tests.exploration import remote
from tests.exploration.scenarios import Scenario
from tests.exploration.states import ACTORS, BUDGET, DATABASE, MESSAGES, STORE, Budget, Move, State, in_order
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
    def __init__(self, world: World) -> None:
        self._world = world
        self._symmetries = list(_symmetries(world.scenario))
        self._memo: dict[Any, Any] = {}

    def run(self, seconds: float | None) -> Result:
        world, began = self._world, time.monotonic()
        result = Result(world.scenario.name, world.budget)
        first = world.first()
        packed, first = self._canonical(first)
        numbers = {packed: 0}
        parents = array("I", [0])
        layer: list[tuple[int, State]] = [(0, first)]
        while layer:
            result.depth += 1
            following: list[tuple[int, State]] = []
            for number, state in layer:
                stuck = True
                for _, reached, wrong_move in world.moves(state):
                    stuck = False
                    result.transitions += 1
                    packed, canonical = self._canonical(reached)
                    if wrong_move is None and packed in numbers:
                        continue
                    wrong = wrong_move or world.wrong(canonical)
                    if wrong is not None:
                        path = [*self._path(numbers, parents, number), packed]
                        return self._ended(result, began, len(numbers) + 1, wrong, path)
                    numbers[packed] = len(parents)
                    following.append((len(parents), canonical))
                    parents.append(number)
                if stuck and (wrong := world.stuck(state)) is not None:
                    return self._ended(result, began, len(numbers), wrong, self._path(numbers, parents, number))
            if seconds is not None and time.monotonic() - began > seconds and following:
                result.complete = False
                break
            layer = following
        return self._ended(result, began, len(numbers), None, [])

    def _ended(self, result: Result, began: float, states: int, wrong: str | None, path: list[int]) -> Result:
        world = self._world
        result.states, result.violation = states, wrong
        result.hits, result.reads = world.hits, world.reads
        result.schedule = self._schedule(path, wrong)
        result.nodes, result.runs = world.cast.nodes, world.cast.runs
        result.rechecked = world.cast.recheck()
        result.seconds = time.monotonic() - began
        return result

    # --- schedules ----------------------------------------------------------------------------------------------------

    @staticmethod
    def _path(numbers: dict[int, int], parents: Sequence[int], last: int) -> list[int]:
        """Return what the states that lead to *last* are known by, without the first."""
        known = list(numbers)
        path = []
        while last != 0:
            path.append(known[last])
            last = parents[last]
        return path[::-1]

    def _schedule(self, path: Sequence[int], violation: str | None) -> list[Step]:
        """Return the moves along *path* as one history, in which no actors change places."""
        schedule: list[Step] = []
        state = self._world.first()
        for place, packed in enumerate(path):
            last = place == len(path) - 1
            for choice, (move, reached, wrong) in enumerate(self._world.moves(state)):
                if self._canonical(reached)[0] != packed:
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
        """Return the representative of a state, and what it is known by."""
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
    packed = 0
    for number in state:
        assert number < 1 << _BITS
        packed = packed << _BITS | number
    return packed


def _symmetries(scenario: Scenario) -> Iterator[tuple[int, ...]]:
    """Yield the ways in which actors of one kind can change places: to each number the new one."""
    kinds = [actor.kind for actor in scenario.actors]
    for names in permutations(range(len(kinds))):
        if names != tuple(range(len(kinds))) and all(kinds[i] == kinds[n] for i, n in enumerate(names)):
            yield names
