"""The world of one scenario: what its state is, what may happen next, and what must hold in every state.

A state of the world is a row of small numbers, each of which stands for a part that was met before: the database, the
store, the messages under way, each actor, and what faults may still happen. The actors' moves come from the trees of
their programs (`runs`), so the code under test runs once for every sequence of answers and not once for every state.

What is not explored because it can make no difference:

- A reply has no journey of its own. What its receiver does later happens at any later moment anyway.
- A message that is lost is one that is never delivered. It needs no move: what is claimed is claimed of every state,
  not only of the last one.
- A process that dies is one that has no further turn, until the database notices and rolls its transaction back. So
  that is one move; a process that dies in COMMIT, which is applied later, is one that has no turn after it.
- A loss is seen by the message that meets it and by nobody before (`losses`).
- SAVEPOINT, RELEASE and the end of a transaction that wrote and locked nothing are done at once: nobody can see them.
- A SELECT is one moment: one that began before a writer and met its lock after it would only be in more doubt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sa_writethrough.coherence import Value
from tests.exploration import database as db
from tests.exploration import losses, remote
from tests.exploration.remote import FAILED, Contents, Look, Message
from tests.exploration.runs import Await, Begun, Done, Ended, Read, Sent, Sql, Told
from tests.exploration.scenarios import Cast, Scenario
from tests.exploration.states import (
    ACTORS,
    BUDGET,
    DATABASE,
    DEAD,
    MESSAGES,
    STORE,
    Actor,
    Budget,
    Delivered,
    Move,
    Moved,
    State,
    Table,
    in_order,
    opened,
    same,
    text,
    unseen,
    with_part,
)


class World:
    """One scenario under one budget. Use as a context: it registers programs and lets go of them."""

    def __init__(self, scenario: Scenario, budget: Budget) -> None:
        self.scenario = scenario
        self.cast = Cast(scenario)
        self.names = tuple(actor.name for actor in scenario.actors)
        self.databases: Table[db.Database] = Table()
        self.stores: Table[Contents] = Table()
        self.messages: Table[tuple[Message, ...]] = Table()
        self.actors: Table[Actor] = Table()
        self.budgets: Table[Budget] = Table()
        self._memo: dict[Any, Any] = {}
        self.hits = self.reads = 0
        self.budget = budget

    def __enter__(self):
        return self

    def __exit__(self, *_exception: object) -> None:
        self.cast.close()

    def first(self) -> State:
        rows = tuple(db.Version(value, touched=False) for value in self.scenario.rows)
        database = self.databases(db.Database(rows, (None,) * len(self.names)))
        store = self.stores(remote.empty([registered.scope.epoch for registered in self.cast.registered]))
        messages: tuple[Message, ...] = ()
        actors = []
        for index in range(len(self.names)):
            moved = self._settled(database, index, Actor(0), [], None)
            database, messages = moved.database, messages + moved.sent
            actors.append(moved.actor)
        return (database, store, self.messages(in_order(messages)), self.budgets(self.budget), *actors)

    # --- what may happen next -----------------------------------------------------------------------------------------

    def moves(self, state: State) -> Iterator[tuple[Move, State, str | None]]:
        """Yield every move from *state*: what it is, where it leads, and what is wrong with it."""
        budget = self.budgets.values[state[BUDGET]]
        for index in range(len(self.names)):
            actor = self.actors.values[state[ACTORS + index]]
            if actor.node == DEAD:
                continue
            question = self.cast.stop(index, actor.node).question
            if isinstance(question, Sql):
                moved = self._sql(state[DATABASE], index, state[ACTORS + index])
                if moved is not None:
                    yield (Move("sql", index, question.statement), *self._reached(state, index, moved))
                if budget.cuts:
                    moved = self._cut(state[DATABASE], index, state[ACTORS + index])
                    spent = self.budgets(budget._replace(cuts=budget.cuts - 1))
                    yield (
                        Move("cut", index, question.statement),
                        *self._reached(with_part(state, BUDGET, spent), index, moved),
                    )
            elif budget.timeouts and isinstance(question, Await | Read):
                yield from self._timeouts(state, index, actor, question, budget)
            if budget.kills and not isinstance(question, Done):
                killed = self._killed(state, index, budget)
                if killed is not None:
                    yield Move("kill", index), killed, None
        yield from self._deliveries(state, budget)
        yield from self._ends_of_orphans(state)

    def _reached(self, state: State, index: int, moved: Moved) -> tuple[State, str | None]:
        """Return the state in which an actor has moved."""
        reached = list(state)
        reached[DATABASE] = moved.database
        reached[ACTORS + index] = moved.actor
        if moved.sent:
            reached[MESSAGES] = self._with_sent(state[MESSAGES], moved.sent)
        if moved.committed:
            self._widen(reached, moved.committed)
        self.hits += moved.reads[0]
        self.reads += moved.reads[1]
        return tuple(reached), moved.wrong

    def _with_sent(self, messages: int, sent: tuple[Message, ...]) -> int:
        key = ("sent", messages, sent)
        found = self._memo.get(key)
        if found is None:
            found = self._memo[key] = self.messages(in_order((*self.messages.values[messages], *sent)))
        return found

    def _widen(self, reached: list[int], committed: Sequence[int]) -> None:
        """Add newly committed values to what the reads under way may return."""
        versions = self.databases.values[reached[DATABASE]].versions
        for place in range(ACTORS, len(reached)):
            actor = self.actors.values[reached[place]]
            if actor.windows:
                windows = tuple(
                    (row, seen | {versions[row].value} if seen is not None and row in committed else seen)
                    for row, seen in actor.windows
                )
                reached[place] = self.actors(actor._replace(windows=windows))

    # --- actors -------------------------------------------------------------------------------------------------------

    def _sql(self, database: int, index: int, actor: int) -> Moved | None:
        key = ("sql", database, index, actor)
        if key not in self._memo:
            self._memo[key] = self._made_sql(database, index, self.actors.values[actor])
        return self._memo[key]

    def _made_sql(self, database: int, index: int, actor: Actor) -> Moved | None:
        question = self.cast.stop(index, actor.node).question
        present = self.databases.values[database]
        effect = db.execute(present, index, question.statement, repeatable=question.repeatable)
        if effect is None:
            return None
        actor = opened(actor, present)
        after = self.databases(effect.database)
        return self._settled(after, index, actor, effect.committed, effect.answer)

    def _cut(self, database: int, index: int, actor: int) -> Moved:
        key = ("cut", database, index, actor)
        if key not in self._memo:
            question = self.cast.stop(index, self.actors.values[actor].node).question
            present = self.databases.values[database]
            left = db.orphan(present, index, committing=isinstance(question.statement, db.Commit))
            begun = opened(self.actors.values[actor], present)
            self._memo[key] = self._settled(self.databases(left), index, begun, (), db.Refused("lost"))
        return self._memo[key]

    def _settled(self, database: int, index: int, actor: Actor, committed: Sequence[int], answer: Any) -> Moved:
        """Let an actor run on from *answer* (None: from its start) until it needs what is not there."""
        sent: list[Message] = []
        hits = reads = 0
        wrong = None
        node = actor.node if answer is None else self.cast.after(index, actor.node, answer)
        widened = set(committed)
        while True:
            stop = self.cast.stop(index, node)
            actor = actor._replace(node=node)
            for told in stop.told:
                actor, wrong_read = self._heard(index, actor, told, sent)
                wrong = wrong or wrong_read
                if isinstance(told, Ended):
                    hits, reads = hits + len(told.hits), reads + len(told.values)
            question = stop.question
            if isinstance(question, Done):
                if "WRONG" in str(question.result):
                    wrong = wrong or f"{self.names[index]} {question.result}"
                break
            if isinstance(question, Sql):
                present = self.databases.values[database]
                if not unseen(present, index, question.statement):
                    break
                effect = db.execute(present, index, question.statement, repeatable=question.repeatable)
                assert effect is not None
                database = self.databases(effect.database)
                widened.update(effect.committed)
                node = self.cast.after(index, node, effect.answer)
                continue
            if isinstance(question, Read):
                looks = [Look(key, question.epoch, question.intent) for key in question.keys]
                sent += [Message(index, n, look, awaited=True) for n, look in zip(question.numbers, looks, strict=True)]
                break
            inbox = dict(actor.inbox)
            if not all(number in inbox for number in question.numbers):
                break
            actor = actor._replace(inbox=tuple(item for item in actor.inbox if item[0] not in question.numbers))
            node = self.cast.after(index, node, tuple(inbox[number] for number in question.numbers))
        return Moved(database, self.actors(actor), tuple(sent), tuple(sorted(widened)), (hits, reads), wrong)

    def _heard(self, index: int, actor: Actor, told: Told, sent: list[Message]) -> tuple[Actor, str | None]:
        """Return the actor after it told something, and what is wrong with that; add to *sent* what it sent."""
        match told:
            case Sent(number, change, awaited):
                sent.append(Message(index, number, remote.owned(change, index), awaited))
                return actor, None
            case Begun(rows):
                return actor._replace(windows=tuple((row, None) for row in rows)), None
            case Ended():
                return actor._replace(windows=()), self._wrong_read(index, actor, told)

    def _wrong_read(self, index: int, actor: Actor, told: Ended) -> str | None:
        windows = dict(actor.windows)
        for row, columns in told.values:
            allowed = windows[row] or frozenset()
            if row in told.checked and not any(same(columns, value) for value in allowed):
                where = "the cache" if row in told.hits else "the database"
                return (
                    f"{self.names[index]} read row {row + 1} from {where} as {text(columns)}; during the read the "
                    f"committed row was {' or '.join(sorted(map(str, allowed)))}"
                )
        return None

    def _answered(self, database: int, index: int, actor: int, number: int, answer: Any) -> Moved:
        """Give an actor the answer to one of its messages."""
        key = ("answered", database, index, actor, number, answer)
        if key not in self._memo:
            was = self.actors.values[actor]
            was = opened(was, self.databases.values[database])
            was = was._replace(inbox=tuple(sorted((*was.inbox, (number, answer)), key=_first_of)))
            question = self.cast.stop(index, was.node).question
            inbox = dict(was.inbox)
            if isinstance(question, Await | Read) and all(n in inbox for n in question.numbers):
                answers = tuple(inbox[n] for n in question.numbers)
                was = was._replace(inbox=tuple(item for item in was.inbox if item[0] not in question.numbers))
                self._memo[key] = self._settled(database, index, was, (), answers)
            else:
                self._memo[key] = Moved(database, self.actors(was), (), (), (0, 0), None)
        return self._memo[key]

    def _killed(self, state: State, index: int, budget: Budget) -> State | None:
        """Return the state in which a process is dead, and its transaction is rolled back."""
        if self.databases.values[state[DATABASE]].open[index] is None:
            return None
        key = ("kill", state[DATABASE], state[MESSAGES], index)
        if key not in self._memo:
            rolled_back = db.execute(self.databases.values[state[DATABASE]], index, db.Rollback())
            assert rolled_back is not None
            messages = self.messages.values[state[MESSAGES]]
            late = in_order([m._replace(awaited=False) if m.owner == index else m for m in messages])
            self._memo[key] = (self.databases(rolled_back.database), self.messages(late), self.actors(Actor(DEAD)))
        reached = list(state)
        reached[DATABASE], reached[MESSAGES], reached[ACTORS + index] = self._memo[key]
        reached[BUDGET] = self.budgets(budget._replace(kills=budget.kills - 1))
        return tuple(reached)

    # --- messages, orphans --------------------------------------------------------------------------------------------

    def _deliveries(self, state: State, budget: Budget) -> Iterator[tuple[Move, State, str | None]]:
        for place, message in enumerate(self.messages.values[state[MESSAGES]]):
            index = message.owner
            for delivered in self._delivered(state[STORE], state[MESSAGES], place, min(budget.losses, 2)):
                spent = state[BUDGET]
                if delivered.lost:
                    spent = self.budgets(budget._replace(losses=budget.losses - delivered.lost))
                move = Move(delivered.kind, index, (message, delivered.loss))
                reached = (state[DATABASE], delivered.store, delivered.messages, spent, *state[ACTORS:])
                if not message.awaited:
                    yield move, reached, None
                elif delivered.kind == "look":
                    yield move, self._begun(reached, index), None
                else:
                    moved = self._answered(
                        state[DATABASE], index, state[ACTORS + index], message.number, delivered.answer
                    )
                    yield (move, *self._reached(reached, index, moved))

    def _delivered(self, store: int, messages: int, place: int, most: int) -> list[Delivered]:
        """Return what may become of a message, with at most so many losses before it."""
        key = ("deliver", store, messages, place, most)
        found = self._memo.get(key)
        if found is None:
            found = self._memo[key] = list(self._made_delivered(store, messages, place, most))
        return found

    def _made_delivered(self, store: int, messages: int, place: int, most: int) -> Iterator[Delivered]:
        present, under_way = self.stores.values[store], self.messages.values[messages]
        message, before, after = under_way[place], under_way[:place], under_way[place + 1 :]
        looks = self.scenario.pipelined and remote.seen(present, message) is not None
        for loss, held in losses.before(present, message, self.scenario, most, looks=looks):
            looked = remote.seen(held, message) if looks else None
            if looked is not None:
                kept = self.messages((*before, looked, *after))
                yield Delivered("look", loss, losses.COUNT[loss], self.stores(held), kept, None)
                continue
            contents, answer = remote.deliver(held, message)
            kept = self.messages(before + after)
            yield Delivered("deliver", loss, losses.COUNT[loss], self.stores(contents), kept, answer)

    def _begun(self, state: State, index: int) -> State:
        """Return the state in which an actor's reads have begun."""
        actor = opened(self.actors.values[state[ACTORS + index]], self.databases.values[state[DATABASE]])
        return with_part(state, ACTORS + index, self.actors(actor))

    def _timeouts(
        self, state: State, index: int, actor: Actor, question: Await | Read, budget: Budget
    ) -> Iterator[tuple[Move, State, str | None]]:
        messages = self.messages.values[state[MESSAGES]]
        for place, message in enumerate(messages):
            if message.owner != index or not message.awaited or message.number not in question.numbers:
                continue
            late = message._replace(awaited=False)
            reached = list(state)
            reached[MESSAGES] = self.messages((*messages[:place], late, *messages[place + 1 :]))
            reached[BUDGET] = self.budgets(budget._replace(timeouts=budget.timeouts - 1))
            moved = self._answered(state[DATABASE], index, state[ACTORS + index], message.number, FAILED)
            yield (Move("timeout", index, message), *self._reached(tuple(reached), index, moved))

    def _ends_of_orphans(self, state: State) -> Iterator[tuple[Move, State, str | None]]:
        orphans = self.databases.values[state[DATABASE]].orphans
        for place, left in enumerate(orphans):
            for commit in (False, True) if left.committing else (False,):
                effect = db.end_orphan(self.databases.values[state[DATABASE]], place, commit=commit)
                reached = list(state)
                reached[DATABASE] = self.databases(effect.database)
                if effect.committed:
                    self._widen(reached, effect.committed)
                yield Move("orphan commits" if commit else "orphan rolls back", None, place), tuple(reached), None

    # --- what must hold -----------------------------------------------------------------------------------------------

    def wrong(self, state: State) -> str | None:
        """Say which readable entry is not the committed row. A reader may come at any moment, so none may ever be."""
        key = ("wrong", state[DATABASE], state[STORE])
        if key not in self._memo:
            self._memo[key] = self._wrong_entry(
                self.databases.values[state[DATABASE]], self.stores.values[state[STORE]]
            )
        return self._memo[key]

    def _wrong_entry(self, database: db.Database, contents: Contents) -> str | None:
        for entry in contents.entries:
            epoch = contents.epoch(self.cast.epoch_of(entry.key))
            if not isinstance(entry.state, Value) or epoch.closed is not None or entry.generation != epoch.generation:
                continue
            row = remote.row_of(entry.key)
            for registered in self.cast.readers_of(entry.key):
                columns = registered.decoded(entry.state.payload)
                committed = database.versions[row].value
                if columns is None:
                    continue
                shown = tuple((name, value) for name, value in columns.items() if name != "id")
                if columns["id"] != row + 1 or not same(shown, committed):
                    return f"the cache would serve row {row + 1} as {text(shown)}; the committed row is {committed}"
        return None

    def stuck(self, state: State) -> str | None:
        """Say which actor waits for ever; there is no move left."""
        for index, name in enumerate(self.names):
            actor = self.actors.values[state[ACTORS + index]]
            if actor.node != DEAD and not isinstance(self.cast.stop(index, actor.node).question, Done):
                return f"{name} waits for ever for {self.cast.stop(index, actor.node).question}"
        return None


def _first_of(pair: tuple[int, Any]) -> int:
    return pair[0]
