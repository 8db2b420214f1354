"""Many readers miss one row: one fills; the others read the database at once, or wait a bounded while, as they chose."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import orm

import sa_writethrough as wt
from sa_writethrough import events
from sa_writethrough.stores.memory import MemoryStore
from tests.reading.conftest import World

THREADS = 100


def user_with(base: Any, **policy: Any) -> Any:
    class User(base):
        __tablename__ = "users"
        __writethrough__ = wt.CachePolicy(**policy)
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str] = orm.mapped_column(default="")

    return User


def rush(world: World, user: Any, sizes: int = 1) -> list[Any]:
    """Have a hundred threads ask for the same rows at once; return what each got."""
    start = threading.Barrier(THREADS)
    found: list[Any] = [None] * THREADS

    def run(number: int) -> None:
        with world.session() as session:
            start.wait()
            if sizes == 1:
                found[number] = world.cache.get(session, user, 1).name
            else:
                names = [each.name for each in world.cache.get_many(session, user, range(1, sizes + 1))]
                found[number] = "".join(names)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    world.cache.drain()
    return found


@pytest.mark.parametrize("on_miss", wt.OnMiss)
@pytest.mark.parametrize("sizes", [1, 3])
def test_of_a_hundred_threads_one_fills(
    base: Any, world_of: Callable[..., World], on_miss: wt.OnMiss, sizes: int
) -> None:
    """Everybody gets the row; with WAIT hardly anybody but the one who fills asks the database."""
    user = user_with(base, on_miss=on_miss, wait=5.0)
    world = world_of(base, engine={"pool_size": THREADS, "pool_timeout": 60})
    world.add(*(user(id=i, name="abc"[i - 1]) for i in range(1, 4)))
    rush(world, user, sizes)  # every thread's connection to the cache is open, and the engine's facts are known
    world.cache.evict_all()
    fills = world.cache.stats().fills
    with world.counting() as seen:
        assert rush(world, user, sizes) == ["abc"[:sizes]] * THREADS
    assert world.cache.stats().fills - fills == sizes
    selects = [statement for statement in seen if statement.startswith("SELECT users")]
    if on_miss is wt.OnMiss.WAIT:
        assert len(selects) == 1
    assert world.cache.stats().reads > 0
    assert world.cache.stats().busy >= 0


@pytest.fixture
def leased(base: Any, sqlite_world_of: Callable[..., World]) -> Callable[..., Any]:
    """A world in which somebody else has the lease of row 1, and does nothing."""

    def build(**policy: Any) -> Any:
        user = user_with(base, on_miss=wt.OnMiss.WAIT, **policy)
        store = MemoryStore()
        world = sqlite_world_of(base, store=store)
        world.add(user(id=1, name="a"), user(id=2, name="b"))
        family = world.cache._core.entities.family_of(user.__mapper__)
        (scope,) = family.scopes()
        key = family.key(scope, (1,))
        world.cache.evict(user, 1)
        (reading,) = store.read([key], scope.epoch, wt.coherence.Intent.FILL)
        return world, user, store, wt.coherence.Retract(key, reading.token)

    return build


def test_the_wait_is_bounded(leased: Callable[..., Any]) -> None:
    """Where nobody fills, the database is read when the time is over, and nothing is filled."""
    world, user, _, _ = leased(wait=0.2)
    began = time.monotonic()
    with world.counting() as seen, world.session() as session:
        assert world.cache.get(session, user, 1).name == "a"
    assert 0.2 <= time.monotonic() - began < 2
    assert len(seen) == 1
    assert not world.cache.contains(user, 1)


def test_what_is_given_back_is_taken_up(leased: Callable[..., Any]) -> None:
    """The lease that somebody gave back while we waited is ours: we read the database, and fill."""
    world, user, store, retract = leased(wait=30)
    timer = threading.Timer(0.05, lambda: store.post([retract]))
    timer.start()
    with world.session() as session:
        assert world.cache.get(session, user, 1).name == "a"
    timer.join()
    assert world.cache.contains(user, 1)


def test_who_must_read_the_database_anyway_does_not_wait(leased: Callable[..., Any]) -> None:
    """Of many rows, one is leased to us: all that are missing come with one SELECT, and nobody waits for us meanwhile."""
    world, user, _, _ = leased(wait=30)
    world.cache.evict(user, 2)
    with world.counting() as seen, world.session() as session:
        assert [each.name for each in world.cache.get_many(session, user, [1, 2])] == ["a", "b"]
    assert len(seen) == 1
    assert world.cache.contains(user, 2)


@pytest.mark.parametrize("mode", [wt.CacheMode.PUT, wt.CacheMode.REFRESH])
def test_a_mode_that_does_not_serve_does_not_wait(leased: Callable[..., Any], mode: wt.CacheMode) -> None:
    """It reads the database whatever is cached."""
    world, user, _, _ = leased(wait=30)
    with world.session() as session:
        assert session.get(user, 1, options=[wt.from_cache(mode)]).name == "a"


def test_a_writer_is_waited_for(base: Any, world_of: Callable[..., World]) -> None:
    """Between a writer's announcement and its COMMIT a reader waits, and gets what was committed from the cache."""
    user = user_with(base, on_miss=wt.OnMiss.WAIT, wait=30)
    world = world_of(base)
    world.add(user(id=1, name="old"))
    announced, found = threading.Event(), []

    def read() -> None:
        announced.wait()
        with world.session() as session, world.counting() as seen:
            found.append((world.cache.get(session, user, 1).name, seen))

    def told(event: Any) -> None:
        if isinstance(event, events.Announced):
            announced.set()
            time.sleep(0.2)

    thread = threading.Thread(target=read)
    thread.start()
    with world.session() as session:
        session.get(user, 1).name = "new"
        end = world.cache.subscribe(told)
        session.commit()
        end()
    thread.join()
    assert found[0][0] == "new"


# --- expiry ----------------------------------------------------------------------------------------------------------


def test_entries_of_one_moment_expire_one_by_one(base: Any, sqlite_world_of: Callable[..., World]) -> None:
    """With jitter their lives are spread below the time to live, and never above."""
    user = user_with(base, ttl=100, ttl_jitter=0.5)
    clock = [0.0]
    world = sqlite_world_of(base, store=MemoryStore(clock=lambda: clock[0]))
    world.add(*(user(id=i) for i in range(1, 201)))

    def alive() -> int:
        return sum(world.cache.contains(user, i) for i in range(1, 201))

    assert alive() == 200
    clock[0] = 49.9
    assert alive() == 200
    clock[0] = 75
    assert 60 <= alive() <= 140
    clock[0] = 100.1
    assert alive() == 0


@pytest.mark.parametrize("value", [-0.1, 1.1, "0.1", None])
def test_a_share_is_a_share(value: Any) -> None:
    """Anything but a number from 0 to 1 is refused."""
    with pytest.raises(wt.ConfigurationError, match="ttl_jitter"):
        wt.CachePolicy(ttl=1, ttl_jitter=value)


def test_a_lifetime_needs_a_ttl() -> None:
    """Without a time to live there is nothing to spread; without jitter it is what it is."""
    assert wt.CachePolicy(ttl_jitter=0.5).lifetime() is None
    assert wt.CachePolicy(ttl=10).lifetime() == 10
    assert all(5 <= wt.CachePolicy(ttl=10, ttl_jitter=0.5).lifetime() <= 10 for _ in range(100))
