"""A task that is cancelled, at every await of what it does: no connection is out of step, no entry is wrong."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy.util import greenlet_spawn

from sa_writethrough.coherence import Announce, Intent, Leased, Token
from sa_writethrough.stores import open_async_store
from tests.asynchronous.loops import cancelled_at, in_loop
from tests.stores.proxy import Proxy, Replies

MOST_AWAITS = 60


@in_loop
async def test_a_writer_is_cancelled_at_every_await(open_world, user):
    """Whatever became of its commit, the next reads are the database's, and the next commit is published."""
    async with open_world() as world:
        await world.add(user(id=1, name="0"))

        async def write(name):
            async with world.session() as session:
                (await world.cache.get(session, user, 1)).name = name
                await session.commit()

        for n in range(MOST_AWAITS):
            reached = await cancelled_at(n, write(f"cancelled {n}"))
            for _ in range(2):
                assert await world.name_of(user, 1) == world.stored(1)
            await write(f"{n}")
            await world.cache.drain()
            with world.no_sql():
                assert await world.name_of(user, 1) == f"{n}" == world.stored(1)
            if not reached:
                break
        assert not reached
        assert n > 3


@pytest.mark.shares_connections("SQLAlchemy leaves a connection that is cancelled while it is opened to be collected")
@in_loop
async def test_a_reader_is_cancelled_at_every_await_of_a_miss(open_world, user):
    """Its lease is given back: the next reader misses and fills."""
    async with open_world() as world:
        await world.add(user(id=1, name="ann"), user(id=2, name="bob"))
        for n in range(MOST_AWAITS):
            await world.cache.evict_all()

            async def read():
                async with world.session() as session:
                    assert [each.name for each in await world.cache.get_many(session, user, [1, 2])] == ["ann", "bob"]

            reached = await cancelled_at(n, read())
            await world.cache.drain()
            assert [await world.name_of(user, 1), await world.name_of(user, 2)] == ["ann", "bob"]
            assert await world.cache.contains(user, 1)
            assert await world.cache.contains(user, 2)
            if not reached:
                break
        assert not reached
        assert n > 1


@pytest.fixture
def proxy(memcached):
    """Between the store and memcached: answers can be held."""
    with Proxy(memcached.host, memcached.port) as proxy:
        yield proxy


def _store(proxy):
    return open_async_store(f"memcached://{proxy.host}:{proxy.port}?timeout=30&connect_timeout=30")


@in_loop
async def test_the_lease_of_a_cancelled_reader_is_given_back(proxy):
    """The answer comes when nobody waits for it any more; the connection is in step, and the key can be leased."""
    store = _store(proxy)
    await greenlet_spawn(store.read, ["other"], "epoch", Intent.LOOK)
    connection = store._nodes[0].connection
    proxy.set(Replies.HOLD)
    tasks = [
        asyncio.create_task(greenlet_spawn(store.read, keys, "epoch", Intent.FILL)) for keys in (["a"], ["b", "c"])
    ]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)
    proxy.set(Replies.PASS)
    await greenlet_spawn(store.submit(()).wait)
    readings = await greenlet_spawn(store.read, ["a", "b", "c"], "epoch", Intent.FILL)
    assert [type(reading) for reading in readings] == [Leased] * 3
    assert store._nodes[0].connection is connection
    store.close()
    await asyncio.sleep(0)


@in_loop
async def test_the_tombstone_of_a_cancelled_writer_is_given_back(proxy):
    """It did not commit: the row can be leased at once."""
    store = _store(proxy)
    await greenlet_spawn(store.read, ["other"], "epoch", Intent.LOOK)
    proxy.set(Replies.HOLD)

    def announce():
        return store.submit([Announce("a", "epoch", 60.0)]).wait()

    task = asyncio.create_task(greenlet_spawn(announce))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    proxy.set(Replies.PASS)
    await greenlet_spawn(store.submit(()).wait)
    (reading,) = await greenlet_spawn(store.read, ["a"], "epoch", Intent.FILL)
    assert isinstance(reading, Leased)
    (outcome,) = await greenlet_spawn(announce)
    assert isinstance(outcome, Token)
    store.close()
    await asyncio.sleep(0)


@in_loop
async def test_cancelled_while_connecting(proxy):
    """One attempt serves all tasks: one that is cancelled takes it from nobody."""
    store = _store(proxy)
    proxy.set(Replies.HOLD)
    tasks = [asyncio.create_task(greenlet_spawn(store.read, [key], "epoch", Intent.FILL)) for key in "abc"]
    await asyncio.sleep(0.01)
    tasks[0].cancel()
    await asyncio.wait(tasks[:1])
    proxy.set(Replies.PASS)
    assert [type((await task)[0]) for task in tasks[1:]] == [Leased, Leased]
    assert len(store._nodes[0]._places) == 1
    store.close()
    await asyncio.sleep(0)
