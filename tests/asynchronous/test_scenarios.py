"""The scenarios of synchronous sessions under AsyncSession: the same writes, listeners, modes and joins, no stale read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event, orm
from sqlalchemy.ext.asyncio import AsyncSession

import sa_writethrough as wt
from sa_writethrough import CacheMode
from tests.asynchronous.loops import in_loop


async def _agree(world: Any, user: Any, *idents: int) -> None:
    """Assert twice that reads through the cache return what the database holds."""
    await world.cache.drain()
    for _ in range(2):
        assert [await world.name_of(user, ident) for ident in idents] == [world.stored(ident) for ident in idents]


async def _cached(world: Any, user: Any, ident: int) -> bool:
    await world.cache.drain()
    return bool(await world.cache.contains(user, ident))


WRITES = {
    "attribute": lambda s, user: setattr(s.get(user, 1), "name", "new"),
    "merge": lambda s, user: s.merge(user(id=1, name="new")),
    "delete": lambda s, user: s.delete(s.get(user, 1)),
    "bulk update": lambda s, user: s.execute(sa.update(user).where(user.name == "ann").values(name="new")),
    "bulk by key": lambda s, user: s.execute(sa.update(user), [{"id": 1, "name": "new"}]),
    "bulk delete": lambda s, user: s.execute(sa.delete(user).where(user.name == "ann")),
    "bulk_save_objects": lambda s, user: s.bulk_save_objects([user(id=5, name="new")]),
    "bulk_update_mappings": lambda s, user: s.bulk_update_mappings(user, [{"id": 1, "name": "new"}]),
    "core": lambda s, user: s.connection().execute(sa.update(user.__table__).values(name="new")),
    "text": lambda s, user: s.execute(sa.text("UPDATE users SET name = 'new' WHERE id = 1")),
    "with": lambda s, user: s.execute(sa.text("WITH one AS (SELECT 1) UPDATE users SET name = 'new' WHERE id = 1")),
    "driver": lambda s, user: s.connection().exec_driver_sql("DELETE FROM users WHERE id = 1"),
    "insert": lambda s, user: s.scalars(sa.insert(user).values(id=5, name="new").returning(user)).all(),
    "key": lambda s, user: setattr(s.get(user, 1), "id", 5),
    "replaced": lambda s, user: (
        s.delete(s.get(user, 1)),
        s.flush(),
        s.execute(sa.insert(user).values(id=1, name="new")),
    ),
}


@pytest.mark.parametrize("write", WRITES)
@in_loop
async def test_every_kind_of_write(open_world: Any, user: Any, write: str) -> None:
    """Committed it is what everybody reads; rolled back, at once or in a savepoint, it never was."""
    async with open_world() as world:
        await world.add(user(id=1, name="ann"), user(id=2, name="bob"))

        async def written(end: str) -> None:
            async with world.session() as session:
                savepoint = await session.begin_nested() if end == "savepoint" else None
                await session.run_sync(lambda own: WRITES[write](own, user))
                await session.flush()
                session.expire_all()
                if savepoint is not None:
                    await savepoint.rollback()
                await (session.rollback() if end == "rollback" else session.commit())

        for end in ("rollback", "savepoint", "commit"):
            await written(end)
            await _agree(world, user, 1, 2, 5)
        assert (world.stored(1), world.stored(5)) != ("ann", None)


@pytest.mark.parametrize("outcomes", ["kkk", "kkr", "krk", "rkk", "rrk"])
@in_loop
async def test_savepoints_three_deep(open_world: Any, user: Any, outcomes: str) -> None:
    """What was kept in every level is published, with the value that it has in the database."""
    async with open_world() as world:
        await world.add(*(user(id=ident, name="old") for ident in (1, 2, 3, 4)))
        async with world.session() as session:
            levels = []
            for depth in (1, 2, 3):
                levels.append(await session.begin_nested())
                for ident in (depth, 4):
                    (await session.get(user, ident)).name = str(depth)
                await session.flush()
            for level, outcome in zip(reversed(levels), reversed(outcomes), strict=True):
                await (level.commit() if outcome == "k" else level.rollback())
            await session.commit()
        kept = [depth for depth in (1, 2, 3) if "r" not in outcomes[:depth]]
        assert world.stored(4) == (str(max(kept)) if kept else "old")
        await _agree(world, user, 1, 2, 3, 4)
        assert all([await _cached(world, user, ident) for ident in (1, 2, 3, 4)])


@pytest.mark.parametrize("outer", ["commit", "rollback"])
@pytest.mark.parametrize("mode", ["conditional_savepoint", "rollback_only", "create_savepoint"])
@in_loop
async def test_a_session_in_an_outer_transaction(open_world: Any, user: Any, mode: str, outer: str) -> None:
    """Nothing is published before the outer transaction ends, and nothing if it is rolled back."""
    async with open_world() as world:
        await world.add(user(id=1, name="ann"))
        async with world.engine.connect() as connection:
            transaction = await connection.begin()
            async with world.session(bind=connection, join_transaction_mode=mode) as session:
                (await session.get(user, 1)).name = "new"
                await session.commit()
            assert await world.name_of(user, 1) == "ann"
            await getattr(transaction, outer)()
        assert world.stored(1) == ("new" if outer == "commit" else "ann")
        await _agree(world, user, 1)
        assert await _cached(world, user, 1)


@pytest.mark.parametrize("raises", [False, True])
@in_loop
async def test_a_listener_that_flushes_more_in_before_commit(open_world: Any, user: Any, raises: bool) -> None:
    """What it writes is announced and published with the rest; if it raises afterwards nothing is."""
    async with open_world() as world:
        await world.add(user(id=1, name="ann"), user(id=2, name="bob"))

        def more(own: orm.Session) -> None:
            own.get(user, 2).name = "more"
            own.flush()
            if raises:
                raise RuntimeError("no")

        async with world.session() as session:
            event.listen(session.sync_session, "before_commit", more)
            (await session.get(user, 1)).name = "new"
            if raises:
                with pytest.raises(RuntimeError):
                    await session.commit()
            else:
                await session.commit()
        assert [world.stored(1), world.stored(2)] == (["ann", "bob"] if raises else ["new", "more"])
        await _agree(world, user, 1, 2)
        assert await _cached(world, user, 2)


@pytest.mark.parametrize("end", ["close", "reset", "invalidate", "connection", "collect"])
@in_loop
async def test_a_transaction_that_is_left(open_world: Any, user: Any, end: str) -> None:
    """Closed, reset, invalidated in the middle: the old row stays, and the next commit has nothing of it."""
    async with open_world() as world:
        await world.add(user(id=1, name="ann"), user(id=2, name="bob"))
        session = world.session()
        (await session.get(user, 1)).name = "new"
        await session.flush()
        if end == "connection":
            await (await session.connection()).invalidate()
            await session.rollback()
        elif end == "collect":
            async with session:  # to leave one to the garbage collector is an error of its own in asyncio
                pass
            session = world.session()
        else:
            await getattr(session, end)()
        (await session.get(user, 2)).name = "next"
        await session.commit()
        await session.close()
        assert [world.stored(1), world.stored(2)] == ["ann", "next"]
        await _agree(world, user, 1, 2)


# What is returned where the entry says "ann" and the database "eve", and whether a miss is filled.
@pytest.mark.parametrize(
    ("mode", "served", "fills"),
    [
        (CacheMode.NORMAL, "ann", True),
        (CacheMode.GET, "ann", False),
        (CacheMode.PUT, "eve", True),
        (CacheMode.REFRESH, "eve", True),
        (CacheMode.IGNORE, "eve", False),
    ],
)
@in_loop
async def test_modes(open_world: Any, user: Any, mode: CacheMode, served: str, fills: bool) -> None:
    """Each CacheMode on a hit and on a miss."""
    async with open_world() as world:
        await world.add(user(id=1, name="ann"))
        with world.outside.begin() as connection:
            connection.execute(sa.text("UPDATE users SET name = 'eve'"))
        async with world.session() as session:
            assert (await session.get(user, 1, options=[wt.from_cache(mode)])).name == served
        await world.cache.drain()
        assert await world.name_of(user, 1) == ("eve" if mode is CacheMode.REFRESH else "ann")
        await world.cache.evict(user, 1)
        async with world.session() as session:
            assert (await session.get(user, 1, options=[wt.from_cache(mode)])).name == "eve"
        assert await _cached(world, user, 1) is fills


@in_loop
async def test_an_optimistic_lock_that_fails(open_world: Any, base: Any) -> None:
    """The entry is the winner's."""

    class User(base):
        __tablename__ = "users"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]
        version: orm.Mapped[int] = orm.mapped_column()
        __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - SQLAlchemy's way

    async with open_world() as world:
        await world.add(User(id=1, name="ann"))
        async with world.session(expire_on_commit=False) as loser:
            instance = await loser.get(User, 1)
            await loser.commit()
            async with world.factory.begin() as winner:
                (await winner.get(User, 1)).name = "winner"
            instance.name = "loser"
            with pytest.raises(orm.exc.StaleDataError):
                await loser.commit()
        assert world.stored(1) == "winner"
        await _agree(world, User, 1)


