"""How transactions end under asynchronous drivers: cancelled more than once, refused, ended by the server."""

from __future__ import annotations

import asyncio
import threading

import pytest
import sqlalchemy as sa
from sqlalchemy import exc, orm
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

import sa_writethrough as wt
from tests.asynchronous.loops import cancelled_at, in_loop
from tests.stores.proxy import Proxy, Replies

MOST_AWAITS = 60
SHORT = wt.CachePolicy(tombstone_ttl=0.1)


def cancel_here():
    """Cancel the task: it hears of it where it waits next."""
    asyncio.current_task().cancel()


@in_loop
async def test_a_writer_is_cancelled_twice_at_every_await(open_postgres_world, user):
    """While it answers the first cancellation, too: reads are the database's, and the next commit is published.

    Not on SQLite: SQLAlchemy loses a connection there whose closing is cancelled, with its lock.
    """
    async with open_postgres_world() as world:
        await world.add(user(id=1, name="0"))

        async def write(name):
            async with world.session() as session:
                (await world.cache.get(session, user, 1)).name = name
                await session.commit()

        for n in range(MOST_AWAITS):
            reached = await cancelled_at(n, write(f"cancelled {n}"), times=2)
            for _ in range(2):
                assert await world.name_of(user, 1) == world.stored(1)
            await write(f"{n}")
            await world.cache.drain()
            with world.no_sql():
                assert await world.name_of(user, 1) == f"{n}"
            if not reached:
                break
        assert not reached


@in_loop
async def test_a_cancellation_is_not_hidden_by_a_store_that_is_away(open_postgres_world, user, memcached):
    """A task that is cancelled while rows are read back ends cancelled, whatever its announcement came to."""
    with Proxy(memcached.host, memcached.port) as proxy:
        store = f"memcached://{proxy.host}:{proxy.port}?timeout=0.2"
        async with open_postgres_world(store=store, policy=wt.CachePolicy(read_back=wt.ReadBack.ALWAYS)) as world:
            await world.add(user(id=1, name="ann"))

            async def write():
                async with world.session() as session:
                    (await session.get(user, 1)).name = "bob"
                    await session.flush()
                    proxy.set(Replies.SWALLOW)
                    sa.event.listen(world.engine.sync_engine, "before_cursor_execute", lambda *_: cancel_here())
                    await session.commit()

            task = asyncio.create_task(write())
            await asyncio.wait([task])
            assert task.cancelled()
            assert world.stored(1) == "ann"


@in_loop
async def test_a_rollback_that_is_cancelled_leaves_no_tombstone_for_good(sqlite_url, base, user):
    """A COMMIT was refused, and then the task is cancelled: the tombstone gets a time limit."""
    engine = create_async_engine(sqlite_url.replace("sqlite:", "sqlite+aiosqlite:"))
    factory = async_sessionmaker(engine)
    async with engine.begin() as connection:
        await connection.run_sync(base.metadata.create_all)
    dialect, refuse = engine.dialect, []

    def do_commit(dbapi_connection):
        if refuse:
            cancel_here()
            raise dialect.loaded_dbapi.OperationalError("database is locked")
        type(dialect).do_commit(dialect, dbapi_connection)

    dialect.do_commit = do_commit
    cache = wt.register(factory, "memory://", policy=SHORT)
    async with factory.begin() as session:
        session.add(user(id=1, name="ann"))

    async def write():
        async with factory() as session:
            (await session.get(user, 1)).name = "bob"
            refuse.append(True)
            await session.commit()

    task = asyncio.create_task(write())
    await asyncio.wait([task])
    assert task.cancelled()
    assert cache.stats().unresolved == 1
    await cache.unregister()
    await engine.dispose()


@in_loop
async def test_a_cancelled_commit_that_the_drivers_thread_goes_on_with(sqlite_url, base, user):
    """No tombstone expires before the COMMIT is over: until then a reader would fill what it is about to replace."""
    engine = create_async_engine(sqlite_url.replace("sqlite:", "sqlite+aiosqlite:"))
    factory = async_sessionmaker(engine)
    async with engine.begin() as connection:
        await connection.run_sync(base.metadata.create_all)
        await connection.exec_driver_sql("PRAGMA journal_mode = WAL")
    # Nothing is read back: that would wait for the thread before the COMMIT does.
    cache = wt.register(factory, "memory://", policy=wt.CachePolicy(tombstone_ttl=0.1, on_write=wt.OnWrite.INVALIDATE))
    async with factory.begin() as session:
        session.add(user(id=1, name="ann"))
    go_on, committing = threading.Event(), asyncio.Event()

    async def write():
        async with factory() as session:
            (await session.get(user, 1)).name = "bob"
            await session.flush()
            raw = (await (await session.connection()).get_raw_connection()).driver_connection
            stalled = asyncio.create_task(raw._execute(go_on.wait, 10.0))
            await asyncio.sleep(0)
            committing.set()
            try:
                await session.commit()
            finally:
                await stalled

    async def name():
        async with factory() as session:
            return (await cache.get(session, user, 1)).name

    writer = asyncio.create_task(write())
    await committing.wait()
    while cache.stats().announced < 2:  # noqa: ASYNC110 - no event tells of it
        await asyncio.sleep(0)
    writer.cancel()
    await asyncio.sleep(0.3)  # longer than a tombstone lives
    old = await name()
    go_on.set()
    await asyncio.wait([writer])
    assert old == "ann"
    assert writer.cancelled()
    assert [await name(), await name()] == ["bob", "bob"]
    await cache.unregister()
    await engine.dispose()


