"""One-to-many collections by reference: what is served, and that it is what a SELECT returns, whoever changed it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

import sa_writethrough as wt
from tests.reading.conftest import World


class Models:
    """A user with orders, which are sorted by their position and may be of a subclass; a world with some of each."""

    def __init__(self, base: Any) -> None:
        class User(base):
            __tablename__ = "users"
            __writethrough__ = wt.CachePolicy(collections=["orders"])
            id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
            orders: orm.Mapped[list[Any]] = orm.relationship(
                "Order", back_populates="user", order_by="Order.position", passive_deletes="all"
            )

        class Order(base):
            __tablename__ = "orders"
            __writethrough__ = True
            id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
            kind: orm.Mapped[str] = orm.mapped_column(default="order")
            user_id: orm.Mapped[int | None] = orm.mapped_column(
                sa.ForeignKey("users.id", ondelete="CASCADE", onupdate="CASCADE")
            )
            position: orm.Mapped[int]
            note: orm.Mapped[str | None]
            user: orm.Mapped[Any] = orm.relationship(User, back_populates="orders")
            __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "order"}  # noqa: RUF012

        class Rush(Order):
            __mapper_args__ = {"polymorphic_identity": "rush"}  # noqa: RUF012

        self.user, self.order, self.rush = User, Order, Rush


@pytest.fixture
def models(base: Any) -> Models:
    return Models(base)


@pytest.fixture
def world(models: Models, base: Any, world_of: Callable[..., World]) -> World:
    """User 1 has the orders 12, 11 and 10, User 2 has 20, User 3 has none; all of it is cached."""
    made = world_of(base)
    sa.event.listen(made.engine, "connect", _foreign_keys)
    sa.event.listen(made.outside, "connect", _foreign_keys)
    made.engine.dispose()
    made.add(*(models.user(id=i) for i in (1, 2, 3)))
    made.add(
        models.order(id=10, user_id=1, position=3),
        models.rush(id=11, user_id=1, position=2),
        models.order(id=12, user_id=1, position=1),
        models.order(id=20, user_id=2, position=1),
    )
    for user in (1, 2, 3):
        members(made, models, user)
        assert is_served(made, models, user)
    return made


def _foreign_keys(connection: Any, _record: Any) -> None:
    if hasattr(connection, "create_function"):
        connection.execute("PRAGMA foreign_keys = ON")


def members(world: World, models: Models, user: int) -> list[int] | None:
    """Return the orders of a user as a fresh session sees them; None where there is no such user."""
    with world.session() as session:
        found = world.cache.get(session, models.user, user)
        orders = None if found is None else [order.id for order in found.orders]
    world.cache.drain()
    return orders


def is_served(world: World, models: Models, user: int) -> bool:
    """Tell whether a fresh session gets the user's orders with no SQL."""
    with world.counting() as seen:
        members(world, models, user)
    return seen == []


def selected(world: World, user: int) -> list[int]:
    with world.outside.connect() as connection:
        found = connection.execute(sa.text(f"SELECT id FROM orders WHERE user_id = {user} ORDER BY position"))
        return list(found.scalars())


def agree(world: World, models: Models, *users: int) -> None:
    """Assert that the collections are what the database holds: now, and once they are cached again."""
    world.cache.drain()
    for user in users or (1, 2, 3):
        for _ in range(3):
            found = members(world, models, user)
            assert (found or []) == selected(world, user)


# --- what is served --------------------------------------------------------------------------------------------------


def test_a_cached_collection_is_loaded_with_no_sql(world: World, models: Models) -> None:
    """The members come in their order, each of its own class, persistent, with their way back to the owner."""
    with world.no_sql(), world.session() as session:
        user = world.cache.get(session, models.user, 1)
        assert [order.id for order in user.orders] == [12, 11, 10]
        assert [type(order) for order in user.orders] == [models.order, models.rush, models.order]
        assert all(order in session and order.user is user for order in user.orders)
        assert world.cache.get(session, models.user, 3).orders == []


