"""EntryCache over the in-process store and one that fails by a script: counters, events, and what a failure means."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest

from sa_writethrough import events
from sa_writethrough.cache import Claim, EntryCache, Filling, Publication, Stats
from sa_writethrough.coherence import (
    Announce,
    AnnounceEpoch,
    Busy,
    Evict,
    EvictEpoch,
    Failed,
    Fill,
    Hit,
    Intent,
    Leased,
    Publish,
    Retract,
    Token,
)
from sa_writethrough.exceptions import CacheUnavailableError
from sa_writethrough.policy import OnOutage
from sa_writethrough.stores.memory import MemoryStore
from sa_writethrough.testing import FaultyStore, LoseReply, LoseRequest, Read

EPOCH = "epoch"


class Clock:
    """Seconds that pass when a test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> FaultyStore:
    return FaultyStore(MemoryStore(clock=clock))


@pytest.fixture
def heard() -> list[Any]:
    return []


@pytest.fixture
def cache(store: FaultyStore, heard: list[Any]) -> EntryCache:
    return EntryCache(store, subscribers=[heard.append])


def claim(key: str, epoch: str | None = EPOCH, on_outage: OnOutage = OnOutage.ABORT) -> Claim:
    return Claim(key, epoch, 5.0, on_outage)


def fill(cache: EntryCache, *keys: str) -> None:
    readings = cache.read(keys, EPOCH, Intent.FILL)
    cache.fill([Filling(k, r.token, k.encode(), None) for k, r in zip(keys, readings, strict=True)])  # type: ignore[union-attr]  # leased


def payloads(cache: EntryCache, *keys: str) -> list[bytes | None]:
    readings = cache.store.read(keys, EPOCH, Intent.LOOK)
    return [reading if isinstance(reading, Hit) else None for reading in readings]


# --- readers --------------------------------------------------------------------------------------------------------


def test_a_miss_a_fill_and_a_hit_are_counted_and_told(cache: EntryCache, heard: list[Any]) -> None:
    """A reader leases, fills, and the next one hits; a second reader in between finds it busy."""
    (leased,) = cache.read(["a"], EPOCH, Intent.FILL)
    assert isinstance(leased, Leased)
    assert isinstance(cache.read(["a"], EPOCH, Intent.FILL)[0], Busy)
    cache.fill([Filling("a", leased.token, b"row", None)])
    assert cache.read(["a"], EPOCH, Intent.FILL) == [Hit(b"row")]
    assert cache.stats == Stats(hits=1, misses=1, busy=1, fills=1)
    assert cache.stats.reads == 3
    assert heard == [events.Miss(("a",)), events.Miss(("a",)), events.Filled(("a",)), events.Hit(("a",))]


def test_a_batch_is_one_hit_event_and_one_miss_event(cache: EntryCache, heard: list[Any]) -> None:
    """Keys of one read are told together."""
    fill(cache, "a", "c")
    heard.clear()
    cache.read(["a", "b", "c"], EPOCH, Intent.FILL)
    assert heard == [events.Hit(("a", "c")), events.Miss(("b",))]


def test_without_subscribers_only_counters_change(store: FaultyStore) -> None:
    """Nobody subscribed: the counters still count, also failures."""
    cache = EntryCache(store)
    store.script.append(LoseRequest(Read))
    cache.read(["a"], EPOCH, Intent.FILL)
    fill(cache, "a")
    cache.read(["a"], EPOCH, Intent.FILL)
    assert (cache.stats.hits, cache.stats.misses, cache.stats.busy, cache.stats.failures) == (1, 1, 1, 1)
    cache.publish([Publication("a", cache.announce([claim("a")]).wait()["a"], b"new", None)], {})
    assert (cache.stats.announced, cache.stats.published) == (1, 1)


def test_a_read_that_fails_is_a_miss_without_a_lease(cache: EntryCache, store: FaultyStore, heard: list[Any]) -> None:
    """A store that does not answer raises nothing: the reader goes to the database."""
    with store.outage():
        (reading,) = cache.read(["a"], EPOCH, Intent.FILL)
    assert isinstance(reading, Failed)
    assert (cache.stats.busy, cache.stats.failures) == (1, 1)
    assert heard == [events.Miss(("a",)), events.StoreFailed(("a",), reading.error)]


