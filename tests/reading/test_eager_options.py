"""`selectinload`, `joinedload` and the like on a lookup: the row from the cache, and at once what they ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

import sa_writethrough as wt
from tests.reading.conftest import World


class Models:
    def __init__(self, base: Any) -> None:
        class Country(base):
            __tablename__ = "country"
            __writethrough__ = True
            id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
            name: orm.Mapped[str | None]
            customers: orm.Mapped[list[Any]] = orm.relationship("Customer", viewonly=True, order_by="Customer.id")

        class Customer(base):
            __tablename__ = "customer"
            __writethrough__ = wt.CachePolicy(unique_keys=[("email",)], collections=["orders"])
            id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
            email: orm.Mapped[str] = orm.mapped_column(unique=True)
            country_id: orm.Mapped[int | None] = orm.mapped_column(sa.ForeignKey("country.id"))
            country: orm.Mapped[Any] = orm.relationship("Country", viewonly=True)
            orders: orm.Mapped[list[Any]] = orm.relationship("Order", back_populates="customer", order_by="Order.id")
            tags: orm.Mapped[list[Any]] = orm.relationship("Tag", secondary="customer_tag", order_by="Tag.id")
            guarded: orm.Mapped[Any] = orm.relationship("Country", viewonly=True, lazy="raise")
            at_once: orm.Mapped[list[Any]] = orm.relationship(
                "Tag", secondary="customer_tag", viewonly=True, lazy="selectin", order_by="Tag.id"
            )

        class Order(base):
            __tablename__ = "orders"
            __writethrough__ = True
            id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
            customer_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("customer.id"))
            customer: orm.Mapped[Any] = orm.relationship("Customer", back_populates="orders")
            items: orm.Mapped[list[Any]] = orm.relationship("Item", viewonly=True, order_by="Item.id")

        class Item(base):
            __tablename__ = "item"
            id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
            order_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("orders.id"))

        class Tag(base):
            __tablename__ = "tag"
            id: orm.Mapped[int] = orm.mapped_column(primary_key=True)

        sa.Table(
            "customer_tag",
            base.metadata,
            sa.Column("customer_id", sa.ForeignKey("customer.id"), primary_key=True),
            sa.Column("tag_id", sa.ForeignKey("tag.id"), primary_key=True),
        )
        self.country, self.customer, self.order, self.item, self.tag = Country, Customer, Order, Item, Tag


@pytest.fixture
def models(base: Any) -> Models:
    return Models(base)


@pytest.fixture
def world(models: Models, base: Any, world_of: Callable[..., World]) -> World:
    made = world_of(base)
    made.add(*(models.country(id=i, name=f"country {i}") for i in (1, 2)), *(models.tag(id=i) for i in (1, 2)))
    made.add(*(models.customer(id=i, email=f"{i}@example.org", country_id=i) for i in (1, 2)))
    made.add(models.customer(id=3, email="3@example.org"))
    made.add(*(models.order(id=i, customer_id=1 + i % 2) for i in range(1, 5)))
    made.add(*(models.item(id=i, order_id=1 + i % 4) for i in range(1, 9)))
    made.outside_sql("INSERT INTO customer_tag VALUES (1, 1), (1, 2), (2, 2)")
    return made


LOADS = {load.__name__: load for load in (orm.selectinload, orm.joinedload, orm.subqueryload, orm.immediateload)}
OPTIONS: dict[str, Callable[[Models, Any], Any]] = {
    "many-to-one": lambda m, load: load(m.customer.country),
    "one-to-many": lambda m, load: load(m.customer.orders),
    "many-to-many": lambda m, load: load(m.customer.tags),
    "below": lambda m, load: load(m.customer.orders).selectinload(m.order.items),
    "above": lambda m, load: orm.selectinload(m.customer.orders).options(load(m.order.items)),
    "below many-to-one": lambda m, load: load(m.customer.country).selectinload(m.country.customers),
    "two": lambda m, load: orm.Load(m.customer).options(load(m.customer.tags), load(m.customer.country)),
    "deferred below": lambda m, load: load(m.customer.country).defer(m.country.name),
    "guarded below": lambda m, load: load(m.customer.orders).raiseload(m.order.items),
    "lazy": lambda m, load: orm.lazyload(m.customer.orders).options(load(m.order.items)),
}


def loaded(instance: Any, seen: frozenset[Any] = frozenset()) -> Any:
    """Return what an instance has loaded, with what that has loaded."""
    if isinstance(instance, list):
        return [loaded(each, seen) for each in instance]
    if not hasattr(type(instance), "__mapper__") or instance in seen:
        return instance if not hasattr(type(instance), "__mapper__") else type(instance).__name__
    state = sa.inspect(instance)
    return {key: loaded(value, seen | {instance}) for key, value in state.dict.items() if key in state.mapper.attrs}


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("ident", [1, 3])
def test_what_is_loaded_is_the_same(world: World, models: Models, load: str, name: str, ident: int) -> None:
    """An instance from the cache has loaded what one from the database has, down to the last, and the row costs no SQL."""
    option = OPTIONS[name](models, LOADS[load])
    results = []
    for more in (), (wt.from_cache(),):
        with world.session() as session, world.counting() as seen:
            found = session.get(models.customer, ident, options=[option, *more])
            results.append(loaded(found))
            state = sa.inspect(found)
            assert state.persistent
            assert not state.modified
    assert results[0] == results[1]
    assert [sql for sql in seen if "customer.email" in sql and "WHERE customer.id = " in sql] == []


@pytest.mark.parametrize("load", LOADS)
def test_all_of_it_comes_from_the_cache(world: World, models: Models, load: str) -> None:
    """With a cached collection, and an option for the many-to-one, nothing at all is selected."""
    loads = LOADS[load]
    options = [
        loads(models.customer.orders),
        loads(models.customer.country),
        wt.from_cache(),
        wt.from_cache(models.customer.country),
    ]
    statement = sa.select(models.customer).where(models.customer.email == "1@example.org").options(*options)
    for _ in range(2):  # the first fills
        with world.session() as session, world.counting() as seen:
            session.get(models.customer, 1, options=options)
        with world.session() as session, world.counting() as by_key:
            session.scalars(statement).unique().one()
        world.cache.drain()
    # `at_once` is loaded by the class's own means, which are no option.
    assert [sql for sql in seen + by_key if "FROM tag" not in sql] == []


def test_by_unique_key(world: World, models: Models) -> None:
    """So is a lookup by unique key answered."""
    statement = (
        sa.select(models.customer)
        .where(models.customer.email == "2@example.org")
        .options(orm.selectinload(models.customer.tags), wt.from_cache())
    )
    for _ in range(2):
        with world.session() as session, world.counting() as seen:
            found = session.scalars(statement).one()
            assert [tag.id for tag in sa.inspect(found).dict["tags"]] == [2]
        world.cache.drain()
    assert not any("FROM customer " in sql and "customer.email" in sql for sql in seen)


@pytest.mark.parametrize(
    "option",
    [
        lambda m: orm.raiseload(m.customer.orders),
        lambda m: orm.selectinload(m.customer.guarded),
        lambda m: orm.lazyload(m.customer.at_once),
        lambda m: orm.selectinload(m.customer.orders.and_(m.order.id > 2)),
        lambda m: orm.joinedload(m.customer.country, innerjoin=True),
        lambda m: orm.defer(m.customer.email),
        lambda m: orm.load_only(m.customer.email),
        lambda m: orm.raiseload("*"),
    ],
    ids=["raiseload", "guarded", "at once", "criteria", "innerjoin", "defer", "load_only", "wildcard"],
)
def test_what_else_options_ask_for_is_sqlalchemys(world: World, models: Models, option: Any) -> None:
    """These are loaded by SQLAlchemy's loader, and so are several rows at once."""
    with world.session() as session, world.counting() as seen:
        found = session.get(models.customer, 1, options=[option(models), wt.from_cache()])
        plain = loaded(found)
    assert any("FROM customer" in sql for sql in seen)
    with world.session() as session:
        assert loaded(session.get(models.customer, 1, options=[option(models)])) == plain