@in_loop
async def test_a_statement_that_asyncpg_gave_up_waiting_for(postgres_url, base, user, memcached):
    """After `command_timeout` the transaction is over, and nothing of it is published."""
    pytest.importorskip("asyncpg")
    engine = create_async_engine(postgres_url.replace("+psycopg", "+asyncpg"), connect_args={"command_timeout": 0.5})
    factory = async_sessionmaker(engine)
    async with engine.begin() as connection:
        await connection.run_sync(base.metadata.create_all)
    cache = wt.register(factory, memcached.url)
    async with factory.begin() as session:
        session.add(user(id=1, name="ann"))
    async with factory() as session:
        (await session.get(user, 1)).name = "bob"
        await session.flush()
        with pytest.raises(TimeoutError):
            await session.execute(sa.text("SELECT pg_sleep(30)"))
        with pytest.raises(exc.SQLAlchemyError):
            await session.commit()
    async with factory() as session:
        assert (await cache.get(session, user, 1)).name == "ann"
    await cache.unregister()
    await engine.dispose()


@in_loop
async def test_the_server_ends_the_connection_before_the_commit(open_postgres_world, user):
    """Terminated by an administrator with the row written: the commit raises, and the old row is served."""
    async with open_postgres_world() as world:
        await world.add(user(id=1, name="ann"))
        async with world.session() as session:
            (await session.get(user, 1)).name = "bob"
            await session.flush()
            pid = await session.scalar(sa.text("SELECT pg_backend_pid()"))
            with world.outside.connect() as other:
                other.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
            with pytest.raises(exc.DBAPIError):
                await session.commit()
        await world.cache.drain()
        assert [await world.name_of(user, 1), world.stored(1)] == ["ann", "ann"]
        await world.add(user(id=2, name="cid"))
        assert await world.name_of(user, 2) == "cid"


@in_loop
async def test_a_driver_in_autocommit_is_refused(open_postgres_world, user):
    """Also where it was put into it past SQLAlchemy."""
    async with open_postgres_world() as world:
        sa.event.listen(world.engine.sync_engine, "connect", lambda dbapi, _: setattr(dbapi, "autocommit", True))
        async with world.session() as session:
            session.add(user(id=1, name="ann"))
            with pytest.raises(wt.ConfigurationError, match="AUTOCOMMIT"):
                await session.flush()
        assert world.stored(1) is None


@in_loop
async def test_a_database_in_memory(base, user):
    """Its connection is bound to the driver's thread, which asks it what we may not."""
    pytest.importorskip("aiosqlite")
    engine = create_async_engine("sqlite+aiosqlite://")
    factory = async_sessionmaker(engine)
    async with engine.begin() as connection:
        await connection.run_sync(base.metadata.create_all)
    cache = wt.register(factory)
    async with factory.begin() as session:
        session.add(user(id=1, name="ann"))
    async with factory() as session:
        assert (await cache.get(session, user, 1)).name == "ann"
    assert cache.stats().hits == 1
    await cache.unregister()
    await engine.dispose()


@in_loop
async def test_a_statement_that_was_prepared_before_the_table_changed(open_postgres_world, user):
    """What the driver refuses once because of DDL is not published; afterwards writes and reads go on."""
    async with open_postgres_world() as world:
        await world.add(user(id=1, name="ann"))

        async def write(name):
            async with world.factory.begin() as session:
                (await session.get(user, 1)).name = name

        await write("bob")
        with world.outside.begin() as other:
            other.execute(sa.text("ALTER TABLE users ALTER COLUMN name TYPE varchar(40)"))
        try:
            await write("cid")
        except exc.DBAPIError:
            await world.cache.drain()
            assert [await world.name_of(user, 1), world.stored(1)] == ["bob", "bob"]
            await write("cid")
        await world.cache.drain()
        assert [await world.name_of(user, 1), world.stored(1)] == ["cid", "cid"]


@in_loop
async def test_more_tasks_than_connections(open_postgres_world, user):
    """Those that are cancelled while they wait for the pool give their leases back; the others are served."""
    async with open_postgres_world() as world:
        await world.add(*[user(id=n, name=f"{n}") for n in range(8)])
        small = create_async_engine(world.engine.url, pool_size=1, max_overflow=0)

        async def read(n):
            async with world.session(bind=small) as session:
                return (await world.cache.get(session, user, n)).name

        assert await read(0) == "0"
        await world.cache.evict_all()
        async with small.connect():
            tasks = [asyncio.create_task(read(n)) for n in range(8)]
            while world.cache.stats().misses < 8:  # noqa: ASYNC110 - no event tells of it
                await asyncio.sleep(0)
            for task in tasks[:4]:
                task.cancel()
            await asyncio.wait(tasks[:4])
        assert [await task for task in tasks[4:]] == ["4", "5", "6", "7"]
        await world.cache.drain()
        assert [await world.name_of(user, n) for n in range(4)] == ["0", "1", "2", "3"]
        assert all([await world.cache.contains(user, n) for n in range(8)])
        await small.dispose()


@in_loop
async def test_synchronous_sessions_beside_asynchronous_ones(open_postgres_world, user, memcached):
    """Two registrations share the entries: what either commits, the other serves."""
    async with open_postgres_world() as world:
        await world.add(user(id=2, name="bob"))
        factory = orm.sessionmaker(world.outside)
        cache = wt.register(factory, memcached.url)
        with factory.begin() as session:
            session.add(user(id=1, name="ann"))
        cache.drain()
        with world.no_sql():
            async with world.session() as session:
                assert (await world.cache.get(session, user, 1)).name == "ann"
        async with world.factory.begin() as session:
            (await session.get(user, 1)).name = "bob"
        await world.cache.drain()
        with factory() as session:
            assert cache.get(session, user, 1).name == "bob"
        assert cache.stats().hits == 1
        cache.unregister()