@in_loop
async def test_many_tasks_write_and_read_one_row(open_postgres_world: Any, user: Any) -> None:
    """The last value wins, and no task sees the counter fall."""
    async with open_postgres_world() as world:
        await world.add(user(id=1, name="0"))
        over = asyncio.Event()

        async def write() -> None:
            for _ in range(6):
                async with world.factory.begin() as session:
                    found = await session.get(user, 1, with_for_update=True)
                    found.name = str(int(found.name) + 1)

        async def read() -> list[int]:
            seen = []
            while not over.is_set():
                seen.append(int(await world.name_of(user, 1)))
            return seen

        readers = [asyncio.create_task(read()) for _ in range(2)]
        await asyncio.gather(*(write() for _ in range(5)))
        over.set()
        for seen in await asyncio.gather(*readers):
            assert seen == sorted(seen)
        assert world.stored(1) == "30"
        await _agree(world, user, 1)


@in_loop
async def test_many_tasks_miss_one_row(open_postgres_world: Any, user: Any) -> None:
    """With OnMiss.WAIT one of fifty reads the database."""
    async with open_postgres_world(policy=wt.CachePolicy(on_miss=wt.OnMiss.WAIT, wait=5.0)) as world:
        await world.add(user(id=1, name="ann"))
        await world.cache.evict(user, 1)
        world.statements.clear()
        names = await asyncio.gather(*(world.name_of(user, 1) for _ in range(50)))
        assert names == ["ann"] * 50
        assert sum("FROM users" in statement for statement in world.statements) == 1


