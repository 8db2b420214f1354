"""Schedules in words: what each step was, and what the database and the store hold after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sa_writethrough.coherence import Announce, AnnounceEpoch, Change, Evict, Fill, Lease, Publish, Retract, Tombstone
from tests.exploration import database as db
from tests.exploration.losses import Loss
from tests.exploration.remote import Look, Message, row_of
from tests.exploration.runs import Done, ExploredToken
from tests.exploration.search import Step
from tests.exploration.states import ACTORS, DATABASE, DEAD, MESSAGES, STORE, Move, State
from tests.exploration.world import World

__all__ = ["told"]


def told(world: World, steps: Sequence[Step]) -> Iterator[str]:
    """Yield the lines of a schedule."""
    state = world.first()
    yield f"    {'at first':<72}{_held(world, state)}"
    for number, step in enumerate(steps, 1):
        sentence = _sentence(world, step.move, state)
        yield f"{number:>3} {sentence:<72}{_held(world, step.state)}"
        if step.move.actor is not None:
            ended = _ended(world, step.move.actor, step.state)
            if ended is not None and _ended(world, step.move.actor, state) is None:
                yield f"    {ended}"
        state = step.state


def _sentence(world: World, move: Move, before: State) -> str:  # noqa: PLR0911 - one return per kind
    name = "" if move.actor is None else world.names[move.actor]
    match move.kind, move.detail:
        case "sql", statement:
            return f"{name}: {sql(statement)}"
        case "cut", statement:
            return f"{name} loses its connection in {sql(statement)}"
        case "kill", _:
            return f"{name} is dead: the database notices, and rolls back"
        case "timeout", Message(what=what):
            return f"{name} waits no longer for its answer to {_what(world, what)}"
        case "deliver", (Message(what=what), Loss() as loss):
            return f"store: {_lost(loss)}{name} {_what(world, what)}"
        case "look", (Message(what=what), Loss() as loss):
            return f"store: {_lost(loss)}{name} is told the epoch, to {_what(world, what)}"
        case "orphan commits", place:
            return f"database: the COMMIT without a client is applied ({_orphan(world, before, place)})"
        case "orphan rolls back", place:
            return f"database: the transaction without a client is rolled back ({_orphan(world, before, place)})"
    raise AssertionError(move)


def _lost(loss: Loss) -> str:
    return "" if loss is Loss.NOTHING else f"{loss.value}; "


def _ended(world: World, index: int, state: State) -> str | None:
    actor = world.actors.values[state[ACTORS + index]]
    if actor.node == DEAD:
        return None
    question = world.cast.stop(index, actor.node).question
    return f"{world.names[index]} is done: {question.result}" if isinstance(question, Done) else None


def sql(statement: db.Statement) -> str:  # noqa: PLR0911 - one return per kind
    """Return a statement as SQL."""
    match statement:
        case db.Select(rows, share):
            return f"SELECT row {', '.join(str(row + 1) for row in rows)}{' FOR SHARE SKIP LOCKED' if share else ''}"
        case db.Insert(row, value):
            return f"INSERT row {row + 1} {value}"
        case db.Update(row, changes):
            return f"UPDATE row {row + 1} SET {_pairs(changes)}"
        case db.UpdateAll(changes):
            return f"UPDATE every row SET {_pairs(changes)}"
        case db.Delete(row):
            return f"DELETE row {row + 1}"
        case db.Savepoint("roll back to", name):
            return f"ROLLBACK TO {name}"
        case db.Savepoint(verb, name):
            return f"{'SAVEPOINT' if verb == 'set' else 'RELEASE'} {name}"
    return type(statement).__name__.upper()


def _pairs(changes: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{column}={value}" for column, value in changes)


def _what(world: World, what: Change | Look) -> str:  # noqa: PLR0911 - one return per kind
    match what:
        case Look(key, _, intent):
            return f"reads row {row_of(key) + 1} ({intent.value})"
        case Announce(key=key):
            return f"announces row {row_of(key) + 1}"
        case AnnounceEpoch():
            return "announces the epoch"
        case Publish(key=key, payload=payload):
            return f"publishes row {row_of(key) + 1}: {_row(world, key, payload)}"
        case Fill(key=key, payload=payload):
            return f"fills row {row_of(key) + 1}: {_row(world, key, payload)}"
        case Retract(key=key):
            return "opens the epoch" if key.endswith("@epoch") else f"takes back row {row_of(key) + 1}"
        case Evict(key=key):
            return f"evicts row {row_of(key) + 1}"
    return str(what)


def _row(world: World, key: str, payload: bytes | None) -> str:
    if payload is None:
        return "absent"
    for registered in world.cast.readers_of(key):
        columns = registered.decoded(payload)
        if columns is not None:
            return ", ".join(f"{name}={value}" for name, value in columns.items() if name != "id")
    return "unreadable"


def _orphan(world: World, state: State, place: int) -> str:
    left = world.databases.values[state[DATABASE]].orphans[place]
    return "; ".join(_writes(left.transaction)) or "it wrote nothing"


def _writes(transaction: db.Transaction) -> Iterator[str]:
    for frame in transaction.frames:
        for row, value in frame.writes:
            yield f"row {row + 1} {value}"


# --- what there is ----------------------------------------------------------------------------------------------------


def _held(world: World, state: State) -> str:
    """Return what the database and the store hold, and what is under way."""
    database = world.databases.values[state[DATABASE]]
    rows = " ".join(_version(row, version.value) for row, version in enumerate(database.versions))
    locks = [f"{world.names[i]} holds {_locks(t)}" for i, t in enumerate(database.open) if t is not None and _locks(t)]
    locks += [f"nobody's transaction holds {_locks(left.transaction)}" for left in database.orphans]
    contents = world.stores.values[state[STORE]]
    entries = [f"{row_of(entry.key) + 1}: {_state(world, entry)}" for entry in contents.entries]
    entries += [
        f"epoch closed by {_owner(world, epoch.closed)}" for epoch in contents.epochs if epoch.closed is not None
    ]
    under_way = [f"{world.names[m.owner]} {_what(world, m.what)}" for m in world.messages.values[state[MESSAGES]]]
    parts = [f"db {rows}" + (f" ({', '.join(locks)})" if locks else ""), f"store {'; '.join(entries) or 'empty'}"]
    if under_way:
        parts.append(f"under way: {'; '.join(under_way)}")
    return " | ".join(parts)


def _version(row: int, value: db.Value) -> str:
    return f"{row + 1}={'-' if value is None else ','.join(map(str, value))}"


def _locks(transaction: db.Transaction) -> str:
    exclusive = {row + 1 for frame in transaction.frames for row in frame.exclusive}
    shared = {row + 1 for frame in transaction.frames for row in frame.shared} - exclusive
    return ", ".join([*map(str, sorted(exclusive)), *(f"{row} (share)" for row in sorted(shared))])


def _state(world: World, entry: Any) -> str:
    match entry.state:
        case Lease(token):
            return f"lease of {_owner(world, token)}"
        case Tombstone(token):
            return f"tombstone of {_owner(world, token)}"
    return f"value {_row(world, entry.key, entry.state.payload)}" + (
        f" of epoch {entry.generation}" if entry.generation else ""
    )


def _owner(world: World, token: Any) -> str:
    return world.names[token.owner] if isinstance(token, ExploredToken) and token.owner is not None else "nobody"
