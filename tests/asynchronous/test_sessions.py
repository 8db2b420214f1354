"""Asynchronous sessions keep the promise as others do: what they commit is cached, and what they read is never stale."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import sqlalchemy as sa
from sqlalchemy import exc, orm
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker

import sa_writethrough as wt
from sa_writethrough.stores import open_store
from tests.asynchronous.loops import in_loop


@in_loop
async def test_an_inserted_row_is_cached(open_world, user):
    """A fresh session gets the row with no SQL and no connection."""
    async with open_world() as world:
        await world.add(user(id=1, name="ann"))
        with world.no_sql():
            assert await world.name_of(user, 1) == "ann"


@in_loop
async def test_an_updated_row_is_cached_as_the_database_has_it(open_world, user):
    """The values that the session did not write are the row's, and not the instance's."""
    async with open_world() as world:
        await world.add(user(id=1, name="ann", age=1))
        async with world.session() as session:
            found = await session.get(user, 1)
            with world.outside.begin() as connection:
                connection.execute(sa.text("UPDATE users SET age = 2"))
            found.name = "bob"
            if world.engine.dialect.name == "sqlite":
                await session.rollback()  # a snapshot that is old cannot write there
                (await session.get(user, 1)).name = "bob"
            await session.commit()
        await world.cache.drain()
        with world.no_sql():
            async with world.session() as session:
                found = await world.cache.get(session, user, 1)
                assert (found.name, found.age) == ("bob", 2)


@in_loop
async def test_an_update_returns_its_row(open_postgres_world, user):
    """The stored row of an UPDATE comes with it, and no SELECT follows, on each driver's cursor."""
    async with open_postgres_world() as world:
        await world.add(user(id=1, name="ann"))
        async with world.session() as session:
            (await world.cache.get(session, user, 1)).name = "bob"
            world.statements.clear()
            await session.commit()
        await world.cache.drain()
        assert len(world.statements) == 1
        with world.no_sql():
            assert await world.name_of(user, 1) == "bob"


@in_loop
async def test_a_deleted_row_is_not_cached(open_world, user):
    """After the commit of a delete nobody gets the row."""
    async with open_world() as world:
        await world.add(user(id=1, name="ann"))
        async with world.factory.begin() as session:
            await session.delete(await session.get(user, 1))
        assert await world.name_of(user, 1) is None


@in_loop
async def test_what_is_rolled_back_was_never_cached(open_world, user):
    """A rollback after a flush leaves the old value in the cache, and the old value is served meanwhile."""
    async with open_world() as world:
        await world.add(user(id=1, name="ann"))
        async with world.session() as session:
            (await session.get(user, 1)).name = "bob"
            await session.flush()
            with world.no_sql():
                assert await world.name_of(user, 1) == "ann"
            await session.rollback()
        with world.no_sql():
            assert await world.name_of(user, 1) == "ann"


@in_loop
async def test_a_session_that_is_cancelled_before_its_commit_leaves_the_old_value(open_world, user):
    """`async with session` closes it; what it had flushed is not published by the connection's next user."""
    async with open_world() as world:
        await world.add(user(id=1, name="ann"))
        with contextlib.suppress(asyncio.CancelledError):
            async with world.session() as session:
                (await session.get(user, 1)).name = "bob"
                await session.flush()
                raise asyncio.CancelledError
        await world.add(user(id=2, name="cid"))
        assert await world.name_of(user, 1) == "ann"


@in_loop
async def test_savepoints(open_world, user):
    """What a savepoint's rollback undid is not published; the rest is."""
    async with open_world() as world:
        await world.add(user(id=1, name="ann"), user(id=2, name="bob"))
        async with world.factory.begin() as session:
            (await session.get(user, 1)).name = "ann2"
            await session.flush()
            savepoint = await session.begin_nested()
            (await session.get(user, 2)).name = "bob2"
            await session.flush()
            await savepoint.rollback()
        await world.cache.drain()
        assert await world.name_of(user, 1) == "ann2"
        assert await world.name_of(user, 2) == "bob"


@in_loop
async def test_bulk_statements_and_text_are_seen(open_world, user):
    """Rows that nobody can list are not served as they were."""
    async with open_world() as world:
        await world.add(user(id=1, name="ann"), user(id=2, name="bob"))
        async with world.factory.begin() as session:
            await session.execute(sa.update(user).where(user.name == "ann").values(name="x"))
            await session.execute(sa.text("UPDATE users SET name = 'y' WHERE id = 2"))
        assert [await world.name_of(user, 1), await world.name_of(user, 2)] == ["x", "y"]


