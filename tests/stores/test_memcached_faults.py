"""memcached that is down, slow, full, restarted, killed: what the store tells, and what it never does."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from contextlib import contextmanager

import pytest

from sa_writethrough.coherence import (
    BUSY,
    MISSING,
    Announce,
    AnnounceEpoch,
    Evict,
    EvictEpoch,
    Failed,
    Hit,
    Intent,
    Leased,
    Publish,
    Put,
    Retract,
    Settled,
    Token,
)
from sa_writethrough.exceptions import CacheUnavailableError, ConfigurationError
from sa_writethrough.stores import open_store
from sa_writethrough.stores._connecting import Address, ConnectOptions
from sa_writethrough.stores._nodes import Node, NodeOptions, Ring
from sa_writethrough.stores.memcached import MAX_ITEM_BYTES, MemcachedStore
from sa_writethrough.testing.conformance import Entry
from tests.servers import MemcachedServer
from tests.stores.proxy import Proxy, Replies
from tests.stores.test_memory import Clock

LIMITS = ConnectOptions(connect_timeout=2.0, timeout=5.0)
SHORT = ConnectOptions(connect_timeout=2.0, timeout=0.05)


@contextmanager
def opened(*servers, connecting=LIMITS, **options):
    """A store of *servers*, closed at the end."""
    choices = NodeOptions(connecting, **{name: options.pop(name) for name in ("pool_size", "clock") if name in options})
    store = MemcachedStore([Address(server.host, server.port) for server in servers], choices, **options)
    try:
        yield store
    finally:
        store.close()


def on_node(store, n):
    """A key that node *n* owns."""
    return next(key for key in map(str, range(1000)) if store._owner(key) is store._nodes[n])


# --- down -----------------------------------------------------------------------------------------------------------


def test_node_that_is_down_is_told_and_named(memcached):
    """Every method answers with what is wrong, where, and what to do; none raises."""
    memcached.stop()
    with opened(memcached) as store:
        (reading,) = store.read(["k"], "e", Intent.FILL)
        assert isinstance(reading, Failed)
        assert isinstance(reading.error, CacheUnavailableError)
        assert f"{memcached.host}:{memcached.port}" in str(reading.error)
        assert "is it running" in str(reading.error)
        changes = [Announce("k", "e", 1), AnnounceEpoch("e", 1), Evict("k2"), EvictEpoch("e2"), Put("p", b"", None)]
        assert {type(outcome) for outcome in store.submit(changes).wait()} == {Failed}
        assert {type(reading) for reading in store.read(["a", "b"], None, Intent.LOOK)} == {Failed}
        store.post([Evict("k"), Put("p", b"", None)])
        assert list(store.submit([]).wait()) == []


def test_node_that_is_down_is_tried_again_after_a_while(memcached):
    """Until `retry_after` seconds have passed nobody tries; then the node is used again."""
    clock = Clock()
    memcached.stop()
    with opened(memcached, clock=clock) as store:
        entry = Entry(store, "x")
        first = entry.read()
        assert isinstance(first, Failed)
        memcached.start()
        clock.advance(0.9)
        assert entry.read() == first
        clock.advance(0.2)
        assert isinstance(entry.read(), Leased)
        assert entry.read() == BUSY


def test_node_that_stays_down_is_tried_once_per_while(memcached):
    """Each time the wait is over one attempt is made, and the wait begins again."""
    clock = Clock()
    with Proxy(memcached.host, memcached.port) as proxy, opened(proxy, clock=clock) as store:
        memcached.stop()
        for attempts in (1, 2, 3):
            for _ in range(5):
                assert isinstance(store.read(["k"], "e", Intent.FILL)[0], Failed)
            assert proxy.accepted == attempts
            clock.advance(1.1)


def test_unknown_host_is_a_failure():
    """A name that does not resolve is told like a node that is down."""
    store = MemcachedStore([Address("nowhere.invalid")])
    (reading,) = store.read(["k"], "e", Intent.FILL)
    assert isinstance(reading, Failed)
    assert "nowhere.invalid" in str(reading.error)


def test_node_that_hangs_up_is_a_failure():
    """Something that takes the connection and closes it instead of telling its version is told like a node down."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up():
            peer, _ = listener.accept()
            with peer:
                peer.recv(100)

        thread = threading.Thread(target=hang_up)
        thread.start()
        (reading,) = MemcachedStore([Address(*listener.getsockname())]).read(["k"], "e", Intent.FILL)
        thread.join()
    assert isinstance(reading, Failed)
    assert "MemcacheUnexpectedCloseError" in str(reading.error)


