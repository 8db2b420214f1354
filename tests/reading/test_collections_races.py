"""Collections by reference under schedules: a reader stands still between its steps while others join, leave and move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from sa_writethrough.coherence import Change, Fill, Intent, Reading
from sa_writethrough.stores.base import Reply, Store
from sa_writethrough.stores.memory import MemoryStore
from sa_writethrough.stores.urls import open_store
from tests.reading.conftest import World
from tests.reading.test_collections import Models, agree, is_served, members, selected


class StandingStore:
    """A store before whose next step, of one kind, something else happens."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.keeps_tombstones = inner.keeps_tombstones
        self.before: Callable[[str, Any], Callable[[], None] | None] = lambda _what, _keys: None

    def _stand(self, what: str, things: Any) -> None:
        happens = self.before(what, things)
        if happens is not None:
            self.before = lambda _what, _keys: None
            happens()

    def read(self, keys: Any, epoch: str | None, intent: Intent) -> list[Reading]:
        self._stand("collection" if "@users.orders" in keys[0] else "rows", keys)
        return list(self.inner.read(keys, epoch, intent))

    def submit(self, changes: Any) -> Reply:
        return self.inner.submit(changes)

    def post(self, changes: list[Change]) -> None:
        if any(isinstance(change, Fill) for change in changes):
            self._stand("fill", changes)
        self.inner.post(changes)

    def close(self) -> None:
        self.inner.close()


@pytest.fixture
def models(base: Any) -> Models:
    return Models(base)


@pytest.fixture
def store(backend: tuple[str, str]) -> StandingStore:
    return StandingStore(MemoryStore() if backend[1] == "memory://" else open_store(backend[1]))


@pytest.fixture
def world(models: Models, base: Any, world_of: Callable[..., World], store: StandingStore) -> World:
    """User 1 has the orders 12, 11 and 10, User 2 has 20, User 3 has none; all of it is cached."""
    made = world_of(base, store=store)
    fill_world(made, models)
    return made


@pytest.fixture
def postgres_world(models: Models, base: Any, postgres_world_of: Callable[..., World]) -> World:
    """The same on PostgreSQL with memcached."""
    made = postgres_world_of(base)
    fill_world(made, models)
    return made


def fill_world(world: World, models: Models) -> None:
    world.add(*(models.user(id=i) for i in (1, 2, 3)))
    world.add(
        models.order(id=10, user_id=1, position=3),
        models.rush(id=11, user_id=1, position=2),
        models.order(id=12, user_id=1, position=1),
        models.order(id=20, user_id=2, position=1),
    )
    for user in (1, 2, 3):
        members(world, models, user)
        assert is_served(world, models, user)


def move(world: World, models: Models, **orders: int) -> Callable[[], None]:
    """Return what moves orders, named as `o10`, to users, in one transaction."""

    def run() -> None:
        with world.session() as session:
            for name, user in orders.items():
                session.get(models.order, int(name[1:])).user_id = user
            session.commit()
        world.cache.drain()

    return run


def _then(step: str, happens: Callable[[], None], *, skip: int = 0) -> Callable[[str, Any], Callable[[], None] | None]:
    left = [skip]

    def before(what: str, _things: Any) -> Callable[[], None] | None:
        if what == step:
            left[0] -= 1
            if left[0] < 0:
                return happens
        return None

    return before


def test_a_reader_returns_what_was_there_at_one_moment(world: World, models: Models, store: StandingStore) -> None:
    """10 has left user 1; while a reader stands, it comes back, with 20: one without the other never was."""
    move(world, models, o10=2)()
    history = [selected(world, 1)]
    # The row of the user is read first, then the collection, then its members, then the collection once more.
    store.before = _then("rows", move(world, models, o10=1, o20=1), skip=1)
    found = members(world, models, 1)
    history.append(selected(world, 1))
    assert [len(each) for each in history] == [2, 4]
    assert sorted(found or ()) in [sorted(each) for each in history]
    agree(world, models)


@pytest.mark.parametrize("step", ["rows", "collection", "fill"])
@pytest.mark.parametrize("skip", [0, 1, 2])
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("change", [{"o20": 1}, {"o10": 2}, {"o10": 3, "o20": 1}])
def test_whenever_rows_move_the_collection_is_right(
    world: World, models: Models, store: StandingStore, step: str, skip: int, cached: bool, change: dict[str, int]
) -> None:
    """Rows move before any step of a reader, with a cached collection and without: it sees before or after."""
    if not cached:
        world.cache.evict_all()
        world.cache.drain()
    before = selected(world, 1)
    store.before = _then(step, move(world, models, **change), skip=skip)
    found = members(world, models, 1)
    assert sorted(found or ()) in [sorted(before), sorted(selected(world, 1))]
    store.before = lambda _what, _things: None
    agree(world, models)


