"""How a loop's connection begins and ends: servers that are silent, hang up, or speak in pieces."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.util import greenlet_spawn

import sa_writethrough as wt
from sa_writethrough.coherence import Announce, Failed, Intent, Leased
from sa_writethrough.exceptions import CacheUnavailableError
from sa_writethrough.stores import open_async_store
from sa_writethrough.stores._connecting import Address
from sa_writethrough.stores._loop_node import LoopNode
from sa_writethrough.stores._node import NodeOptions
from sa_writethrough.testing.conformance import StoreConformance
from tests.asynchronous.loops import LoopThread, in_loop
from tests.stores.proxy import Proxy, Replies
from tests.stores.test_memcached import new_server  # noqa: F401 - a fixture


class TestExplicitIds(StoreConformance):
    """Where the server takes ids of ours, the protocol is the same on a loop."""

    @pytest.fixture
    def store(self, new_server):  # noqa: F811 - the fixture
        store = LoopThread(open_async_store(new_server.url))
        yield store
        store.stop()


@contextlib.asynccontextmanager
async def server(talk: Callable[..., object], options: str = "") -> AsyncIterator[object]:
    """Serve connections with *talk*, and open a store there."""
    peers = []

    async def serve(reader, writer):
        peers.append(writer)
        with contextlib.suppress(ConnectionError):
            await talk(reader, writer)

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        store = open_async_store(f"memcached://127.0.0.1:{port}{options}")
        try:
            yield store
        finally:
            store.close()
            for peer in peers:
                peer.close()
            await asyncio.sleep(0.01)


async def read(store, *keys):
    return await greenlet_spawn(store.read, keys, "epoch", Intent.FILL)


@in_loop
async def test_a_server_that_accepts_and_is_silent():
    """The time limit holds while connecting, too; and nobody tries again at once."""

    async def silent(reader, _writer):
        await reader.read()

    async with server(silent, "?timeout=0.1") as store:
        (reading,) = await read(store, "a")
        assert isinstance(reading, Failed)
        assert "did not answer in time" in str(reading.error)
        began = asyncio.get_running_loop().time()
        assert isinstance((await read(store, "a"))[0], Failed)
        assert asyncio.get_running_loop().time() - began < 0.1


@in_loop
async def test_a_server_that_hangs_up_at_once():
    """What it does not say is no version."""

    async def hang_up(reader, writer):
        await reader.readline()
        writer.close()

    async with server(hang_up) as store:
        (reading,) = await read(store, "a")
        assert isinstance(reading, Failed)
        assert "hung up" in str(reading.error) or "closed" in str(reading.error)


@in_loop
async def test_a_version_in_pieces_and_ids_of_our_own():
    """The greeting is put together; a server that takes ids is given them, and tokens are bound to no connection."""
    asked = []

    async def talk(reader, writer):
        await reader.readline()
        writer.write(b"VERSION 1.6")
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(b".38\r\n")
        asked.extend([await reader.readline(), await reader.readline()])
        writer.write(b"HD f0 c7 W\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(b"EN\r\n" if b" N" not in asked[1] else b"VA 0 f0 c9 W\r\n\r\n")
        await reader.read()

    async with server(talk) as store:
        (reading,) = await read(store, "a")
        assert isinstance(reading, Leased)
        assert reading.token.connection is None
        assert all(b" E" in line for line in asked)


def test_a_loop_that_ends_while_it_connects():
    """The attempt is cancelled with the loop, and leaves no socket."""

    async def silent(reader, _writer):
        await reader.read()

    async def work():
        async with server(silent, "?timeout=30") as store:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(read(store, "a"), 0.05)
            (place,) = store._nodes[0]._places.values()
            place.connecting.cancel()
            await asyncio.wait([place.connecting])

    asyncio.run(work())


@in_loop
async def test_a_read_of_several_nodes_is_cancelled():
    """What the nodes that nobody waits for any more lease is given back by each."""
    deletions = []

    async def talk(reader, writer):
        await reader.readline()
        writer.write(b"VERSION 1.6.18\r\n")
        epoch = await reader.readline()
        while b"epoch" in epoch:
            keys = [await reader.readline()]
            with contextlib.suppress(asyncio.TimeoutError):
                while True:
                    keys.append(await asyncio.wait_for(reader.readline(), 0.05))
            writer.write(b"HD f0 c7 Z\r\n" + b"VA 0 f0 c9 W\r\n\r\n" * len(keys))
            epoch = await reader.readline()
        deletions.append(epoch)
        writer.write(b"HD\r\n")
        while line := await reader.readline():
            deletions.append(line)
            writer.write(b"HD\r\n")

    async with server(talk) as one, server(talk) as two:
        places = [str(store._nodes[0].name) for store in (one, two)]
        store = open_async_store(f"memcached://{','.join(places)},127.0.0.1:1?timeout=30")
        *alive, down = store._nodes
        keys = [f"{n}" for n in range(100)]  # enough that each node has some, whatever its port
        assert {store._owner(key) for key in keys} == {*alive, down}
        keys.sort(key=lambda key: store._owner(key) is not down)  # it has failed before the others are asked
        reading = asyncio.create_task(read(store, *keys))
        while not all(node.connection and node.connection._sent for node in alive):  # noqa: ASYNC110 - no event
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        assert reading.cancelled()
        while len(deletions) < sum(store._owner(key) is not down for key in keys):  # noqa: ASYNC110 - the servers append
            await asyncio.sleep(0.01)
        assert {line.split()[0] for line in deletions} == {b"md"}
        store.close()
        await asyncio.sleep(0.01)


@in_loop
async def test_a_connection_that_failed_fails_what_is_begun_on_it(memcached):
    """A run that comes too late is told what the connection died of, and takes nothing."""
    store = open_async_store(memcached.url)
    await read(store, "a")
    node = store._nodes[0]
    connection = node.connection
    connection.fail(node._gone())
    (run,) = node.start_on(connection, [lambda _: iter(())])
    assert run.error is not None
    assert node.connection is None
    reply = await greenlet_spawn(store.submit, [Announce("a", "epoch", 1.0)])
    node.connection.fail(node._gone())
    assert isinstance((await greenlet_spawn(reply.wait))[0], Failed)
    store.close()
    await asyncio.sleep(0)


@in_loop
async def test_another_loop_finds_the_node_up_again():
    """Whether it is down is asked once: between two questions another thread may have another answer."""

    def clock():
        node._retry_at = None
        return 0.0

    node = LoopNode(Address("127.0.0.1", 1), NodeOptions(clock=clock))
    node._down, node._retry_at = node._gone(), 1.0
    with pytest.raises(CacheUnavailableError, match="gone"):
        await greenlet_spawn(node.take_checked)


def test_a_loop_that_is_closed_while_its_store_is(memcached):
    """It can be told nothing any more, and need not be."""
    store = open_async_store(memcached.url)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(read(store, "a"))
    connection = store._nodes[0]._places[loop].connection
    loop.run_until_complete(loop.shutdown_asyncgens())
    store._nodes[0]._places[loop].connection = connection  # as another thread has found it just before
    loop.close()
    store.close()


@in_loop
async def test_an_unregistration_that_is_cancelled(memcached):
    """Its store is closed all the same."""
    with Proxy(memcached.host, memcached.port) as proxy:
        store = open_async_store(f"memcached://{proxy.host}:{proxy.port}?timeout=30")
        cache = wt.register(async_sessionmaker(), store)
        await read(store, "a")
        connection = store._nodes[0].connection
        proxy.set(Replies.HOLD)
        reading = asyncio.create_task(read(store, "a"))
        ending = asyncio.create_task(cache.unregister())
        while not connection._drains:  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0)
        ending.cancel()
        await asyncio.wait([ending, reading])
        assert ending.cancelled()
        assert not connection.alive
        await asyncio.sleep(0)
