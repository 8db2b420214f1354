"""Event loops come and go, many tasks share a connection, and nothing blocks a loop."""

from __future__ import annotations

import asyncio
import gc
import threading
import time

import pytest
from sqlalchemy.util import greenlet_spawn

import sa_writethrough as wt
from sa_writethrough.coherence import Announce, Evict, Failed, Hit, Intent, Leased, Publish, Put, Settled, Token
from sa_writethrough.stores import open_async_store
from sa_writethrough.stores._loops import pause
from sa_writethrough.testing.conformance import StoreConformance
from tests.asynchronous.loops import LoopThread, in_loop
from tests.servers import MemcachedServer
from tests.stores.test_memcached_faults import LockedServer


@pytest.fixture(scope="module")
def servers():
    """Two servers for this module's stores: keys never collide."""
    with MemcachedServer() as one, MemcachedServer(unix=True) as two:
        yield one, two


class TestOneNode(StoreConformance):
    """On a loop the protocol is the same."""

    @pytest.fixture
    def store(self, servers):
        store = LoopThread(open_async_store(servers[0].url))
        yield store
        store.stop()


class TestUnixSocket(StoreConformance):
    """The same over a UNIX socket."""

    @pytest.fixture
    def store(self, servers):
        store = LoopThread(open_async_store(servers[1].url))
        yield store
        store.stop()


async def read(store, *keys, intent=Intent.FILL):
    return await greenlet_spawn(store.read, keys, "epoch", intent)


async def submit(store, *changes):
    return await greenlet_spawn(lambda: store.submit(changes).wait())


async def close(store):
    store.close()
    await asyncio.sleep(0)


async def cache_row(store, key, row=b"row"):
    (token,) = await submit(store, Announce(key, "epoch", 60.0))
    assert await submit(store, Publish(key, token, row, None)) == [Settled.APPLIED]


# --- loops ------------------------------------------------------------------------------------------------------------


def test_a_loop_is_closed_and_another_one_opened(memcached):
    """Each loop has a connection of its own, which it closes when it shuts down; a store outlives them."""
    store = open_async_store(memcached.url)

    async def once():
        await cache_row(store, "a")
        assert await read(store, "a") == [b"row"]
        assert len(store._nodes[0]._places) == 1
        return int(memcached.stats()["total_connections"])

    first, second, third = [asyncio.run(once()) for _ in range(3)]
    assert third - second == second - first == 2  # the store's and the question's own; what is left open is found
    gc.collect()


def test_two_loops_at_once(memcached):
    """Loops in two threads use one store, each over its own connection; close ends both."""
    store = open_async_store(memcached.url)
    other = LoopThread(store)
    assert other.read(["a"], "epoch", Intent.LOOK)

    async def here():
        await cache_row(store, "a")
        assert len(store._nodes[0]._places) == 2
        assert [*other.read(["a"], "epoch", Intent.FILL)] == [b"row"]
        await close(store)

    asyncio.run(here())
    other.stop()


def test_a_token_of_another_loop(memcached):
    """On a server that numbers items itself a token is good on its loop's connection alone; elsewhere it is refused."""
    store = open_async_store(memcached.url)
    other = LoopThread(store)
    (token,) = other.submit([Announce("a", "epoch", 60.0)]).wait()

    async def here():
        if token.connection is not None:
            (outcome,) = await submit(store, Publish("a", token, b"row", None))
            assert isinstance(outcome, Failed)
        await close(store)

    asyncio.run(here())
    other.stop()


def test_nothing_is_posted_without_a_loop(memcached):
    """What is posted where no loop runs is dropped; what must be answered fails and does not block."""
    store = open_async_store(memcached.url)
    store.post([Evict("a")])
    assert isinstance(store.read(["a"], "epoch", Intent.LOOK)[0], Failed)
    assert isinstance(store.submit([Announce("a", "epoch", 1.0)]).wait()[0], Failed)


