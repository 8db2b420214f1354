"""`select()` of one entity by whole primary keys: what is a lookup, and what it returns."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

import sa_writethrough as wt
from tests.reading.conftest import World


def by_in(user: Any, *ids: Any) -> Any:
    return sa.select(user).where(user.id.in_(ids)).options(wt.from_cache())


LOOKUPS = {
    "==": lambda u: sa.select(u).where(u.id == 2),
    "== reversed": lambda u: sa.select(u).where(sa.literal(2) == u.id),
    "in_": lambda u: sa.select(u).where(u.id.in_([2])),
    "in_ of a tuple": lambda u: sa.select(u).where(u.id.in_((2,))),
    "in_ of a set": lambda u: sa.select(u).where(u.id.in_({2})),
    "filter_by": lambda u: sa.select(u).filter_by(id=2),
    "table column": lambda u: sa.select(u).where(u.__table__.c.id == 2),
    "and_ of one": lambda u: sa.select(u).where(sa.and_(sa.true(), u.id == 2)),
    "session bind parameter": lambda u: sa.select(u).where(u.id == sa.bindparam("x", 2)),
}


@pytest.mark.parametrize(
    "make", [pytest.param(make, id=name) for name, make in LOOKUPS.items() if name != "== reversed"]
)
def test_a_select_by_primary_key_is_served(user: Any, world: World, make: Any) -> None:
    """Each way to write a lookup is answered without SQL."""
    with world.session() as session, world.no_sql():
        assert session.scalars(make(user).options(wt.from_cache())).one().name == "bob"


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in LOOKUPS.items()])
def test_a_select_by_primary_key_is_right_on_a_miss(user: Any, world: World, make: Any) -> None:
    """The same from an empty cache."""
    world.cache.evict_all()
    with world.session() as session:
        assert session.scalars(make(user).options(wt.from_cache())).one().name == "bob"


def test_many_are_served_without_sql(user: Any, world: World) -> None:
    """`in_` of several is answered without SQL."""
    with world.session() as session, world.no_sql():
        assert {u.name for u in session.scalars(by_in(user, 3, 1))} == {"ann", "cid"}


def test_duplicates_are_returned_once(user: Any, world: World) -> None:
    """A value given twice is one row, as in SQL."""
    with world.session() as session:
        assert sorted(u.id for u in session.scalars(by_in(user, 2, 2, 1, 2))) == [1, 2]


def test_missing_ones_are_left_out(user: Any, world: World) -> None:
    """Identities that do not exist give no row."""
    with world.session() as session:
        assert sorted(u.id for u in session.scalars(by_in(user, 99, 2, 98))) == [2]


def test_hits_and_misses_make_one_result(user: Any, world: World) -> None:
    """What the cache lacks is read with one SELECT and filled."""
    world.cache.evict(user, 1)
    world.cache.evict(user, 3)
    with world.session() as session, world.counting() as seen:
        assert sorted(u.name for u in session.scalars(by_in(user, 1, 2, 3))) == ["ann", "bob", "cid"]
    assert len(seen) == 1
    assert all(world.is_cached(user, i) for i in (1, 2, 3))


def test_an_empty_in_gives_nothing(user: Any, world: World) -> None:
    """`in_([])` is valid and empty."""
    with world.session() as session:
        assert session.scalars(by_in(user)).all() == []


def test_none_in_the_list_gives_no_row(user: Any, world: World) -> None:
    """NULL equals nothing."""
    with world.session() as session:
        assert [u.id for u in session.scalars(by_in(user, None, 2))] == [2]
        assert session.scalars(sa.select(user).where(user.id == None).options(wt.from_cache())).all() == []  # noqa: E711 - SQL


def test_rows_are_rows_of_the_entity(user: Any, world: World) -> None:
    """`execute` gives rows with the entity's name, keys and mappings, as SQLAlchemy does."""
    statement = by_in(user, 2)
    with world.session() as session, world.no_sql():
        result = session.execute(statement)
        assert list(result.keys()) == ["User"]
        row = result.one()
        assert row.User is row[0] is row._mapping["User"] is row._mapping[user]
        assert row._fields == ("User",)


RESULTS = {
    "all": lambda r: len(r.all()),
    "scalars.all": lambda r: len(r.scalars().all()),
    "unique": lambda r: len(r.unique().scalars().all()),
    "scalars.unique": lambda r: len(r.scalars().unique().all()),
    "first": lambda r: r.first() is not None,
    "fetchmany": lambda r: len(r.fetchmany(1)),
    "partitions": lambda r: [len(p) for p in r.partitions(1)],
    "mappings": lambda r: [list(m.keys()) for m in r.mappings()],
    "columns": lambda r: len(r.columns(0).all()),
    "freeze": lambda r: len(r.freeze()().all()),
    "iteration": lambda r: len(list(r)),
    "closed": lambda r: (r.close(), r.closed)[1],
}