def test_a_collection_is_filled_by_its_first_reader(world: World, models: Models) -> None:
    """After an eviction the first lazy load goes to the database, the second one does not."""
    world.cache.evict(models.order, 10)
    assert not is_served(world, models, 1)
    with world.counting() as seen:  # it is filled; the one member that is not cached is read and filled
        assert members(world, models, 1) == [12, 11, 10]
    assert "WHERE orders.id = " in seen[0]
    assert is_served(world, models, 1)


def test_members_that_are_not_cached_are_read_in_one_statement(world: World, models: Models) -> None:
    """A collection that is cached and whose members are not is served after one SELECT of those, which fills them."""
    world.cache.evict_all(models.order)
    assert not is_served(world, models, 1)
    with world.counting() as seen:
        assert members(world, models, 1) == [12, 11, 10]
    assert len(seen) == 1
    assert "WHERE orders.id IN " in seen[0]
    assert is_served(world, models, 1)


def test_what_the_session_holds_is_left_as_it_is(world: World, models: Models) -> None:
    """A member that the session has, changed and not flushed, is the instance that the collection gets."""
    with world.session() as session, session.no_autoflush:
        order = world.cache.get(session, models.order, 11)
        order.note = "mine"
        user = world.cache.get(session, models.user, 1)
        assert user.orders[1] is order
        assert order.note == "mine"


def test_an_expired_member_goes_to_the_database(world: World, models: Models) -> None:
    """As the SELECT refreshes it in passing, and the cache would not."""
    with world.session() as session:
        order = world.cache.get(session, models.order, 11)
        session.expire(order)
        with world.counting() as seen:
            user = world.cache.get(session, models.user, 1)
            assert len(user.orders) == 3
        assert len(seen) == 1
        assert "note" in order.__dict__


def test_a_session_sees_its_own_changes(world: World, models: Models) -> None:
    """What it flushed and has not committed is in its collections; nobody else sees it, and it fills nothing."""
    with world.session() as session:
        session.add(models.order(id=21, user_id=2, position=0))
        session.get(models.order, 10).user_id = 2
        session.flush()
        for _ in range(2):
            session.expire_all()
            assert [o.id for o in session.get(models.user, 2).orders] == [21, 20, 10]
            assert [o.id for o in session.get(models.user, 1).orders] == [12, 11]
            if world.engine.dialect.name == "postgresql":
                assert members(world, models, 2) == [20]
                assert members(world, models, 1) == [12, 11, 10]
        session.rollback()
    agree(world, models)


def test_a_session_that_wrote_fills_nothing(world: World, models: Models) -> None:
    """Its own locks do not stop it, and what it sees may be undone: here a member that it deletes, and keeps."""
    world.cache.evict_all()
    with world.session() as session:
        session.delete(session.get(models.order, 10))
        session.flush()
        assert [order.id for order in session.get(models.user, 1).orders] == [12, 11]
        session.rollback()
    agree(world, models)


def test_pending_changes_are_flushed_first(world: World, models: Models) -> None:
    """A lazy load flushes, as any other does."""
    with world.session() as session:
        user = world.cache.get(session, models.user, 2)
        session.add(models.order(id=21, user_id=2, position=0))
        assert [order.id for order in user.orders] == [21, 20]


@pytest.mark.parametrize("option", ["criteria", "options", "listener", "refresh"])
def test_what_asks_for_more_goes_to_the_database(world: World, models: Models, option: str) -> None:
    """Options that change what is loaded, and listeners that may, are SQLAlchemy's own."""
    options = {
        "criteria": [orm.with_loader_criteria(models.order, models.order.position > 1)],
        "options": [orm.lazyload(models.user.orders).joinedload(models.order.user)],
    }.get(option, [])
    with world.session() as session:
        if option == "listener":
            sa.event.listen(session, "do_orm_execute", lambda _state: None)
        user = session.scalars(sa.select(models.user).where(models.user.id == 1).options(*options)).one()
        if option == "refresh":
            session.refresh(user, ["orders"])
            return
        with world.counting() as seen:
            assert [order.id for order in user.orders] == ([11, 10] if option == "criteria" else [12, 11, 10])
        assert seen != []


