"""The connections to a memcached: shared, pooled, bounded, forked, interrupted."""

from __future__ import annotations

import os
import threading

import pytest

from sa_writethrough.coherence import (
    BUSY,
    Announce,
    Failed,
    Fill,
    Hit,
    Intent,
    Leased,
    Publish,
    Put,
    Settled,
    Token,
)
from sa_writethrough.testing.conformance import Entry
from tests.stores.proxy import Proxy, Replies
from tests.stores.test_memcached_faults import SHORT, opened


def test_batch_larger_than_every_buffer(memcached):
    """5,000 rows of 8 KiB go there and back: neither side waits for the other to read."""
    with opened(memcached) as store:
        keys, row = [f"k{n}" for n in range(5000)], b"x" * 8192
        tokens = store.submit([Announce(key, "e", 60) for key in keys]).wait()
        rows = [Publish(key, token, row, None) for key, token in zip(keys, tokens, strict=True)]
        assert set(store.submit(rows).wait()) == {Settled.APPLIED}
        assert store.read(keys, "e", Intent.FILL) == [Hit(row)] * 5000
        tokens = store.submit([Announce(key, "e", 60) for key in keys]).wait()
        store.post([Publish(key, token, row, None) for key, token in zip(keys, tokens, strict=True)])
        assert store.read(keys, "e", Intent.FILL) == [Hit(row)] * 5000


def test_posted_changes_beyond_the_window_are_all_sent(memcached):
    """A post leaves nothing behind that only the connection's next user would send."""
    with opened(memcached) as store, opened(memcached) as witness:
        keys, row = [f"p{n}" for n in range(200)], b"x" * 8192
        store.post([Put(key, row, None) for key in keys])
        (node,) = store._nodes
        assert not any(connection.holds_back for connection in node._open)
        store.submit([]).wait()
        assert witness.read(keys, None, Intent.LOOK) == [Hit(row)] * 200


def test_nothing_is_read_without_keys(memcached):
    """No keys, no readings, and no connection either."""
    with opened(memcached) as store:
        assert list(store.read([], "e", Intent.FILL)) == list(store.read([], None, Intent.LOOK)) == []
        assert not store._nodes[0]._open


def test_posted_change_on_a_connection_in_use_is_sent_on_release(memcached):
    """A publication that may go over one connection alone does not wait for who is using it, and is not lost."""
    with opened(memcached) as store, opened(memcached) as witness:
        entry = Entry(store, "x")
        tombstone = entry.announce()
        (node,) = store._nodes
        held = node.take()
        store.post([Publish(entry.key, tombstone, b"row", None)])
        node.give(held)
        store.submit([]).wait()
        assert Entry(witness, "x").read() == Hit(b"row")


def test_replies_owed_to_others_are_handed_over(memcached):
    """Whoever uses a connection next reads the replies that others have not waited for yet, and they get them."""
    with opened(memcached) as store:
        replies = [store.submit([Announce(f"k{n}", "e", 60)]) for n in range(5)]
        assert list(store.read(["k0"], "e", Intent.LOOK)) == [BUSY]
        tokens = [reply.wait()[0] for reply in reversed(replies)]
        assert all(isinstance(token, Token) for token in tokens)
        assert all(isinstance(reply.wait()[0], Token) for reply in replies)


def test_pool_keeps_no_more_than_its_size(memcached):
    """Connections beyond `pool_size` are closed when they are given back, after what they owe."""
    with opened(memcached, pool_size=1) as store:
        (node,) = store._nodes
        taken = [node.take() for _ in range(3)]
        for connection in taken:
            node.give(connection)
        assert [connection.alive for connection in taken] == [True, False, False]
        assert isinstance(store.read(["k"], "e", Intent.FILL)[0], Leased)


@pytest.mark.parametrize("answered", [True, False])
def test_pool_keeps_a_connection_for_as_long_as_somebody_has_its_token(memcached, answered):
    """Of more threads than `pool_size` the one that leased, or announced, can fill or publish; then its place is free."""
    with opened(memcached, pool_size=1) as store:
        (node,) = store._nodes
        other = node.take()
        (leased,) = store.read(["k"], "e", Intent.FILL)
        reply = store.submit([Announce("l", "e", 60)])
        if answered:
            reply.wait()
        bound = node.take()
        node.give(other)
        node.give(bound)
        (tombstone,) = reply.wait()
        fill, publish = Fill("k", leased.token, b"row", None), Publish("l", tombstone, b"row", None)
        assert store.submit([fill]).wait() == store.submit([publish]).wait() == [Settled.APPLIED]
        assert list(store.read(["k", "l"], "e", Intent.FILL)) == [Hit(b"row")] * 2
        del leased, tombstone, reply, fill, publish
        for connection in [node.take() for _ in range(len(node._idle))]:
            node.give(connection)
        assert len(node._idle) == 1