def test_sessions_of_two_loops(open_world, user):
    """A registration outlives its loop: the next one reads what the first one committed."""

    async def first():
        async with open_world() as world:
            await world.add(user(id=1, name="ann"))
            assert await world.name_of(user, 1) == "ann"

    asyncio.run(first())
    asyncio.run(first_again(open_world, user))


async def first_again(open_world, user):
    async with open_world() as world:
        await world.add(user(id=2, name="bob"))
        assert await world.name_of(user, 1) == "ann"
        assert await world.name_of(user, 2) == "bob"


# --- tasks ------------------------------------------------------------------------------------------------------------


@in_loop
async def test_tasks_share_one_connection(memcached):
    """32 tasks read and write, each gets its own answers, and memcached sees one connection more."""
    store = open_async_store(memcached.url)
    before = int(memcached.stats()["total_connections"])

    async def work(n):
        for turn in range(10):
            key, row = f"{n}", b"%d of %d" % (turn, n) * (1 + n * 300)
            await cache_row(store, key, row)
            assert await read(store, key) == [row]
            assert await read(store, key, f"{key}-absent", intent=Intent.LOOK) != []

    await asyncio.gather(*[work(n) for n in range(32)])
    assert int(memcached.stats()["total_connections"]) == before + 2  # the store's and the question's own
    await close(store)


@in_loop
async def test_many_sessions_at_once(open_postgres_world, user):
    """32 tasks raise counters under the row's lock and read them through the cache: each read is a committed value."""
    async with open_postgres_world() as world:
        await world.add(*[user(id=n, name="x", age=0) for n in range(4)])

        async def work(n):
            seen = -1
            for _ in range(5):
                async with world.session() as session:
                    found = await session.get(user, n % 4, with_for_update=True)
                    found.age += 1
                    mine = found.age
                    await session.commit()
                async with world.session() as session:
                    age = (await world.cache.get(session, user, n % 4)).age
                    assert age >= max(mine, seen)
                    seen = age

        await asyncio.gather(*[work(n) for n in range(32)])
        await world.cache.drain()
        async with world.session() as session:
            assert [found.age for found in await world.cache.get_many(session, user, range(4))] == [40] * 4


@in_loop
async def test_large_and_many_values(memcached):
    """Answers in many pieces, and more than fits into the window, are put together."""
    store = open_async_store(memcached.url)
    big = bytes(range(256)) * 3500
    await cache_row(store, "big", big)
    assert await read(store, "big") == [big]
    keys = [f"many-{n}" for n in range(3000)]
    assert {type(reading) for reading in await read(store, *keys)} == {Leased}
    assert await submit(store, *[Put(key, b"x", None) for key in keys]) == [Settled.APPLIED] * 3000
    await close(store)


# --- what can go wrong ------------------------------------------------------------------------------------------------


@in_loop
async def test_a_server_that_is_silent_does_not_stop_the_loop(memcached):
    """Other tasks go on; after the time limit the reader falls back, and the others fail at once."""
    store = open_async_store(f"{memcached.url}?timeout=0.3&connect_timeout=0.3")
    await cache_row(store, "a")
    memcached.pause()
    try:
        reading = asyncio.create_task(read(store, "a"))
        turns = 0
        while not reading.done():
            await asyncio.sleep(0.01)
            turns += 1
        assert turns > 5
        assert isinstance((await reading)[0], Failed)
        began = time.monotonic()
        assert isinstance((await read(store, "a"))[0], Failed)
        assert isinstance((await submit(store, Announce("a", "epoch", 1.0)))[0], Failed)
        store.post([Evict("a")])
        assert time.monotonic() - began < 0.25
    finally:
        memcached.resume()
    await close(store)


@in_loop
async def test_a_server_that_restarted_is_used_at_once(memcached):
    """The loop may not have seen yet that it hung up: an announcement finds out, and takes another connection."""
    store = open_async_store(memcached.url)
    await cache_row(store, "a")
    memcached.renew()
    (token,) = await submit(store, Announce("a", "epoch", 60.0))
    assert isinstance(token, Token)
    await close(store)


