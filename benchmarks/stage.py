"""What the rows play on: tables with data, engines, Session factories with and without the library, and its rivals."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pymemcache
from dogpile.cache import CacheRegion, make_region
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session, sessionmaker

import sa_writethrough as wt
from benchmarks.models import CACHED, Account, Base, Large, Plain, PlainAccount, Small

ROWS = 1000
LARGE_ROWS = 1_000_000

_FILL = """
INSERT INTO {table} (id, name, note, verified, created_at, updated_at, balance, reference, status, settings, score,
                     nickname{extra_columns})
SELECT g, 'Customer ' || g, 'Prefers to be called after five; invoice goes to the branch office.', g % 3 > 0,
       timestamptz '2024-03-01 09:30:00+00' + g * interval '61.234567 s',
       timestamptz '2025-06-15 17:05:00+00' + g * interval '7.654321 s',
       (g % 100000) / 7.0, md5(g::text)::uuid, (ARRAY['PENDING', 'ACTIVE', 'SUSPENDED'])[1 + g % 3],
       json_build_object('theme', 'dark', 'page_size', 50, 'tags', json_build_array('a', 'b')), sqrt(g),
       CASE WHEN g % 2 = 0 THEN 'nick' || g END{extra_values}
FROM generate_series(1, :rows) AS g
"""


@dataclass(frozen=True)
class Stage:
    """Everything that a row may use. Each factory has an engine, and so a pool, of its own."""

    plain: sessionmaker[Session]
    cached: sessionmaker[Session]
    cache: wt.WriteThroughCache
    in_memory: sessionmaker[Session]
    memory: wt.WriteThroughCache
    raw: pymemcache.Client
    keys: Sequence[str]
    """Of the `Account`s' entries in memcached, from the first one."""
    region: CacheRegion
    address: str
    at_end: Callable[[Callable[[], object]], object]
    """Has something called when the curtain falls."""

    def entry(self) -> bytes:
        """Return an entry as it lies in memcached."""
        return self.raw.get(self.keys[0])

    def pickled(self) -> bytes:
        """Return the same entity pickled."""
        with self.plain() as session:
            return pickle.dumps(session.get(PlainAccount, 1))


@contextlib.contextmanager
def set_up(database_url: str, host: str, port: int, *, large: bool) -> Iterator[Stage]:
    """Make tables, fill them, connect everything, and put every `Account` into the caches."""
    with contextlib.ExitStack() as stack:

        def engine() -> Engine:
            made = create_engine(database_url)
            stack.callback(made.dispose)
            return made

        first = engine()
        _load(first, large=large)
        plain = sessionmaker(first)
        cached, in_memory = sessionmaker(engine()), sessionmaker(engine())
        cache = wt.register(cached, f"memcached://{host}:{port}", models=CACHED)
        stack.callback(cache.unregister)
        memory = wt.register(in_memory, "memory://", models=[Account])
        stack.callback(memory.unregister)
        raw = pymemcache.Client((host, port), no_delay=True)
        stack.callback(raw.close)
        region = make_region().configure("dogpile.cache.pymemcache", arguments={"url": f"{host}:{port}"})
        stack.callback(lambda: region.backend.client.close())  # noqa: PLW0108 - each thread has a client of its own
        for factory, reader in ((cached, cache), (in_memory, memory)):
            with factory() as session:
                reader.get_many(session, Account, range(1, ROWS + 1))
            reader.drain()
        yield Stage(
            plain, cached, cache, in_memory, memory, raw, _keys(cached, cache), region, f"{host}:{port}", stack.callback
        )


def _keys(factory: sessionmaker[Session], cache: wt.WriteThroughCache) -> Sequence[str]:
    """Learn the entries' keys from the event of a hit."""
    told: list[Any] = []
    end = cache.subscribe(told.append)
    with factory() as session:
        cache.get_many(session, Account, range(1, ROWS + 1))
    end()
    return told[0].keys


def _load(engine: Engine, *, large: bool) -> None:
    tables = {*Base.metadata.tables.values(), Plain.metadata.tables["uncached"]}
    if not large:
        tables -= {Large.__table__, Small.__table__}
    with engine.begin() as connection:
        for table in sorted(tables, key=lambda table: table.name):
            table.create(connection)
            extra = {"extra_columns": ", version", "extra_values": ", 1"} if "version" in table.c else {}
            statement = _FILL.format(**{"table": table.name, "extra_columns": "", "extra_values": "", **extra})
            connection.execute(text(statement), {"rows": LARGE_ROWS if table is Large.__table__ else ROWS})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
        connection.execute(text("CHECKPOINT"))


def server_versions(stage: Stage) -> dict[str, str]:
    """Return what the servers say of themselves."""
    with stage.plain() as session:
        postgres = session.scalar(text("SHOW server_version"))
    return {"postgresql": str(postgres), "memcached": stage.raw.version().decode()}
