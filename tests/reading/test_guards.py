"""What must go to the database, and does, as if the library were absent."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

import sa_writethrough as wt
from tests.reading.conftest import World


@pytest.fixture
def stale(user: Any, world: World) -> World:
    """The world, with entries that say "ann" where the database says "eve": whoever sees "eve" read the database."""
    world.outside_sql("UPDATE users SET name = 'eve' WHERE id = 1")
    return world


def _of_alias(alias: Any) -> Any:
    return sa.select(alias).where(alias.id == 1)


def one(user: Any) -> Any:
    return sa.select(user).where(user.id == 1)


STATEMENTS = {
    "extra criterion": lambda u: one(u).where(u.age == 10),
    "extra criterion with and_": lambda u: sa.select(u).where(sa.and_(u.id == 1, u.age == 10)),
    "or_": lambda u: sa.select(u).where(sa.or_(u.id == 1, u.id == 77)),
    "not in": lambda u: sa.select(u).where(u.id.not_in([2, 3])),
    "less than": lambda u: sa.select(u).where(u.id < 2),
    "between": lambda u: sa.select(u).where(u.id.between(1, 1)),
    "is": lambda u: sa.select(u).where(u.id.is_not_distinct_from(1)),
    "in a subquery": lambda u: sa.select(u).where(u.id.in_(sa.select(sa.literal(1)))),
    "an expression": lambda u: sa.select(u).where(u.id == sa.literal(1) + 0),
    "a function": lambda u: sa.select(u).where(sa.func.abs(u.id) == 1),
    "a column": lambda u: sa.select(u).where(u.id == u.age - 9),
    "another column": lambda u: sa.select(u).where(u.age == 10),
    "twice the key": lambda u: one(u).where(u.id == 1),
    "key and in_": lambda u: one(u).where(u.id.in_([1, 2])),
    "text": lambda u: sa.select(u).where(sa.text("id = 1")),
    "limit": lambda u: one(u).limit(1),
    "offset": lambda u: one(u).limit(10).offset(0),
    "fetch": lambda u: one(u).limit(1) if u.metadata is None else one(u).slice(0, 1),
    "distinct": lambda u: one(u).distinct(),
    "order_by": lambda u: one(u).order_by(u.name),
    "group_by": lambda u: one(u).group_by(u.id, u.name, u.age),
    "having": lambda u: one(u).group_by(u.id, u.name, u.age).having(sa.func.count() > 0),
    "join": lambda u: one(u).join(orm.aliased(u, name="o"), sa.true()).distinct(),
    "select_from": lambda u: one(u).select_from(u),
    "two froms": lambda u: one(u).where(sa.exists().select_from(sa.table("users"))),
    "prefix": lambda u: one(u).prefix_with("ALL"),
    "suffix": lambda u: one(u).suffix_with("/* suffix */"),
    "statement hint": lambda u: one(u).with_statement_hint("/* hint */"),
    "cte": lambda u: one(u).add_cte(sa.select(sa.literal(1).label("x")).cte("c")),
    "FOR UPDATE": lambda u: one(u).with_for_update(),
    "FOR SHARE": lambda u: one(u).with_for_update(read=True),
    "populate_existing": lambda u: one(u).execution_options(populate_existing=True),
    "yield_per": lambda u: one(u).execution_options(yield_per=10),
    "stream_results": lambda u: one(u).execution_options(stream_results=True),
    "identity_token": lambda u: one(u).execution_options(identity_token="shard1"),
    "alias": lambda u: _of_alias(orm.aliased(u)),
    "alias of a subquery": lambda u: sa.select(orm.aliased(u, one(u).subquery())),
    "from_statement": lambda u: sa.select(u).from_statement(sa.text("SELECT * FROM users WHERE id = 1")),
    "union": lambda u: sa.select(u).from_statement(sa.union(one(u), one(u))),
    "load_only": lambda u: one(u).options(orm.load_only(u.name)),
    "defer": lambda u: one(u).options(orm.defer(u.age)),
    "undefer": lambda u: one(u).options(orm.undefer("*")),
    "raiseload": lambda u: one(u).options(orm.raiseload("*")),
    "with_loader_criteria": lambda u: one(u).options(orm.with_loader_criteria(u, u.age == 10)),
    "no criterion": sa.select,
    "the table": lambda u: sa.select(u).join_from(u.__table__, orm.aliased(u.__table__, name="x"), sa.true()).where(u.id == 1).distinct(),
}  # fmt: skip


@pytest.mark.parametrize("make", STATEMENTS.values(), ids=STATEMENTS)
def test_what_is_not_a_plain_lookup_reads_the_database(user: Any, stale: World, make: Any) -> None:
    """The statement is executed as it is, and its result is the database's."""
    with stale.session() as session, stale.counting() as seen:
        found = session.scalars(make(user).options(wt.from_cache())).all()
    names = {instance.name for instance in found if sa.inspect(instance).session is None and "name" in vars(instance)}
    assert "ann" not in names
    assert len(seen) >= 1
    assert stale.read(user, 1, wt.CacheMode.GET).name == "ann", "nothing else was filled"


