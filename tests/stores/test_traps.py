"""The traps of the design's section 2 that a store answers: 7, 8 and 9."""

from __future__ import annotations

import contextlib

import pytest
from sqlalchemy.orm import sessionmaker

import sa_writethrough as wt
from sa_writethrough.coherence import BUSY, MISSING, Announce, Hit, Intent, Leased, Publish, Settled, Token
from sa_writethrough.exceptions import ConfigurationError
from sa_writethrough.stores import open_store
from sa_writethrough.testing.conformance import Entry
from tests.stores.proxy import Proxy
from tests.stores.test_memcached import NewServer
from tests.stores.test_memcached_faults import opened
from tests.stores.test_memory import Clock

EXPLICIT_IDS = (1, 6, 27)


class Row:
    """A row with its entry: written and read as the protocol says, in a database that is one variable."""

    def __init__(self, entry):
        self.entry = entry
        self.committed = b""

    def write(self, row):
        """Commit *row* if its announcement is acknowledged."""
        token = self.entry.does(Announce(self.entry.key, self.entry.epoch, 60.0))
        if isinstance(token, Token):
            self.committed = row
            self.entry.publish(token, row)

    def read(self):
        """Return the row from the cache, else from the database."""
        reading = self.entry.read()
        if isinstance(reading, Leased):
            self.entry.fill(reading.token, self.committed)
        return reading if isinstance(reading, Hit) else self.committed


def test_trap_07_a_post_that_was_never_seen_leaves_no_stale_value(memcached):
    """A publication that the server never got raises nothing, and the acknowledged tombstone is still there."""
    with contextlib.ExitStack() as network:
        proxy = network.enter_context(Proxy(memcached.host, memcached.port))
        with opened(proxy) as store, opened(memcached) as direct:
            entry, witness = Entry(store, "x"), Entry(direct, "x")
            entry.publish(entry.announce(), b"old")
            tombstone = entry.announce()
            network.close()
            store.post([Publish(entry.key, tombstone, b"new", None)])
            store.submit([]).wait()
            assert witness.read() == BUSY


def test_trap_07_a_key_never_moves_to_another_node(memcached_factory):
    """While its node is down a row is neither written nor kept elsewhere, so no later outage brings old data back."""
    home, other, clock = memcached_factory(), memcached_factory(), Clock()
    with opened(home, other, clock=clock) as store, opened(other) as elsewhere:
        names = (Entry(store, str(n)) for n in range(1000))
        row = Row(next(entry for entry in names if store._owner(entry.key) is store._nodes[0]))
        row.write(b"1")
        home.stop()
        for _ in range(3):  # the first finds its connection gone, the next the node down, the last knows it
            row.write(b"2")
            assert row.read() == row.committed
        home.start()
        clock.advance(1.1)
        assert row.read() == row.committed
        row.write(b"3")
        assert row.read() == b"3"
        home.stop()
        for _ in range(3):
            assert row.read() == b"3"
        home.start()
        clock.advance(1.1)
        assert row.read() == b"3"
        assert list(elsewhere.read([row.entry.key], row.entry.epoch, Intent.LOOK)) == [MISSING]


@pytest.fixture(params=["counted ids", "ids of our own"])
def server(request):
    """A memcached of PATH; and one that takes ids of our own, if there is one (WT_MEMCACHED)."""
    if request.param == "counted ids":
        yield request.getfixturevalue("memcached")
        return
    with NewServer() as new:
        if new.version() < EXPLICIT_IDS:
            pytest.skip("this memcached takes no ids of ours; WT_MEMCACHED may name a newer one")
        yield new


@pytest.mark.parametrize("taken", ["lease", "announce"])
def test_trap_08_a_restart_between_lease_and_fill(server, taken):
    """The restarted server gives another's lease or tombstone the id of ours, and our fill is refused."""
    with opened(server) as store, opened(server) as later:
        late, prompt = Entry(store, "x"), Entry(later, "x")
        lease = late.lease()
        server.renew()
        theirs = getattr(prompt, taken)()
        assert (theirs.cas == lease.cas) is (server.version() < EXPLICIT_IDS)
        assert late.fill(lease, b"old") is not Settled.APPLIED
        assert prompt.read() == BUSY
        assert getattr(prompt, {"lease": "fill", "announce": "publish"}[taken])(theirs, b"new") is Settled.APPLIED
        assert late.read() == Hit(b"new")


@pytest.mark.parametrize("taken", ["lease", "announce"])
def test_trap_08_a_restart_between_announce_and_publish(server, taken):
    """The restarted server gives another's lease or tombstone the id of ours, and our row is not published over it."""
    with opened(server) as store, opened(server) as later:
        late, prompt = Entry(store, "x"), Entry(later, "x")
        tombstone = late.announce()
        server.renew()
        theirs = getattr(prompt, taken)()
        assert (theirs.cas == tombstone.cas) is (server.version() < EXPLICIT_IDS)
        assert late.publish(tombstone, b"old") is not Settled.APPLIED
        assert prompt.read(Intent.LOOK) in {BUSY, MISSING}
        getattr(prompt, {"lease": "fill", "announce": "publish"}[taken])(theirs, b"new")
        assert late.read(Intent.LOOK) in (Hit(b"new"), MISSING)


@pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+unix", "valkey"])
def test_trap_09_redis_is_refused(scheme):
    """A store that may restart from an old snapshot is none of ours: nobody can register it."""
    url = f"{scheme}://cache:6379/0"
    complaint = rf"unknown scheme '{scheme.replace('+', '.')}'; valid are memory, memcached, memcached\+unix"
    with pytest.raises(ConfigurationError, match=complaint):
        open_store(url)
    with pytest.raises(wt.ConfigurationError, match=complaint):
        wt.register(sessionmaker(), url)