@in_loop
async def test_what_is_posted_after_a_restart_arrives(memcached):
    """Where a connection must be opened first, a task of the store's own does it, and `drain` waits for that."""
    store = open_async_store(memcached.url)
    await submit(store, Put("a", b"row", None))
    memcached.renew()
    await asyncio.sleep(0.05)
    store.post([Put("a", b"new", None), Put("a", b"newer", None)])
    await submit(store)
    assert await greenlet_spawn(store.read, ["a"], None, Intent.LOOK) == [b"newer"]
    await close(store)


@in_loop
async def test_a_server_that_speaks_another_protocol():
    """It is refused when it is connected to, and the node counts as down."""

    async def serve(reader, writer):
        await reader.readline()
        writer.write(b"HTTP/1.1 400 Bad Request\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        store = open_async_store(f"memcached://127.0.0.1:{port}")
        (reading,) = await read(store, "a")
        assert isinstance(reading, Failed)
        assert "not memcached's answer" in str(reading.error)
        await close(store)


@in_loop
async def test_an_answer_that_is_none(memcached):
    """A connection on which the server speaks out of turn is closed, and whoever waits on it fails."""

    async def serve(reader, writer):
        await reader.readline()
        writer.write(b"VERSION 1.6.18\r\n")
        await reader.readline()
        writer.write(b"nonsense\r\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        store = open_async_store(f"memcached://127.0.0.1:{port}")
        assert isinstance((await read(store, "a"))[0], Failed)
        assert store._nodes[0].connection is None
        await close(store)


@in_loop
async def test_nobody_listens(memcached):
    """A node that cannot be connected to fails reads and announcements, and says why."""
    url = memcached.url
    memcached.stop()
    store = open_async_store(url)
    (reading,) = await read(store, "a")
    assert isinstance(reading, Failed)
    assert isinstance(reading.error, wt.CacheUnavailableError)
    assert "is it running" in str(reading.error)
    assert isinstance((await read(store, "a", "b"))[1], Failed)
    await close(store)
    memcached.start()


@in_loop
async def test_several_nodes(memcached, memcached_factory):
    """Keys are shared out; one node's outage fails its keys alone."""
    other = memcached_factory()
    store = open_async_store(f"{memcached.url},{other.host}:{other.port}?retry_after=0.05")
    keys = [f"{n}" for n in range(20)]
    for key in keys:
        await cache_row(store, key)
    assert {type(reading) for reading in await read(store, *keys)} == {bytes}
    other.stop()
    readings = await read(store, *keys)
    assert {Failed, bytes} == {type(reading) for reading in readings}
    assert all(isinstance(reading, Hit | Failed) for reading in readings)
    await close(store)


@in_loop
async def test_credentials():
    """A server with -Y lets in who has the password, and the complaint about another does not show it."""
    with LockedServer() as server:
        place = f"{server.host}:{server.port}"
        store, wrong = (
            open_async_store(f"memcached://user:right@{place}"),
            open_async_store(f"memcached://a:bad@{place}"),
        )
        await cache_row(store, "a")
        (reading,) = await read(wrong, "a")
        assert "refused" in str(reading.error)
        assert "bad" not in str(reading.error)
        await close(store)
        await close(wrong)


def test_a_hit_needs_no_thread(open_postgres_world, user):
    """Neither a read nor a commit starts a thread."""

    async def work():
        async with open_postgres_world() as world:
            await world.add(user(id=1, name="ann"))
            threads = set(threading.enumerate())
            assert await world.name_of(user, 1) == "ann"
            await world.add(user(id=2, name="bob"))
            assert set(threading.enumerate()) == threads

    asyncio.run(work())


def test_a_pause_leaves_the_loop_to_others():
    """Who waits beside a task sleeps on its loop; a thread that runs no loop sleeps itself."""
    order = []

    async def waiting():
        await greenlet_spawn(pause, 0.05)
        order.append("waited")

    async def other():
        await asyncio.sleep(0)
        order.append("ran")

    async def both():
        await asyncio.gather(waiting(), other())

    asyncio.run(both())
    assert order == ["ran", "waited"]
    started = time.monotonic()
    pause(0.02)
    assert time.monotonic() - started >= 0.02
