"""What the cache may hold or fail to do, and the reader goes to the database without an exception."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

import sa_writethrough as wt
from sa_writethrough.coherence import Announce, Intent, Publish
from sa_writethrough.stores.memory import MemoryStore
from sa_writethrough.testing import FaultyStore, LoseReply, LoseRequest, Read
from tests.reading.conftest import World


class Spy(MemoryStore):
    """Remembers what was asked for, so that a test can forge it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, str | None] = {}

    def read(self, keys: Sequence[str], epoch: str | None, intent: Intent) -> Any:
        self.seen.update(dict.fromkeys(keys, epoch))
        return super().read(keys, epoch, intent)

    def payload(self, key: str) -> bytes:
        return super().read([key], self.seen[key], Intent.LOOK)[0]

    def forge(self, key: str, payload: bytes) -> None:
        (token,) = self.submit([Announce(key, self.seen[key] or "", None)]).wait()
        self.submit([Publish(key, token, payload, None)]).wait()


@pytest.fixture
def store() -> Spy:
    return Spy()


@pytest.fixture
def forged(base: Any, user: Any, store: Spy, sqlite_world_of: Any) -> tuple[World, Spy, str, str]:
    """A world with users 1 and 2 cached, its store, and their keys."""
    world = sqlite_world_of(base, store=store)
    world.add(user(id=1, name="ann", age=1), user(id=2, name="bob", age=2))
    world.read(user, 1)
    world.read(user, 2)
    one, two = list(store.seen)
    return world, store, one, two


def mutations(payload: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "one byte": b"\x00",
        "zeros": bytes(len(payload)),
        "truncated": payload[:-1],
        "header alone": payload[:9],
        "longer": payload + b"x",
        "twice": payload + payload,
        "another format": b"\xff" + payload[1:],
        "another fingerprint": payload[:1] + bytes(8) + payload[9:],
        "a pickle": b"cos\nsystem\n(S'true'\ntR.",
        "text": b"hello",
        "other body": payload[:9] + b"\x93\x01\xa1x\xc0"[:2] + payload[11:],
        "wrong type": payload.replace(b"ann", b"\xc0\xc0\xc0"),
        "huge length": payload[:9] + b"\xdd\xff\xff\xff\xff",
        "nested": payload[:9] + b"\x91" * 5000,
    }


@pytest.mark.parametrize("name", mutations(b"x" * 30))
def test_damaged_bytes_are_a_miss(forged: Any, user: Any, name: str) -> None:
    """Whatever bytes an entry holds the reader gets the row from the database, and the entry is replaced later."""
    world, store, key, _ = forged
    store.forge(key, mutations(store.payload(key))[name])
    for _ in range(2):
        with world.session() as session:
            assert world.cache.get(session, user, 1).name == "ann"
        with world.session() as session:
            assert session.get(user, 1, options=[wt.from_cache()]).name == "ann"
    assert world.is_cached(user, 1)