@pytest.mark.parametrize("use", RESULTS.values(), ids=RESULTS)
def test_the_result_can_do_what_a_result_does(user: Any, world: World, use: Any) -> None:
    """Every method of a Result works on a hit as on a database read."""
    with world.session() as session:
        hit = use(session.execute(by_in(user, 1, 2)))
    with world.session() as session:
        assert use(session.execute(sa.select(user).where(user.id.in_([1, 2])))) == hit


def test_scalar_and_scalar_one_or_none_work(user: Any, world: World) -> None:
    """The Session's shortcuts are served as well."""
    with world.session() as session, world.no_sql():
        assert session.scalar(by_in(user, 1)).name == "ann"
        assert session.execute(by_in(user, 1)).scalar_one_or_none().name == "ann"


def test_parameters_of_the_execution_are_used(user: Any, world: World) -> None:
    """A bound parameter's value comes from the execution where that gives one."""
    statement = sa.select(user).where(user.id == sa.bindparam("wanted")).options(wt.from_cache())
    several = sa.select(user).where(user.id.in_(sa.bindparam("wanted", expanding=True))).options(wt.from_cache())
    with world.session() as session, world.no_sql():
        assert session.scalars(statement, {"wanted": 3}).one().name == "cid"
        assert session.scalars(statement, {"wanted": 1}).one().name == "ann"
        assert {u.id for u in session.scalars(several, {"wanted": [1, 2]})} == {1, 2}


def test_a_parameter_without_a_value_is_an_error(user: Any, world: World) -> None:
    """A required parameter that is not given is refused as without the cache."""
    statement = sa.select(user).where(user.id == sa.bindparam("wanted")).options(wt.from_cache())
    with world.session() as session, pytest.raises(sa.exc.StatementError, match="wanted"):
        session.scalars(statement).all()


def test_a_callable_parameter_is_called(user: Any, world: World) -> None:
    """`bindparam(callable_=...)` gives its value when the statement is executed."""
    statement = sa.select(user).where(user.id == sa.bindparam("x", callable_=lambda: 2)).options(wt.from_cache())
    with world.session() as session:
        assert session.scalars(statement).one().name == "bob"


def test_query_is_served_too(user: Any, world: World) -> None:
    """The legacy Query with the option is the same statement."""
    with world.session() as session, world.no_sql():
        assert session.query(user).options(wt.from_cache()).filter(user.id == 1).all()[0].name == "ann"
        assert session.query(user).options(wt.from_cache()).filter_by(id=2).one().name == "bob"


def test_an_identity_in_the_session_is_not_replaced(user: Any, world: World) -> None:
    """A select returns the session's own instance, its changes untouched."""
    world.outside_sql("UPDATE users SET name = 'eve' WHERE id = 1")
    with world.session(autoflush=False) as session:
        mine = session.get(user, 1)
        mine.name = "changed"
        assert session.scalars(by_in(user, 1)).one() is mine
        assert mine.name == "changed"


def test_a_fresh_instance_keeps_what_it_has(user: Any, world: World) -> None:
    """An instance that is present and not expired is not refreshed by the entry."""
    with world.session() as session:
        mine = session.get(user, 1, options=[wt.from_cache()])
        world.outside_sql("UPDATE users SET name = 'eve' WHERE id = 1")
        world.cache.evict(user, 1)
        assert session.scalars(by_in(user, 1)).one() is mine
        assert mine.name == "ann"


def test_an_expired_instance_is_refreshed_by_the_select(user: Any, world: World) -> None:
    """A select that meets an expired instance goes to the database and refreshes it."""
    with world.session() as session:
        mine = session.get(user, 1)
        session.expire(mine)
        world.outside_sql("UPDATE users SET name = 'eve' WHERE id = 1")
        assert session.scalars(by_in(user, 1)).one() is mine
        with world.no_sql():
            assert mine.name == "eve"


def test_a_select_begins_and_flushes(user: Any, world: World) -> None:
    """A lookup by select begins the session and flushes what is pending."""
    with world.session() as session:
        session.add(user(id=7, name="new"))
        assert {u.id for u in session.scalars(by_in(user, 1, 7))} == {1, 7}
        assert session.in_transaction()


def test_autoflush_can_be_switched_off_for_a_statement(user: Any, world: World) -> None:
    """`execution_options(autoflush=False)` holds for a lookup."""
    with world.session() as session:
        session.add(user(id=7, name="new"))
        with world.no_sql():
            session.scalars(by_in(user, 1).execution_options(autoflush=False)).all()


def test_a_thousand_and_more_are_read_in_chunks(user: Any, world: World) -> None:
    """More identities than a statement takes parameters for are found, hits and misses alike."""
    with world.outside.begin() as connection:
        connection.execute(user.__table__.insert(), [{"id": i, "name": "n"} for i in range(10, 2510)])
    world.cache.evict_all()
    for _ in range(2):
        with world.session() as session:
            assert len(session.scalars(by_in(user, *range(10, 2510))).all()) == 2500
        world.cache.drain()


def test_the_order_of_the_identities_is_the_order_of_the_result(user: Any, world: World) -> None:
    """A hit returns the rows in the order in which they were asked for."""
    with world.session() as session, world.no_sql():
        assert [u.id for u in session.scalars(by_in(user, 3, 1, 2))] == [3, 1, 2]