COLUMNS = {
    "one column": lambda u: sa.select(u.name).where(u.id == 1),
    "entity and column": lambda u: sa.select(u, u.name).where(u.id == 1),
    "all columns": lambda u: sa.select(u.id, u.name, u.age).where(u.id == 1),
    "the table": lambda u: sa.select(u.__table__).where(u.id == 1),
    "a bundle": lambda u: sa.select(orm.Bundle("b", u.id, u.name)).where(u.id == 1),
    "a count": lambda u: sa.select(sa.func.count()).select_from(u).where(u.id == 1),
    "two entities": lambda u: sa.select(u, orm.aliased(u, name="b")).where(u.id == 1),
    "with_only_columns": lambda u: one(u).with_only_columns(u.name),
}


@pytest.mark.filterwarnings("ignore:SELECT statement has a cartesian product")
@pytest.mark.parametrize("make", COLUMNS.values(), ids=COLUMNS)
def test_columns_are_not_lookups(user: Any, stale: World, make: Any) -> None:
    """What selects anything but one entity gives what it gives without the option."""
    with stale.session() as session, stale.counting() as seen:
        ours = session.execute(make(user).options(wt.from_cache())).all()
    with orm.Session(stale.engine) as session:
        theirs = session.execute(make(user)).all()
    assert len(seen) == 1
    assert [list(row._fields) for row in ours] == [list(row._fields) for row in theirs]
    assert "ann" not in str([[getattr(value, "__dict__", value) for value in row] for row in ours])


def test_for_update_locks_the_row(base: Any, user: Any, postgres_world_of: Any) -> None:
    """`get(with_for_update=True)` with the option reads and locks: another connection cannot update."""
    world = postgres_world_of(base)
    world.add(user(id=1, name="ann"))
    with world.session() as session, world.counting() as seen:
        assert session.get(user, 1, options=[wt.from_cache()], with_for_update=True).name == "ann"
        with pytest.raises(sa.exc.OperationalError, match="could not obtain lock"):
            world.outside_sql("SELECT 1 FROM users FOR UPDATE NOWAIT")
    assert len(seen) == 1


def test_get_with_populate_existing_reads_the_database(user: Any, stale: World) -> None:
    """`get(populate_existing=True)` refreshes from the database."""
    with stale.session() as session:
        found = session.get(user, 1, options=[wt.from_cache()])
        assert found.name == "ann"
        assert session.get(user, 1, options=[wt.from_cache()], populate_existing=True) is found
        assert found.name == "eve"


def test_get_with_an_identity_token_reads_the_database(user: Any, stale: World) -> None:
    """A lookup in a named shard is not the entry's business."""
    with stale.session() as session:
        assert session.get(user, 1, options=[wt.from_cache()], identity_token="x").name == "eve"