def test_an_owner_whose_key_is_changing_goes_to_the_database(world: World, models: Models) -> None:
    """Its collection is that of the key it has in the database."""
    with world.session() as session, session.no_autoflush:
        user = world.cache.get(session, models.user, 1)
        user.id = 9
        with world.counting() as seen:
            assert [order.id for order in user.orders] in ([12, 11, 10], [])
        assert len(seen) == 1


# --- who changes it --------------------------------------------------------------------------------------------------


def _add(session: orm.Session, m: Models) -> None:
    session.add(m.order(id=21, user_id=2, position=0))


def _append(session: orm.Session, m: Models) -> None:
    user = session.get(m.user, 2)
    user.orders.append(m.order(id=21, position=0))
    session.flush()


def _move(session: orm.Session, m: Models) -> None:
    session.get(m.order, 10).user_id = 2


def _move_by_relationship(session: orm.Session, m: Models) -> None:
    user = session.get(m.user, 2)
    user.orders.append(session.get(m.order, 10))
    session.flush()


def _move_unloaded(session: orm.Session, m: Models) -> None:
    order = session.get(m.order, 10, options=[orm.load_only(m.order.note)])
    order.user_id = 2


def _merge(session: orm.Session, m: Models) -> None:
    session.merge(m.order(id=10, user_id=2, position=5))


def _add_many(session: orm.Session, m: Models) -> None:
    session.add_all([m.order(user_id=user, position=9) for user in (1, 2, 3)])


def _remove(session: orm.Session, m: Models) -> None:
    user = session.get(m.user, 1)
    user.orders.pop()
    session.flush()


def _delete(session: orm.Session, m: Models) -> None:
    session.delete(session.get(m.order, 11))


def _delete_owner(session: orm.Session, m: Models) -> None:
    session.delete(session.get(m.user, 1))


def _replace_owner(session: orm.Session, m: Models) -> None:
    session.delete(session.get(m.user, 1))
    session.flush()
    session.add(m.user(id=1))
    session.flush()
    session.add(m.order(id=11, user_id=1, position=7))


def _renumber_owner(session: orm.Session, m: Models) -> None:
    session.get(m.user, 1).id = 9
    session.flush()
    session.add(m.user(id=1))


def _renumber_member(session: orm.Session, m: Models) -> None:
    session.get(m.order, 11).id = 99


def _reorder(session: orm.Session, m: Models) -> None:
    session.get(m.order, 11).position = 8


def _bulk_update(session: orm.Session, m: Models) -> None:
    session.execute(sa.update(m.order).where(m.order.position > 1).values(user_id=2))


def _bulk_update_to_expression(session: orm.Session, m: Models) -> None:
    session.execute(sa.update(m.order).values(user_id=m.order.user_id % 2 + 1))


def _bulk_by_keys(session: orm.Session, m: Models) -> None:
    session.execute(sa.update(m.order), [{"id": 10, "user_id": 2}, {"id": 20, "user_id": 3}])


def _bulk_delete(session: orm.Session, m: Models) -> None:
    session.execute(sa.delete(m.order).where(m.order.user_id == 1))


def _bulk_insert(session: orm.Session, m: Models) -> None:
    session.execute(sa.insert(m.order), [{"id": i, "user_id": i % 3 + 1, "position": i} for i in range(30, 36)])


def _insert_values(session: orm.Session, m: Models) -> None:
    session.execute(sa.insert(m.order.__table__).values(id=21, kind="order", user_id=2, position=0))


