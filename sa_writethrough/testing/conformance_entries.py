"""The part of the conformance suite that is about one entry: every cell of `coherence`'s table, and expiry."""

# ruff: noqa: S101 - tests assert

from __future__ import annotations

import secrets
from collections.abc import Callable

import pytest

from sa_writethrough.coherence import (
    BUSY,
    MISSING,
    Hit,
    Intent,
    Leased,
    Settled,
)
from sa_writethrough.stores.base import Store
from sa_writethrough.testing.entry import TOMBSTONE_TTL, Entry

__all__ = ["EntryConformance"]


class EntryConformance:
    """What every store does with one entry. `StoreConformance` adds the rest."""

    @pytest.fixture
    def store(self) -> Store:
        """Return the store to be tested, connected and open."""
        raise NotImplementedError("a subclass of StoreConformance gives the fixture `store`")

    @pytest.fixture
    def advance(self) -> Callable[[float], None]:
        """Return what sets the store's clock forward by seconds; without it expiry is not tested."""
        return pytest.skip("the clock of this store cannot be set")

    @pytest.fixture
    def entry(self, store: Store) -> Entry:
        """Return an entry that no other test knows."""
        return Entry(store, secrets.token_hex(8))

    # --- absent ------------------------------------------------------------------------------------------------------

    def test_is_a_store(self, store: Store) -> None:
        """It has the methods of the Protocol, and says whether it keeps tombstones."""
        assert isinstance(store, Store)
        assert store.keeps_tombstones in {True, False}

    def test_absent_entry_leases_to_the_first_reader(self, entry: Entry) -> None:
        """Of readers who would fill the first gets the lease, and the second nothing."""
        assert isinstance(entry.read(), Leased)
        assert entry.read() == BUSY

    def test_looking_takes_no_lease(self, entry: Entry) -> None:
        """A reader that will not fill leaves an absent entry absent."""
        assert entry.read(Intent.LOOK) == MISSING
        assert isinstance(entry.read(), Leased)

    def test_absent_entry_refuses_what_needs_an_owner(self, entry: Entry) -> None:
        """To publish, fill, retract or evict an entry that is gone changes nothing."""
        lease, _ = entry.lease(), entry.evict()
        assert entry.fill(lease) is Settled.REFUSED
        tombstone = entry.announce()
        assert entry.retract(tombstone) is Settled.APPLIED
        assert entry.publish(tombstone) is Settled.REFUSED
        assert entry.retract(tombstone) is Settled.REFUSED
        assert entry.evict() is Settled.REFUSED
        assert entry.read(Intent.LOOK) == MISSING

    # --- lease -------------------------------------------------------------------------------------------------------

    def test_lease_is_filled_by_its_owner_once(self, entry: Entry) -> None:
        """A fill makes the row readable, and spends the lease."""
        lease = entry.lease()
        assert entry.fill(lease) is Settled.APPLIED
        assert entry.read() == Hit(b"row")
        assert entry.fill(lease, b"again") is Settled.REFUSED
        assert entry.read(Intent.LOOK) == Hit(b"row")

    def test_lease_that_was_evicted_fills_nothing(self, entry: Entry) -> None:
        """Evicting drops a lease, for what its holder read may be older; the next reader gets another."""
        lease = entry.lease()
        assert entry.evict() is Settled.APPLIED
        successor = entry.lease()
        assert entry.fill(lease, b"old") is Settled.REFUSED
        assert entry.fill(successor, b"new") is Settled.APPLIED
        assert entry.read() == Hit(b"new")

    def test_looking_at_a_lease_is_busy(self, entry: Entry) -> None:
        """A reader that will not fill sees a lease as busy."""
        entry.lease()
        assert entry.read(Intent.LOOK) == BUSY

    def test_announcement_takes_the_lease_away(self, entry: Entry) -> None:
        """What a reader read before a writer announced never becomes readable."""
        lease, tombstone = entry.lease(), entry.announce()
        assert entry.fill(lease, b"old") is Settled.REFUSED
        assert entry.publish(tombstone, b"new") is Settled.APPLIED
        assert entry.fill(lease, b"old") is Settled.REFUSED
        assert entry.read() == Hit(b"new")

    def test_publication_over_a_lease_heals(self, entry: Entry) -> None:
        """A writer whose tombstone was lost drops the lease that has taken its place."""
        tombstone = entry.announce()
        entry.retract(tombstone)
        lease = entry.lease()
        assert entry.publish(tombstone) is Settled.HEALED
        assert entry.fill(lease) is Settled.REFUSED
        assert entry.read(Intent.LOOK) == MISSING

    # --- tombstone ---------------------------------------------------------------------------------------------------

    def test_tombstone_is_busy_and_cannot_be_evicted(self, entry: Entry) -> None:
        """Until it is published nobody reads, leases or evicts what a writer announced."""
        tombstone = entry.announce()
        assert entry.read() == BUSY
        assert entry.read(Intent.LOOK) == BUSY
        assert entry.evict() is Settled.REFUSED
        assert entry.read() == BUSY
        assert entry.publish(tombstone) is Settled.APPLIED

    def test_publication_makes_the_row_readable(self, entry: Entry) -> None:
        """A writer's row replaces its tombstone."""
        assert entry.publish(entry.announce(), b"mine") is Settled.APPLIED
        assert entry.read() == Hit(b"mine")

    def test_publication_of_nothing_leaves_absent(self, entry: Entry) -> None:
        """A row that is not known is published as absent."""
        assert entry.publish(entry.announce(), None) is Settled.APPLIED
        assert isinstance(entry.read(), Leased)

    def test_later_tombstone_survives_an_earlier_writer(self, entry: Entry) -> None:
        """Of two writers the earlier can neither publish nor retract over the later one's tombstone."""
        first, second = entry.announce(), entry.announce()
        assert entry.publish(first, b"first") is Settled.REFUSED
        assert entry.publish(first, None) is Settled.REFUSED
        assert entry.retract(first) is Settled.REFUSED
        assert entry.read() == BUSY
        assert entry.publish(second, b"second") is Settled.APPLIED
        assert entry.read() == Hit(b"second")

    def test_retraction_leaves_absent(self, entry: Entry) -> None:
        """After a rollback the entry can be leased again; the old row is gone."""
        entry.fill(entry.lease(), b"old")
        assert entry.retract(entry.announce()) is Settled.APPLIED
        assert isinstance(entry.read(), Leased)

    # --- value -------------------------------------------------------------------------------------------------------

    def test_value_is_evicted(self, entry: Entry) -> None:
        """Evicting drops a row."""
        entry.fill(entry.lease())
        assert entry.evict() is Settled.APPLIED
        assert entry.read(Intent.LOOK) == MISSING

    def test_publication_over_a_value_heals(self, entry: Entry) -> None:
        """A writer whose tombstone was lost drops the row that has taken its place, with or without one of its own."""
        for payload in (b"mine", None):
            tombstone = entry.announce()
            entry.retract(tombstone)
            entry.fill(entry.lease(), b"another")
            assert entry.publish(tombstone, payload) is Settled.HEALED
            assert entry.read(Intent.LOOK) == MISSING

    def test_value_is_not_retracted(self, entry: Entry) -> None:
        """A writer that published has nothing to take back."""
        tombstone = entry.announce()
        entry.publish(tombstone)
        assert entry.retract(tombstone) is Settled.REFUSED
        assert entry.read() == Hit(b"row")

    @pytest.mark.parametrize("payload", [b"", b"\r\n", b"END\r\nHD f0 c1\r\n", bytes(range(256)), b"x" * 300_000])
    def test_payloads_come_back_byte_for_byte(self, entry: Entry, payload: bytes) -> None:
        """Any bytes can be a row: none, line ends, large ones."""
        entry.fill(entry.lease(), payload)
        assert entry.read() == Hit(payload)
        assert entry.publish(entry.announce(), payload + b"!") is Settled.APPLIED
        assert entry.read() == Hit(payload + b"!")

    # --- time --------------------------------------------------------------------------------------------------------

    def test_values_and_tombstones_expire(self, entry: Entry, advance: Callable[[float], None]) -> None:
        """A row, a tombstone and an announced epoch are gone when their time is up, and not before."""
        entry.fill(entry.lease(), ttl=10.0)
        advance(9.0)
        assert entry.read() == Hit(b"row")
        advance(2.0)
        assert entry.read(Intent.LOOK) == MISSING
        entry.announce()
        advance(TOMBSTONE_TTL - 1)
        assert entry.read() == BUSY
        advance(2.0)
        assert entry.read(Intent.LOOK) == MISSING
        entry.announce_epoch()
        advance(TOMBSTONE_TTL + 1)
        assert entry.read(Intent.LOOK) == MISSING
