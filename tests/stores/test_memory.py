"""The in-process store."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sa_writethrough.coherence import BUSY, MISSING, Announce, Fill, Hit, Intent, Leased, Publish, Put, Settled
from sa_writethrough.exceptions import ConfigurationError
from sa_writethrough.stores.memory import MemoryStore
from sa_writethrough.testing.conformance import Entry, StoreConformance


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    """A clock that a test sets."""
    return Clock()


class TestMemoryStore(StoreConformance):
    @pytest.fixture
    def store(self, clock: Clock) -> MemoryStore:
        return MemoryStore(clock=clock)

    @pytest.fixture
    def advance(self, clock: Clock) -> Callable[[float], None]:
        return clock.advance


def put(store: MemoryStore, *keys: str) -> None:
    """Store ten bytes under each key."""
    store.submit([Put(key, b"x" * 10, None) for key in keys]).wait()


def there(store: MemoryStore, *keys: str) -> list[bool]:
    """Tell which keys have a value."""
    return [isinstance(reading, Hit) for reading in store.read(keys, None, Intent.LOOK)]


def test_keeps_tombstones():
    """The store says that it cannot lose a tombstone."""
    assert MemoryStore.keeps_tombstones


def test_least_recently_read_value_goes_first():
    """Over `max_entries` the value that was not read for longest is dropped."""
    store = MemoryStore(max_entries=3)
    put(store, "a", "b", "c")
    assert there(store, "a") == [True]
    assert there(store, "b", "a") == [True, True]
    put(store, "d")
    assert there(store, "a", "b", "c", "d") == [True, True, False, True]


def test_bytes_of_keys_and_values_are_bounded():
    """Over `max_bytes` values are dropped until the rest fits."""
    store = MemoryStore(max_bytes=33)
    put(store, "a", "b", "c")
    assert there(store, "a", "b", "c") == [True, True, True]
    store.submit([Put("d", b"x" * 20, None)]).wait()
    assert there(store, "a", "b", "c", "d") == [False, False, True, True]


def test_replaced_values_give_their_bytes_back():
    """Replacing a value does not use up the bound."""
    store = MemoryStore(max_bytes=33)
    for _ in range(10):
        put(store, "a", "b", "c")
    assert there(store, "a", "b", "c") == [True, True, True]


def test_value_that_cannot_fit_is_absent():
    """A row larger than the whole store is not kept, and what it replaces is gone."""
    store = MemoryStore(max_bytes=100)
    entry = Entry(store, "e")
    entry.fill(entry.lease(), b"old")
    assert entry.publish(entry.announce(), b"x" * 101) is Settled.APPLIED
    assert entry.read(Intent.LOOK) == MISSING


def test_no_bound_drops_tombstones_or_leases():
    """However many values come and go, what was announced and leased stays."""
    store = MemoryStore(max_entries=1, max_bytes=50)
    entry, other = Entry(store, "announced"), Entry(store, "leased")
    tombstone, lease = entry.announce(), other.lease()
    put(store, *(f"k{n}" for n in range(100)))
    assert entry.read() == BUSY
    assert entry.publish(tombstone) is Settled.APPLIED
    assert other.fill(lease) is Settled.APPLIED


def test_lease_expires(clock):
    """A reader that never fills keeps the others from it for `lease_ttl` seconds alone."""
    entry = Entry(MemoryStore(clock=clock, lease_ttl=5.0), "e")
    lease = entry.lease()
    clock.advance(4.0)
    assert entry.read() == BUSY
    clock.advance(2.0)
    assert isinstance(entry.read(), Leased)
    assert entry.fill(lease) is Settled.REFUSED


def test_tombstone_without_a_time_limit_stays(clock):
    """A tombstone that was announced without a limit never expires."""
    store = MemoryStore(clock=clock)
    (token,) = store.submit([Announce("k", "e", None)]).wait()
    clock.advance(1e9)
    assert list(store.read(["k"], "e", Intent.FILL)) == [BUSY]
    assert list(store.submit([Publish("k", token, b"row", None)]).wait()) == [Settled.APPLIED]


def test_expired_leases_do_not_pile_up(clock):
    """Leases and tombstones that nobody asks for again are let go of once they have expired."""
    store = MemoryStore(clock=clock, lease_ttl=1.0)
    for n in range(10):
        store.read([f"{n}:{m}" for m in range(500)], "e", Intent.FILL)
        clock.advance(2.0)
    assert len(store._held) < 2000


def test_hot_and_plural_reads_agree():
    """One key alone is read as it is among others."""
    store = MemoryStore()
    (reading,) = store.read(["k"], "e", Intent.FILL)
    store.submit([Fill("k", reading.token, b"row", None)]).wait()
    assert store.read(["k"], "e", Intent.FILL)[0] == store.read(["k", "l"], "e", Intent.FILL)[0] == Hit(b"row")


@pytest.mark.parametrize("wrong", [{"max_bytes": 0}, {"max_entries": 0}, {"lease_ttl": 0.0}])
def test_bounds_must_be_greater_than_zero(wrong):
    """A store that could keep nothing is refused."""
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        MemoryStore(**wrong)


def test_repr_names_the_bounds():
    """The bounds can be seen."""
    assert repr(MemoryStore(max_bytes=5, max_entries=6)) == "MemoryStore(max_bytes=5, max_entries=6)"