# --- slow -----------------------------------------------------------------------------------------------------------


def test_slow_node_costs_one_time_limit(memcached):
    """A node that does not answer in time is left alone for a while."""
    clock = Clock()
    with Proxy(memcached.host, memcached.port) as proxy, opened(proxy, connecting=SHORT, clock=clock) as store:
        entry = Entry(store, "x")
        assert isinstance(entry.read(), Leased)
        proxy.set(Replies.HOLD)
        slow = entry.read()
        assert isinstance(slow, Failed)
        assert "did not answer in time" in str(slow.error)
        assert entry.read() == slow
        proxy.set(Replies.PASS)
        assert entry.read() == slow
        clock.advance(1.1)
        assert entry.read() == BUSY


def test_late_answer_is_nobody_elses(memcached):
    """A connection whose answer came too late is closed: the next reader cannot take that answer for its own."""
    clock = Clock()
    with Proxy(memcached.host, memcached.port) as proxy, opened(proxy, connecting=SHORT, clock=clock) as store:
        one, two = Entry(store, "one"), Entry(store, "two")
        one.fill(one.lease(), b"one")
        two.fill(two.lease(), b"two")
        proxy.set(Replies.HOLD)
        assert isinstance(one.read(), Failed)
        proxy.set(Replies.PASS)
        clock.advance(1.1)
        assert two.read() == Hit(b"two")
        assert proxy.accepted == 2


def test_lost_reply_of_an_announcement_is_unknown(memcached):
    """An announcement that took effect without an answer is Failed, and the entry is busy."""
    with Proxy(memcached.host, memcached.port) as proxy, opened(proxy, connecting=SHORT) as store:
        entry = Entry(store, "x")
        entry.fill(entry.lease())
        proxy.set(Replies.SWALLOW)
        assert isinstance(entry.does(Announce(entry.key, entry.epoch, 60)), Failed)
        with opened(memcached) as direct:
            assert Entry(direct, "x").read() == BUSY


def test_paused_server_cannot_hang_the_store(memcached):
    """A server that stops reading costs the time limit, however much was to be sent."""
    with opened(memcached, connecting=SHORT) as store:
        store.read(["k"], "e", Intent.FILL)
        memcached.pause()
        try:
            outcomes = store.submit([Put(f"k{n}", b"x" * 900_000, None) for n in range(20)]).wait()
        finally:
            memcached.resume()
        assert {type(outcome) for outcome in outcomes} == {Failed}


# --- restarted ------------------------------------------------------------------------------------------------------


def test_lease_from_before_a_restart_fills_nothing(memcached):
    """Although the restarted server counts its items from one again, the old lease matches none of them."""
    with opened(memcached) as store, opened(memcached) as reader:
        entry = Entry(store, "x")
        lease = entry.lease()
        memcached.renew()
        # The same commands again: the same ids.
        again = Entry(reader, "x")
        assert isinstance(again.read(), Leased | Failed)
        outcome = entry.fill(lease, b"from before")
        assert isinstance(outcome, Failed) or outcome is Settled.REFUSED
        assert not isinstance(again.read(), Hit)


def test_tombstone_from_before_a_restart_publishes_nothing(memcached):
    """A tombstone that a restart has lost is not published over another writer's."""
    with opened(memcached) as store, opened(memcached) as other:
        entry = Entry(store, "x")
        tombstone = entry.announce()
        memcached.renew()
        later = Entry(other, "x").announce()
        store.post([Publish(entry.key, tombstone, b"old", None)])
        store.submit([]).wait()
        assert Entry(other, "x").read() == BUSY
        assert Entry(other, "x").publish(later, b"new") is Settled.APPLIED


def test_writer_finds_a_restarted_server_at_once(memcached):
    """An announcement does not fail because the pool's connections are of the server's former life."""
    with opened(memcached) as store:
        entry = Entry(store, "x")
        entry.announce()
        memcached.renew()
        entry.announce()


def test_reader_finds_a_restarted_server_at_the_second_attempt(memcached):
    """A connection that the server has closed costs one reading, not a second's wait."""
    with opened(memcached) as store:
        entry = Entry(store, "x")
        entry.read()
        memcached.renew()
        assert isinstance(entry.read(), Failed)
        assert isinstance(entry.read(), Leased)