def test_some_keys_of_a_batch_may_fail(cache: EntryCache, store: FaultyStore, heard: list[Any]) -> None:
    """Where one node fails the others' keys are read."""
    fill(cache, "a")
    heard.clear()
    store.script.append(LoseReply(Read, "b"))
    assert [type(r) for r in cache.read(["a", "b"], EPOCH, Intent.FILL)] == [Hit, Failed]
    assert [type(e) for e in heard] == [events.Hit, events.Miss, events.StoreFailed]


def test_a_refused_fill_gives_its_lease_back(cache: EntryCache, heard: list[Any]) -> None:
    """What a reader cannot fill the next one may."""
    one, two = cache.read(["a", "b"], EPOCH, Intent.FILL)
    assert isinstance(one, Leased)
    assert isinstance(two, Leased)
    cache.fill([Filling("a", one.token, b"row", None)], [("b", two.token)])
    assert (cache.stats.fills, cache.stats.fills_refused) == (1, 1)
    assert heard[-2:] == [events.Filled(("a",)), events.FillRefused(("b",))]
    assert isinstance(cache.read(["b"], EPOCH, Intent.FILL)[0], Leased)


def test_a_fill_of_nothing_sends_nothing(cache: EntryCache, store: FaultyStore, heard: list[Any]) -> None:
    """No rows and no leases: no operation."""
    store.script.append(LoseRequest(Fill))
    cache.fill([])
    assert heard == []
    assert len(store.script) == 1


def test_a_fill_honours_its_ttl(cache: EntryCache, clock: Clock) -> None:
    """After its `ttl` a filled entry is absent."""
    (leased,) = cache.read(["a"], EPOCH, Intent.FILL)
    assert isinstance(leased, Leased)
    cache.fill([Filling("a", leased.token, b"row", 10.0)])
    clock.now += 9
    assert payloads(cache, "a") == [b"row"]
    clock.now += 2
    assert payloads(cache, "a") == [None]


def test_an_unreadable_entry_is_dropped(cache: EntryCache) -> None:
    """`drop` evicts without waiting."""
    fill(cache, "a", "b")
    cache.drop(["a"])
    assert payloads(cache, "a", "b") == [None, b"b"]


# --- writers --------------------------------------------------------------------------------------------------------


def test_a_commit_announces_and_publishes(cache: EntryCache, heard: list[Any]) -> None:
    """From the announcement on nothing is served; after the publication the new row is."""
    fill(cache, "a")
    heard.clear()
    tokens = cache.announce([claim("a")]).wait()
    assert payloads(cache, "a") == [None]
    cache.publish([Publication("a", tokens["a"], b"new", None)], {})
    assert payloads(cache, "a") == [b"new"]
    assert (cache.stats.announced, cache.stats.published) == (1, 1)
    assert heard == [events.Announced(("a",)), events.Published(("a",))]


def test_a_row_that_is_not_known_is_published_as_absent(cache: EntryCache) -> None:
    """Payload None leaves no entry."""
    fill(cache, "a")
    tokens = cache.announce([claim("a")]).wait()
    cache.publish([Publication("a", tokens["a"], None, None)], {})
    assert payloads(cache, "a") == [None]
    assert isinstance(cache.read(["a"], EPOCH, Intent.FILL)[0], Leased)


def test_an_epoch_is_announced_and_opened_again(cache: EntryCache, heard: list[Any]) -> None:
    """While it is announced none of its entries is read; afterwards none of the old ones."""
    fill(cache, "a")
    tokens = cache.announce([claim(EPOCH, None), claim("b")]).wait()
    assert set(tokens) == {EPOCH, "b"}
    assert isinstance(cache.read(["a"], EPOCH, Intent.FILL)[0], Busy)
    cache.publish([Publication("b", tokens["b"], b"b", None)], {EPOCH: tokens[EPOCH]})
    assert cache.stats.published == 2
    assert heard[-1] == events.Published(("b", EPOCH))
    assert payloads(cache, "a") == [None]
    assert isinstance(cache.read(["a"], EPOCH, Intent.FILL)[0], Leased)


def test_a_rollback_retracts(cache: EntryCache, heard: list[Any]) -> None:
    """After a retraction the next reader may fill."""
    tokens = cache.announce([claim("a")]).wait()
    cache.retract(tokens)
    assert isinstance(cache.read(["a"], EPOCH, Intent.FILL)[0], Leased)
    assert cache.stats.retracted == 1
    assert events.Retracted(("a",)) in heard


