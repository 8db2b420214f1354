"""The same worlds with nothing left out, for comparison: what the search finds must be what is found here.

Nothing is forgotten, no actors change places, no state covers another one. Every fault is a move of its own, at any
moment: a loss, a death (also outside a transaction; the database notices later), a reply that is lost after the effect.
A reply is on its way until its receiver hears it. SAVEPOINT and the end of a transaction that wrote nothing are moves,
which a cut may meet.

That makes far more states of the same scenario, so it is for small ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from sa_writethrough.coherence import Absent, Value
from tests.exploration import database as db
from tests.exploration import remote, search
from tests.exploration import world as worlds
from tests.exploration.remote import FAILED, Contents
from tests.exploration.runs import Await, Ended, Read, Sql, Told
from tests.exploration.search import Result
from tests.exploration.states import (
    ACTORS,
    BUDGET,
    DATABASE,
    DEAD,
    MESSAGES,
    STORE,
    Actor,
    Budget,
    Move,
    State,
    in_order,
    opened,
    with_part,
)
from tests.exploration.world import World

__all__ = ["PlainWorld", "Watched", "explore_plainly"]


class Watched(World):
    """Goes on after a violation, and remembers what came to pass.

    wrong: every violation. readable: each readable row, beside the committed ones. returned: what reads returned, from
    where. Actors of one kind have one name here.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.found: set[str] = set()
        self.readable: set[object] = set()
        self.returned: set[object] = set()
        self.names = tuple(actor.kind for actor in self.scenario.actors)

    def moves(self, state: State) -> Iterator[tuple[Move, State, str | None]]:
        for move, reached, wrong in super().moves(state):
            if wrong is not None:
                self.found.add(wrong)
            yield move, reached, None

    def wrong(self, state: State) -> None:
        if (wrong := super().wrong(state)) is not None:
            self.found.add(wrong)
        contents, database = self.stores.values[state[STORE]], self.databases.values[state[DATABASE]]
        for entry in contents.entries:
            epoch = contents.epoch(self.cast.epoch_of(entry.key))
            if isinstance(entry.state, Value) and epoch.closed is None and entry.generation == epoch.generation:
                self.readable.add((database.versions, entry.key, entry.state))

    def stuck(self, state: State) -> None:
        if (wrong := super().stuck(state)) is not None:
            self.found.add(wrong)

    def _heard(self, index: int, actor: Actor, told: Told, sent: list[Any]) -> tuple[Actor, str | None]:
        if isinstance(told, Ended):
            self.returned.add((self.names[index], told))
        return super()._heard(index, actor, told, sent)


class PlainWorld(Watched):
    """A world in which every fault is a move of its own, and so is every reply."""

    def moves(self, state: State) -> Iterator[tuple[Move, State, str | None]]:
        yield from super().moves(state)
        budget = self.budgets.values[state[BUDGET]]
        if budget.losses:
            spent = self.budgets(budget._replace(losses=budget.losses - 1))
            for lost in self._losses(self.stores.values[state[STORE]]):
                yield Move("lose"), with_part(with_part(state, STORE, self.stores(lost)), BUDGET, spent), None
        for index in range(len(self.names)):
            for reached, wrong in self._replies(state, index, budget):
                if wrong is not None:
                    self.found.add(wrong)
                yield Move("reply", index), reached, None

    def _losses(self, contents: Contents) -> Iterator[Contents]:
        for entry in contents.entries:
            if isinstance(entry.state, Value) or (not self.scenario.lossless and not isinstance(entry.state, Absent)):
                yield remote.lose(contents, entry.key)
        if not self.scenario.lossless:
            for epoch in contents.epochs:
                yield remote.lose_epoch(contents, epoch.key)
        if self.scenario.restarts:
            yield remote.restart(contents)

    def _replies(self, state: State, index: int, budget: Budget) -> Iterator[tuple[State, str | None]]:
        """Let an actor hear the replies that it waits for; or one is lost, after its effect."""
        number = state[ACTORS + index]
        actor = self.actors.values[number]
        if actor.node == DEAD:
            return
        question = self.cast.stop(index, actor.node).question
        if not isinstance(question, Await | Read):
            return
        inbox = dict(actor.inbox)
        if all(n in inbox for n in question.numbers):
            answers = tuple(inbox[n] for n in question.numbers)
            left = actor._replace(inbox=tuple(item for item in actor.inbox if item[0] not in question.numbers))
            yield self._reached(state, index, self._settled(state[DATABASE], index, left, (), answers))
        for n in question.numbers if budget.timeouts else ():
            if inbox.get(n, FAILED) != FAILED:
                lost = actor._replace(inbox=tuple((m, FAILED if m == n else answer) for m, answer in actor.inbox))
                spent = self.budgets(budget._replace(timeouts=budget.timeouts - 1))
                yield with_part(with_part(state, BUDGET, spent), ACTORS + index, self.actors(lost)), None

    def _delivered(self, store: int, messages: int, place: int, most: int) -> Any:
        return super()._delivered(store, messages, place, 0)

    def _answered(self, database: int, index: int, actor: int, number: int, answer: Any) -> Any:
        """Have the reply on its way."""
        was = opened(self.actors.values[actor], self.databases.values[database])
        inbox = tuple(sorted((*was.inbox, (number, answer)), key=lambda item: item[0]))
        return worlds.Moved(database, self.actors(was._replace(inbox=inbox)), (), (), (0, 0), None)

    def _killed(self, state: State, index: int, budget: Budget) -> State:
        """Return the state in which a process is dead, and the database has yet to notice."""
        question = self.cast.stop(index, self.actors.values[state[ACTORS + index]].node).question
        committing = isinstance(question, Sql) and isinstance(question.statement, db.Commit)
        left = db.orphan(self.databases.values[state[DATABASE]], index, committing=committing)
        messages = self.messages.values[state[MESSAGES]]
        late = in_order([m._replace(awaited=False) if m.owner == index else m for m in messages])
        reached = list(state)
        reached[DATABASE], reached[MESSAGES] = self.databases(left), self.messages(late)
        reached[ACTORS + index] = self.actors(Actor(DEAD))
        reached[BUDGET] = self.budgets(budget._replace(kills=budget.kills - 1))
        return tuple(reached)


def explore_plainly(world: PlainWorld) -> Result:
    """Search with none of the reductions."""
    numbered = search._covered

    def covers_itself(own: World) -> list[int]:
        return [1 << number for number, _ in enumerate(numbered(own))]

    with ExitStack() as without:
        without.enter_context(patch.object(worlds, "unseen", lambda *_statement: False))
        without.enter_context(patch.object(search, "Sameness", lambda _world: lambda state: state))
        without.enter_context(patch.object(search, "_symmetries", lambda _scenario: ()))
        without.enter_context(patch.object(search, "_covered", covers_itself))
        return search.explore(world)