def test_killed_server_fails_what_was_under_way(memcached):
    """Whoever waits for a killed server is told; what was posted is dropped."""
    with opened(memcached) as store:
        entry = Entry(store, "x")
        tombstone = entry.announce()
        memcached.pause()
        reply = store.submit([Announce("y", entry.epoch, 60)])
        store.post([Publish(entry.key, tombstone, b"row", None)])
        memcached.kill()
        assert isinstance(reply.wait()[0], Failed)
        assert isinstance(store.submit([Announce("y", entry.epoch, 60)]).wait()[0], Failed)
        store.post([Publish(entry.key, tombstone, b"row", None)])


# --- several nodes --------------------------------------------------------------------------------------------------


def test_ring_never_moves_keys(memcached_factory):
    """While one of three nodes is down its keys fail, the others' keys stay where they are, and so do its own."""
    servers = [memcached_factory() for _ in range(3)]
    with opened(*servers) as store:
        keys = [f"k{n}" for n in range(60)]
        store.submit([Put(key, key.encode(), None) for key in keys]).wait()
        dead = store._nodes[1]
        servers[1].stop()
        store.read(keys, None, Intent.LOOK)
        readings = dict(zip(keys, store.read(keys, None, Intent.LOOK), strict=True))
        for key, reading in readings.items():
            assert isinstance(reading, Failed) if store._owner(key) is dead else reading == Hit(key.encode())
        assert {type(reading) for reading in readings.values()} == {Failed, Hit}


def test_ring_is_the_same_in_every_process():
    """A key's node depends on the names of the nodes alone, not on their order, and each has about its share."""
    nodes = [Node(Address(f"10.0.0.{n}"), NodeOptions()) for n in range(3)]
    keys = [f"wt1:app:user::{n}" for n in range(3000)]
    ring, reversed_ring, smaller = Ring(nodes), Ring(nodes[::-1]), Ring(nodes[:2])
    owners = [ring.owner(key).name for key in keys]
    assert owners == [reversed_ring.owner(key).name for key in keys]
    assert min(owners.count(node.name) for node in nodes) > 700
    kept = [smaller.owner(key).name for key in keys]
    assert all(now == before for now, before in zip(kept, owners, strict=True) if before != nodes[2].name)


def test_epoch_is_announced_on_every_node_or_failed(memcached_factory):
    """If one node does not confirm an epoch's announcement, it is Failed."""
    servers = [memcached_factory() for _ in range(2)]
    with opened(*servers) as store:
        (token,) = store.submit([AnnounceEpoch("e", 60)]).wait()
        assert isinstance(token, Token)
        assert list(store.read([on_node(store, 0), on_node(store, 1)], "e", Intent.FILL)) == [BUSY, BUSY]
        servers[1].stop()
        assert isinstance(store.submit([Retract("e", token)]).wait()[0], Failed)
        assert isinstance(store.submit([AnnounceEpoch("e", 60)]).wait()[0], Failed)
        assert isinstance(store.submit([EvictEpoch("e")]).wait()[0], Failed)


# --- refusals -------------------------------------------------------------------------------------------------------


def test_server_without_ids_is_a_configuration_error(memcached_factory):
    """A memcached that was started with -C cannot tell whose a lease is, and says how to start it."""
    with opened(memcached_factory("-C")) as store:
        with pytest.raises(ConfigurationError, match="without -C"):
            store.read(["k"], "e", Intent.FILL)
        with pytest.raises(ConfigurationError, match="without -C"):
            store.submit([Announce("k", "e", 60)]).wait()
        with pytest.raises(ConfigurationError, match="without -C"):
            store.submit([AnnounceEpoch("e", 60)]).wait()


def test_row_over_the_limit_is_published_as_absent(memcached):
    """A row that is too large does not stay a tombstone, a lease, or an old value."""
    with opened(memcached, max_item_bytes=1000) as store:
        entry = Entry(store, "x")
        assert entry.fill(entry.lease(), b"x" * 992) is Settled.APPLIED
        assert entry.publish(entry.announce(), b"x" * 993) is Settled.APPLIED
        assert entry.read(Intent.LOOK) == MISSING
        assert entry.fill(entry.lease(), b"x" * 993) is Settled.REFUSED
        assert entry.read(Intent.LOOK) == MISSING
        entry.does(Put(entry.key, b"small", None))
        assert entry.does(Put(entry.key, b"x" * 1001, None)) is Settled.REFUSED
        assert list(store.read([entry.key], None, Intent.LOOK)) == [MISSING]


