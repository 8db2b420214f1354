"""Mutations of the protocol: each takes one rule out of the library while it is entered.

`MUTANTS` names them, with the rule and the smallest scenario in which the exploration shows what the rule is for. Where
two rules each keep the promise alone, the scenario is one in which the other cannot help: a store that keeps its
tombstones, whose fills are not verified.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from sa_writethrough import (
    cache,
    coherence,
    ending,
    executing,
    fences,
    loading,
    routing,
    snapshots,
    staging,
    unit,
    writing,
)
from sa_writethrough.coherence import ABSENT, Evict, Fill, Lease, Publish, Settled, Tombstone, Value
from sa_writethrough.entities import Family, Scope
from sa_writethrough.exceptions import CacheUnavailableError
from sa_writethrough.policy import OnOutage
from sa_writethrough.unit import Phase
from tests.exploration import programs as p
from tests.exploration import remote
from tests.exploration.runs import ExploredToken
from tests.exploration.scenarios import A_TO_B, Scenario, cast
from tests.exploration.states import Budget

Entered = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A rule, the library without it, and where that shows."""

    rule: str
    entered: Entered
    scenario: Scenario
    budget: Budget


MUTANTS: dict[str, Mutant] = {}
NO_FAULTS = Budget()


def _mutant(
    name: str, rule: str, actors: dict[str, Any], budget: Budget = NO_FAULTS, **options: Any
) -> Callable[[Callable[[], Iterator[None]]], Entered]:
    def keep(function: Callable[[], Iterator[None]]) -> Entered:
        entered = contextmanager(function)
        rows = options.pop("rows", A_TO_B)
        MUTANTS[name] = Mutant(rule, entered, Scenario(name, rule, cast(**actors), rows, **options), budget)
        return entered

    return keep