def test_retracting_nothing_does_nothing(cache: EntryCache, heard: list[Any]) -> None:
    """No tokens, no operation, no event."""
    cache.retract({})
    assert heard == []
    assert cache.stats.retracted == 0


@pytest.mark.parametrize("step", [LoseRequest, LoseReply])
def test_an_announcement_that_is_not_acknowledged_aborts(
    cache: EntryCache, store: FaultyStore, heard: list[Any], step: Any
) -> None:
    """The error names the key and the remedy, and what was acknowledged is taken back."""
    store.script.append(step(Announce, "b"))
    announcement = cache.announce([claim("a"), claim("b")])
    with pytest.raises(CacheUnavailableError, match=r"'b' is about to change.*nothing was committed.*OnOutage\.COMMIT"):
        announcement.wait()
    assert isinstance(cache.read(["a"], EPOCH, Intent.FILL)[0], Leased)
    assert (cache.stats.announced, cache.stats.retracted, cache.stats.failures) == (0, 1, 1)
    assert [type(event) for event in heard[:2]] == [events.StoreFailed, events.Retracted]


def test_several_failures_are_one_error(cache: EntryCache, store: FaultyStore) -> None:
    """The error names one key and counts the others; its cause is the store's."""
    with store.outage():
        announcement = cache.announce([claim("a"), claim("b"), claim("c")])
        with pytest.raises(CacheUnavailableError, match=r"'a' \(and 2 more\)") as error:
            announcement.wait()
    assert isinstance(error.value.__cause__, CacheUnavailableError)
    assert cache.stats.failures == 3


def test_with_on_outage_commit_a_failure_is_told_and_no_more(
    cache: EntryCache, store: FaultyStore, heard: list[Any]
) -> None:
    """The key that was not acknowledged has no token; the others have theirs."""
    store.script.append(LoseRequest(Announce, "b"))
    tokens = cache.announce([claim("a"), claim("b", on_outage=OnOutage.COMMIT)]).wait()
    assert list(tokens) == ["a"]
    assert [type(event) for event in heard] == [events.StoreFailed, events.Announced]


def test_one_abort_among_commits_aborts(cache: EntryCache, store: FaultyStore) -> None:
    """Of several failures one whose claim says ABORT decides, and is the one that is named."""
    with store.outage():
        announcement = cache.announce([claim("a", on_outage=OnOutage.COMMIT), claim("b")])
        with pytest.raises(CacheUnavailableError, match="that 'b' is about"):
            announcement.wait()


def test_an_outcome_that_is_neither_token_nor_failure_gives_no_token(heard: list[Any]) -> None:
    """A foreign store's odd answer to an announcement is no token."""

    class Odd(MemoryStore):
        def submit(self, changes: Sequence[Any]) -> Any:
            class Reply:
                def wait(self) -> list[Any]:
                    return [None for _ in changes]

            return Reply()

    assert EntryCache(Odd()).announce([claim("a")]).wait() == {}


@pytest.mark.parametrize("keeps", [True, False])
def test_a_tombstone_has_a_time_limit_where_it_can_be_lost(
    cache: EntryCache, store: FaultyStore, clock: Clock, keeps: bool
) -> None:
    """A store that keeps tombstones keeps them until they are answered; elsewhere they expire."""
    store.keeps_tombstones = keeps
    cache.announce([claim("a"), claim(EPOCH, None)]).wait()
    clock.now += 1000
    (reading,) = cache.read(["a"], EPOCH, Intent.FILL)
    assert isinstance(reading, Busy if keeps else Leased)


def test_an_unknown_outcome_leaves_the_tombstone_to_expire(cache: EntryCache, clock: Clock, heard: list[Any]) -> None:
    """Abandoned keys are unreadable for their `tombstone_ttl`, then absent; a kept tombstone gets a time limit."""
    fill(cache, "a")
    claims = [claim("a"), claim("other-epoch", None)]
    cache.announce(claims).wait()
    cache.abandon(claims)
    assert heard[-1] == events.Unresolved(("a", "other-epoch"))
    assert cache.stats.unresolved == 1
    clock.now += 4
    assert isinstance(cache.read(["a"], EPOCH, Intent.FILL)[0], Busy)
    clock.now += 2
    assert isinstance(cache.read(["a"], EPOCH, Intent.FILL)[0], Leased)


