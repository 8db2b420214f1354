"""The exploration: every order in which the actors, the messages and the faults of one scenario can take their turns.

A state of the world is a row of small numbers, each of which stands for a part that was met before: the database, the
store, the messages under way, each actor, and what faults may still happen. The actors' moves come from the trees of
their programs (`runs`), so the code under test runs once for every sequence of answers and not once for every state.
The search is breadth first: the first violation found is one of the shortest.

What is not explored because it can make no difference:

- A reply has no journey of its own. What its receiver does later happens at any later moment anyway.
- A message that is lost is one that is never delivered; a process that dies without a transaction is one that has no
  further turn. Both need no move: what is claimed is claimed of every state, not only of the last one.
- SAVEPOINT, RELEASE and the end of a transaction that wrote and locked nothing are done at once: nobody can see them.
- Identical actors may change places: of such states one is kept.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from sa_writethrough.coherence import Value
from tests.exploration import database as db
from tests.exploration import remote
from tests.exploration.remote import FAILED, Contents, Look, Message
from tests.exploration.runs import Await, Begun, Done, Ended, Read, Sent, Sql
from tests.exploration.scenarios import Cast, Scenario

T = TypeVar("T", bound=Hashable)
State: TypeAlias = "tuple[int, ...]"
"""Database, store, messages, budget, and then each actor: numbers in `Exploration`'s tables."""
DATABASE, STORE, MESSAGES, BUDGET, ACTORS = 0, 1, 2, 3, 4
DEAD = -1
_BITS = 24


class Table(Generic[T]):
    """Numbers for values that can be compared."""

    def __init__(self) -> None:
        self._numbers: dict[T, int] = {}
        self.values: list[T] = []

    def __call__(self, value: T) -> int:
        number = self._numbers.get(value)
        if number is None:
            number = self._numbers[value] = len(self.values)
            self.values.append(value)
        return number


class Budget(NamedTuple):
    """How often a fault may still happen.

    losses: an entry is lost, or the store restarts. kills: a process dies inside a transaction. timeouts: a process
    gives up waiting for the store, which may do the work later. cuts: a connection to the database is lost; where that
    was in COMMIT, it may be applied, later or not at all.
    """

    losses: int = 0
    kills: int = 0
    timeouts: int = 0
    cuts: int = 0


class Actor(NamedTuple):
    """One process: where its program stands, the outcomes it has not asked for yet, and its reads under way.

    Of each read the values that the row had since its first step; None before that.
    """

    node: int
    inbox: tuple[tuple[int, Any], ...] = ()
    windows: tuple[tuple[int, frozenset[db.Value] | None], ...] = ()


class Move(NamedTuple):
    """One step: of whom, and what. Enough to tell it apart; `narrate` makes a sentence of it."""

    kind: str
    actor: int | None = None
    detail: Any = None


class Moved(NamedTuple):
    """What became of an actor: of it, of the database, what it sent, what its commit changed, its reads, what is wrong."""

    database: int
    actor: int
    sent: tuple[Message, ...]
    committed: tuple[int, ...]
    reads: tuple[int, int]
    wrong: str | None


@dataclass(slots=True)
class Result:
    """What an exploration came to."""

    scenario: str
    states: int = 0
    transitions: int = 0
    nodes: int = 0
    runs: int = 0
    rechecked: int = 0
    seconds: float = 0.0
    hits: int = 0
    reads: int = 0
    depth: int = 0
    complete: bool = True
    violation: str | None = None
    schedule: list[tuple[Move, State]] = field(default_factory=list)


