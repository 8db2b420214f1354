"""What a world's state is made of. Values; nothing here knows what may happen next."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from tests.exploration import database as db
from tests.exploration.losses import Loss
from tests.exploration.remote import Message

T = TypeVar("T", bound=Hashable)
State: TypeAlias = "tuple[int, ...]"
"""Database, store, messages, budget, and then each actor: numbers in `World`'s tables."""
DATABASE, STORE, MESSAGES, BUDGET, ACTORS = 0, 1, 2, 3, 4
DEAD = -1
FAULTS = frozenset({"cut", "kill", "timeout"})
"""Moves that a run may wait for in vain. (What is lost is lost before a message comes, which comes without it, too.)"""


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

    losses: an entry or an epoch is lost, or the store restarts. kills: a process dies inside a transaction, and the
    database notices. timeouts: a process
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


class Delivered(NamedTuple):
    """What became of a message: the move's kind, after which loss (how many), what is stored and under way, the answer."""

    kind: str
    loss: Loss
    lost: int
    store: int
    messages: int
    answer: Any


def opened(actor: Actor, database: db.Database) -> Actor:
    """Let the actor's reads begin, if they have not: this is their first step."""
    if not actor.windows or actor.windows[0][1] is not None:
        return actor
    versions = database.versions
    return actor._replace(windows=tuple((row, frozenset([versions[row].value])) for row, _ in actor.windows))


def unseen(database: db.Database, client: int, statement: db.Statement) -> bool:
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


def same(columns: Sequence[tuple[str, Any]] | None, value: db.Value) -> bool:
    if columns is None or value is None:
        return columns is None and value is None
    committed = dict(zip(db.COLUMNS, value, strict=True))
    return all(committed[name] == shown for name, shown in columns)


def text(columns: Sequence[tuple[str, Any]] | None) -> str:
    return "nothing" if columns is None else ", ".join(f"{name}={value}" for name, value in columns)


def with_part(state: State, place: int, number: int) -> State:
    return (*state[:place], number, *state[place + 1 :])


def in_order(messages: Sequence[Message]) -> tuple[Message, ...]:
    return tuple(sorted(messages, key=_address))


def _address(message: Message) -> tuple[int, int]:
    return message.owner, message.number