def test_where_tombstones_expire_an_abandoned_one_is_left_alone(cache: EntryCache, store: FaultyStore) -> None:
    """Nothing is sent: the tombstone has its time limit already."""
    store.keeps_tombstones = False
    claims = [claim("a")]
    cache.announce(claims).wait()
    store.script.append(LoseRequest(Announce))
    cache.abandon(claims)
    assert len(store.script) == 1


# --- the application ------------------------------------------------------------------------------------------------


def test_eviction_is_acknowledged(cache: EntryCache, heard: list[Any]) -> None:
    """Keys and epochs are dropped, counted and told."""
    fill(cache, "a", "b")
    cache.evict(["a"])
    assert payloads(cache, "a", "b") == [None, b"b"]
    cache.evict([], [EPOCH])
    assert payloads(cache, "b") == [None]
    assert cache.stats.evicted == 2
    assert heard[-2:] == [events.Evicted(("a",)), events.Evicted((EPOCH,))]


@pytest.mark.parametrize("of", [Evict, EvictEpoch])
def test_an_eviction_that_fails_raises(cache: EntryCache, store: FaultyStore, heard: list[Any], of: Any) -> None:
    """The error says which key and what to do; the failure is counted and nothing is told evicted."""
    store.script.append(LoseReply(of))
    with pytest.raises(CacheUnavailableError, match=r"the eviction of '(a|epoch)'.*evict again"):
        cache.evict(["a"], [EPOCH])
    assert (cache.stats.failures, cache.stats.evicted) == (1, 0)
    assert [type(event) for event in heard] == [events.StoreFailed]


def test_drain_is_a_barrier(cache: EntryCache) -> None:
    """`drain` waits for an empty batch."""
    asked: list[Any] = []

    class Waiting(MemoryStore):
        def submit(self, changes: Sequence[Any]) -> Any:
            asked.append(list(changes))
            return super().submit(changes)

    EntryCache(Waiting()).drain()
    assert asked == [[]]


# --- where nothing may raise ----------------------------------------------------------------------------------------


class Broken(MemoryStore):
    """A store whose `post` breaks its promise."""

    def post(self, changes: Sequence[Any]) -> None:
        raise OSError("broken")


def test_a_post_that_raises_reaches_nobody(heard: list[Any]) -> None:
    """Filling, publishing, retracting and abandoning report what the store raised, with the keys."""
    cache = EntryCache(Broken(), subscribers=[heard.append])
    token = Token()
    cache.fill([Filling("a", token, b"", None)])
    cache.publish([Publication("b", token, b"", None)], {})
    cache.retract({"c": token})
    cache.abandon([claim("d")])
    cache.drop(["e"])
    failures = [event for event in heard if isinstance(event, events.StoreFailed)]
    assert [event.keys for event in failures] == [("a",), ("b",), ("c",), ("d",), ("e",)]
    assert all(str(event.error) == "broken" for event in failures)
    assert cache.stats.failures == 5


def test_report_counts_and_tells(cache: EntryCache, heard: list[Any]) -> None:
    """An error of our own is an event without keys."""
    error = ValueError("x")
    cache.report(error)
    assert cache.stats.failures == 1
    assert heard == [events.StoreFailed((), error)]


def test_a_subscriber_that_raises_is_logged(
    store: FaultyStore, heard: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The other subscribers and the caller go on."""

    def fail(_event: Any) -> None:
        raise RuntimeError("no")

    cache = EntryCache(store, subscribers=[fail, heard.append])
    with caplog.at_level(logging.ERROR, "sa_writethrough"), store.outage():
        cache.read(["a"], EPOCH, Intent.FILL)
    assert [type(event) for event in heard] == [events.Miss, events.StoreFailed]
    assert len(caplog.records) == 2


def test_lost_publications_leave_the_tombstone(cache: EntryCache, store: FaultyStore) -> None:
    """A publication that never arrives leaves the entry unreadable, not stale."""
    fill(cache, "a")
    tokens = cache.announce([claim("a")]).wait()
    store.script += [LoseRequest(Publish), LoseRequest(Retract), LoseRequest(AnnounceEpoch)]
    cache.publish([Publication("a", tokens["a"], b"new", None)], {})
    assert payloads(cache, "a") == [None]