@in_loop
async def test_every_way_to_read(open_world, user):
    """`get` and `select` with the option, `cache.get`, `get_many`, and `sync_cache` inside `run_sync`, without SQL."""
    async with open_world() as world:
        await world.add(user(id=1, name="ann"), user(id=2, name="bob"))
        with world.no_sql():
            async with world.session() as session:
                assert (await session.get(user, 1, options=[wt.from_cache()])).name == "ann"
            async with world.session() as session:
                chosen = sa.select(user).where(user.id.in_([1, 2])).options(wt.from_cache())
                assert {found.name for found in await session.scalars(chosen)} == {"ann", "bob"}
            async with world.session() as session:
                assert [found.name for found in await world.cache.get_many(session, user, [2, 1])] == ["bob", "ann"]
            async with world.session() as session:
                found = await session.run_sync(lambda sync: world.cache.sync_cache.get(sync, user, 1))
                assert found.name == "ann"


@in_loop
async def test_a_miss_fills(open_world, user):
    """A reader that missed leaves the row in the cache for the next one."""
    async with open_world() as world:
        await world.add(user(id=1, name="ann"))
        await world.cache.evict(user, 1)
        assert not await world.cache.contains(user, 1)
        assert await world.name_of(user, 1) == "ann"
        assert await world.cache.contains(user, 1)
        assert world.cache.stats().fills == 1


@in_loop
async def test_a_reader_does_not_fill_while_a_writer_holds_the_row(open_postgres_world, user):
    """With the tombstone lost, the database's own lock keeps the old value out of the cache."""
    async with open_postgres_world() as world:
        await world.add(user(id=1, name="ann"))
        with world.outside.connect() as writer:
            writer.execute(sa.text("UPDATE users SET name = 'bob'"))
            await world.cache.evict_all()
            assert await world.name_of(user, 1) == "ann"
            assert not await world.cache.contains(user, 1)
            writer.commit()
        assert world.cache.stats().fills_refused == 1


@in_loop
async def test_evicting_all_of_a_model(open_world, user):
    """After `evict_all` every row comes from the database."""
    async with open_world() as world:
        await world.add(user(id=1, name="ann"))
        with world.outside.begin() as connection:
            connection.execute(sa.text("UPDATE users SET name = 'bob'"))
        await world.cache.evict_all(user)
        assert await world.name_of(user, 1) == "bob"


@in_loop
async def test_a_commit_that_the_cache_does_not_acknowledge_is_aborted(open_postgres_world, user, memcached):
    """Nothing is written while the node is away, the connection is clean, and reads go on."""
    async with open_postgres_world() as world:
        await world.add(user(id=1, name="ann"))
        memcached.stop()
        async with world.session() as session:
            (await session.get(user, 1)).name = "bob"
            with pytest.raises(wt.CacheUnavailableError):
                await session.commit()
        assert world.stored(1) == "ann"
        assert await world.name_of(user, 1) == "ann"
        memcached.start()
        await asyncio.sleep(1.1)  # `retry_after`
        await world.add(user(id=2, name="cid"))
        with world.no_sql():
            assert await world.name_of(user, 2) == "cid"


@in_loop
async def test_the_commit_of_a_failed_transaction_publishes_nothing(open_postgres_world, user):
    """PostgreSQL answers it with ROLLBACK, without an error; asyncpg cannot even tell that the transaction failed."""
    async with open_postgres_world() as world:
        await world.add(user(id=1, name="ann"))
        async with world.engine.connect() as connection:
            async with world.session(bind=connection) as session:
                (await session.get(user, 1)).name = "bob"
                await session.flush()
                with pytest.raises(exc.DBAPIError):
                    await session.execute(sa.text("SELECT 1 / 0"))
                await session.commit()
            await connection.commit()
        assert world.stored(1) == "ann"
        assert await world.name_of(user, 1) == "ann"
        assert await world.name_of(user, 1) == "ann"


@in_loop
async def test_a_savepoint_that_failed_costs_no_freshness(open_postgres_world, user):
    """After a statement failed and its savepoint was rolled back, the rows are published as committed."""
    async with open_postgres_world() as world:
        await world.add(user(id=1, name="ann"))
        async with world.factory.begin() as session:
            (await session.get(user, 1)).name = "bob"
            await session.flush()
            with pytest.raises(exc.DBAPIError):
                async with session.begin_nested():
                    await session.execute(sa.text("SELECT 1 / 0"))
        await world.cache.drain()
        with world.no_sql():
            assert await world.name_of(user, 1) == "bob"


