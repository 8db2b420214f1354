"""A database in miniature, pure: rows with versions and locks, transactions with savepoints and snapshots.

What PostgreSQL does as far as the library can see it: an UPDATE waits for the row's lock and then changes the newest
version; a version remembers that somebody locked it (`xmax`), even if that transaction was rolled back; an INSERT is
invisible until its COMMIT; ROLLBACK TO SAVEPOINT frees the locks taken since; FOR SHARE SKIP LOCKED passes over a row
that a writer holds; a transaction in REPEATABLE READ sees the moment of its first statement.

A database is a value. `execute` says what becomes of it, and what the client is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

Value: TypeAlias = "tuple[int, int] | None"
"""The columns a and b of a row; None: there is no such row."""

COLUMNS = ("a", "b")


class Select(NamedTuple):
    """Read rows; *share*: FOR SHARE SKIP LOCKED."""

    rows: tuple[int, ...]
    share: bool


class Insert(NamedTuple):
    """Insert one row."""

    row: int
    value: tuple[int, int]


class Update(NamedTuple):
    """Change columns of one row."""

    row: int
    changes: tuple[tuple[str, int], ...]


class UpdateAll(NamedTuple):
    """Change columns of every row, by a criterion that names none."""

    changes: tuple[tuple[str, int], ...]


class Delete(NamedTuple):
    """Delete one row."""

    row: int


class Savepoint(NamedTuple):
    """Do as `verb` says: "set", "release", or "roll back to"."""

    verb: str
    name: str


class Commit(NamedTuple):
    """COMMIT."""


class Rollback(NamedTuple):
    """ROLLBACK."""


Statement: TypeAlias = Select | Insert | Update | UpdateAll | Delete | Savepoint | Commit | Rollback


class Found(NamedTuple):
    """One selected row: its key, its columns, and whether nobody ever locked the version that was read."""

    row: int
    value: tuple[int, int]
    unlocked: bool


class Rows(NamedTuple):
    """What a statement found: selected rows, or the rows that it changed, as they are now."""

    found: tuple[Found, ...]


class Refused(NamedTuple):
    """The statement failed: "integrity", "serialization", "lost" (the connection; the fate of a COMMIT is unknown)."""

    why: str


Answer: TypeAlias = Rows | Refused
NOTHING = Rows(())


class Version(NamedTuple):
    """What is committed of one row; *touched*: somebody has locked this version, or tried to replace it."""

    value: Value
    touched: bool


class Frame(NamedTuple):
    """What a transaction did since one savepoint."""

    name: str | None
    writes: tuple[tuple[int, Value], ...] = ()
    exclusive: frozenset[int] = frozenset()
    shared: frozenset[int] = frozenset()


class Transaction(NamedTuple):
    """One open transaction.

    snapshot: what it sees of the others, in REPEATABLE READ. marked: rows of which its own newest version was locked, or
    replaced in a savepoint that was rolled back.
    """

    frames: tuple[Frame, ...] = (Frame(None),)
    marked: frozenset[int] = frozenset()
    snapshot: tuple[Version, ...] | None = None
    failed: bool = False


class Orphan(NamedTuple):
    """A transaction whose client is gone; *committing*: its COMMIT may be under way."""

    transaction: Transaction
    committing: bool


class Database(NamedTuple):
    """Committed versions by row, open transactions by client, and transactions that have lost their client."""

    versions: tuple[Version, ...]
    open: tuple[Transaction | None, ...]
    orphans: tuple[Orphan, ...] = ()


class Effect(NamedTuple):
    """What a statement did. *committed*: rows with new committed values."""

    database: Database
    answer: Answer
    committed: tuple[int, ...] = ()


def execute(database: Database, client: int, statement: Statement, *, repeatable: bool = False) -> Effect | None:  # noqa: PLR0911 - one return per kind
    """Return what *statement* does, or None where it has to wait for a lock."""
    transaction = database.open[client]
    match statement:
        case Commit():
            return _end(database, client, commit=transaction is not None and not transaction.failed)
        case Rollback():
            return _end(database, client, commit=False)
    if transaction is None:
        transaction = Transaction(snapshot=database.versions if repeatable else None)
    match statement:
        case Savepoint(verb, name):
            return _with(database, client, _SAVEPOINTS[verb](transaction, name))
        case Select(rows, share):
            return _select(database, client, transaction, rows, share=share)
        case Insert(row, value):
            return _insert(database, client, transaction, row, value)
        case Update(row, changes):
            return _change(database, client, transaction, (row,), changes)
        case UpdateAll(changes):
            return _change(database, client, transaction, range(len(database.versions)), changes)
        case Delete(row):
            return _change(database, client, transaction, (row,), None)
    raise AssertionError(statement)


def orphan(database: Database, client: int, *, committing: bool) -> Database:
    """Return what is left when a client is gone: its transaction, if it holds anything, until the server notices."""
    transaction = database.open[client]
    if transaction is None:
        return database
    if not any(frame.writes or frame.exclusive or frame.shared for frame in transaction.frames):
        return database._replace(open=_put(database.open, client, None))
    left = Orphan(transaction, committing and not transaction.failed)
    orphans = tuple(sorted((*database.orphans, left), key=repr))
    return database._replace(open=_put(database.open, client, None), orphans=orphans)


def end_orphan(database: Database, index: int, *, commit: bool) -> Effect:
    """Return what is left when the server ends a transaction that lost its client."""
    left = database.orphans[index]
    without = database._replace(orphans=database.orphans[:index] + database.orphans[index + 1 :])
    return _applied(without, left.transaction) if commit else Effect(without, NOTHING)


# --- statements -------------------------------------------------------------------------------------------------------


def _select(
    database: Database, client: int, transaction: Transaction, rows: tuple[int, ...], *, share: bool
) -> Effect | None:
    found: list[Found] = []
    locked: set[int] = set()
    for row in rows:
        own = written(transaction, row)
        seen = own or (transaction.snapshot or database.versions)[row]
        if seen.value is None:
            continue
        if not share:
            found.append(Found(row, seen.value, unlocked=not seen.touched))
            continue
        if row in _held(database, client, "exclusive"):
            continue
        newest = own or database.versions[row]
        if transaction.snapshot is not None and newest.value != seen.value:
            return _with(database, client, transaction._replace(failed=True), Refused("serialization"))
        if newest.value is not None:
            found.append(Found(row, newest.value, unlocked=not newest.touched))
            locked.add(row)
    last = transaction.frames[-1]
    touched = [row for row in locked if written(transaction, row) is None]
    transaction = _with_last(transaction, last._replace(shared=last.shared | locked))
    transaction = transaction._replace(marked=transaction.marked | locked.difference(touched))
    return _with(_touched(database, touched), client, transaction, Rows(tuple(found)))


def _insert(
    database: Database, client: int, transaction: Transaction, row: int, value: tuple[int, int]
) -> Effect | None:
    if row in _held(database, client, "exclusive"):
        return None  # the unique index waits for the other one's end
    present = written(transaction, row) or database.versions[row]
    if present.value is not None:
        return _with(database, client, transaction._replace(failed=True), Refused("integrity"))
    return _with(database, client, _write(transaction, row, value))


def _change(
    database: Database,
    client: int,
    transaction: Transaction,
    rows: range | tuple[int, ...],
    changes: tuple[tuple[str, int], ...] | None,
) -> Effect | None:
    """Update (*changes*) or delete (None) rows, of which each must be free."""
    present = {row: (written(transaction, row) or database.versions[row]).value for row in rows}
    present = {row: value for row, value in present.items() if value is not None}
    if any(row in _held(database, client, "exclusive") | _held(database, client, "shared") for row in present):
        return None
    touched = [row for row in present if written(transaction, row) is None]
    found = []
    for row, value in present.items():
        new: Value = None
        if changes is not None:
            columns = dict(zip(COLUMNS, value, strict=True)) | dict(changes)
            new = (columns["a"], columns["b"])
        transaction = _write(transaction, row, new)
        found.append(Found(row, new or value, unlocked=True))
    return _with(_touched(database, touched), client, transaction, Rows(tuple(found)))


def _touched(database: Database, rows: Sequence[int]) -> Database:
    """Mark the committed versions of rows, in every snapshot that sees them, too."""
    if not rows:
        return database

    def marked(versions: tuple[Version, ...]) -> tuple[Version, ...]:
        return tuple(v._replace(touched=True) if row in rows else v for row, v in enumerate(versions))

    open_ = tuple(
        t._replace(snapshot=marked(t.snapshot)) if t is not None and t.snapshot is not None else t
        for t in database.open
    )
    return database._replace(versions=marked(database.versions), open=open_)


def _end(database: Database, client: int, *, commit: bool) -> Effect:
    transaction = database.open[client]
    without = database._replace(open=_put(database.open, client, None))
    if transaction is None or not commit:
        return Effect(without, NOTHING)
    return _applied(without, transaction)


def _applied(database: Database, transaction: Transaction) -> Effect:
    versions = list(database.versions)
    rows = {row for frame in transaction.frames for row, _ in frame.writes}
    for row in rows:
        version = written(transaction, row)
        assert version is not None
        versions[row] = version
    return Effect(database._replace(versions=tuple(versions)), NOTHING, tuple(sorted(rows)))


# --- savepoints -------------------------------------------------------------------------------------------------------


def _set(transaction: Transaction, name: str) -> Transaction:
    return transaction._replace(frames=(*transaction.frames, Frame(name)))


def _release(transaction: Transaction, name: str) -> Transaction:
    index = _index(transaction, name)
    merged = transaction.frames[index - 1]
    for frame in transaction.frames[index:]:
        kept = tuple(write for write in merged.writes if write[0] not in dict(frame.writes))
        merged = Frame(
            merged.name, kept + frame.writes, merged.exclusive | frame.exclusive, merged.shared | frame.shared
        )
    return transaction._replace(frames=(*transaction.frames[: index - 1], merged))


def _roll_back_to(transaction: Transaction, name: str) -> Transaction:
    index = _index(transaction, name)
    undone = {row for frame in transaction.frames[index:] for row in frame.exclusive}
    kept = (*transaction.frames[:index], Frame(name))
    return transaction._replace(frames=kept, marked=transaction.marked | undone, failed=False)


_SAVEPOINTS = {"set": _set, "release": _release, "roll back to": _roll_back_to}


def _index(transaction: Transaction, name: str) -> int:
    return max(i for i, frame in enumerate(transaction.frames) if frame.name == name)


# --- parts ------------------------------------------------------------------------------------------------------------


def written(transaction: Transaction, row: int) -> Version | None:
    """Return the transaction's own version of a row, if it wrote one."""
    for frame in reversed(transaction.frames):
        for number, value in frame.writes:
            if number == row:
                return Version(value, touched=row in transaction.marked)
    return None


def _write(transaction: Transaction, row: int, value: Value) -> Transaction:
    last = transaction.frames[-1]
    writes = tuple(sorted({**dict(last.writes), row: value}.items()))
    transaction = transaction._replace(marked=transaction.marked - {row})
    return _with_last(transaction, last._replace(writes=writes, exclusive=last.exclusive | {row}))


def _with_last(transaction: Transaction, frame: Frame) -> Transaction:
    return transaction._replace(frames=(*transaction.frames[:-1], frame))


def _held(database: Database, client: int, kind: str) -> set[int]:
    """Return the rows that others hold: "exclusive" or "shared"."""
    others = [t for number, t in enumerate(database.open) if number != client and t is not None]
    others += [left.transaction for left in database.orphans]
    return {row for transaction in others for frame in transaction.frames for row in getattr(frame, kind)}


def _with(database: Database, client: int, transaction: Transaction, answer: Answer = NOTHING) -> Effect:
    return Effect(database._replace(open=_put(database.open, client, transaction)), answer)


def _put(
    open_: tuple[Transaction | None, ...], client: int, transaction: Transaction | None
) -> tuple[Transaction | None, ...]:
    return (*open_[:client], transaction, *open_[client + 1 :])