def test_default_limit_is_what_the_server_takes(memcached):
    """The largest row that is sent by default is stored by a server with default limits."""
    with opened(memcached) as store:
        entry = Entry(store, "x" * 200)
        row = b"x" * (MAX_ITEM_BYTES - 8)
        assert entry.publish(entry.announce(), row) is Settled.APPLIED
        assert entry.read() == Hit(row)


def test_row_over_the_servers_own_limit(memcached):
    """Where our limit is above the server's, a row is published as absent, and a fill or a put is Failed."""
    with opened(memcached, max_item_bytes=8 * 1024 * 1024) as store:
        entry, row = Entry(store, "x"), b"x" * 2 * 1024 * 1024
        outcome = entry.publish(entry.announce(), row)
        assert outcome in {Settled.APPLIED, Settled.REFUSED}
        assert entry.read(Intent.LOOK) == MISSING
        outcome = entry.fill(entry.lease(), row)
        assert isinstance(outcome, Failed)
        assert "-I" in str(outcome.error)
        assert entry.read(Intent.LOOK) in {MISSING, BUSY}
        assert isinstance(entry.does(Put("p", row, None)), Failed)


def test_full_server_fails_the_announcement(memcached_factory):
    """A server that has no memory left for a tombstone and may not evict does not acknowledge it."""
    with opened(memcached_factory("-m", "4", "-M")) as store:
        outcomes = store.submit([Put(f"k{n}", b"x" * 900_000, None) for n in range(100)]).wait()
        assert isinstance(outcomes[-1], Failed)
        announced = store.submit([Announce(f"a{n}" + "x" * 200, "e", 60) for n in range(10_000)]).wait()
        assert any(isinstance(outcome, Failed) for outcome in announced)


class LockedServer(MemcachedServer):
    """A server that answers nobody who gives no password."""

    def _prepare(self):
        secrets = self.directory / "auth"
        secrets.write_text("user:right\n")
        self._own(secrets)
        self._arguments = ("-Y", str(secrets))

    def _answers(self):
        with contextlib.suppress(OSError), self._connect(1.0):
            return True
        return False


def test_credentials():
    """A server with -Y lets in who has the password, and the complaint about another does not show it."""
    with LockedServer() as server:
        place = f"{server.host}:{server.port}"
        right, wrong = open_store(f"memcached://user:right@{place}"), open_store(f"memcached://user:wrong@{place}")
        assert isinstance(right.read(["k"], "e", Intent.FILL)[0], Leased)
        (refused,) = wrong.read(["k"], "e", Intent.FILL)
        assert isinstance(refused, Failed)
        assert "user" in str(refused.error)
        assert "wrong" not in str(refused.error)
        right.close()
        wrong.close()


class TlsServer(MemcachedServer):
    """A server that speaks TLS alone."""

    def __init__(self, certificate, key):
        super().__init__()
        self._pair = certificate, key

    def _prepare(self):
        copies = [self.directory / path.name for path in self._pair]
        for path, copy in zip(self._pair, copies, strict=True):
            copy.write_bytes(path.read_bytes())
            self._own(copy)
        self._arguments = ("-Z", "-o", f"ssl_chain_cert={copies[0]},ssl_key={copies[1]}")

    def _answers(self):
        with contextlib.suppress(OSError), self._connect(1.0):
            return True
        return False


def test_tls(tmp_path):
    """With tls=1 the server must have a certificate of the authority in tls_ca; the time limit holds."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-keyout",
        key,
        "-out",
        certificate,
    ]
    subprocess.run([*made, *names], check=True, capture_output=True)
    with TlsServer(certificate, key) as server:
        url = f"memcached://localhost:{server.port}?tls=1&timeout=0.2&connect_timeout=2"
        store, stranger = open_store(f"{url}&tls_ca={certificate}"), open_store(url)
        entry = Entry(store, "x")
        entry.fill(entry.lease(), b"x" * 50_000)
        assert entry.read() == Hit(b"x" * 50_000)
        assert isinstance(stranger.read(["k"], "e", Intent.FILL)[0], Failed)
        server.pause()
        slow = entry.read()
        server.resume()
        assert isinstance(slow, Failed)
        assert "did not answer in time" in str(slow.error)
        store.close()
        stranger.close()
