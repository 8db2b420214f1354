"""`from_cache(Order.customer)`: lazy many-to-one loads from the cache, as an option of any statement."""

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

        class Customer(base):
            __tablename__ = "customer"
            __writethrough__ = True
            id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
            country_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("country.id"))
            country: orm.Mapped[Any] = orm.relationship("Country")
            orders: orm.Mapped[list[Any]] = orm.relationship("Order", viewonly=True, foreign_keys="Order.customer_id")

        class Order(base):
            __tablename__ = "orders"
            __writethrough__ = True
            id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
            customer_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("customer.id"))
            payer_id: orm.Mapped[int | None] = orm.mapped_column(sa.ForeignKey("customer.id"))
            customer: orm.Mapped[Any] = orm.relationship("Customer", foreign_keys=[customer_id])
            payer: orm.Mapped[Any] = orm.relationship("Customer", foreign_keys=[payer_id])

        self.country, self.customer, self.order = Country, Customer, Order


@pytest.fixture
def models(base: Any) -> Models:
    return Models(base)


@pytest.fixture
def world(models: Models, base: Any, world_of: Callable[..., World]) -> World:
    made = world_of(base)
    made.add(models.country(id=1), models.country(id=2))
    made.add(models.customer(id=1, country_id=1), models.customer(id=2, country_id=2))
    made.add(*(models.order(id=i, customer_id=i % 2 + 1, payer_id=1) for i in range(1, 5)))
    return made


def orders(session: orm.Session, models: Models, *options: Any) -> list[Any]:
    return list(session.scalars(sa.select(models.order).order_by(models.order.id).options(*options)))


def test_a_lazy_load_is_served(world: World, models: Models) -> None:
    """The statement goes to the database, the relationship's loads do not; others of the same class do."""
    with world.session() as session:
        found = orders(session, models, wt.from_cache(models.order.customer))
        with world.no_sql():
            assert [order.customer.id for order in found] == [2, 1, 2, 1]
        session.expunge_all()
        found = orders(session, models, wt.from_cache(models.order.customer))
        with world.counting() as seen:
            assert found[0].payer.id == 1
        assert len(seen) == 1


def test_without_the_option_nothing_is_served(world: World, models: Models) -> None:
    """The option of one statement is not that of the next."""
    with world.session() as session:
        orders(session, models, wt.from_cache(models.order.customer))
        session.expunge_all()
        found = orders(session, models)
        with world.counting() as seen:
            assert found[0].customer.id == 2
        assert len(seen) == 1


def test_a_path_of_relationships(world: World, models: Models) -> None:
    """Each option is for the attribute at the end of its path; what was served itself passes it on."""
    both = wt.from_cache(models.order.customer), wt.from_cache(models.order.customer, models.customer.country)
    with world.session() as session:
        found = orders(session, models, *both)
        with world.no_sql():
            assert [order.customer.country.id for order in found] == [2, 1, 2, 1]
    with world.session() as session:
        found = orders(session, models, both[1])
        with world.counting() as seen:
            assert found[0].customer.id == 2
        assert len(seen) == 1
        with world.no_sql():
            assert found[0].customer.country.id == 2
    with world.session() as session:
        found = orders(session, models, both[0])
        with world.counting() as seen:
            assert found[0].customer.country.id == 2
        assert len(seen) == 1


def test_with_a_lookup(world: World, models: Models) -> None:
    """A lookup that is served, too, hands the option on to its instances."""
    options = wt.from_cache(), wt.from_cache(models.order.customer)
    with world.no_sql(), world.session() as session:
        assert session.get(models.order, 1, options=options).customer.id == 2
        statement = sa.select(models.order).where(models.order.id.in_([2, 3])).options(*options)
        assert [order.customer.id for order in session.scalars(statement)] == [1, 2]


def test_what_the_session_holds_keeps_its_options(world: World, models: Models) -> None:
    """An instance that was loaded without the option does not get it by a later lookup, as with SQLAlchemy's own."""
    with world.session() as session:
        held = session.get(models.order, 1)
        session.get(models.order, 1, options=[wt.from_cache(), wt.from_cache(models.order.customer)])
        statement = sa.select(models.order).where(models.order.id == 1)
        session.scalars(statement.options(wt.from_cache(), wt.from_cache(models.order.customer))).one()
        with world.counting() as seen:
            assert held.customer.id == 2
        assert len(seen) == 1


