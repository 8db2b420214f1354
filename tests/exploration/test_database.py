"""The miniature database answers as PostgreSQL does: the same scripts of two sessions on both."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors

from tests.exploration import database as db
from tests.exploration.database import Commit, Delete, Insert, Refused, Rollback, Savepoint, Select, Update

A, B = 0, 1
READ, SHARE = Select((0,), share=False), Select((0,), share=True)
SET, RELEASE, BACK = (Savepoint(verb, "s") for verb in ("set", "release", "roll back to"))
CHANGE = Update(0, (("a", 1),))
CHANGE_B = Update(0, (("b", 2),))

SCRIPTS = {
    "an update is invisible, and marks the row": [(A, CHANGE), (B, READ), (A, Commit()), (B, READ)],
    "an aborted update leaves its mark": [(A, CHANGE), (A, Rollback()), (B, READ), (B, SHARE)],
    "a writer's row is skipped": [(A, CHANGE), (B, SHARE)],
    "a deleted row is skipped": [(A, Delete(0)), (B, READ), (B, SHARE), (A, Commit()), (B, READ)],
    "an update waits for an update": [(A, CHANGE), (B, CHANGE_B)],
    "an update waits for a share lock": [(A, SHARE), (B, CHANGE)],
    "share locks do not wait for each other": [(A, SHARE), (B, SHARE), (B, READ)],
    "an update changes the newest version": [
        (B, READ),
        (A, CHANGE),
        (A, Commit()),
        (B, CHANGE_B),
        (B, Commit()),
        (A, READ),
    ],
    "a savepoint rolled back frees the share lock": [
        (A, READ),
        (A, SET),
        (A, SHARE),
        (A, BACK),
        (B, CHANGE),
        (B, Commit()),
        (A, READ),
    ],
    "a savepoint rolled back frees the row": [
        (A, READ),
        (A, SET),
        (A, CHANGE),
        (A, BACK),
        (B, CHANGE_B),
        (B, Commit()),
        (A, READ),
    ],
    "a savepoint released keeps the row": [(A, READ), (A, SET), (A, CHANGE), (A, RELEASE), (B, CHANGE_B)],
    "a change before the savepoint stays": [(A, CHANGE), (A, SET), (A, CHANGE_B), (A, BACK), (A, Commit()), (B, READ)],
    "one's own row carries no mark": [(A, CHANGE), (A, READ)],
    "one's own row carries one's own lock": [(A, CHANGE), (A, SHARE), (A, READ), (A, Commit()), (B, READ)],
    "a new change takes the mark away": [(A, CHANGE), (A, SET), (A, CHANGE_B), (A, BACK), (A, CHANGE_B), (A, READ)],
    "a deletion undone leaves its mark": [
        (A, CHANGE),
        (A, SET),
        (A, Delete(0)),
        (A, BACK),
        (A, READ),
        (A, Commit()),
        (B, READ),
    ],
    "a new row locked in a savepoint": [(A, SET), (A, SHARE), (A, BACK), (A, CHANGE), (A, Commit()), (B, READ)],
    "an insert is invisible": [
        (A, Insert(1, (5, 6))),
        (B, Select((1,), share=False)),
        (A, Commit()),
        (B, Select((1,), share=False)),
    ],
    "an insert waits for an insert": [(A, Insert(1, (5, 6))), (B, Insert(1, (7, 8)))],
    "an insert of a row that is there fails": [(A, Insert(0, (5, 6)))],
    "an update of an invisible insert finds nothing": [(A, Insert(1, (5, 6))), (B, Update(1, (("a", 1),)))],
    "delete and insert in one transaction": [
        (A, Delete(0)),
        (A, Insert(0, (5, 6))),
        (B, READ),
        (A, Commit()),
        (B, READ),
    ],
    "a delete finds what was changed": [(A, CHANGE), (A, Commit()), (B, Delete(0)), (B, Commit()), (A, READ)],
}
SNAPSHOTS = {
    "a snapshot is kept": [(A, READ), (B, CHANGE), (B, Commit()), (A, READ)],
    "a changed row of a snapshot cannot be locked": [(A, READ), (B, CHANGE), (B, Commit()), (A, SHARE)],
}


def sql_of(statement):
    """Return a statement as PostgreSQL takes it."""
    match statement:
        case Select(rows, share):
            return f"SELECT a, b, xmax = 0 FROM item WHERE id = {rows[0]}" + (" FOR SHARE SKIP LOCKED" if share else "")
        case Insert(row, value):
            return f"INSERT INTO item VALUES ({row}, {value[0]}, {value[1]})"
        case Update(row, changes):
            return f"UPDATE item SET {', '.join(f'{c} = {v}' for c, v in changes)} WHERE id = {row} RETURNING a, b"
        case Delete(row):
            return f"DELETE FROM item WHERE id = {row} RETURNING a, b"
        case Savepoint(verb, name):
            return {"set": "SAVEPOINT", "release": "RELEASE", "roll back to": "ROLLBACK TO"}[verb] + f" {name}"
    return type(statement).__name__.upper()


def in_postgresql(connection, statement):
    """Return the rows, or a word for what happened instead."""
    try:
        cursor = connection.execute(sql_of(statement))
    except errors.LockNotAvailable:
        return "waits"
    except errors.UniqueViolation:
        return "integrity"
    except errors.SerializationFailure:
        return "serialization"
    rows = cursor.fetchall() if cursor.description else []
    # FOR SHARE marks the row itself, so whether it was marked before says nothing.
    return [row if isinstance(statement, Select) and not statement.share else row[:2] for row in rows]


def in_miniature(database, client, statement, *, repeatable):
    """Return the database after a statement, and the same as `in_postgresql`."""
    effect = db.execute(database, client, statement, repeatable=repeatable)
    if effect is None:
        return database, "waits"
    if isinstance(effect.answer, Refused):
        return effect.database, effect.answer.why
    plain = isinstance(statement, Select) and not statement.share
    return effect.database, [(*f.value, f.unlocked) if plain else f.value for f in effect.answer.found]


@pytest.mark.parametrize("name", [*SCRIPTS, *SNAPSHOTS])
def test_the_miniature_answers_as_postgresql(postgres_url, name):
    """Rows, marks, waits and refusals are the same at every step."""
    script, repeatable = SCRIPTS.get(name) or SNAPSHOTS[name], name in SNAPSHOTS
    url = postgres_url.replace("+psycopg", "")
    database = db.Database((db.Version((0, 0), touched=False), db.Version(None, touched=False)), (None, None))
    with psycopg.connect(url, autocommit=True) as first, psycopg.connect(url, autocommit=True) as second:
        first.execute("CREATE TABLE item (id integer PRIMARY KEY, a integer, b integer)")
        first.execute("INSERT INTO item VALUES (0, 0, 0)")
        sessions = (first, second)
        open_ = [False, False]
        for session in sessions:
            session.execute("SET lock_timeout = '100ms'")
        for client, statement in script:
            if not open_[client] and not isinstance(statement, Commit | Rollback):
                level = "REPEATABLE READ" if repeatable and client == A else "READ COMMITTED"
                sessions[client].execute(f"BEGIN ISOLATION LEVEL {level}")
            open_[client] = not isinstance(statement, Commit | Rollback)
            here = in_postgresql(sessions[client], statement)
            database, there = in_miniature(database, client, statement, repeatable=repeatable and client == A)
            assert there == here, (name, client, statement)
        for session in sessions:
            session.execute("ROLLBACK")
        first.execute("DROP TABLE item")
