"""`cache.get_many`: order, duplicates, what is missing, and what it costs."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import InvalidRequestError

from sa_writethrough import events
from tests.reading.conftest import World


def names(found: list[Any]) -> list[Any]:
    return [getattr(instance, "name", None) for instance in found]


def test_instances_come_in_the_order_asked_for(user: Any, world: World) -> None:
    """One instance or None for each identity, in their order, without SQL."""
    with world.session() as session, world.no_sql():
        assert names(world.cache.get_many(session, user, [3, 1, 2])) == ["cid", "ann", "bob"]


def test_a_duplicate_is_the_same_instance(user: Any, world: World) -> None:
    """An identity given twice gives the same instance twice."""
    with world.session() as session, world.no_sql():
        found = world.cache.get_many(session, user, [2, 1, 2])
        assert names(found) == ["bob", "ann", "bob"]
        assert found[0] is found[2]


def test_what_does_not_exist_is_none(user: Any, world: World) -> None:
    """Missing rows keep their places, and cost one SELECT together."""
    with world.session() as session, world.counting() as seen:
        assert names(world.cache.get_many(session, user, [98, 1, 99])) == [None, "ann", None]
    assert len(seen) == 1


def test_no_identities_give_no_instances(user: Any, world: World) -> None:
    """An empty list costs nothing."""
    with world.session() as session, world.no_sql():
        assert world.cache.get_many(session, user, []) == []


def test_any_iterable_will_do(user: Any, world: World) -> None:
    """A generator of scalars, tuples and dicts is read once."""
    with world.session() as session:
        assert names(world.cache.get_many(session, user, iter([1, (2,), {"id": 3}]))) == ["ann", "bob", "cid"]


def test_misses_are_read_with_one_select_and_filled(user: Any, world: World) -> None:
    """Hits cost nothing and all the misses one statement."""
    world.cache.evict(user, 1)
    world.cache.evict(user, 3)
    with world.session() as session, world.counting() as seen:
        assert names(world.cache.get_many(session, user, [1, 2, 3])) == ["ann", "bob", "cid"]
    assert len(seen) == 1
    assert all(world.is_cached(user, i) for i in (1, 2, 3))


def test_the_cache_is_asked_once(user: Any, world: World) -> None:
    """All keys travel in one read."""
    reads: list[Any] = []
    world.cache.subscribe(reads.append)
    with world.session() as session:
        world.cache.get_many(session, user, [1, 2, 3])
    assert [(type(e), len(e.keys)) for e in reads] == [(events.Hit, 3)]


def test_what_the_session_holds_is_not_asked_for(user: Any, world: World) -> None:
    """Present instances are returned as they are, changes and all."""
    with world.session(autoflush=False) as session:
        mine = session.get(user, 1)
        mine.name = "changed"
        before = world.cache.stats().reads
        found = world.cache.get_many(session, user, [1, 2])
        assert found[0] is mine
        assert names(found) == ["changed", "bob"]
        assert world.cache.stats().reads == before + 1


def test_what_is_pending_is_flushed_and_found(user: Any, world: World) -> None:
    """The session begins and flushes first."""
    with world.session() as session:
        session.add(user(id=7, name="new"))
        assert names(world.cache.get_many(session, user, [7, 1])) == ["new", "ann"]


def test_an_expired_instance_is_refreshed(user: Any, world: World) -> None:
    """An identity that the session holds expired comes from the database."""
    with world.session() as session:
        mine = session.get(user, 1)
        session.expire(mine)
        world.outside_sql("UPDATE users SET name = 'eve' WHERE id = 1")
        found = world.cache.get_many(session, user, [1, 2])
        assert found[0] is mine
        assert names(found) == ["eve", "bob"]


def test_an_expired_instance_whose_row_is_gone_is_none(user: Any, world: World) -> None:
    """As `session.get` gives None for it."""
    with world.session() as session:
        mine = session.get(user, 1)
        session.expire(mine)
        world.outside_sql("DELETE FROM users WHERE id = 1")
        assert world.cache.get_many(session, user, [1, 2])[0] is None


def test_where_the_cache_may_not_serve_one_select_does(user: Any, world: World) -> None:
    """A session that wrote one of the rows reads all of the rest with one SELECT."""
    with world.session() as session:
        session.get(user, 1).name = "changed"
        session.flush()
        session.expunge_all()
        with world.counting() as seen:
            assert names(world.cache.get_many(session, user, [1, 2, 3])) == ["changed", "bob", "cid"]
        assert len(seen) == 1


def test_an_incomplete_identity_is_an_error(user: Any, world: World) -> None:
    """One wrong identity refuses the call before anything is read."""
    with world.session() as session, world.no_sql(), pytest.raises(InvalidRequestError, match="no primary key"):
        world.cache.get_many(session, user, [1, (1, 2)])


def test_an_unhashable_value_is_an_error(user: Any, world: World) -> None:
    """A list as a key's value is refused, as `session.get` refuses it."""
    with world.session() as session, pytest.raises((InvalidRequestError, TypeError)):
        world.cache.get_many(session, user, [([1],)])


def test_thousands_are_found(user: Any, world: World) -> None:
    """More identities than one statement takes are read in chunks, and served the next time."""
    with world.outside.begin() as connection:
        connection.execute(user.__table__.insert(), [{"id": i, "name": f"n{i}"} for i in range(10, 2510)])
    wanted = list(range(2509, 9, -1))
    with world.session() as session:
        assert names(world.cache.get_many(session, user, wanted)) == [f"n{i}" for i in wanted]
    world.cache.drain()
    with world.session() as session, world.no_sql():
        assert names(world.cache.get_many(session, user, wanted)) == [f"n{i}" for i in wanted]


def test_a_load_listener_may_load_another_one_of_them(user: Any, world: World) -> None:
    """Where loading one instance loads another of the same batch the session has one instance of each identity."""
    kept = []

    def listener(target: Any, context: Any) -> None:
        if target.id == 1:
            kept.append(context.session.get(user, 3))

    sa.event.listen(user, "load", listener)
    with world.session() as session:
        found = world.cache.get_many(session, user, [1, 2, 3])
        assert found[2] is kept[0]
        assert found[2] is session.get(user, 3)


def test_two_values_for_one_row_give_it_twice(user: Any, sqlite_world_of: Any, base: Any) -> None:
    """Where the database holds 1 and '1' equal both give the row, as `session.get` does."""
    world = sqlite_world_of(base)
    world.add(user(id=1, name="ann"), user(id=2, name="bob"))
    for _ in range(2):
        with world.session() as session:
            assert names(world.cache.get_many(session, user, [1, "1", "2"])) == ["ann", "ann", "bob"]
        world.cache.evict_all()