def test_connection_that_a_token_is_settled_on_is_passed_over(memcached):
    """A reader that finds an idle connection in use takes another."""
    with opened(memcached) as store:
        (node,) = store._nodes
        first = node.take()
        node.give(first)
        with first.lock:
            second = node.take()
        node.give(second)
        assert second is not first


def test_dead_idle_connection_is_not_taken(memcached):
    """A connection that died while it was idle is left out."""
    with opened(memcached) as store:
        (node,) = store._nodes
        first = node.take()
        node.give(first)
        with first.lock:
            first.fail(OSError())
        assert isinstance(store.read(["k"], "e", Intent.FILL)[0], Leased)


def test_forked_child_opens_connections_of_its_own(memcached):
    """A child neither disturbs its parent's connections nor settles its parent's tokens on them."""
    with opened(memcached) as store:
        entry = Entry(store, "x")
        lease = entry.lease()
        child = os.fork()
        if not child:
            passed = entry.read() == BUSY and list(store.submit([]).wait()) == []
            store.close()
            os._exit(0 if passed else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert entry.fill(lease) is Settled.APPLIED


def test_child_closes_its_copies_of_connections_alone(memcached, monkeypatch):
    """In another process than the one that opened it, no connection is used, drained or settled on."""
    with opened(memcached) as store:
        entry = Entry(store, "x")
        lease = entry.lease()
        (node,) = store._nodes
        for use in (store.close, lambda: store.submit([]).wait(), entry.read):
            connection = node.take()
            node.give(connection)
            with monkeypatch.context() as child:
                child.setattr(os, "getpid", lambda: 1)
                assert connection.alive
                if lease.connection is not None:
                    assert isinstance(entry.fill(lease), Failed)
                use()
                assert not connection.alive
                store.close()


def test_slow_connection_takes_the_idle_ones_with_it(memcached):
    """When a node does not answer, its idle connections are closed as well, but for one that is in use."""
    with Proxy(memcached.host, memcached.port) as proxy, opened(proxy, connecting=SHORT) as store:
        (node,) = store._nodes
        taken = [node.take() for _ in range(3)]
        for connection in taken:
            node.give(connection)
        proxy.set(Replies.HOLD)
        with taken[0].lock:
            assert isinstance(store.read(["k"], "e", Intent.FILL)[0], Failed)
        assert [connection.alive for connection in taken] == [True, False, False]
        with taken[0].lock:
            taken[0].fail(OSError())


def test_epochs_are_not_remembered_without_bound(memcached, monkeypatch):
    """What the hot path expects of an epoch is forgotten when there are too many; reading goes on."""
    monkeypatch.setattr("sa_writethrough.stores._node._EPOCHS_REMEMBERED", 3)
    with opened(memcached) as store:
        for n in range(8):
            store.read(["k"], f"e{n}", Intent.LOOK)
            assert len(store._nodes[0].epochs) <= 3


def test_interrupted_reader_leaves_no_half_read_connection(memcached, monkeypatch):
    """Ctrl-C in the middle of an answer closes the connection."""
    with opened(memcached) as store:
        (node,) = store._nodes
        entry = Entry(store, "x")
        entry.read()
        connection = node.take()
        node.give(connection)
        real = connection.sock

        class Interrupting:
            def __getattr__(self, name):
                return getattr(real, name)

            def recv(self, size):
                raise KeyboardInterrupt

        connection.sock = Interrupting()
        with pytest.raises(KeyboardInterrupt):
            entry.read()
        assert not connection.alive
        assert entry.read() == BUSY


def test_many_threads_share_the_nodes(memcached):
    """Threads that read and write the same keys at once get whole answers, and their own."""
    with opened(memcached, pool_size=2) as store:
        wrong = []

        def work(n):
            others = ["k1", "k2", "k3"]
            for turn in range(60):
                key = f"k{turn % 7}"
                (token,) = store.submit([Announce(key, "e", 60)]).wait()
                store.post([Publish(key, token, key.encode() * 50, None)])
                for other, reading in zip(others, store.read(others, "e", Intent.FILL), strict=True):
                    if isinstance(reading, Hit) and reading != other.encode() * 50:
                        wrong.append(reading)
                    if isinstance(reading, Leased):
                        store.post([Fill(other, reading.token, other.encode() * 50, None)])
                    if isinstance(reading, Failed):
                        wrong.append(reading)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