def _instead(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    with patch.object(owner, name, replacement):
        yield


WRITER_AND_READER = {"W": p.writes(a=1), "R": p.reads(1)}
TWO_WRITERS = {"W": p.writes(a=1), "L": p.changes(b=2), "R": p.reads(1)}
LOSS, KILL, TIMEOUT, CUT = Budget(losses=1), Budget(kills=1), Budget(timeouts=1), Budget(cuts=1)


# --- announcing -------------------------------------------------------------------------------------------------------


class _Unsent:
    """An announcement that nobody sent."""

    def wait(self) -> dict[str, Any]:
        return {}


@_mutant("no announcement", "a writer announces before its COMMIT", WRITER_AND_READER)
def no_announcement() -> Iterator[None]:
    yield from _instead(cache.EntryCache, "announce", lambda _self, _claims: _Unsent())


@_mutant(
    "announcement after COMMIT", "the announcement is acknowledged before the COMMIT, not after it", WRITER_AND_READER
)
def announcement_after_commit() -> Iterator[None]:
    def announce(core: Any, connection: Any, unit_: Any) -> None:
        staging._read_back(core, connection, unit_)
        unit_.phase = Phase.ANNOUNCED

    def publish(core: Any, unit_: Any) -> None:
        with suppress(CacheUnavailableError):
            unit_.tokens = core.cache.announce(staging._claims(unit_)).wait()
        staging.publish(core, unit_)

    with patch.object(ending, "announce", announce), patch.object(ending, "publish", publish):
        yield


@_mutant("announcement without an answer", "COMMIT waits until the announcement is acknowledged", WRITER_AND_READER)
def announcement_without_answer() -> Iterator[None]:
    def announce(self: Any, claims: Any) -> Any:
        numbers = {c.key: self.store._send(cache._announce(c, keeps_tombstones=False), awaited=False) for c in claims}
        unanswered = _Unsent()
        unanswered.wait = lambda: {key: ExploredToken(None, number, 0) for key, number in numbers.items()}  # type: ignore[method-assign]
        return unanswered

    yield from _instead(cache.EntryCache, "announce", announce)


@_mutant("failed announcement ignored", "what was not acknowledged is not committed", WRITER_AND_READER, TIMEOUT)
def failed_announcement_ignored() -> Iterator[None]:
    original = cache.EntryCache.announce
    yield from _instead(
        cache.EntryCache,
        "announce",
        lambda self, claims: original(self, [replace(claim, on_outage=OnOutage.COMMIT) for claim in claims]),
    )


@_mutant("announcement before the lock", "a writer announces after its last SQL, holding the row's lock", TWO_WRITERS)
def announcement_before_lock() -> Iterator[None]:
    original = executing.Executing._touch

    def touch(self: Any, connection: Any, unit_: Any, written: Any, options: Any) -> Any:
        touched = original(self, connection, unit_, written, options)
        unit_.tokens = self._core.cache.announce(staging._claims(unit_)).wait()
        return touched

    def announce(core: Any, connection: Any, unit_: Any) -> None:
        staging._read_back(core, connection, unit_)
        unit_.phase = Phase.ANNOUNCED

    with patch.object(executing.Executing, "_touch", touch), patch.object(ending, "announce", announce):
        yield


@_mutant(
    "epoch not announced",
    "a writer of rows that cannot be named closes their epoch",
    {"B": p.writes_all(b=9), "R": p.reads(1)},
)
def epoch_not_announced() -> Iterator[None]:
    yield from _instead(unit.Unit, "touch_epoch", lambda _self, _key, _model: None)


# --- the store's table ------------------------------------------------------------------------------------------------


def _table(change_type: type, state_types: Any, outcome: Callable[[Any], Any]) -> Iterator[None]:
    """Let *outcome* say what becomes of an entry in one of *state_types* under a change of *change_type*."""
    original = coherence.after

    def after(state: Any, change: Any, token: Any) -> Any:
        if isinstance(change, change_type) and isinstance(state, state_types):
            return outcome(change), Settled.APPLIED
        return original(state, change, token)

    yield from _instead(coherence, "after", after)


@_mutant("blind publish", "a writer publishes over its own tombstone alone", TWO_WRITERS)
def blind_publish() -> Iterator[None]:
    yield from _table(Publish, object, lambda change: coherence._value_or_absent(change.payload))


@_mutant("blind fill", "a reader fills over its own lease alone", WRITER_AND_READER)
def blind_fill() -> Iterator[None]:
    yield from _table(Fill, object, lambda change: Value(change.payload))


@_mutant(
    "lease not compared",
    "a lease is one reader's: what another one read may be older",
    {"W": p.writes(a=1), "R": (2, p.reads(1))},
    LOSS,
)
def lease_not_compared() -> Iterator[None]:
    yield from _table(Fill, Lease, lambda change: Value(change.payload))


@_mutant("tombstone not compared", "a tombstone is one writer's: another one's is later", TWO_WRITERS)
def tombstone_not_compared() -> Iterator[None]:
    yield from _table(Publish, Tombstone, lambda change: coherence._value_or_absent(change.payload))


@_mutant(
    "eviction drops tombstones",
    "an eviction leaves a tombstone where it is",
    {"W": p.writes(a=1), "E": p.evicts(1), "R": p.reads(1)},
    lossless=True,
)
def eviction_drops_tombstones() -> Iterator[None]:
    yield from _table(Evict, Tombstone, lambda _change: ABSENT)


# --- the verified fill ------------------------------------------------------------------------------------------------


@_mutant("no verified fill", "a fill needs the database's word that no writer holds the row", WRITER_AND_READER, LOSS)
def no_verified_fill() -> Iterator[None]:
    yield from _instead(fences.Fence, "_verified", lambda _self, _identity, selection: selection)


@_mutant(
    "no verified fill in a new epoch",
    "an announcement of an epoch can be lost, too: a fill in the one that follows needs the database's word",
    {"B": p.writes_all(b=9), "R": p.reads(1)},
    LOSS,
)
def no_verified_fill_in_new_epoch() -> Iterator[None]:
    with no_verified_fill():
        yield


@_mutant(
    "lost epoch comes back",
    "an epoch that was lost is followed by another one, in which no row of the lost one is readable",
    {"B": p.writes_all(b=9), "R": p.reads(1)},
    LOSS,
)
def lost_epoch_comes_back() -> Iterator[None]:
    def lose_epoch(contents: Any, key: str) -> Any:
        return contents.with_epoch(contents.epoch(key)._replace(closed=None))

    yield from _instead(remote, "lose_epoch", lose_epoch)


@_mutant(
    "row read before the lock filled",
    "what is filled is what was read under the share lock, not what was read before it",
    WRITER_AND_READER,
    LOSS,
)
def row_before_lock_filled() -> Iterator[None]:
    original = fences.Fence._under_share_lock
    yield from _instead(
        fences.Fence,
        "_under_share_lock",
        lambda self, identity, selection: selection if original(self, identity, selection) is not None else None,
    )


@_mutant(
    "fill from an old snapshot",
    "what a transaction reads in an old snapshot is not filled",
    {"S": p.repeatable(p.reads_late_in_transaction(2, 1)), "W": p.writes(a=1)},
    LOSS,
    rows=((0, 0), (0, 0)),
    lossless=True,
)
def fill_from_old_snapshot() -> Iterator[None]:
    yield from _instead(routing, "is_snapshot", lambda *_arguments, **_options: False)


@_mutant(
    "own writes served and filled",
    "a transaction that wrote is neither served nor fills what it wrote",
    {"O": p.writes_and_reads_back(a=1)},
)
def own_writes_served_and_filled() -> Iterator[None]:
    always = patch.object(loading, "_never", lambda _identity: True)
    with always, patch.object(routing.Routing, "wrote", lambda *_arguments: False):
        yield


# --- the end of the transaction ---------------------------------------------------------------------------------------


@_mutant(
    "retract after an unknown outcome",
    "the tombstones of a COMMIT whose outcome is unknown are left",
    WRITER_AND_READER,
    CUT,
    lossless=True,
)
def retract_after_unknown_outcome() -> Iterator[None]:
    yield from _instead(ending, "abandon", staging.retract)


@_mutant(
    "publish after an unknown outcome",
    "a COMMIT whose outcome is unknown publishes nothing",
    WRITER_AND_READER,
    CUT,
)
def publish_after_unknown_outcome() -> Iterator[None]:
    yield from _instead(ending, "abandon", staging.publish)


@_mutant(
    "publish what a savepoint undid",
    "what ROLLBACK TO SAVEPOINT undid is neither announced nor published",
    {"S": p.writes_two_with_savepoint(release=False)},
    rows=((0, 0), (0, 0)),
)
def publish_what_savepoint_undid() -> Iterator[None]:
    yield from _instead(unit.Unit, "rollback_to", unit.Unit.release)


@_mutant(
    "publish inside an outer transaction",
    "a session inside somebody else's transaction publishes nothing before that one commits",
    {"O": p.writes_inside_outer_transaction(a=1)},
)
def publish_inside_outer_transaction() -> Iterator[None]:
    original = writing.Writing.session_listeners

    def session_listeners(self: Any) -> Any:
        def after_commit(session: Any) -> None:
            work = self._core.work_of(session)
            for connection, its_unit in [] if work is None else work.units:
                if its_unit.phase is Phase.OPEN and not its_unit.is_empty:
                    staging.announce(self._core, connection, its_unit)
                staging.publish(self._core, its_unit)

        return [*original(self), ("after_commit", after_commit, {})]

    yield from _instead(writing.Writing, "session_listeners", session_listeners)


@_mutant(
    "publish the instance",
    "the row of an UPDATE is what the database returns, not what the instance holds",
    {"W": p.writes(a=1), "L": p.changes(b=2)},
)
def publish_the_instance() -> Iterator[None]:
    def after_flush(self: Any, _session: Any, work: Any, context: Any) -> None:
        (connection, unit_) = work.units[0]
        for state in context.states:
            family = self._core.entities.family_of(state.mapper)
            layout = self._core.shapes(family, connection.dialect).layouts[state.mapper]
            if not set(layout.names) <= set(state.dict):
                continue
            for key, touch in list(unit_.rows().items()):
                unit_.touch(key, replace(touch, payload=layout.codec.encode([state.dict[n] for n in layout.names])))

    yield from _instead(snapshots.Snapshots, "after_flush", after_flush)


# --- keys -------------------------------------------------------------------------------------------------------------


@_mutant(
    "fingerprint in the key",
    "the writers of every version of a model announce on one key",
    {"R": p.reads(1), "V": p.old(p.writes(a=2))},
)
def fingerprint_in_key() -> Iterator[None]:
    original = Family.scope

    def scope(self: Any, database: str, schema_map: Any, **of_the_database: Any) -> Scope:
        found = original(self, database, schema_map, **of_the_database)
        prefix = found.prefix + self.base.class_.__name__
        return Scope(prefix + ":", prefix + ":@epoch")

    yield from _instead(Family, "scope", scope)