def _insert_expression(session: orm.Session, m: Models) -> None:
    owner = sa.select(sa.func.max(m.user.id)).scalar_subquery()
    session.execute(sa.insert(m.order.__table__).values(id=21, kind="order", user_id=owner, position=0))


def _insert_from_select(session: orm.Session, m: Models) -> None:
    rows = sa.select(m.order.id + 100, sa.literal("order"), sa.literal(3), m.order.position)
    session.execute(sa.insert(m.order.__table__).from_select(["id", "kind", "user_id", "position"], rows))


def _insert_many_values(session: orm.Session, m: Models) -> None:
    rows = [{"id": i, "kind": "order", "user_id": 3, "position": i} for i in (31, 32)]
    session.execute(sa.insert(m.order.__table__).values(rows))


def _upsert(session: orm.Session, m: Models) -> None:
    module = getattr(sa.dialects, session.get_bind().dialect.name)
    insert = module.insert(m.order.__table__).values(id=10, kind="order", user_id=1, position=0)
    session.execute(insert.on_conflict_do_update(index_elements=["id"], set_={"user_id": 2}))


def _core_update(session: orm.Session, m: Models) -> None:
    table = m.order.__table__
    statement = sa.update(table).where(table.c.id == sa.bindparam("which")).values(user_id=sa.bindparam("owner"))
    session.connection().execute(statement, [{"which": 10, "owner": 3}, {"which": 20, "owner": 1}])


def _text(session: orm.Session, m: Models) -> None:
    session.execute(sa.text("UPDATE orders SET user_id = 3 WHERE id = 10"))


def _savepoints(session: orm.Session, m: Models) -> None:
    with session.begin_nested() as undone:
        session.get(m.order, 20).user_id = 3
        session.flush()
        undone.rollback()
    with session.begin_nested():
        session.get(m.order, 10).user_id = 2


CHANGES = {
    change.__name__.strip("_"): change
    for change in (
        _add,
        _append,
        _move,
        _move_by_relationship,
        _move_unloaded,
        _merge,
        _add_many,
        _remove,
        _delete,
        _delete_owner,
        _replace_owner,
        _renumber_owner,
        _renumber_member,
        _reorder,
        _bulk_update,
        _bulk_update_to_expression,
        _bulk_by_keys,
        _bulk_delete,
        _bulk_insert,
        _insert_values,
        _insert_expression,
        _insert_from_select,
        _insert_many_values,
        _upsert,
        _core_update,
        _text,
        _savepoints,
    )
}


