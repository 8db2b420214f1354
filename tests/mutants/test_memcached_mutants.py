"""Rules that live in the memcached store: with each taken out, a schedule on real servers reads something stale."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from unittest.mock import patch

import pytest
from sqlalchemy import create_engine, update
from sqlalchemy.orm import Session, sessionmaker

import sa_writethrough as wt
from sa_writethrough.coherence import Hit
from sa_writethrough.stores import _batches, _direct, _meta, _node
from sa_writethrough.stores._nodes import Ring
from sa_writethrough.testing.conformance import Entry
from tests.exploration.models import Item, New
from tests.stores.test_memcached_faults import opened
from tests.stores.test_memory import Clock

STALE, RIGHT = "stale", "right"


@pytest.fixture
def engine(tmp_path):
    """An SQLite file with row 1, which is (1, 0)."""
    engine = create_engine(f"sqlite:///{tmp_path / 'database'}")
    New.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Item(id=1, a=1, b=0))
        session.commit()
    yield engine
    engine.dispose()


@contextmanager
def registered(engine, store):
    """A Session factory with its cache."""
    factory = sessionmaker(engine)
    cache = wt.register(factory, store, models=[Item])
    try:
        yield factory, cache
    finally:
        cache.unregister()


def read(factory, cache):
    """Return column a of row 1, read through the cache in a session of its own; everything posted has arrived."""
    with factory() as session:
        value = cache.get(session, Item, 1).a
    cache.drain()
    return value


def verdict(engine, factory, cache):
    """Compare a read through the cache with the database."""
    with Session(engine) as session:
        committed = session.get(Item, 1).a
    return RIGHT if read(factory, cache) == committed else STALE


# --- a key stays on its node ------------------------------------------------------------------------------------------


@contextmanager
def rehashing():
    """A key moves to the next node while its own is down, as with pymemcache's HashClient."""
    original = Ring.owner

    def owner(ring, key):
        home = original(ring, key)
        others = [node for node in ring._owners if node is not home]
        down = home._retry_at is not None and home._options.clock() < home._retry_at
        return others[0] if down else home

    with patch.object(Ring, "owner", owner):
        yield


@pytest.mark.parametrize(("mutation", "expected"), [(nullcontext, RIGHT), (rehashing, STALE)])
def test_rehashing_after_an_error_brings_old_values_back(engine, memcached_factory, mutation, expected):
    """A row is cached, its node pauses, the row is written, the node comes back with its memory intact."""
    servers, clock = (memcached_factory(), memcached_factory()), Clock()
    with mutation(), opened(*servers, clock=clock) as store, registered(engine, store) as (factory, cache):
        assert [read(factory, cache) for _ in range(3)] == [1, 1, 1]
        assert cache.contains(Item, 1)
        (scope,) = cache._core.scopes(cache._require(Item)[0], None)
        home = servers[store._nodes.index(store._owner(f"{scope.prefix}:1"))]
        home.pause()
        try:
            read(factory, cache)  # it is a reader who finds the node down
            with factory() as session, suppress(wt.CacheUnavailableError):
                session.get(Item, 1).a = 2
                session.commit()
        finally:
            home.resume()
        clock.advance(1.1)
        assert verdict(engine, factory, cache) == expected


# --- a row carries its epoch's stamp ----------------------------------------------------------------------------------


@contextmanager
def one_stamp():
    """The rows of every epoch look alike."""

    def stamp(_cas):
        return bytes(_meta.STAMP_BYTES)

    with patch.object(_meta, "stamp_of", stamp), patch.object(_node, "stamp_of", stamp):
        yield


@pytest.mark.parametrize(("mutation", "expected"), [(nullcontext, RIGHT), (one_stamp, STALE)])
def test_without_stamps_what_an_epoch_closed_is_served_again(engine, memcached, mutation, expected):
    """A row is cached, a statement that names no row changes it, its epoch is opened again."""
    with mutation(), opened(memcached) as store, registered(engine, store) as (factory, cache):
        assert [read(factory, cache) for _ in range(3)] == [1, 1, 1]
        with factory() as session:
            session.connection().execute(update(Item.__table__).where(Item.__table__.c.b == 0).values(a=2))
            session.commit()
        cache.drain()
        assert verdict(engine, factory, cache) == expected


# --- a token is its connection's --------------------------------------------------------------------------------------


@contextmanager
def tokens_of_any_connection():
    """A lease may be filled over a connection to the restarted server, whose ids begin again."""

    def token_maker(node, _connection):
        return partial(_batches.ItemToken, node, None)

    with patch.object(_batches, "token_maker", token_maker), patch.object(_direct, "token_maker", token_maker):
        yield


@pytest.mark.parametrize(("mutation", "expected"), [(nullcontext, RIGHT), (tokens_of_any_connection, STALE)])
def test_a_lease_from_before_a_restart_fills_over_a_later_tombstone(memcached, mutation, expected):
    """A reader leases, the server restarts, a writer announces and gets the lease's id, the reader fills."""
    if memcached.version() >= (1, 6, 27):
        pytest.skip("this memcached takes ids of our own, which no restart repeats")
    with mutation(), opened(memcached) as store, opened(memcached) as other:
        reader, writer = Entry(store, "x"), Entry(other, "x")
        lease = reader.lease()
        memcached.renew()
        writer.announce()  # and commits
        reader.fill(lease, b"old")
        assert (STALE if reader.read() == Hit(b"old") else RIGHT) == expected