@pytest.mark.parametrize("mode", [wt.CacheMode.REFRESH, wt.CacheMode.PUT, wt.CacheMode.IGNORE])
def test_a_mode_holds_for_the_relationship(world: World, models: Models, mode: wt.CacheMode) -> None:
    """A mode that does not serve has the relationship read from the database."""
    with world.session() as session:
        found = orders(session, models, wt.from_cache(models.order.customer, mode=mode))
        with world.counting() as seen:
            assert found[0].customer.id == 2
        assert seen != []


def test_bypass_is_the_opposite(base: Any, world_of: Callable[..., World], models: Models) -> None:
    """Under `Reads.ALWAYS`, `bypass_cache(Order.customer)` has that relationship read from the database."""
    models.customer.__writethrough__ = wt.CachePolicy(reads=wt.Reads.ALWAYS)
    world = world_of(base)
    world.add(models.country(id=1))
    world.add(models.customer(id=1, country_id=1))
    world.add(models.order(id=1, customer_id=1, payer_id=1))
    with world.session() as session:
        found = orders(session, models, wt.bypass_cache(models.order.customer))
        with world.counting() as seen:
            assert found[0].customer.id == 1
        assert len(seen) == 1
        session.expunge_all()
        found = orders(session, models, wt.bypass_cache(models.order.customer))
        with world.no_sql():
            assert found[0].payer.id == 1


@pytest.mark.parametrize("way", ["joinedload", "selectinload", "lazyload", "raiseload"])
def test_beside_loader_options(world: World, models: Models, way: str) -> None:
    """A loader option on the same attribute is SQLAlchemy's; the attribute is then loaded as it says."""
    option = getattr(orm, way)(models.order.customer)
    with world.session() as session:
        found = orders(session, models, option, wt.from_cache(models.order.customer))
        if way == "raiseload":
            with pytest.raises(sa.exc.InvalidRequestError, match="raise"):
                found[0].customer  # noqa: B018
        else:
            assert found[0].customer.id == 2


def test_a_written_row_is_the_databases(world: World, models: Models) -> None:
    """A lazy load under the option sees what its own transaction wrote, and what others committed."""
    with world.session() as session:
        found = orders(session, models, wt.from_cache(models.order.customer))
        session.execute(sa.update(models.customer).where(models.customer.id == 2).values(country_id=1))
        session.expunge(found[0])
        session.add(found[0])
        assert found[0].customer.country_id == 1


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (lambda m: ("customer",), "many-to-one relationships such as"),
        (lambda m: (m.order.id,), "many-to-one relationships such as"),
        (lambda m: (m.order,), "many-to-one relationships such as"),
        (lambda m: (m.customer.orders,), r"collections=\[...\]"),
        (lambda m: (m.order.customer, m.order.payer), "does not begin where"),
        (lambda m: ("NORMAL",), "CacheMode.NORMAL"),
    ],
)
def test_what_is_no_path_is_refused(models: Models, arguments: Any, why: str) -> None:
    """The option says at once what is wrong with it."""
    with pytest.raises(wt.ConfigurationError, match=why):
        wt.from_cache(*arguments(models))


def test_a_mode_is_a_cache_mode(models: Models) -> None:
    """The mode may come first, as ever, or by its name."""
    assert wt.from_cache(wt.CacheMode.GET).mode is wt.from_cache(mode=wt.CacheMode.GET).mode is wt.CacheMode.GET
    assert wt.from_cache(wt.CacheMode.GET, models.order.customer).path == (models.order.customer.property,)
    with pytest.raises(wt.ConfigurationError, match="as the mode"):
        wt.from_cache(mode="GET")  # type: ignore[arg-type]


# --- selectinload ----------------------------------------------------------------------------------------------------


def with_customers(world: World, models: Models, *more: Any, session: orm.Session | None = None) -> list[Any]:
    options = orm.selectinload(models.order.customer), wt.from_cache(models.order.customer), *more
    if session is not None:
        return orders(session, models, *options)
    with world.session() as own:
        return [order.customer.id for order in orders(own, models, *options)]


def test_targets_come_in_one_read(world: World, models: Models) -> None:
    """`selectinload` of a many-to-one costs one read of the cache for all, and no second SELECT."""
    reads = []
    end = world.cache.subscribe(reads.append)
    with world.counting() as seen:
        assert with_customers(world, models) == [2, 1, 2, 1]
    end()
    assert len(seen) == 1
    assert [sorted(key.rpartition(":")[2] for key in event.keys) for event in reads] == [["1", "2"]]


def test_targets_that_are_missing_come_in_one_select(world: World, models: Models) -> None:
    """And are filled."""
    world.cache.evict(models.customer, 1)
    with world.counting() as seen:
        assert with_customers(world, models) == [2, 1, 2, 1]
    assert len([statement for statement in seen if "FROM customer" in statement]) >= 1
    world.cache.drain()
    with world.counting() as seen:
        assert with_customers(world, models) == [2, 1, 2, 1]
    assert len(seen) == 1