@pytest.mark.parametrize("ending", ["commit", "rollback"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_collection_is_what_the_database_holds(world: World, models: Models, change: Any, ending: str) -> None:
    """Whoever joins, leaves, moves or takes another's key, in whatever way: old and new owner have their members."""
    before = [selected(world, user) for user in (1, 2, 3)]
    with world.session() as session:
        change(session, models)
        session.flush()
        getattr(session, ending)()
    after = [selected(world, user) for user in (1, 2, 3)]
    assert (before == after) is (ending == "rollback")
    agree(world, models)


def test_a_member_that_left_leaves_the_collection_cached_again(world: World, models: Models) -> None:
    """The entry of the old owner is dropped by its next reader, and filled by the one after."""
    with world.session() as session:
        session.get(models.order, 10).user_id = 2
        session.commit()
    world.cache.drain()
    served = [is_served(world, models, 1) for _ in range(3)]
    assert served[-1]
    agree(world, models)


def test_another_update_of_a_member_leaves_the_collection_cached(world: World, models: Models) -> None:
    """What neither joins nor moves costs the collection nothing."""
    with world.session() as session:
        session.get(models.order, 10).note = "new"
        session.commit()
    world.cache.drain()
    assert is_served(world, models, 1)


def test_an_eviction_of_a_member_closes_the_collections(world: World, models: Models) -> None:
    """After a change past the library, `evict` of the row is enough: whom it joined, nobody knows."""
    world.outside_sql("UPDATE orders SET user_id = 2 WHERE id = 10")
    world.cache.evict(models.order, 10)
    agree(world, models)


# --- what cannot be cached -------------------------------------------------------------------------------------------


def _without_foreign_key(base: Any) -> Any:
    class Other(base):
        __tablename__ = "other"
        __writethrough__ = wt.CachePolicy(collections=["parts"])
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        parts: orm.Mapped[list[Any]] = orm.relationship(
            "Part", primaryjoin="Part.other_id == Other.id", foreign_keys="Part.other_id"
        )

    class Part(base):
        __tablename__ = "part"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        other_id: orm.Mapped[int]

    return Other, Part


def _pair(
    base: Any,
    policy: Any = True,
    *,
    foreign_key: dict[str, Any] | None = None,
    name: str = "parts",
    **relationship: Any,
) -> Any:
    class Whole(base):
        __tablename__ = "whole"
        __writethrough__ = wt.CachePolicy(collections=[name])
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        parts: orm.Mapped[list[Any]] = orm.relationship("Part", **relationship)

    class Part(base):
        __tablename__ = "part"
        if policy is not None:
            __writethrough__ = policy
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        whole_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("whole.id", **(foreign_key or {})))

    return Whole, Part


def _many_to_many(base: Any) -> Any:
    table = sa.Table(
        "both",
        base.metadata,
        sa.Column("whole_id", sa.ForeignKey("whole.id"), primary_key=True),
        sa.Column("part_id", sa.ForeignKey("part.id"), primary_key=True),
    )
    return _pair(base, secondary=table)


def _ordered_by_another_table(base: Any) -> Any:
    table = sa.Table("clock", base.metadata, sa.Column("id", sa.Integer, primary_key=True))
    return _pair(base, order_by=table.c.id)


REFUSED = {
    "no such relationship": (lambda base: _pair(base, name="nothing"), "no relationship of this name"),
    "members not cached": (lambda base: _pair(base, None), "Part is not cached itself"),
    "many to many": (_many_to_many, "only one-to-many"),
    "no foreign key": (_without_foreign_key, "no foreign key"),
    "deferrable": (lambda base: _pair(base, foreign_key={"deferrable": True}), "deferrable"),
    "excluded": (lambda base: _pair(base, wt.CachePolicy(exclude=["whole_id"])), "whole_id of Part is not cached"),
    "criteria": (
        lambda base: _pair(base, primaryjoin="and_(Part.whole_id == Whole.id, Part.id > 3)"),
        "more than a foreign key",
    ),
    "or": (
        lambda base: _pair(base, primaryjoin="or_(Part.whole_id == Whole.id, Part.id == Whole.id)", viewonly=True),
        "more than a foreign key",
    ),
    "dynamic": (lambda base: _pair(base, lazy="dynamic"), "does not load it on access"),
    "write only": (lambda base: _pair(base, lazy="write_only"), "does not load it on access"),
    "ordered elsewhere": (_ordered_by_another_table, "not a column of its members"),
}


def _register_and_configure(world_of: Callable[..., World], base: Any) -> None:
    world_of(base)
    orm.configure_mappers()


@pytest.mark.parametrize(("declare", "why"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_cached_is_refused(base: Any, sqlite_world_of: Any, declare: Any, why: str) -> None:
    """Registration says which relationship, why, and what to do; where mappers are configured later, that does."""
    held = declare(base)  # the registry does not hold them
    with pytest.raises(wt.ConfigurationError, match=why) as raised:
        _register_and_configure(sqlite_world_of, base)
    assert "collections=[" in str(raised.value)
    del held


def test_a_database_without_a_fence_is_refused(models: Models) -> None:
    """Where no lock tells who is about to join, registration says so."""
    engine = sa.create_engine("mysql+pymysql://nobody@localhost/nothing")
    with pytest.raises(wt.ConfigurationError, match="Collections are cached on postgresql, sqlite"):
        wt.register(orm.sessionmaker(engine), "memory://")