def test_every_flipped_bit_gives_the_row_or_another_valid_value(forged: Any, user: Any) -> None:
    """No single damaged bit raises; the identity is always the one that was asked for."""
    world, store, key, _ = forged
    payload = store.payload(key)
    for bit in range(8 * len(payload)):
        damaged = bytearray(payload)
        damaged[bit // 8] ^= 1 << bit % 8
        store.forge(key, bytes(damaged))
        with world.session() as session:
            assert world.cache.get(session, user, 1).id == 1


def test_an_entry_under_a_wrong_key_is_not_served(forged: Any, user: Any) -> None:
    """Bob's row under Ann's key gives Ann, from the database."""
    world, store, one, two = forged
    store.forge(one, store.payload(two))
    with world.session() as session:
        assert world.cache.get(session, user, 1).name == "ann"
        assert world.cache.get_many(session, user, [1, 2])[1].name == "bob"
    with world.session() as session:
        statement = sa.select(user).where(user.id.in_([1, 2])).options(wt.from_cache())
        assert sorted(u.name for u in session.scalars(statement)) == ["ann", "bob"]


def test_an_entry_of_another_version_of_the_model_is_a_miss(sqlite_url: str) -> None:
    """Old and new code share keys, not entries: each reads the database where the other's entry is."""
    store = MemoryStore()

    def version(*columns: str) -> tuple[Any, Any, Any]:
        class Base(orm.DeclarativeBase):
            pass

        class User(Base):
            __tablename__ = "users"
            __writethrough__ = True
            id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
            for column in columns:
                locals()[column] = orm.mapped_column(sa.String(20), nullable=True)
            del column

        return Base, User, orm.sessionmaker()

    engine = sa.create_engine(sqlite_url)
    versions = [version("name"), version("name", "extra")]
    versions[1][0].metadata.create_all(engine)
    caches = []
    for _, _, factory in versions:
        factory.configure(bind=engine)
        caches.append(wt.register(factory, store))
    try:
        (_, old, old_factory), (_, new, new_factory) = versions
        with old_factory.begin() as session:
            session.add(old(id=1, name="ann"))
        for _ in range(2):
            with new_factory() as session:
                found = caches[1].get(session, new, 1)
                assert (found.name, found.extra) == ("ann", None)
            with old_factory() as session:
                assert caches[0].get(session, old, 1).name == "ann"
        with new_factory.begin() as session:
            caches[1].get(session, new, 1).name = "new"
        with old_factory() as session:
            assert caches[0].get(session, old, 1).name == "new"
    finally:
        for cache in caches:
            cache.unregister()
        for base, _, _ in versions:
            base.registry.dispose()
        engine.dispose()


@pytest.mark.parametrize("step", [LoseRequest, LoseReply])
def test_a_read_that_fails_goes_to_the_database(base: Any, user: Any, sqlite_world_of: Any, step: Any) -> None:
    """A request or a reply that is lost costs one SELECT."""
    store = FaultyStore(MemoryStore())
    world = sqlite_world_of(base, store=store)
    world.add(user(id=1, name="ann"))
    for get in (
        lambda session: world.cache.get(session, user, 1),
        lambda session: session.get(user, 1, options=[wt.from_cache()]),
        lambda session: world.cache.get_many(session, user, [1])[0],
    ):
        store.script.append(step(Read))
        with world.session() as session, world.counting() as seen:
            assert get(session).name == "ann"
        assert len(seen) == 1
    assert store.script == []
    assert world.cache.stats().failures == 3


def test_in_an_outage_reads_go_to_the_database(base: Any, user: Any, sqlite_world_of: Any) -> None:
    """While the store is down everything is read, nothing raises, and afterwards hits are there again."""
    store = FaultyStore(MemoryStore())
    world = sqlite_world_of(base, store=store)
    world.add(user(id=1, name="ann"))
    with store.outage(), world.session() as session, world.counting() as seen:
        assert world.cache.get(session, user, 1).name == "ann"
    assert len(seen) == 1
    assert world.is_cached(user, 1)


def test_with_memcached_down_reads_go_to_the_database(
    base: Any, user: Any, postgres_world_of: Any, memcached: Any
) -> None:
    """A killed memcached costs time, no exception; `contains` is False and `evict` says so."""
    world = postgres_world_of(base)
    world.add(user(id=1, name="ann"))
    memcached.kill()
    for _ in range(3):
        with world.session() as session:
            assert world.cache.get(session, user, 1).name == "ann"
        with world.session() as session:
            assert session.scalars(sa.select(user).where(user.id == 1).options(wt.from_cache())).one().name == "ann"
    assert world.cache.contains(user, 1) is False
    with pytest.raises(wt.CacheUnavailableError):
        world.cache.evict(user, 1)
    assert world.cache.stats().failures > 0


def test_after_a_restart_of_memcached_rows_are_cached_again(
    base: Any, user: Any, postgres_world_of: Any, memcached: Any
) -> None:
    """An emptied memcached is a miss like any other."""
    world = postgres_world_of(base)
    world.add(user(id=1, name="ann"))
    memcached.flush()
    assert not world.cache.contains(user, 1)
    assert world.read(user, 1).name == "ann"
    assert world.is_cached(user, 1)


def test_a_value_that_cannot_be_cached_is_read_every_time(base: Any, sqlite_world_of: Any) -> None:
    """A row with a value that the codec refuses is served from the database, and the failure is counted."""

    class Loose(base):
        __tablename__ = "loose"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        number: orm.Mapped[int]

    world = sqlite_world_of(base)
    world.outside_sql("INSERT INTO loose VALUES (1, 'no number')")
    for _ in range(2):
        with world.session() as session:
            assert world.cache.get(session, Loose, 1).number == "no number"
    assert not world.cache.contains(Loose, 1)
    assert world.cache.stats().failures == 2
