"""A loop's connection by itself, on a transport that only takes notes: what comes late, twice, or for nobody."""

from __future__ import annotations

import asyncio

from sqlalchemy.util import greenlet_spawn

from sa_writethrough.exceptions import CacheUnavailableError
from sa_writethrough.stores._loop_connection import LoopConnection
from sa_writethrough.stores._pipeline import Run
from tests.asynchronous.loops import in_loop


class Transport:
    """Takes notes."""

    def __init__(self):
        self.written = []

    def get_extra_info(self, _name):
        return None

    def write(self, commands):
        self.written.append(commands)

    def abort(self):
        self.written.append(None)


def opened(timeout=30.0):
    """Return a connection, its transport, and the runs that were told to be unwanted."""
    unwanted = []

    def fault(_connection, error):
        return CacheUnavailableError(repr(error))

    connection = LoopConnection(
        asyncio.get_running_loop(), timeout, fault, lambda _connection, run: unwanted.append(run)
    )
    transport = Transport()
    connection.connection_made(transport)
    return connection, transport, unwanted


def receive(connection, received):
    """Have *connection* receive what the loop would put into its buffer."""
    connection.get_buffer(-1)[: len(received)] = received
    connection.buffer_updated(len(received))


def ask(command=b"mn\r\n"):
    """Ask one thing, and return the answer's code."""
    (reply,) = yield [command]
    return [reply.code]


def begun(connection):
    """Begin a run."""
    run = Run(ask(), connection)
    connection.begin(run, b"mn\r\n")
    return run


@in_loop
async def test_commands_of_one_turn_go_together():
    """The first is sent at once, those that come while it is unanswered in one piece; the answers find their runs."""
    connection, transport, _ = opened()
    runs = [begun(connection) for _ in range(3)]
    assert transport.written == [b"mn\r\n"]
    await asyncio.sleep(0)
    assert transport.written == [b"mn\r\n", b"mn\r\nmn\r\n"]
    receive(connection, b"HD\r\nEN\r\nN")
    receive(connection, b"F\r\n")
    assert [run.results for run in runs] == [[b"HD"], [b"EN"], [b"NF"]]
    assert not connection.is_stale
    connection.fail(CacheUnavailableError("over"))


@in_loop
async def test_what_comes_after_the_end():
    """A connection that failed takes nothing in, sends nothing, and fails what is begun on it."""
    connection, transport, unwanted = opened()
    first, _second = begun(connection), begun(connection)
    connection.fail(CacheUnavailableError("over"))
    receive(connection, b"HD\r\n")
    connection.connection_lost(None)
    await asyncio.sleep(0)
    late = begun(connection)
    connection.orphan(late)
    assert str(first.error) == str(late.error) == "over"
    assert unwanted == [late]
    assert transport.written == [b"mn\r\n", None, None]


@in_loop
async def test_a_reply_that_nobody_asked_for():
    """The stream is out of step: the connection is closed."""
    connection, _transport, _ = opened()
    run = begun(connection)
    receive(connection, b"HD\r\nHD\r\n")
    assert run.results == [b"HD"]
    assert not connection.alive


@in_loop
async def test_a_run_is_given_up_once():
    """However often it is said, and whether it is done or not, it is unwanted once and answers nobody."""
    connection, _transport, unwanted = opened()
    run = begun(connection)
    connection.orphan(run)
    connection.orphan(run)
    receive(connection, b"HD\r\n")
    assert unwanted == [run]
    connection.fail(CacheUnavailableError("over"))


@in_loop
async def test_waiters_that_were_cancelled_before_their_answer():
    """The answer, and the end of what is owed, come in the same turn as the cancellation: nobody is woken twice."""
    connection, _transport, unwanted = opened()
    run = begun(connection)
    tasks = [asyncio.create_task(greenlet_spawn(wait)) for wait in (lambda: connection.wait_for(run), connection.drain)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    receive(connection, b"HD\r\n")
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)
    assert unwanted == [run]
    connection.fail(CacheUnavailableError("over"))


@in_loop
async def test_drain_waits_for_what_is_owed_now():
    """And for what that brings to be given back; tasks that go on sending do not keep it from its end."""
    connection, _transport, _ = opened()
    cancelled = begun(connection)
    connection._unwanted = lambda connection, _run: begun(connection)
    connection.orphan(cancelled)
    draining = asyncio.create_task(greenlet_spawn(connection.drain))
    await asyncio.sleep(0)
    receive(connection, b"HD\r\n")
    for _ in range(3):
        await asyncio.sleep(0)
    assert not draining.done()
    begun(connection)
    receive(connection, b"HD\r\n")
    await draining
    assert connection._sent
    connection.fail(CacheUnavailableError("over"))


@in_loop
async def test_a_greeting_that_nobody_waits_for():
    """Its answer comes after the time limit: nothing happens."""
    connection, _transport, _ = opened()
    asking = asyncio.create_task(connection.ask(b"version\r\n"))
    await asyncio.sleep(0)
    asking.cancel()
    receive(connection, b"VERSION 1.6.18\r\n")
    await asyncio.wait([asking])
    connection.fail(CacheUnavailableError("over"))


def test_usable_on_its_own_loop_alone():
    """In another thread, or after its loop, it is not."""

    async def make():
        connection, *_ = opened()
        assert connection.is_usable
        return connection

    connection = asyncio.run(make())
    assert not connection.is_usable
