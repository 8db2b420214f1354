"""Few changes of one node, sent and understood as a whole; and whatever is not the usual answer to them."""

from __future__ import annotations

import os
import socket

import pytest

from sa_writethrough.coherence import BUSY, Announce, Failed, Fill, Hit, Intent, Publish, Settled, Token
from sa_writethrough.exceptions import CacheUnavailableError
from sa_writethrough.stores._connecting import Address
from sa_writethrough.stores._connection import Connection
from sa_writethrough.stores._direct import Announcing
from sa_writethrough.stores._nodes import Node, NodeOptions
from sa_writethrough.stores._pipeline import Run
from sa_writethrough.testing.conformance import Entry
from tests.stores.proxy import Proxy, Replies
from tests.stores.test_connection import ask
from tests.stores.test_memcached_faults import SHORT, opened


@pytest.fixture
def pair():
    """A connection, and the server's end of it."""
    ours, theirs = socket.socketpair()
    yield Connection(ours, os.getpid(), None, lambda _, error: CacheUnavailableError(repr(error))), theirs
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    ("answers", "kinds"),
    [
        ((b"HD f0 c7 Z\r\nHD c8\r\nHD c9\r\n",), [8, 9]),
        ((b"HD f0 c7 Z\r\nHD c8\r\n", b"HD c9\r\n"), [8, 9]),
        ((b"HD f0 c7 Z\r\nHD c8\r\nSERVER_ERROR full\r\n",), [8, None]),
        ((b"HD f0 c6 W\r\nHD c8\r\nHD c9\r\n",), [8, 9]),
        ((b"SERVER_ERROR full\r\nHD c8\r\nHD c9\r\n",), [None, None]),
    ],
)
def test_announcement_understands_every_answer(pair, answers, kinds):
    """The usual answer at once, an incomplete or another one through the plan, with the same tokens."""
    connection, server = pair
    node = Node(Address("nowhere"), NodeOptions())
    node.remember("e", 7)
    run = Announcing(node, connection, [Announce("a", "e", 3), Announce("b", "e", 3)], b"commands")
    connection.begin(run, b"commands")
    for answer in answers:
        server.sendall(answer)
        # Takes what is there.
        assert not connection.is_stale
    assert [getattr(outcome, "cas", None) for outcome in run.wait()] == kinds
    assert not connection.owes


def test_run_needs_a_plan(pair):
    """A run that begins without a plan must say how to make one."""
    with pytest.raises(NotImplementedError):
        Run(ask([b"mn\r\n"]), pair[0])._begun()


def test_socket_with_a_time_limit_of_its_own_is_not_asked():
    """With TLS the socket cannot be asked without reading: it is not called stale."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(1)
        connection = Connection(ours, os.getpid(), None, lambda _, error: CacheUnavailableError(repr(error)))
        theirs.close()
        assert not connection.is_stale


def test_connection_that_owes_nonsense_is_stale(pair):
    """Nonsense among the replies that are there closes the connection before anything else is sent."""
    connection, server = pair
    connection.enqueue(Run(ask([b"mg a\r\n"]), connection))
    connection.flush()
    server.sendall(b"HELLO\r\n")
    assert connection.is_stale
    assert not connection.alive


def test_closed_connection_is_stale_although_it_owes(pair):
    """What the server said before it closed reaches who waits for it; the next writer takes another connection."""
    connection, server = pair
    run = Run(ask([b"mg a\r\n"]), connection)
    connection.enqueue(run)
    connection.flush()
    server.sendall(b"EN\r\n")
    server.close()
    assert connection.is_stale
    assert run.results == ["done"]


def test_writer_finds_a_restarted_server_after_a_publication(memcached):
    """A commit does not fail because the server was restarted after the last one."""
    with opened(memcached) as store:
        entry = Entry(store, "x")
        store.post([Publish(entry.key, entry.announce(), b"row", None)])
        memcached.renew()
        assert isinstance(entry.does(Announce(entry.key, entry.epoch, 60)), Token)


def test_reader_waits_for_what_others_are_owed(memcached):
    """A reader whose connection owes replies that have not come reads them first."""
    with Proxy(memcached.host, memcached.port) as proxy, opened(proxy, connecting=SHORT) as store:
        entry = Entry(store, "x")
        entry.lease()
        proxy.set(Replies.HOLD)
        reply = store.submit([Announce("y", entry.epoch, 60)])
        assert isinstance(entry.read(), Failed)
        assert isinstance(reply.wait()[0], Failed)


def test_posted_rows_larger_than_a_part(memcached):
    """Few but large rows go in parts, like many."""
    with opened(memcached) as store:
        keys, row = ["a", "b", "c"], b"x" * 8000
        tokens = store.submit([Announce(key, "e", 60) for key in keys]).wait()
        store.post([Publish(key, token, row, None) for key, token in zip(keys, tokens, strict=True)])
        assert store.read(keys, "e", Intent.FILL) == [Hit(row)] * 3


def test_fills_of_several_connections(memcached):
    """Leases that were taken over different connections are filled over theirs."""
    with opened(memcached) as store:
        (node,) = store._nodes
        (one,) = store.read(["a"], "e", Intent.FILL)
        held = node.take()
        (two,) = store.read(["b"], "e", Intent.FILL)
        node.give(held)
        store.post([Fill("a", one.token, b"a", None), Fill("b", two.token, b"b", None)])
        store.submit([]).wait()
        assert store.read(["a", "b"], "e", Intent.LOOK) == [Hit(b"a"), Hit(b"b")]


def test_lost_tombstones_among_published_ones_are_healed(memcached):
    """Of rows published together each gets what its own entry calls for."""
    with opened(memcached) as store, opened(memcached) as other:
        keys = ["a", "b", "c"]
        tokens = store.submit([Announce(key, "e", 60) for key in keys]).wait()
        # b's tombstone is followed by a later writer's row, c's by a later writer's tombstone.
        later = other.submit([Announce(key, "e", 60) for key in keys[1:]]).wait()
        assert other.submit([Publish("b", later[0], b"later", None)]).wait() == [Settled.APPLIED]
        store.post([Publish(key, token, b"row", None) for key, token in zip(keys, tokens, strict=True)])
        store.submit([]).wait()
        (a, b, c) = other.read(keys, "e", Intent.LOOK)
        assert (a, c) == (Hit(b"row"), BUSY)
        assert not isinstance(b, Hit)
