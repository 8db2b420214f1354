"""memcached as a store, against real servers.

Where the memcached on PATH is older than 1.6.27, WT_MEMCACHED may name a newer one for the tests of explicit ids.
"""

from __future__ import annotations

import os

import pytest

from sa_writethrough.coherence import Hit, Intent, Settled
from sa_writethrough.stores import open_store
from sa_writethrough.testing.conformance import Entry, StoreConformance
from tests.servers import MemcachedServer


@pytest.fixture(scope="module")
def servers():
    """Three servers for this module's stores: keys never collide, so nothing need be started afresh."""
    with MemcachedServer() as one, MemcachedServer() as two, MemcachedServer(unix=True) as three:
        yield one, two, three


class TestOneNode(StoreConformance):
    @pytest.fixture
    def store(self, servers):
        store = open_store(servers[0].url)
        yield store
        store.close()


class TestTwoNodes(StoreConformance):
    @pytest.fixture
    def store(self, servers):
        store = open_store(f"memcached://{','.join(f'{server.host}:{server.port}' for server in servers[:2])}")
        yield store
        store.close()


class TestUnixSocket(StoreConformance):
    @pytest.fixture
    def store(self, servers):
        store = open_store(servers[2].url)
        yield store
        store.close()


class NewServer(MemcachedServer):
    """A memcached that takes ids of our own, if there is one on this machine."""

    def _binary(self, name):
        return os.environ.get("WT_MEMCACHED") or super()._binary(name)


@pytest.fixture(scope="module")
def new_server():
    """A server of 1.6.27 or newer."""
    with NewServer() as server:
        if server.version() < (1, 6, 27):
            pytest.skip("this memcached takes no ids of ours; WT_MEMCACHED may name a newer one")
        yield server


class TestExplicitIds(StoreConformance):
    @pytest.fixture
    def store(self, new_server):
        store = open_store(new_server.url)
        yield store
        store.close()

    def test_token_is_good_on_every_connection(self, entry):
        """Where ids survive a restart a token is not bound to the connection that took it."""
        (node,) = entry.store._nodes
        lease = entry.lease()
        used = node.take()
        filled = entry.fill(lease)
        node.give(used)
        tombstone = entry.announce()
        entry.store.close()
        assert filled is Settled.APPLIED
        assert entry.publish(tombstone, b"new") is Settled.APPLIED
        assert entry.read() == Hit(b"new")

    def test_token_of_a_former_life_is_refused(self, entry, new_server):
        """After a restart nothing has the id of an old lease."""
        lease = entry.lease()
        new_server.renew()
        later = Entry(open_store(new_server.url), "x")
        later.store.read([entry.key], entry.epoch, Intent.FILL)
        assert entry.fill(lease, b"from before") is Settled.REFUSED
        later.store.close()