def test_several_rows_are_sqlalchemys(world: World, models: Models) -> None:
    """Its loaders read the relationships of all rows with one SELECT; `explain` says so."""
    load = orm.selectinload(models.customer.tags)
    statement = sa.select(models.customer).where(models.customer.id.in_([1, 2])).options(load, wt.from_cache())
    with world.session() as session:
        assert not world.cache.explain(session, statement).served
        assert "several rows" in str(world.cache.explain(session, statement))
        with world.counting() as seen:
            assert [len(found.tags) for found in session.scalars(statement)] == [2, 1]
    assert len(seen) == 3  # with `at_once`


def test_an_instance_that_the_session_has(world: World, models: Models) -> None:
    """What it has not loaded is loaded by these options, as SQLAlchemy does, and not by those it was loaded with."""
    option = orm.selectinload(models.customer.orders).selectinload(models.order.items)
    statement = sa.select(models.customer).where(models.customer.id == 1)
    results = []
    for more in (), (wt.from_cache(),):
        with world.session() as session:
            held = session.get(models.customer, 1)
            found = session.scalars(statement.options(option, *more)).one()
            assert found is held
            results.append(loaded(found))
    assert results[0] == results[1]
    assert results[0]["orders"][0]["items"] != []


def test_a_target_that_the_session_has(world: World, models: Models) -> None:
    """What is asked of it is loaded although it was there; with nothing to ask of it, it may be there."""
    further = orm.selectinload(models.customer.country).selectinload(models.country.customers)
    for option, statements in (orm.selectinload(models.customer.country), 1), (further, None):
        results = []
        for more in (), (wt.from_cache(),):
            with world.session() as session:
                held = session.get(models.country, 1)
                with world.counting() as seen:
                    found = session.get(models.customer, 1, options=[option, *more])
                assert found.country is held
                results.append(loaded(found))
        assert results[0] == results[1]
        assert statements in (None, len(seen))  # one is of `at_once`


def test_there_is_no_flush_on_the_way(world: World, models: Models) -> None:
    """What `no_autoflush` keeps from the database stays so while the relationships are loaded."""
    with world.session() as session, session.no_autoflush:
        session.add(models.tag(id=1))  # would fail
        found = session.get(models.customer, 1, options=[orm.selectinload(models.customer.tags), wt.from_cache()])
        assert sa.inspect(found).dict["tags"] != []
        session.expunge_all()
    with world.session() as session:
        session.add(models.country(id=9))
        statement = sa.select(models.customer).where(models.customer.id == 1)
        options = [orm.selectinload(models.customer.tags), wt.from_cache()]
        session.scalars(statement.options(*options), execution_options={"autoflush": False}).one()
        assert len(session.new) == 1


def test_a_row_that_is_not_there(world: World, models: Models) -> None:
    """Nothing is loaded for it."""
    with world.session() as session:
        assert (
            session.get(models.customer, 99, options=[orm.selectinload(models.customer.tags), wt.from_cache()]) is None
        )
