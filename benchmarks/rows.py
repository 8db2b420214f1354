"""The rows of the table. Each side of a timed row is one operation on one id (or, for many, on a list of ids).

An instance is dropped as soon as it was loaded, and an identity map holds instances weakly: every read is a first one.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any

from sqlalchemy import event, select
from sqlalchemy.orm import Session, sessionmaker

import sa_writethrough as wt
from benchmarks.models import (
    Account,
    Invalidated,
    Large,
    PlainAccount,
    PlainInvalidated,
    PlainReadBack,
    PlainVersioned,
    ReadBack,
    Served,
    Small,
    Uncached,
    Versioned,
)
from benchmarks.runner import Row
from benchmarks.stage import LARGE_ROWS, ROWS, Stage

__all__ = ["rows"]

READS = 25
"""Operations per batch."""
COMMITS = 8
"""Batches of one commit for each batch of reads."""

HIT = "cache.get hit from memcached, with its session"
OPEN_HIT = "cache.get hit from memcached, session open"
FROM_POSTGRESQL = "session.get from PostgreSQL, with its session"
WITHOUT = "the same without the library"


def timed(operation: Callable[[Any], Any], count: int, arguments: Any = None) -> Callable[[], float]:
    """Return what does *operation* *count* times, each time with the next argument, and returns the seconds of one."""
    endless = itertools.cycle(range(1, ROWS + 1) if arguments is None else arguments)

    def batch() -> float:
        chosen = list(itertools.islice(endless, count))
        start = perf_counter()
        for argument in chosen:
            operation(argument)
        return (perf_counter() - start) / count

    return batch


@contextlib.contextmanager
def statements(factory: sessionmaker[Session]) -> Iterator[list[str]]:
    """Collect the SQL that sessions of *factory* execute."""
    executed: list[str] = []

    def note(_connection: Any, _cursor: Any, sql: str, *_rest: Any) -> None:
        executed.append(sql)

    engine = factory.kw["bind"]
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield executed
    finally:
        event.remove(engine, "before_cursor_execute", note)


def hits(factory: sessionmaker[Session], read: Callable[[int], Any]) -> Callable[[int], Any]:
    """Return *read* after reading every id with it; fail if that still needs SQL: a miss is no hit to compare with."""
    for ident in range(1, ROWS + 1):
        read(ident)
    with statements(factory) as executed:
        for ident in range(1, ROWS + 1):
            read(ident)
    if executed:
        raise RuntimeError(f"{read.__qualname__}: {len(executed)} of {ROWS} reads were no hits: {executed[0]}")
    return read


def rows(stage: Stage, *, large: bool, scale: float = 1.0) -> list[Row]:
    """Return the rows; *scale* shrinks the batches."""
    reads = max(1, int(READS * scale))
    hit, open_hit = timed(reading(stage), reads), timed(open_read(stage), reads)
    from_postgresql = timed(database_read(stage), reads)
    found = [
        Row(HIT, FROM_POSTGRESQL, 0.14, hit, from_postgresql),
        Row(
            "session.get(..., options=[from_cache()]) hit, with its session",
            FROM_POSTGRESQL,
            0.22,
            timed(optional_read(stage), reads),
            from_postgresql,
        ),
        Row(
            OPEN_HIT,
            "pymemcache's Client.get of the same entry",
            1.4,
            open_hit,
            timed(lambda ident: stage.raw.get(stage.keys[ident - 1]), reads),
        ),
        Row(
            "cache.get hit from memory://, with its session",
            FROM_POSTGRESQL,
            0.07,
            timed(memory_read(stage), reads),
            from_postgresql,
        ),
        *(many(stage, count, limit) for count, limit in ((100, 0.22), (1000, 0.25))),
        update(stage, "with version_id_col", Versioned, PlainVersioned, 1.15),
        update(stage, "with on_write=INVALIDATE", Invalidated, PlainInvalidated, 1.15),
        update(stage, "read back before COMMIT", ReadBack, PlainReadBack, 1.30),
        update(stage, "of a model that is not cached", Uncached, Uncached, 1.03),
        update(stage, "with version_id_col, and the row from the cache", Served, PlainVersioned, None, served=True),
    ]
    for rival, read in (
        ("a dogpile cache-aside's hit", cache_aside(stage)),
        ("advanced-alchemy's cached repository's hit", repository(stage)),
    ):
        if read is not None:
            found += [
                Row(OPEN_HIT, f"{rival}, the same", 0.35, open_hit, timed(in_an_open_session(stage, read), reads)),
                Row(HIT, f"{rival}, the same", None, hit, timed(in_its_session(stage, read), reads)),
            ]
    found.append(
        Row(
            "bytes in memcached per row",
            "bytes of the pickled entity",
            0.35,
            lambda: len(stage.entry()),
            lambda: len(stage.pickled()),
            in_bytes=True,
        )
    )
    if large:
        spread = range(1, LARGE_ROWS, LARGE_ROWS // ROWS)
        found.append(
            Row(
                "update one row in a table of a million",
                "in a table of a thousand",
                1.10,
                timed(writing(stage.cached, Large, itertools.count()), 1, spread),
                timed(writing(stage.cached, Small, itertools.count()), 1),
                rounds=COMMITS,
            )
        )
    return found


# --- reading ----------------------------------------------------------------------------------------------------------


def database_read(stage: Stage) -> Callable[[int], Any]:
    def read(ident: int) -> None:
        with stage.plain() as session:
            session.get(PlainAccount, ident)

    return read


def reading(stage: Stage) -> Callable[[int], Any]:
    def read(ident: int) -> None:
        with stage.cached() as session:
            stage.cache.get(session, Account, ident)

    return hits(stage.cached, read)


def optional_read(stage: Stage) -> Callable[[int], Any]:
    def read(ident: int) -> None:
        with stage.cached() as session:
            session.get(Account, ident, options=[wt.from_cache()])

    return hits(stage.cached, read)


def open_read(stage: Stage) -> Callable[[int], Any]:
    session = stage.cached()
    stage.at_end(session.close)

    def read(ident: int) -> None:
        stage.cache.get(session, Account, ident)

    return hits(stage.cached, read)


def memory_read(stage: Stage) -> Callable[[int], Any]:
    def read(ident: int) -> None:
        with stage.in_memory() as session:
            stage.memory.get(session, Account, ident)

    return hits(stage.in_memory, read)


def many(stage: Stage, count: int, limit: float) -> Row:
    lists = [list(range(start + 1, start + count + 1)) for start in range(0, ROWS, count)]

    def cached(idents: list[int]) -> None:
        with stage.cached() as session:
            stage.cache.get_many(session, Account, idents)

    def selected(idents: list[int]) -> None:
        with stage.plain() as session:
            found = {row.id: row for row in session.scalars(select(PlainAccount).where(PlainAccount.id.in_(idents)))}
            [found.get(ident) for ident in idents]

    with statements(stage.cached) as executed:
        cached(lists[0])
    if executed:
        raise RuntimeError(f"get_many needed SQL: {executed[0]}")
    return Row(
        f"cache.get_many of {count:,}",
        "SELECT ... IN from PostgreSQL, put in order",
        limit,
        timed(cached, 1, lists),
        timed(selected, 1, lists),
    )


# --- writing ----------------------------------------------------------------------------------------------------------


def writing(
    factory: sessionmaker[Session], model: type[Any], numbers: Iterator[int], options: Sequence[Any] = ()
) -> Callable[[int], Any]:
    """Return what selects a row, updates it and commits.

    Those that write the same rows share *numbers*: where a row has the value already there is no UPDATE, and nothing
    to commit.
    """

    def write(ident: int) -> None:
        with factory() as session:
            row = session.get(model, ident, options=options)
            row.name = f"Customer {ident}, {next(numbers)}"
            session.commit()

    return write


def writes(writers: Mapping[Callable[[int], Any], sessionmaker[Session]]) -> None:
    """Fail unless every one of *writers*, which write the same rows in turn, updates its row every time."""
    for ident in (1, 1, 2, 2):
        for write, factory in writers.items():
            with statements(factory) as executed:
                write(ident)
            if sum(sql.startswith("UPDATE") for sql in executed) != 1:
                raise RuntimeError(f"not one UPDATE but {executed}")


def update(
    stage: Stage, how: str, model: type[Any], twin: type[Any], limit: float | None, *, served: bool = False
) -> Row:
    numbers = itertools.count()
    ours = writing(stage.cached, model, numbers, [wt.from_cache()] if served else ())
    theirs = writing(stage.plain, twin, numbers)
    if served:
        with stage.cached() as session:
            stage.cache.get_many(session, model, range(1, ROWS + 1))
        stage.cache.drain()
    writes({ours: stage.cached, theirs: stage.plain})
    what = f"select one, update it, commit, {how}"
    return Row(what, WITHOUT, limit, timed(ours, 1), timed(theirs, 1), rounds=COMMITS)


# --- rivals -----------------------------------------------------------------------------------------------------------


Read = Callable[[Session, int], Any]


def in_its_session(stage: Stage, read: Read) -> Callable[[int], Any]:
    def in_session(ident: int) -> None:
        with stage.plain() as session:
            read(session, ident)

    return hits(stage.plain, in_session)


def in_an_open_session(stage: Stage, read: Read) -> Callable[[int], Any]:
    session = stage.plain()
    stage.at_end(session.close)
    return hits(stage.plain, lambda ident: read(session, ident))


def cache_aside(stage: Stage) -> Read:
    """Return the usual recipe: the pickled entity in a dogpile region, merged into the session without a load."""

    def read(session: Session, ident: int) -> None:
        def load() -> Any:
            found = session.get(PlainAccount, ident)
            session.expunge(found)
            return found

        session.merge(stage.region.get_or_create(f"aside:{ident}", load), load=False)

    return read


def repository(stage: Stage) -> Read | None:
    """Return a read through advanced-alchemy's cached repository, or None where that is not installed.

    It looks into its cache only for instances that it may detach (`auto_expunge`).
    """
    try:
        from advanced_alchemy.cache import CacheConfig, CacheManager  # noqa: PLC0415 - an optional package
        from advanced_alchemy.repository import SQLAlchemySyncRepository  # noqa: PLC0415 - the same
    except ImportError:
        return None

    class Accounts(SQLAlchemySyncRepository[PlainAccount]):
        model_type = PlainAccount

    manager = CacheManager(CacheConfig(backend="dogpile.cache.pymemcache", arguments={"url": stage.address}))
    stage.at_end(lambda: manager.region.backend.client.close())  # noqa: PLW0108 - there is none before the first use

    def read(session: Session, ident: int) -> None:
        Accounts(session=session, cache_manager=manager).get(ident, auto_expunge=True)

    return read