def test_a_refresh_reads_the_database(user: Any, stale: World) -> None:
    """`session.refresh` always reads, also under `Reads.ALWAYS`."""
    with stale.session() as session:
        found = session.get(user, 1, options=[wt.from_cache()])
        session.refresh(found)
        assert found.name == "eve"


def test_expired_attributes_read_the_database(user: Any, stale: World) -> None:
    """What `expire` forgot comes from the database, whole or in part."""
    with stale.session() as session:
        found = session.get(user, 1, options=[wt.from_cache()])
        session.expire(found, ["name"])
        assert found.name == "eve"
        session.expire(found)
        assert found.name == "eve"


def test_with_reads_always_refreshes_still_read_the_database(base: Any, user: Any, world_of: Any) -> None:
    """`Reads.ALWAYS` serves lookups, not refreshes, expired attributes or `populate_existing`."""
    world = world_of(base, policy=wt.CachePolicy(reads=wt.Reads.ALWAYS))
    world.add(user(id=1, name="ann", age=1))
    world.outside_sql("UPDATE users SET name = 'eve'")
    for action in (
        lambda session, found: session.refresh(found),
        lambda session, found: session.expire(found),
        lambda session, found: session.expire(found, ["name"]),
        lambda session, found: session.get(user, 1, populate_existing=True),
        lambda session, found: session.execute(sa.select(user).where(user.id == 1).execution_options(populate_existing=True)).all(),
    ):  # fmt: skip
        with world.session() as session:
            found = session.get(user, 1)
            assert found.name == "ann"
            action(session, found)
            assert found.name == "eve"


def test_a_session_that_wrote_the_row_reads_the_database(user: Any, stale: World) -> None:
    """The row's own writer is not served, other rows are."""
    with stale.session() as session:
        session.execute(sa.update(user).where(user.id == 1).values(age=11))
        assert session.get(user, 1, options=[wt.from_cache()]).name == "eve"
        with stale.no_sql():
            session.get(user, 2, options=[wt.from_cache()])


def test_a_session_that_wrote_the_table_reads_the_database(user: Any, stale: World) -> None:
    """After DML whose rows are not known no row of the table is served."""
    with stale.session() as session:
        session.execute(sa.text("UPDATE users SET age = age + 1"))
        assert session.get(user, 1, options=[wt.from_cache()]).name == "eve"
        assert stale.cache.get(session, user, 1).name == "eve"
        with stale.counting() as seen:
            session.get(user, 2, options=[wt.from_cache()])
        assert len(seen) == 1


def test_after_its_commit_the_writer_is_served_again(user: Any, world: World) -> None:
    """A session that wrote and committed gets hits in its next transaction."""
    with world.session() as session:
        session.get(user, 1).name = "new"
        session.commit()
        world.cache.drain()
        session.expunge_all()
        with world.no_sql():
            assert world.cache.get(session, user, 1).name == "new"


def test_after_its_rollback_the_writer_is_served_again(user: Any, world: World) -> None:
    """A session that wrote and rolled back is served the old row."""
    with world.session() as session:
        session.get(user, 1).name = "new"
        session.flush()
        session.rollback()
        world.cache.drain()
        session.expunge_all()
        with world.no_sql():
            assert world.cache.get(session, user, 1).name == "ann"


def test_a_row_that_its_session_wrote_is_never_filled_by_it(user: Any, world: World) -> None:
    """Reading one's own uncommitted row leaves no entry of it."""
    world.cache.evict_all()
    with world.session() as session:
        session.get(user, 1).name = "new"
        session.flush()
        session.expunge_all()
        assert session.get(user, 1, options=[wt.from_cache()]).name == "new"
        session.rollback()
    world.cache.drain()
    assert not world.is_cached(user, 1)