class Exploration:
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
        self._symmetries = list(_symmetries([actor.kind for actor in scenario.actors]))
        self.hits = self.reads = 0
        self._budget = budget

    def __enter__(self) -> Exploration:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.cast.close()

    # --- the search ---------------------------------------------------------------------------------------------------

    def run(self, *, most_states: int | None = None, seconds: float | None = None) -> Result:
        """Search until everything was seen, something is wrong, or a limit is reached."""
        began = time.monotonic()
        result = Result(self.scenario.name)
        first = self._first()
        number_of = {self._packed(first): 0}
        parents = [0]
        layer: list[tuple[int, State]] = [(0, first)]
        packed_by_number = [self._packed(first)]
        while layer and result.violation is None:
            result.depth += 1
            following: list[tuple[int, State]] = []
            for number, state in layer:
                stuck = True
                for _, reached, wrong in self.moves(state):
                    stuck = False
                    result.transitions += 1
                    packed, canonical = self._canonical(reached)
                    if wrong is None and packed in number_of:
                        continue
                    at = len(parents)
                    number_of.setdefault(packed, at)
                    parents.append(number)
                    packed_by_number.append(packed)
                    wrong = wrong or self._wrong(canonical)
                    if wrong is not None:
                        result.violation = wrong
                        result.schedule = self._schedule(first, parents, packed_by_number, at)
                        break
                    following.append((at, canonical))
                if stuck and result.violation is None and (wrong := self._stuck(state)) is not None:
                    result.violation = wrong
                    result.schedule = self._schedule(first, parents, packed_by_number, number)
                if result.violation is not None:
                    break
                if (most_states is not None and len(parents) > most_states) or (
                    seconds is not None and time.monotonic() - began > seconds
                ):
                    result.complete = False
                    break
            layer = following if result.complete else []
        result.states = len(parents)
        result.hits, result.reads = self.hits, self.reads
        result.nodes, result.runs = self.cast.nodes, self.cast.runs
        result.rechecked = self.cast.recheck()
        result.seconds = time.monotonic() - began
        return result

    def _first(self) -> State:
        rows = tuple(db.Version(value, touched=False) for value in self.scenario.rows)
        database = self.databases(db.Database(rows, (None,) * len(self.names)))
        store = self.stores(remote.empty([registered.scope.epoch for registered in self.cast.registered]))
        messages: tuple[Message, ...] = ()
        actors = []
        for index in range(len(self.names)):
            moved = self._settled(database, index, Actor(0), [], None)
            database, messages = moved.database, messages + moved.sent
            actors.append(moved.actor)
        return (database, store, self.messages(_in_order(messages)), self.budgets(self._budget), *actors)

    def _packed(self, state: State) -> int:
        packed = 0
        for number in state:
            packed = packed << _BITS | number
        return packed

    def _canonical(self, state: State) -> tuple[int, State]:
        """Return the representative of a state, and what it is known by."""
        packed = self._packed(state)
        for index in range(len(self._symmetries)):
            other = self._renamed(state, index)
            if (other_packed := self._packed(other)) < packed:
                packed, state = other_packed, other
        return packed, state

    def _renamed(self, state: State, index: int) -> State:
        names = self._symmetries[index]
        key = ("renamed", index, state[DATABASE], state[STORE], state[MESSAGES])
        parts = self._memo.get(key)
        if parts is None:
            database = self.databases.values[state[DATABASE]]
            open_ = tuple(database.open[names.index(i)] for i in range(len(names)))
            messages = self.messages.values[state[MESSAGES]]
            parts = self._memo[key] = (
                self.databases(database._replace(open=open_)),
                self.stores(remote.renamed(self.stores.values[state[STORE]], names)),
                self.messages(_in_order([remote.renamed(message, names) for message in messages])),
            )
        actors = [state[ACTORS + names.index(i)] for i in range(len(names))]
        return (*parts, state[BUDGET], *actors)

    def _schedule(
        self, first: State, parents: Sequence[int], packed: Sequence[int], last: int
    ) -> list[tuple[Move, State]]:
        """Return the moves that lead to a state, as one history: no actors change places in it."""
        path = [last]
        while path[-1] != 0:
            path.append(parents[path[-1]])
        schedule: list[tuple[Move, State]] = []
        state = first
        for number in path[::-1][1:]:
            found = [(move, reached) for move, reached, wrong in self.moves(state)
                     if self._canonical(reached)[0] == packed[number] and (wrong is None or number == last)]
            if number == last:
                broken = [(m, r) for m, r, wrong in self.moves(state) if wrong and self._canonical(r)[0] == packed[number]]
                found = broken or found
            move, state = found[0]
            schedule.append((move, state))
        return schedule

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
                    yield (Move("cut", index, question.statement), *self._reached(_with(state, BUDGET, spent), index, moved))
            elif budget.timeouts and isinstance(question, Await | Read):
                yield from self._timeouts(state, index, actor, question, budget)
            if budget.kills and not isinstance(question, Done):
                killed = self._killed(state, index, actor, question, budget)
                if killed is not None:
                    yield Move("kill", index), killed, None
        yield from self._deliveries(state)
        yield from self._ends_of_orphans(state)
        if budget.losses:
            yield from self._losses(state, budget)

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
            found = self._memo[key] = self.messages(_in_order((*self.messages.values[messages], *sent)))
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
        actor = _opened(actor, present)
        after = self.databases(effect.database)
        return self._settled(after, index, actor, effect.committed, effect.answer)

    def _cut(self, database: int, index: int, actor: int) -> Moved:
        key = ("cut", database, index, actor)
        if key not in self._memo:
            question = self.cast.stop(index, self.actors.values[actor].node).question
            present = self.databases.values[database]
            left = db.orphan(present, index, committing=isinstance(question.statement, db.Commit))
            opened = _opened(self.actors.values[actor], present)
            self._memo[key] = self._settled(self.databases(left), index, opened, (), db.Refused("lost"))
        return self._memo[key]

    def _settled(
        self, database: int, index: int, actor: Actor, committed: Sequence[int], answer: Any
    ) -> Moved:
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
                if isinstance(told, Sent):
                    sent.append(Message(index, told.number, remote.owned(told.change, index), told.awaited))
                elif isinstance(told, Begun):
                    actor = actor._replace(windows=actor.windows + tuple((row, None) for row in told.rows))
                else:
                    hits += len(told.hits)
                    reads += len(told.values)
                    wrong = wrong or self._wrong_read(index, actor, told)
                    actor = actor._replace(windows=())
            question = stop.question
            if isinstance(question, Done):
                if "WRONG" in str(question.result):
                    wrong = wrong or f"{self.names[index]} {question.result}"
                break
            if isinstance(question, Sql):
                present = self.databases.values[database]
                if not _unseen(present, index, question.statement):
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

    def _wrong_read(self, index: int, actor: Actor, told: Ended) -> str | None:
        windows = dict(actor.windows)
        for row, columns in told.values:
            allowed = windows[row] or frozenset()
            if row in told.checked and not any(_same(columns, value) for value in allowed):
                where = "the cache" if row in told.hits else "the database"
                return (
                    f"{self.names[index]} read row {row + 1} from {where} as {_text(columns)}; during the read the "
                    f"committed row was {' or '.join(sorted(map(str, allowed)))}"
                )
        return None

    def _answered(self, database: int, index: int, actor: int, number: int, answer: Any) -> Moved:
        """Give an actor the answer to one of its messages."""
        key = ("answered", database, index, actor, number, answer)
        if key not in self._memo:
            was = self.actors.values[actor]
            was = _opened(was, self.databases.values[database])
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

    def _killed(self, state: State, index: int, actor: Actor, question: Any, budget: Budget) -> State | None:
        database = self.databases.values[state[DATABASE]]
        if database.open[index] is None:
            return None
        committing = isinstance(question, Sql) and isinstance(question.statement, db.Commit)
        reached = list(state)
        reached[DATABASE] = self.databases(db.orphan(database, index, committing=committing))
        reached[ACTORS + index] = self.actors(Actor(DEAD))
        messages = self.messages.values[state[MESSAGES]]
        late = _in_order([m._replace(awaited=False) if m.owner == index else m for m in messages])
        reached[MESSAGES] = self.messages(late)
        reached[BUDGET] = self.budgets(budget._replace(kills=budget.kills - 1))
        return tuple(reached)

    # --- messages, orphans, losses ------------------------------------------------------------------------------------

    def _deliveries(self, state: State) -> Iterator[tuple[Move, State, str | None]]:
        for place, message in enumerate(self.messages.values[state[MESSAGES]]):
            key = ("deliver", state[STORE], state[MESSAGES], place)
            delivered = self._memo.get(key)
            if delivered is None:
                contents, answer = remote.deliver(self.stores.values[state[STORE]], message)
                rest = self.messages.values[state[MESSAGES]]
                delivered = self._memo[key] = (
                    self.stores(contents),
                    self.messages(rest[:place] + rest[place + 1 :]),
                    answer,
                )
            store, rest, answer = delivered
            reached = (state[DATABASE], store, rest, *state[BUDGET:])
            if not message.awaited:
                yield Move("deliver", message.owner, message), reached, None
                continue
            index = message.owner
            moved = self._answered(state[DATABASE], index, state[ACTORS + index], message.number, answer)
            yield (Move("deliver", index, message), *self._reached(reached, index, moved))

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

    def _losses(self, state: State, budget: Budget) -> Iterator[tuple[Move, State, str | None]]:
        contents = self.stores.values[state[STORE]]
        spent = self.budgets(budget._replace(losses=budget.losses - 1))
        for entry in contents.entries:
            if self.scenario.lossless and not isinstance(entry.state, Value):
                continue
            lost = self.stores(remote.lose(contents, entry.key))
            yield Move("lose", None, entry.key), (state[DATABASE], lost, state[MESSAGES], spent, *state[ACTORS:]), None
        if self.scenario.restarts:
            lost = self.stores(remote.restart(contents))
            yield Move("restart"), (state[DATABASE], lost, state[MESSAGES], spent, *state[ACTORS:]), None

    # --- what must hold -----------------------------------------------------------------------------------------------

    def _wrong(self, state: State) -> str | None:
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
                if columns["id"] != row + 1 or not _same(shown, committed):
                    return f"the cache would serve row {row + 1} as {_text(shown)}; the committed row is {committed}"
        return None

    def _stuck(self, state: State) -> str | None:
        """Say which actor waits for ever; there is no move left."""
        for index, name in enumerate(self.names):
            actor = self.actors.values[state[ACTORS + index]]
            if actor.node != DEAD and not isinstance(self.cast.stop(index, actor.node).question, Done):
                return f"{name} waits for ever for {self.cast.stop(index, actor.node).question}"
        return None