def test_a_fill_that_was_overtaken_is_refused(world: World, models: Models, store: StandingStore) -> None:
    """20 joins after the members were selected and before the entry is filled: the lease is gone."""
    world.cache.evict(models.order, 10)
    filled = world.cache.stats().fills
    store.before = _then("fill", move(world, models, o20=1))
    assert 20 in (members(world, models, 1) or ())
    assert world.cache.stats().fills == filled + 1
    assert not is_served(world, models, 1)
    agree(world, models)


WRITERS = {
    "joins": "INSERT INTO orders (id, kind, user_id, position) VALUES (13, 'order', 1, 9)",
    "moves to": "UPDATE orders SET user_id = 1 WHERE id = 20",
    "takes another key": "UPDATE orders SET id = 99 WHERE id = 10",
    "takes another place": "UPDATE orders SET position = 0 WHERE id = 10",
    "leaves": "UPDATE orders SET user_id = 2 WHERE id = 10",
    "is deleted": "DELETE FROM orders WHERE id = 10",
    "owner is deleted": "DELETE FROM users WHERE id = 1",
    "owner takes another key": "UPDATE users SET id = 9 WHERE id = 1",
}


@pytest.mark.parametrize("sql", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("locked_before", [False, True])
def test_what_a_writer_holds_is_not_filled(
    postgres_world: World, models: Models, sql: str, locked_before: bool
) -> None:
    """A writer has not announced, or its tombstone was lost: the database's locks tell the reader not to fill."""
    if locked_before:  # every row has been locked once: xmax tells nothing any more
        postgres_world.outside_sql("SELECT 1 FROM orders, users FOR UPDATE")
    postgres_world.cache.evict_all()
    members(postgres_world, models, 2)
    members(postgres_world, models, 3)
    with postgres_world.outside.connect() as writer:
        writer.execute(sa.text(sql))
        for _ in range(2):
            assert members(postgres_world, models, 1) == [12, 11, 10]
        writer.commit()
    postgres_world.cache.evict(models.user, 1)  # the row's own announcement is not what is tested here
    for order in (10, 11, 12, 13, 20, 99):
        evict_row(postgres_world, models, order)
    assert (members(postgres_world, models, 1) or []) == selected(postgres_world, 1)


def evict_row(world: World, models: Models, order: int) -> None:
    """Drop a row's entry and leave the collections', as an ordinary announcement of the row does."""
    core = world.cache._core
    family = core.entities.family_of(models.order.__mapper__)
    core.cache.evict([family.key(scope, (order,)) for scope in family.scopes()])


def test_without_a_writer_it_is_filled(postgres_world: World, models: Models) -> None:
    """The control of the test before: rows that were once locked, and are free, are filled."""
    postgres_world.outside_sql("SELECT 1 FROM orders, users FOR UPDATE")
    postgres_world.cache.evict_all()
    members(postgres_world, models, 1)
    members(postgres_world, models, 1)
    assert is_served(postgres_world, models, 1)


def test_no_lock_remains_after_a_fill(postgres_world: World, models: Models) -> None:
    """While the reader's transaction goes on, its owner and its members are free."""
    postgres_world.cache.evict_all()
    with postgres_world.session() as session:
        assert len(session.get(models.user, 1).orders) == 3
        with postgres_world.outside.begin() as other:
            other.execute(sa.text("SET LOCAL lock_timeout = '100ms'"))
            other.execute(sa.text("SELECT 1 FROM orders, users FOR UPDATE NOWAIT"))


def test_a_reader_that_may_not_lock_fills_nothing(postgres_world: World, models: Models) -> None:
    """In a read-only transaction the collection is loaded, and its entry left to others."""
    postgres_world.cache.evict_all()
    with postgres_world.session() as session:
        session.execute(sa.text("SET TRANSACTION READ ONLY"))
        assert [order.id for order in session.get(models.user, 1).orders] == [12, 11, 10]
        assert session.scalar(sa.text("SELECT 1")) == 1
    assert not is_served(postgres_world, models, 1)


def test_a_lost_tombstone_of_who_joins_is_no_harm(postgres_world: World, models: Models, memcached: Any) -> None:
    """Between its announcement and its COMMIT everything in the cache is lost; a reader comes by."""

    def before_commit(_connection: Any) -> None:
        memcached.command("flush_all")
        assert members(postgres_world, models, 2) == [20]
        assert members(postgres_world, models, 2) == [20]

    with postgres_world.session() as writer:
        writer.add(models.order(id=13, user_id=2, position=9))
        writer.flush()
        sa.event.listen(postgres_world.engine, "commit", before_commit)
        writer.commit()
        sa.event.remove(postgres_world.engine, "commit", before_commit)
    assert members(postgres_world, models, 2) == [20, 13]
    agree(postgres_world, models)
