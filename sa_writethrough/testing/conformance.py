"""The conformance suite for stores: every cell of `coherence`'s table, epochs, many keys, threads, random sequences.

A new store's test is this:

    class TestMyStore(StoreConformance):
        @pytest.fixture
        def store(self):
            store = MyStore()
            yield store
            store.close()

Entries of earlier tests may still be there: every test has keys of its own. Nothing sleeps. Where the store's clock can
be set forward, override `advance`, and expiry is tested too.
"""

# ruff: noqa: S101 - tests assert

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable

from hypothesis import HealthCheck, given, settings

from sa_writethrough.coherence import (
    BUSY,
    MISSING,
    Announce,
    Change,
    Evict,
    EvictEpoch,
    Hit,
    Intent,
    Leased,
    Outcome,
    Publish,
    Put,
    Retract,
    Settled,
    Token,
)
from sa_writethrough.stores.base import Store
from sa_writethrough.testing.conformance_entries import EntryConformance
from sa_writethrough.testing.entry import TOMBSTONE_TTL, Entry
from sa_writethrough.testing.walk import STEPS, Walk

__all__ = ["Entry", "StoreConformance"]


class StoreConformance(EntryConformance):
    """Inherit, and give the fixture `store`."""

    # --- epochs ------------------------------------------------------------------------------------------------------

    def test_announced_epoch_closes_all_of_its_entries(self, entry: Entry) -> None:
        """While an epoch is announced its rows, and what is absent in it, are busy."""
        entry.fill(entry.lease())
        entry.announce_epoch()
        assert list(entry.store.read([entry.key, entry.key + "2"], entry.epoch, Intent.FILL)) == [BUSY, BUSY]
        assert entry.read(Intent.LOOK) == BUSY

    def test_retracted_epoch_is_a_new_one(self, entry: Entry) -> None:
        """After its retraction the rows from before are gone, and can be filled again."""
        entry.fill(entry.lease(), b"old")
        epoch = entry.announce_epoch()
        assert entry.does(Retract(entry.epoch, epoch)) is Settled.APPLIED
        assert entry.does(Retract(entry.epoch, epoch)) is Settled.REFUSED
        assert entry.read(Intent.LOOK) == MISSING
        assert entry.fill(entry.lease(), b"new") is Settled.APPLIED
        assert entry.read() == Hit(b"new")

    def test_of_the_readers_of_an_earlier_epochs_row_one_is_leased(self, entry: Entry) -> None:
        """After the epoch is over its row is absent, and the second reader finds the first one's lease."""
        entry.fill(entry.lease(), b"old")
        entry.does(Retract(entry.epoch, entry.announce_epoch()))
        lease = entry.lease()
        assert entry.read() == BUSY
        assert entry.fill(lease, b"new") is Settled.APPLIED
        assert entry.read() == Hit(b"new")

    def test_lease_of_an_earlier_epoch_fills_nothing_readable(self, entry: Entry) -> None:
        """What a reader read before the epoch was announced is not readable after it."""
        lease = entry.lease()
        entry.does(Retract(entry.epoch, entry.announce_epoch()))
        entry.fill(lease, b"old")
        assert not isinstance(entry.read(Intent.LOOK), Hit)

    def test_announcement_of_an_earlier_epoch_publishes_nothing_readable(self, entry: Entry) -> None:
        """A row that was announced before its epoch was is not readable after it."""
        tombstone = entry.announce()
        epoch = entry.announce_epoch()
        assert entry.publish(tombstone, b"old") is Settled.APPLIED
        assert entry.read() == BUSY
        entry.does(Retract(entry.epoch, epoch))
        assert entry.read(Intent.LOOK) == MISSING

    def test_announcement_in_an_announced_epoch_publishes_absent(self, entry: Entry) -> None:
        """A writer that announced while the epoch was announced leaves its entry absent."""
        epoch = entry.announce_epoch()
        tombstone = entry.announce()
        entry.does(Retract(entry.epoch, epoch))
        assert entry.read() == BUSY
        assert entry.publish(tombstone, b"row") is Settled.APPLIED
        assert entry.read(Intent.LOOK) == MISSING

    def test_reading_in_an_announced_epoch_leaves_no_lease(self, entry: Entry) -> None:
        """Readers that came while the epoch was announced do not keep those after it from filling."""
        epoch = entry.announce_epoch()
        assert entry.read() == BUSY
        entry.does(Retract(entry.epoch, epoch))
        assert isinstance(entry.read(), Leased)

    def test_later_announcement_of_an_epoch_survives_the_earlier(self, entry: Entry) -> None:
        """Of two writers that announced one epoch the earlier cannot open it again."""
        first, second = entry.announce_epoch(), entry.announce_epoch()
        assert entry.does(Retract(entry.epoch, first)) is Settled.REFUSED
        assert entry.read() == BUSY
        assert entry.does(Retract(entry.epoch, second)) is Settled.APPLIED

    def test_evicting_an_epoch_drops_its_entries(self, entry: Entry) -> None:
        """Rows and leases of an evicted epoch are gone; those of another are not."""
        entry.fill(entry.lease())
        other = Entry(entry.store, secrets.token_hex(8))
        other.fill(other.lease())
        assert entry.does(EvictEpoch(entry.epoch)) is Settled.APPLIED
        assert entry.read(Intent.LOOK) == MISSING
        assert other.read() == Hit(b"row")

    def test_announced_epoch_cannot_be_evicted(self, entry: Entry) -> None:
        """An announced epoch stays announced."""
        entry.announce_epoch()
        assert entry.does(EvictEpoch(entry.epoch)) is Settled.REFUSED
        assert entry.read() == BUSY

    # --- bytes that are no rows --------------------------------------------------------------------------------------

    def test_put_bytes_are_read_without_an_epoch(self, entry: Entry) -> None:
        """What was put comes back, is replaced by what is put later, and is evicted."""
        for payload in (b"one", b"", b"two"):
            assert entry.does(Put(entry.key, payload, None)) is Settled.APPLIED
            assert list(entry.store.read([entry.key], None, Intent.LOOK)) == [Hit(payload)]
        assert entry.evict() is Settled.APPLIED
        assert list(entry.store.read([entry.key], None, Intent.LOOK)) == [MISSING]

    def test_entry_without_an_epoch_can_be_leased(self, entry: Entry) -> None:
        """A lease taken without an epoch fills what is read without one."""
        (reading,) = entry.store.read([entry.key], None, Intent.FILL)
        assert isinstance(reading, Leased)
        assert entry.fill(reading.token) is Settled.APPLIED
        assert list(entry.store.read([entry.key], None, Intent.FILL)) == [Hit(b"row")]

    # --- whose token it is -------------------------------------------------------------------------------------------

    def test_token_is_good_for_its_own_key_alone(self, entry: Entry) -> None:
        """A foreign token, even of another store, owns nothing."""
        other = Entry(entry.store, secrets.token_hex(8))
        foreign, own = other.announce(), entry.announce()
        for token in (foreign, Token(), other.announce_epoch()):
            assert entry.retract(token) is Settled.REFUSED
        assert entry.publish(Token()) is Settled.REFUSED
        assert entry.fill(Token()) is Settled.REFUSED
        assert entry.publish(own) is Settled.APPLIED

    # --- many at once ------------------------------------------------------------------------------------------------

    def test_no_keys_and_no_changes(self, store: Store) -> None:
        """To read nothing gives nothing; an empty submit waits for what was posted."""
        assert list(store.read([], "epoch", Intent.FILL)) == []
        store.post([])
        assert list(store.submit([]).wait()) == []

    def test_answers_come_in_the_order_of_the_keys(self, entry: Entry) -> None:
        """However many keys, each gets its own answer."""
        keys = [f"{entry.key}:{n}" for n in range(1500)]
        tokens = entry.store.submit([Announce(key, entry.epoch, TOMBSTONE_TTL) for key in keys]).wait()
        rows = [
            Publish(key, token, key.encode() * 20, None)
            for key, token in zip(keys, tokens, strict=True)
            if isinstance(token, Token)
        ]
        assert set(entry.store.submit(rows[::2]).wait()) == {Settled.APPLIED}
        readings = entry.store.read(keys, entry.epoch, Intent.FILL)
        assert readings[::2] == [Hit(key.encode() * 20) for key in keys[::2]]
        assert set(readings[1::2]) == {BUSY}

    def test_posted_changes_are_done_after_the_barrier(self, entry: Entry) -> None:
        """What was posted has happened once an empty submit has been waited for."""
        keys = [f"{entry.key}:{n}" for n in range(300)]
        tokens = entry.store.submit([Announce(key, entry.epoch, TOMBSTONE_TTL) for key in keys]).wait()
        entry.store.post(
            [
                Publish(key, token, b"row", None)
                for key, token in zip(keys, tokens, strict=True)
                if isinstance(token, Token)
            ]
        )
        entry.store.submit([]).wait()
        assert entry.store.read(keys, entry.epoch, Intent.LOOK) == [Hit(b"row")] * len(keys)

    def test_changes_of_one_key_happen_in_order(self, entry: Entry) -> None:
        """A batch that names a key several times does one thing after the other."""
        first = entry.announce()
        entry.store.post([Publish(entry.key, first, b"one", None), Announce(entry.key, entry.epoch, TOMBSTONE_TTL)])
        assert entry.read() == BUSY
        outcomes = entry.store.submit(
            [Put(entry.key, b"1", None), Evict(entry.key), Put(entry.key, b"2", None), Put(entry.key, b"3", None)]
        ).wait()
        assert list(outcomes) == [Settled.APPLIED] * 4
        other = entry.key + "2"
        twice: list[Change] = [
            Put(entry.key, b"1", None),
            Put(entry.key, b"3", None),
            Put(other, b"1", None),
            Evict(other),
        ]
        assert list(entry.store.submit(twice).wait()) == [Settled.APPLIED] * 4
        assert list(entry.store.read([entry.key], None, Intent.LOOK)) == [Hit(b"3")]

    def test_posted_eviction_is_done(self, entry: Entry) -> None:
        """To evict can be posted as well."""
        entry.fill(entry.lease())
        entry.store.post([Evict(entry.key)])
        entry.store.submit([]).wait()
        assert entry.read(Intent.LOOK) == MISSING

    def test_store_opens_again_after_close(self, entry: Entry) -> None:
        """A closed store can be used again."""
        entry.store.close()
        assert isinstance(entry.read(), Leased)

    # --- threads -----------------------------------------------------------------------------------------------------

    def test_only_one_thread_gets_the_lease(self, entry: Entry) -> None:
        """Of threads that miss at once one is told to fill."""
        readings = _in_threads(8, lambda _: entry.read())
        assert sum(isinstance(reading, Leased) for reading in readings) == 1

    def test_only_the_last_announcement_publishes(self, entry: Entry) -> None:
        """Of threads that announce and publish one key each sees its own row or a later one."""

        def write(n: int) -> Outcome:
            return entry.publish(entry.announce(), b"%d" % n)

        outcomes = [outcome for _ in range(5) for outcome in _in_threads(6, write)]
        assert set(outcomes) <= set(Settled)
        assert entry.publish(entry.announce(), b"last") is Settled.APPLIED
        assert entry.read() == Hit(b"last")

    # --- everything --------------------------------------------------------------------------------------------------

    @settings(
        max_examples=60,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
    )
    @given(steps=STEPS)
    def test_any_sequence_is_answered_as_the_table_says(self, store: Store, steps: list[tuple[str, int, int]]) -> None:
        """Whatever is done in whatever order, the store answers as `coherence` does."""
        Walk(store).take(steps)


def _in_threads(count: int, action: Callable[[int], object]) -> list[object]:
    """Let *count* threads do *action* at once; return what it gave them."""
    results: list[object] = [None] * count
    together = threading.Barrier(count)

    def run(n: int) -> None:
        together.wait()
        results[n] = action(n)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