@in_loop
async def test_two_schemas(open_postgres_world: Any, user: Any) -> None:
    """The same key under two `schema_translate_map`s is two rows."""
    async with open_postgres_world() as world:
        with world.outside.begin() as connection:
            connection.execute(sa.text("CREATE SCHEMA other"))
            connection.execute(sa.text("CREATE TABLE other.users (LIKE users INCLUDING ALL)"))
        translated = world.engine.execution_options(schema_translate_map={None: "other"})
        await world.add(user(id=1, name="ann"))
        async with world.session(bind=translated) as session:
            session.add(user(id=1, name="eve"))
            await session.commit()
        await world.cache.drain()
        for bind, name in ((translated, "eve"), (world.engine, "ann")):
            with world.no_sql():
                async with world.session(bind=bind) as session:
                    assert (await world.cache.get(session, user, 1)).name == name
        await world.cache.evict_all(user, bind=translated)
        assert await world.cache.contains(user, 1, bind=world.engine)
        assert not await world.cache.contains(user, 1, bind=translated)


@in_loop
async def test_two_phases(open_postgres_world: Any, user: Any) -> None:
    """Prepared and committed a row is published, prepared and rolled back it is not."""
    async with open_postgres_world() as world:
        await world.add(user(id=1, name="ann"))
        for name, end in (("undone", AsyncSession.rollback), ("new", AsyncSession.commit)):
            async with world.session(twophase=True) as session:
                (await session.get(user, 1)).name = name
                await session.run_sync(lambda own: own.prepare())
                assert not await _cached(world, user, 1)
                await end(session)
            await _agree(world, user, 1)
        assert world.stored(1) == "new"
        assert await _cached(world, user, 1)
