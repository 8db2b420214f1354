"""The store that fails on purpose."""

from __future__ import annotations

import pytest

from sa_writethrough.coherence import (
    BUSY,
    MISSING,
    Announce,
    AnnounceEpoch,
    Failed,
    Fill,
    Hit,
    Intent,
    Publish,
    Put,
    Retract,
    Settled,
    Token,
)
from sa_writethrough.stores.memory import MemoryStore
from sa_writethrough.testing import Call, FaultyStore, Hold, LoseReply, LoseRequest, Moment, Read
from sa_writethrough.testing.conformance import Entry, StoreConformance


class TestWithoutAScript(StoreConformance):
    @pytest.fixture
    def store(self):
        return FaultyStore(MemoryStore())


@pytest.fixture
def store():
    """A faulty store with an empty script."""
    return FaultyStore(MemoryStore())


@pytest.fixture
def entry(store):
    """An entry of it."""
    return Entry(store, "x")


def test_lost_request_has_no_effect(store, entry):
    """A request that never arrives is Failed to whoever waits, nothing to whoever does not, and happens once."""
    tombstone = entry.announce()
    store.script = [LoseRequest(Publish), LoseRequest(Publish)]
    assert isinstance(entry.publish(tombstone), Failed)
    store.post([Publish(entry.key, tombstone, b"row", None)])
    assert not store.script
    assert entry.read() == BUSY
    assert entry.publish(tombstone) is Settled.APPLIED


def test_lost_reply_has_its_effect(store, entry):
    """A reply that is lost leaves the effect."""
    store.script = [LoseReply(Announce)]
    reply = store.submit([Announce(entry.key, entry.epoch, 60)])
    assert isinstance(reply.wait()[0], Failed)
    assert reply.wait() is reply.wait()
    assert entry.read() == BUSY


def test_reads_are_lost_by_key(store, entry):
    """A step may name its key; the other keys of the same batch are answered."""
    store.script = [LoseRequest(Read, key="b"), LoseReply(Read, key="c")]
    a, b, c = store.read(["a", "b", "c"], "e", Intent.LOOK)
    assert a == MISSING
    assert isinstance(b, Failed)
    assert isinstance(c, Failed)
    store.script = [LoseRequest(Read)]
    assert isinstance(entry.read(), Failed)


def test_held_changes_come_late(store, entry):
    """What is held takes effect when it is delivered."""
    tombstone = entry.announce()
    store.script = [Hold(Publish)]
    store.post([Publish(entry.key, tombstone, b"late", None)])
    assert entry.read() == BUSY
    assert list(store.deliver()) == [Settled.APPLIED]
    assert entry.read() == Hit(b"late")


def test_hooks_are_called_before_and_after(store, entry):
    """A test can step in just before an operation and just after it."""
    seen = []
    lease = entry.lease()
    store.script = [
        Call(Fill, lambda: seen.append(store.inner.read([entry.key], entry.epoch, Intent.LOOK)[0])),
        LoseReply(Fill, key="another"),
        Call(Read, lambda: seen.append("read"), Moment.AFTER),
    ]
    assert entry.fill(lease) is Settled.APPLIED
    assert entry.read() == Hit(b"row")
    assert seen == [BUSY, "read"]
    store.script = [Call(Put, lambda: seen.append("posted"), Moment.AFTER)]
    store.post([Put("p", b"", None)])
    assert seen[-1] == "posted"


def test_hook_may_use_the_store(store, entry):
    """A writer that announces between another's announcement and its acknowledgement is the later one."""
    later = []
    store.script = [Call(Announce, lambda: later.append(entry.announce()), Moment.AFTER)]
    first = entry.announce()
    assert entry.publish(first) is Settled.REFUSED
    assert entry.publish(later[0]) is Settled.APPLIED


def test_forgotten_entries_are_absent(store, entry):
    """Whatever an entry was, it can be lost."""
    tombstone = entry.announce()
    store.forget(entry.key)
    assert entry.read(Intent.LOOK) == MISSING
    assert entry.publish(tombstone) is Settled.REFUSED
    entry.fill(entry.lease())
    store.forget(entry.key)
    assert entry.read(Intent.LOOK) == MISSING


def test_all_tombstones_can_be_forgotten(store, entry):
    """Those that were announced and not yet settled are lost, of entries and of epochs; rows stay."""
    row, settled = Entry(store, "row"), Entry(store, "settled")
    row.fill(row.lease())
    settled.publish(settled.announce())
    entry.announce()
    epoch = entry.announce_epoch()
    store.forget_tombstones()
    assert entry.read(Intent.LOOK) == MISSING
    assert entry.does(Retract(entry.epoch, epoch)) is Settled.REFUSED
    assert row.read() == settled.read() == Hit(b"row")


def test_forgetting_gives_up_in_an_outage_of_the_inner_store(entry):
    """What the inner store does not acknowledge cannot be forgotten."""
    inner = FaultyStore(MemoryStore())
    outer = FaultyStore(inner)
    Entry(outer, "x").announce()
    with inner.outage():
        outer.forget("x:key")
    assert Entry(inner, "x").read() == BUSY


def test_outage_lets_nothing_through(store, entry):
    """While it lasts everything fails; afterwards nothing of it has happened."""
    with store.outage():
        assert isinstance(entry.read(), Failed)
        assert isinstance(entry.does(AnnounceEpoch(entry.epoch, 60)), Failed)
        store.post([Put("p", b"", None)])
    assert list(store.read(["p"], None, Intent.LOOK)) == [MISSING]
    assert isinstance(entry.announce(), Token)


def test_keeps_tombstones_is_the_inner_stores(store):
    """It says what the inner store says, unless a test says otherwise."""
    assert store.keeps_tombstones
