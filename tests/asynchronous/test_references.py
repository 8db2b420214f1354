"""Asynchronous sessions: lookups by unique key, and collections by reference."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import AsyncAttrs

import sa_writethrough as wt
from tests.asynchronous.loops import in_loop


@pytest.fixture
def models(base: Any) -> tuple[Any, Any]:
    class User(AsyncAttrs, base):
        __tablename__ = "users"
        __writethrough__ = wt.CachePolicy(unique_keys=[("name",)], collections=["orders"])
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str] = orm.mapped_column(unique=True)
        orders: orm.Mapped[list[Any]] = orm.relationship("Order", order_by="Order.id")

    class Order(base):
        __tablename__ = "orders"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        user_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey(User.id))

    return User, Order


async def orders_of(world: Any, user: Any, name: str) -> list[int] | None:
    """Return the orders of the user with this name, in a session of its own."""
    async with world.session() as session:
        found = await world.cache.get_by(session, user, name=name)
        orders = None if found is None else [order.id for order in await found.awaitable_attrs.orders]
    await world.cache.drain()
    return orders


@in_loop
async def test_a_user_by_name_with_its_orders(open_world, models):
    """Pointer, row, collection and members come with no SQL; after the next commit they are what it left."""
    user, order = models
    async with open_world() as world:
        await world.add(user(id=1, name="ann"), user(id=2, name="bob"))
        await world.add(order(id=1, user_id=1), order(id=2, user_id=1), order(id=3, user_id=2))
        for _ in range(2):
            assert await orders_of(world, user, "ann") == [1, 2]
        with world.no_sql():
            assert await orders_of(world, user, "ann") == [1, 2]
        async with world.session() as session:
            statement = sa.select(user).where(user.name == "ann").options(wt.from_cache())
            assert (await world.cache.explain(session, statement)).served
            assert not (await world.cache.explain(session, sa.select(user))).served
        async with world.factory.begin() as session:
            (await session.get(order, 3)).user_id = 1
            (await session.get(order, 1)).user_id = 2
            (await session.get(user, 1)).name = "cid"
        await world.cache.drain()
        for _ in range(3):
            assert await orders_of(world, user, "ann") is None
            assert await orders_of(world, user, "cid") == [2, 3]
            assert await orders_of(world, user, "bob") == [1]
        with world.no_sql():
            assert await orders_of(world, user, "cid") == [2, 3]
