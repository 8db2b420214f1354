"""`cache.explain`: whether a statement would be served, and why not; by the guard that serves, and with no effect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

import sa_writethrough as wt
from tests.reading.conftest import World


@pytest.fixture
def user(base: Any) -> Any:
    class User(base):
        __tablename__ = "users"
        __writethrough__ = wt.CachePolicy(unique_keys=[("name",)])
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str] = orm.mapped_column(unique=True)
        age: orm.Mapped[int | None]

    return User


@pytest.fixture
def plain(base: Any) -> Any:
    class Plain(base):
        __tablename__ = "plain"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)

    return Plain


FROM = wt.from_cache()

STATEMENTS = {
    "lookup": (lambda u, p: sa.select(u).where(u.id == 1).options(FROM), True, "every row is cached"),
    "many": (lambda u, p: sa.select(u).where(u.id.in_([1, 2])).options(FROM), True, "every row is cached"),
    "some": (lambda u, p: sa.select(u).where(u.id.in_([1, 9])).options(FROM), False, "not all of it is cached"),
    "by unique key": (lambda u, p: sa.select(u).where(u.name == "ann").options(FROM), True, "known to point to a row"),
    "by another": (lambda u, p: sa.select(u).where(u.name == "nobody").options(FROM), False, "not all of it is cached"),
    "no option": (lambda u, p: sa.select(u).where(u.id == 1), False, "neither does it have the option"),
    "bypass": (lambda u, p: sa.select(u).where(u.id == 1).options(wt.bypass_cache()), False, "bypass_cache()"),
    "loader option": (
        lambda u, p: sa.select(u).where(u.id == 1).options(FROM, orm.load_only(u.name)),
        False,
        "only SQLAlchemy's own loader",
    ),
    "not cached": (lambda u, p: sa.select(p).where(p.id == 1).options(FROM), False, "not cached by this registration"),
    "columns": (lambda u, p: sa.select(u.id).where(u.id == 1).options(FROM), False, "else than one mapped class"),
    "core": (lambda u, p: sa.select(sa.literal(1)), False, "else than one mapped class"),
    "criteria": (lambda u, p: sa.select(u).where(u.id == 1, u.age > 1).options(FROM), False, "a whole primary key"),
    "null": (lambda u, p: sa.select(u).where(u.name.is_(None)).options(FROM), False, "a whole primary key"),
    "limit": (lambda u, p: sa.select(u).where(u.id == 1).limit(1).options(FROM), False, "more than WHERE"),
    "lock": (lambda u, p: sa.select(u).where(u.id == 1).with_for_update().options(FROM), False, "more than WHERE"),
    "populate": (
        lambda u, p: sa.select(u).where(u.id == 1).options(FROM).execution_options(populate_existing=True),
        False,
        "populate_existing",
    ),
    "float": (lambda u, p: sa.select(u).where(u.id == 1.5).options(FROM), False, "no one text"),
    "update": (lambda u, p: sa.update(u).values(age=1), False, "no select()"),
    "text": (lambda u, p: sa.text("DELETE FROM users"), False, "no select()"),
}


@pytest.fixture
def world(user: Any, plain: Any, base: Any, world_of: Callable[..., World]) -> World:
    made = world_of(base)
    made.add(user(id=1, name="ann"), user(id=2, name="bob"), plain(id=1))
    with made.session() as session:
        made.cache.get_by(session, user, name="ann")
    made.cache.drain()
    return made


@pytest.mark.parametrize(("make", "served", "why"), STATEMENTS.values(), ids=STATEMENTS)
def test_a_statement_is_explained(world: World, user: Any, plain: Any, make: Any, served: bool, why: str) -> None:
    """The reason is told, nothing is executed or changed; and what is said comes true when it is executed."""
    statement = make(user, plain)
    with world.session() as session:
        session.execute(sa.text("SELECT 1"))  # the database is known
        with world.counting() as seen:
            explanation = world.cache.explain(session, statement)
        assert seen == []
        assert explanation.served is served
        assert why in explanation.reason
        assert str(explanation).startswith("served from the cache: " if served else "read from the database: ")
        with world.counting() as seen:
            session.execute(statement)
        assert (seen == []) is served
        session.rollback()


def test_the_keys_are_told(world: World, user: Any) -> None:
    """Of a lookup, those of the entries that it asks for."""
    with world.session() as session:
        explanation = world.cache.explain(session, sa.select(user).where(user.id.in_([1, 2])).options(FROM))
    assert [key.rpartition(":")[2] for key in explanation.keys] == ["1", "2"]


def test_what_the_session_did_counts(world: World, user: Any) -> None:
    """An expired instance, a row that it wrote."""
    lookup = sa.select(user).where(user.id == 1).options(FROM)
    with world.session() as session:
        found = session.get(user, 1)
        session.expire(found)
        assert "expired instance" in world.cache.explain(session, lookup).reason
        found.age = 5
        assert session.is_modified(found)
        explanation = world.cache.explain(session, lookup)
        assert session.is_modified(found), "it does not flush"
        session.flush()
        assert "own transaction has written" in world.cache.explain(session, lookup).reason
        assert explanation.served is False


def test_a_snapshot_is_not_served(base: Any, user: Any, postgres_world_of: Callable[..., World]) -> None:
    """In REPEATABLE READ the reason is the snapshot."""
    world = postgres_world_of(base, engine={"isolation_level": "REPEATABLE READ"})
    world.add(user(id=1, name="ann"))
    with world.session() as session:
        explanation = world.cache.explain(session, sa.select(user).where(user.id == 1).options(FROM))
    assert "snapshot" in explanation.reason


def test_queries_and_listeners(world: World, user: Any) -> None:
    """A legacy Query is explained; listeners that come before are called, and one that comes after is the reason."""
    with world.session() as session:
        query = session.query(user).filter_by(id=1).options(FROM)
        assert world.cache.explain(session, query).served
        sa.event.listen(session, "do_orm_execute", lambda _state: None)
        assert "listener comes after" in world.cache.explain(session, query).reason

    def answers(state: Any) -> Any:
        return sa.engine.IteratorResult(sa.engine.result.SimpleResultMetaData(["x"]), iter([(1,)]))

    sa.event.listen(world.factory, "do_orm_execute", answers, insert=True)
    with world.session() as session:
        assert "listener answers it" in world.cache.explain(session, query).reason