# --- parts ------------------------------------------------------------------------------------------------------------


def _opened(actor: Actor, database: db.Database) -> Actor:
    """Let the actor's reads begin, if they have not: this is their first step."""
    if not actor.windows or actor.windows[0][1] is not None:
        return actor
    versions = database.versions
    return actor._replace(windows=tuple((row, frozenset([versions[row].value])) for row, _ in actor.windows))


def _unseen(database: db.Database, client: int, statement: db.Statement) -> bool:
    """Tell whether nobody can see whether the statement was executed yet."""
    transaction = database.open[client]
    match statement:
        case db.Commit() | db.Rollback():
            return transaction is None or not any(f.writes or f.exclusive or f.shared for f in transaction.frames)
        case db.Savepoint("roll back to", name):
            assert transaction is not None
            undone = transaction.frames[max(i for i, f in enumerate(transaction.frames) if f.name == name) :]
            return not any(frame.exclusive or frame.shared for frame in undone)
        case db.Savepoint():
            return True
    return False


def _same(columns: Sequence[tuple[str, Any]] | None, value: db.Value) -> bool:
    if columns is None or value is None:
        return columns is None and value is None
    committed = dict(zip(db.COLUMNS, value, strict=True))
    return all(committed[name] == shown for name, shown in columns)


def _text(columns: Sequence[tuple[str, Any]] | None) -> str:
    return "nothing" if columns is None else ", ".join(f"{name}={value}" for name, value in columns)


def _with(state: State, place: int, number: int) -> State:
    return (*state[:place], number, *state[place + 1 :])


def _in_order(messages: Sequence[Message]) -> tuple[Message, ...]:
    return tuple(sorted(messages, key=_address))


def _address(message: Message) -> tuple[int, int]:
    return message.owner, message.number


def _first_of(pair: tuple[int, Any]) -> int:
    return pair[0]


def _symmetries(kinds: Sequence[str]) -> Iterator[tuple[int, ...]]:
    """Yield the ways in which actors of one kind can change places: to each number the new one."""
    for names in permutations(range(len(kinds))):
        if names != tuple(range(len(kinds))) and all(kinds[i] == kinds[n] for i, n in enumerate(names)):
            yield names