def test_without_the_option_selectinload_selects(world: World, models: Models) -> None:
    """It is SQLAlchemy's own then; and that of another attribute is not touched."""
    with world.session() as session, world.counting() as seen:
        orders(session, models, orm.selectinload(models.order.customer))
    assert len(seen) == 2
    with world.session() as session, world.counting() as seen:
        orders(session, models, orm.selectinload(models.order.payer), wt.from_cache(models.order.customer))
    assert len(seen) == 2


def test_two_attributes_and_a_lazy_one(world: World, models: Models) -> None:
    """Each attribute has its own option, and what was served passes its own on."""
    more = (
        orm.selectinload(models.order.payer),
        wt.from_cache(models.order.payer),
        # Customer 1 is loaded as whichever is loaded first, and has the path that led to it.
        wt.from_cache(models.order.customer, models.customer.country),
        wt.from_cache(models.order.payer, models.customer.country),
    )
    with world.session() as session:
        with world.counting() as seen:
            found = with_customers(world, models, *more, session=session)
        assert len(seen) == 1
        with world.no_sql():
            assert [(o.payer.id, o.customer.id, o.customer.country.id) for o in found] == [(1, 2, 2), (1, 1, 1)] * 2


@pytest.mark.parametrize("case", ["load_only", "criteria", "of_type", "loader_criteria", "chained", "wildcard"])
def test_more_than_selectinload_is_sqlalchemys(world: World, models: Models, case: str) -> None:
    """Where an option changes what is loaded of the targets, the database is asked."""
    customer = models.order.customer
    options = {
        "load_only": [orm.selectinload(customer).load_only(models.customer.id)],
        "criteria": [orm.selectinload(customer.and_(models.customer.id > 1))],
        "of_type": [orm.selectinload(customer.of_type(orm.aliased(models.customer)))],
        "loader_criteria": [orm.selectinload(customer), orm.with_loader_criteria(models.customer, sa.true())],
        "chained": [orm.selectinload(customer).joinedload(models.customer.country)],
        "wildcard": [orm.selectinload(customer), orm.raiseload("*")],
    }[case]
    with world.session() as session:
        with world.counting() as seen:
            found = orders(session, models, *options, wt.from_cache(customer))
        assert len(seen) == 2
        expected = [2, None, 2, None] if case == "criteria" else [2, 1, 2, 1]
        assert [order.customer and order.customer.id for order in found] == expected
        if case == "load_only":
            assert "country_id" in sa.inspect(found[0].customer).unloaded


def test_what_the_session_wrote_or_expired_is_selected(world: World, models: Models) -> None:
    """Its own rows come from the database, and an expired instance is refreshed by the SELECT."""
    with world.session() as session:
        customer = session.get(models.customer, 1)
        session.expire(customer)
        with world.counting() as seen:
            with_customers(world, models, session=session)
        assert len(seen) == 2
        customer.country_id = 2
        with_customers(world, models, session=session)
        session.expunge_all()
        with world.counting() as seen:
            found = with_customers(world, models, session=session)
        assert len(seen) == 2
        assert found[1].customer.country_id == 2


def test_a_target_that_is_null(base: Any, world_of: Callable[..., World], models: Models) -> None:
    """NULL refers to nobody; nothing is asked for it."""
    world = world_of(base)
    world.add(models.country(id=1))
    world.add(models.customer(id=1, country_id=1))
    world.add(models.order(id=1, customer_id=1), models.order(id=2, customer_id=1, payer_id=1))
    with world.session() as session, world.counting() as seen:
        found = orders(session, models, orm.selectinload(models.order.payer), wt.from_cache(models.order.payer))
        assert [order.payer and order.payer.id for order in found] == [None, 1]
    assert len(seen) == 1


def test_always_serves_targets(base: Any, world_of: Callable[..., World], models: Models) -> None:
    """Under `Reads.ALWAYS` of the target's class the option is not needed, and `bypass_cache` is its opposite."""
    models.customer.__writethrough__ = wt.CachePolicy(reads=wt.Reads.ALWAYS)
    world = world_of(base)
    world.add(models.country(id=1))
    world.add(models.customer(id=1, country_id=1))
    world.add(models.order(id=1, customer_id=1))
    for more, statements in ([], 1), ([wt.bypass_cache(models.order.customer)], 2):
        with world.session() as session, world.counting() as seen:
            assert orders(session, models, orm.selectinload(models.order.customer), *more)[0].customer.id == 1
        assert len(seen) == statements