@in_loop
async def test_a_constraint_that_fails_at_commit(open_postgres_world, base):
    """The database and the cache both keep the old value."""

    class User(base):
        __tablename__ = "users"
        __table_args__ = (sa.UniqueConstraint("name", deferrable=True, initially="DEFERRED"),)
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]

    async with open_postgres_world() as world:
        await world.add(User(id=1, name="ann"), User(id=2, name="bob"))
        async with world.session() as session:
            (await session.get(User, 1)).name = "bob"
            with pytest.raises(exc.IntegrityError):
                await session.commit()
        await world.cache.drain()
        assert await world.name_of(User, 1) == "ann"
        assert await world.name_of(User, 1) == "ann"


@in_loop
async def test_a_snapshot_reads_the_database(open_postgres_world, user):
    """A session in REPEATABLE READ is served no row that is newer than its snapshot."""
    async with open_postgres_world() as world:
        await world.add(user(id=1, name="ann"))
        async with world.engine.connect() as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ")
            async with world.session(bind=connection) as session:
                await session.execute(sa.text("SELECT 1 FROM users"))
                async with world.factory.begin() as other:
                    (await other.get(user, 1)).name = "bob"
                await world.cache.drain()
                assert (await world.cache.get(session, user, 1)).name == "ann"


@in_loop
async def test_writes_in_autocommit_are_refused(open_world, user):
    """Each statement would be final before the cache is told."""
    async with open_world() as world:
        own = world.engine.execution_options(isolation_level="AUTOCOMMIT")
        async with world.session(bind=own) as session:
            session.add(user(id=1, name="ann"))
            with pytest.raises(wt.ConfigurationError, match="AUTOCOMMIT"):
                await session.flush()


# --- registration -----------------------------------------------------------------------------------------------------


@in_loop
async def test_other_sessions_are_left_alone(open_world, user):
    """The listeners hang on a class of the factory's own; plain sessions of the process have none."""
    async with open_world() as world:
        assert world.factory.kw["sync_session_class"] is not orm.Session
        assert not [name for name in vars(orm.Session) if "writethrough" in name]
        async with async_sessionmaker(world.engine)() as other:
            assert type(other.sync_session) is orm.Session


@in_loop
async def test_a_factory_is_registered_once(open_world):
    """A second registration is refused until the first is over; afterwards the factory is as it was."""
    async with open_world() as world:
        with pytest.raises(wt.ConfigurationError, match="already"):
            wt.register(world.factory)
        await world.cache.unregister()
        await world.cache.unregister()
        assert "sync_session_class" not in world.factory.kw
        world.cache = wt.register(world.factory)


@in_loop
async def test_classes_and_scoped_sessions_are_factories(user):
    """A subclass of AsyncSession and an async_scoped_session are registered, and restored."""

    class Own(AsyncSession):
        pass

    class Given(AsyncSession):
        class sync_session_class(orm.Session):  # noqa: N801 - SQLAlchemy's name
            pass

    scoped = async_scoped_session(async_sessionmaker(), scopefunc=asyncio.current_task)
    configured = async_sessionmaker(sync_session_class=Given.sync_session_class)
    before = Given.sync_session_class
    for factory in (Own, Given, scoped, configured):
        await wt.register(factory).unregister()
    assert Own.sync_session_class is orm.Session
    assert Given.sync_session_class is before is configured.kw["sync_session_class"]


def test_stores_that_block_are_refused(memcached):
    """A store for threads would stop the loop; one of the application's own says that it does not."""
    blocking = open_store(memcached.url)
    with pytest.raises(wt.ConfigurationError, match="block"):
        wt.register(async_sessionmaker(), blocking)
    with pytest.raises(wt.ConfigurationError, match="synchronous"):
        wt.register(orm.sessionmaker(), wt.open_async_store(memcached.url))


def test_a_registration_that_fails_leaves_the_factory_as_it_was(base):
    """A model that cannot be cached is refused, and the factory can be registered again."""

    class Odd(base):
        __tablename__ = "odd"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        thing = sa.Column(sa.PickleType)

    factory = async_sessionmaker()
    with pytest.raises(wt.ConfigurationError):
        wt.register(factory)
    assert "sync_session_class" not in factory.kw
