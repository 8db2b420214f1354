"""The table under fire, two versions of its model, and the trigger that writes down which versions committed.

`a` and `b` are drawn from one sequence while the row is locked: the higher one numbers the row's versions in the order
of their commits, and no two attempts draw the same number. A value that was rolled back, and a row put together from
two versions, are therefore told from all that were ever committed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import psycopg
from sqlalchemy import BigInteger, Sequence
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tests.chaos.checker import BEFORE, NEVER, VERSION
from tests.chaos.log import COMMIT, Event

__all__ = ["NUMBERS", "create", "history", "models", "versions_of"]

NUMBERS = Sequence("numbers")

DDL = """
CREATE SEQUENCE numbers;
CREATE TABLE item (id integer PRIMARY KEY, a bigint NOT NULL, b bigint NOT NULL, note bigint);
CREATE TABLE history (
    id integer NOT NULL, version bigint NOT NULL, a bigint NOT NULL, b bigint NOT NULL, gone boolean NOT NULL,
    op bigint NOT NULL, xid xid8 NOT NULL, note bigint);

-- The row's lock is held here, so a number that is drawn for a deletion is in the order of the commits as well.
CREATE FUNCTION remember() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE op bigint := coalesce(nullif(current_setting('chaos.op', true), ''), '0');
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO history VALUES (OLD.id, nextval('numbers'), 0, 0, true, op, pg_current_xact_id(), NULL);
    ELSE
        INSERT INTO history VALUES (NEW.id, greatest(NEW.a, NEW.b), NEW.a, NEW.b, false, op, pg_current_xact_id(), NEW.note);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER remember AFTER INSERT OR UPDATE OR DELETE ON item FOR EACH ROW EXECUTE FUNCTION remember();

-- At COMMIT: a transaction may ask to be slow there, or to fail there, after everything was announced.
CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    seconds text := nullif(current_setting('chaos.sleep', true), '');
BEGIN
    IF seconds IS NOT NULL THEN
        PERFORM set_config('chaos.sleep', '', true);
        PERFORM pg_sleep(seconds::float);
    END IF;
    IF current_setting('chaos.fail', true) = 'yes' THEN
        RAISE EXCEPTION 'this transaction was to fail at COMMIT';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT OR UPDATE OR DELETE ON item DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION at_commit();
"""


def models(version: int) -> type[Any]:
    """Return the class of the application's *version*, 1 or 2; the second one knows a column more."""

    class Base(DeclarativeBase):
        pass

    class Columns:
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        a: Mapped[int] = mapped_column(BigInteger)
        b: Mapped[int] = mapped_column(BigInteger)

    if version == 1:

        class Item(Columns, Base):
            pass

    else:

        class Item(Columns, Base):  # type: ignore[no-redef]  # the other version
            note: Mapped[int | None] = mapped_column(BigInteger)

    return Item


def create(dsn: str, keys: int) -> None:
    """Create the table with *keys* rows, numbered from 0."""
    with psycopg.connect(dsn) as connection:
        connection.execute(DDL)
        connection.execute(
            "INSERT INTO item SELECT id, nextval('numbers'), currval('numbers'), NULL FROM generate_series(0, %s) id",
            [keys - 1],
        )


def history(dsn: str) -> np.ndarray:
    """Return what committed, as the database says: (id, version, a, b, gone, op, xid, note) in rows."""
    with psycopg.connect(dsn) as connection, connection.cursor() as cursor:
        copied = bytearray()
        with cursor.copy(
            "COPY (SELECT id, version, a, b, gone::int, op, xid, coalesce(note, 0) FROM history) TO STDOUT"
        ) as rows:
            for some in rows:
                copied += some
    return np.fromstring(bytes(copied), dtype="<i8", sep=" ").reshape(-1, 8)


def versions_of(committed: np.ndarray, commits: list[np.ndarray]) -> np.ndarray:
    """Return the versions that became visible, with the bounds of when, sorted by key and number.

    A transaction that wrote a row several times made the last of these versions visible, and no other.
    """
    ident, version, a, b, gone, op, xid, note = committed.T
    order = np.lexsort((version, xid, ident))
    last = np.ones(len(order), bool)
    last[:-1] = (ident[order][1:] != ident[order][:-1]) | (xid[order][1:] != xid[order][:-1])
    kept = order[last]
    kept = kept[np.lexsort((version[kept], ident[kept]))]
    versions = np.zeros(len(kept), VERSION)
    for name, column in (("key", ident), ("version", version), ("a", a), ("b", b), ("gone", gone), ("note", note)):
        versions[name] = column[kept]
    versions["low"], versions["high"] = _bounds(op[kept], commits)
    return versions


def _bounds(ops: np.ndarray, commits: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    events = np.concatenate([np.zeros(0, COMMIT), *commits])
    low = _times(ops, events[events["event"] == Event.SENT], BEFORE)
    high = _times(ops, events[events["event"] == Event.DONE], NEVER)
    first = ops == 0
    if np.any(low[~first] == BEFORE):
        raise RuntimeError("a version committed of which no process said that it would: the rig is broken")
    high[first] = BEFORE
    return low, high


def _times(ops: np.ndarray, events: np.ndarray, otherwise: np.int64) -> np.ndarray:
    if not len(events):
        return np.full(len(ops), otherwise)
    events = events[np.argsort(events["op"], kind="stable")]
    at = np.minimum(np.searchsorted(events["op"], ops), len(events) - 1)
    return np.where(events["op"][at] == ops, events["when"][at], otherwise)