def test_a_loader_option_works_with_from_cache(base: Any, world_of: Any) -> None:
    """Other loader options have their effect: the statement is SQLAlchemy's."""

    class Owner(base):
        __tablename__ = "owner"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)

    class Pet(base):
        __tablename__ = "pet"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        photo: orm.Mapped[str] = orm.mapped_column(deferred=True)
        owner_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey(Owner.id))
        owner = orm.relationship(Owner)

    world = world_of(base)
    world.add(Pet(id=1, photo="p", owner=Owner(id=5)))
    for option, loaded in (
        (orm.undefer(Pet.photo), "photo"),
        (orm.selectinload(Pet.owner), "owner"),
        (orm.joinedload(Pet.owner), "owner"),
    ):
        with world.session() as session:
            assert loaded in vars(session.get(Pet, 1, options=[wt.from_cache(), option]))
        with world.session() as session:
            assert loaded in vars(session.get(Pet, 1, options=[option, wt.from_cache()]))
    with world.session() as session:
        pet = session.get(Pet, 1, options=[wt.from_cache(), orm.raiseload(Pet.owner)])
        with pytest.raises(sa.exc.InvalidRequestError, match="raise"):
            _ = pet.owner


@pytest.mark.parametrize("first", [True, False], ids=["registered before", "registered after"])
def test_criteria_that_a_listener_adds_hold(base: Any, user: Any, sqlite_world_of: Any, first: bool) -> None:
    """A `do_orm_execute` listener that adds `with_loader_criteria` filters lookups, whenever it was registered."""

    def only_adults(state: Any) -> None:
        if state.is_select and not state.is_column_load:
            state.statement = state.statement.options(orm.with_loader_criteria(user, user.age >= 18))

    factory = orm.sessionmaker()
    if first:
        sa.event.listen(factory, "do_orm_execute", only_adults)
    cache = wt.register(factory, "memory://")
    if not first:
        sa.event.listen(factory, "do_orm_execute", only_adults)
    world = sqlite_world_of(base)
    with factory(bind=world.engine) as session:
        session.add_all([user(id=1, name="kid", age=7), user(id=2, name="ann", age=30)])
        session.commit()
    try:
        for _ in range(2):
            with factory(bind=world.engine) as session:
                found = session.scalars(sa.select(user).where(user.id.in_([1, 2])).options(wt.from_cache())).all()
                assert [instance.name for instance in found] == ["ann"]
    finally:
        cache.unregister()


def test_a_dml_statement_with_the_option_is_dml(user: Any, world: World) -> None:
    """`from_cache()` on an UPDATE or an INSERT does nothing."""
    with world.session() as session:
        session.execute(sa.update(user).where(user.id == 1).values(name="new").options(wt.from_cache()))
        session.commit()
    world.cache.drain()
    assert world.read(user, 1).name == "new"


def test_an_unmarked_model_is_read_from_the_database(base: Any, world_of: Any) -> None:
    """The option on a model that is not cached has no effect; `cache.get` refuses it."""

    class Plain(base):
        __tablename__ = "plain"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)

    world = world_of(base)
    world.add(Plain(id=1))
    with world.session() as session, world.counting() as seen:
        assert session.get(Plain, 1, options=[wt.from_cache()]).id == 1
        with pytest.raises(wt.ConfigurationError, match="Plain is not cached"):
            world.cache.get(session, Plain, 1)
    assert len(seen) == 1


def test_an_unregistered_session_reads_the_database(user: Any, stale: World) -> None:
    """The option in a session of another factory has no effect."""
    with orm.Session(stale.engine) as session:
        assert session.get(user, 1, options=[wt.from_cache()]).name == "eve"


def test_merge_reads_the_database_under_option(user: Any, stale: World) -> None:
    """`session.merge` loads its target itself, and writes what differs from the database."""
    with stale.session() as session:
        merged = session.merge(user(id=1, name="new"))
        session.commit()
        assert merged.name == "new"
    stale.cache.drain()
    assert stale.read(user, 1).name == "new"
