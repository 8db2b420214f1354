"""A batch of changes: who must be told what, and what the answers amount to. Knows plans and nodes, not sockets.

A batch falls into waves, so that of one key's changes each begins when the one before it is over; nearly every batch is
one wave. A wave falls into parts, one conversation with one node each. A change of an entry is one part, or shares one
(announcements of one epoch); a change of an epoch has a part on every node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

from sa_writethrough.coherence import (
    Announce,
    AnnounceEpoch,
    Change,
    Evict,
    EvictEpoch,
    Failed,
    Fill,
    Outcome,
    Publish,
    Put,
    Retract,
    Settled,
    Token,
)
from sa_writethrough.exceptions import ConfigurationError
from sa_writethrough.stores import _plans as plans
from sa_writethrough.stores._node import NodeBase
from sa_writethrough.stores._pipeline import Pipeline, Plan, Run
from sa_writethrough.stores._plans import ItemToken, MakeToken

__all__ = ["Barrier", "Batch", "Part", "Refused", "parts_of", "results", "start", "token_maker", "waves_of"]

T = TypeVar("T")


class EpochToken(Token):
    """Of an announced epoch: one token per node."""

    __slots__ = ("own",)

    def __init__(self, own: Sequence[ItemToken]) -> None:
        self.own = own


class Part(NamedTuple):
    """A conversation with *node*, over *connection* alone if it is set: one outcome for each change at *places*.

    A tuple, not a frozen dataclass, which is slower to make: every commit makes two.
    """

    places: Sequence[int]
    node: NodeBase[Any]
    plan: Callable[[Pipeline], Plan[Outcome]]
    connection: Pipeline | None = None


_Started: TypeAlias = "Sequence[tuple[Part, Run[Outcome]]]"


def token_maker(node: NodeBase[Any], connection: Pipeline) -> MakeToken:
    """Return what makes tokens of items that are seen or stored over *connection*."""
    return partial(ItemToken, node, connection if connection.binds_tokens else None)


def waves_of(changes: Sequence[Change]) -> list[Sequence[int]]:
    """Return the places of *changes*, in as few groups as have no key twice, in order per key."""
    if len(changes) == 1 or len({change.key for change in changes}) == len(changes):
        return [range(len(changes))]
    waves: list[list[int]] = []
    seen: dict[str, int] = {}
    for place, change in enumerate(changes):
        wave = seen.get(change.key, 0)
        seen[change.key] = wave + 1
        if wave == len(waves):
            waves.append([])
        waves[wave].append(place)
    return [*waves]


def parts_of(
    changes: Sequence[Change],
    places: Iterable[int],
    owner: Callable[[str], NodeBase[Any]],
    nodes: Sequence[NodeBase[Any]],
    max_bytes: int,
) -> list[Part]:
    """Return the conversations that the changes at *places* come to."""
    parts: list[Part] = []
    announced: dict[tuple[NodeBase[Any], str], list[int]] = {}
    for place in places:
        change = changes[place]
        if isinstance(change, Announce):
            announced.setdefault((owner(change.key), change.epoch), []).append(place)
        else:
            parts += _parts_of_one(change, place, owner, nodes, max_bytes)
    for (node, _), group in announced.items():
        together = [change for place in group if isinstance(change := changes[place], Announce)]
        parts.append(Part(group, node, partial(_announce, node, together)))
    return parts


def _parts_of_one(  # noqa: PLR0911 - one return per kind of change
    change: Change,
    place: int,
    owner: Callable[[str], NodeBase[Any]],
    nodes: Sequence[NodeBase[Any]],
    max_bytes: int,
) -> list[Part]:
    match change:
        case AnnounceEpoch():
            return [Part((place,), node, partial(_announce_epoch, node, change)) for node in nodes]
        case EvictEpoch(key):
            return [Part((place,), node, partial(_evict, key)) for node in nodes]
        case Evict(key):
            return [Part((place,), owner(key), partial(_evict, key))]
        case Put(key):
            return [Part((place,), owner(key), partial(_put, change, max_bytes))]
        case Publish(token=ItemToken() as own) | Fill(token=ItemToken() as own) | Retract(token=ItemToken() as own):
            return [Part((place,), own.node, partial(_settle, change, own, max_bytes), own.connection)]
        case Retract(token=EpochToken() as token):
            return [
                Part((place,), own.node, partial(_settle, change, own, max_bytes), own.connection) for own in token.own
            ]
        case _:
            # A token that no memcached store made: nobody need be asked.
            return []


def start(parts: Sequence[Part]) -> _Started:
    """Send *parts*, those for one connection together."""
    if len(parts) == 1:
        (part,) = parts
        return [*zip(parts, _send(part.node, part.connection, [part.plan]), strict=True)]
    together: dict[tuple[NodeBase[Any], Pipeline | None], list[Part]] = {}
    for part in parts:
        together.setdefault((part.node, part.connection), []).append(part)
    started: list[tuple[Part, Run[Outcome]]] = []
    for (node, connection), group in together.items():
        started.extend(zip(group, _send(node, connection, [part.plan for part in group]), strict=True))
    return started


def _send(
    node: NodeBase[Any], connection: Pipeline | None, conversations: Sequence[Callable[[Pipeline], Plan[Outcome]]]
) -> Sequence[Run[Outcome]]:
    return node.start(conversations) if connection is None else node.start_on(connection, conversations)


class Batch:
    """The reply to a batch: what was started and what came of it."""

    def __init__(self, changes: Sequence[Change]) -> None:
        self._changes = changes
        self._started: list[tuple[Part, Run[Outcome]]] = []
        self._answers: list[list[Outcome]] = [[] for _ in changes]

    def add(self, started: _Started) -> None:
        """Take charge of one more wave."""
        self._started += started

    def push(self) -> None:
        """Send what is still to be sent. Those whose first answer decides what is sent next are seen through."""
        for part, run in self._started:
            if isinstance(self._changes[part.places[0]], Evict | EvictEpoch):
                part.node.see_through(run)
            else:
                part.node.push(run)

    def wait(self) -> Sequence[Outcome]:
        """Return one outcome per change. Raises `ConfigurationError` alone."""
        started, self._started = self._started, []
        for part, run in started:
            for place, outcome in zip(part.places, results(part.node, run, len(part.places)), strict=True):
                self._answers[place].append(outcome)
        return [_together(change, answers) for change, answers in zip(self._changes, self._answers, strict=True)]


class Refused:
    """The reply to what could not even be sent."""

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self._outcomes = outcomes

    def wait(self) -> Sequence[Outcome]:
        """Return at once."""
        return self._outcomes


class Barrier:
    """The reply to an empty batch: everything that was posted before is done."""

    def __init__(self, nodes: Sequence[NodeBase[Any]]) -> None:
        self._nodes = nodes

    def wait(self) -> Sequence[Outcome]:
        """Wait until no connection owes anything."""
        for node in self._nodes:
            node.drain()
        return []


def results(node: NodeBase[Any], run: Run[T], count: int) -> Sequence[T | Failed]:
    """Wait for *run*; return its results, or *count* times what went wrong."""
    node.finish(run)
    if run.results is not None:
        return run.results
    if isinstance(run.error, ConfigurationError) or run.error is None:
        raise run.error or AssertionError("a finished run has results or an error")
    return [Failed(run.error)] * count


def _together(change: Change, answers: Sequence[Outcome]) -> Outcome:
    """Return what the answers of all the nodes concerned amount to."""
    if len(answers) == 1 and not isinstance(change, AnnounceEpoch):
        return answers[0]
    failed = next((answer for answer in answers if isinstance(answer, Failed)), None)
    if failed is not None:
        return failed
    if isinstance(change, AnnounceEpoch):
        return EpochToken([answer for answer in answers if isinstance(answer, ItemToken)])
    return Settled.APPLIED if Settled.APPLIED in answers else Settled.REFUSED


# --- plans on a connection ------------------------------------------------------------------------------------------


def _announce(node: NodeBase[Any], changes: Sequence[Announce], on: Pipeline) -> Plan[Outcome]:
    return plans.announce(changes, on.fresh, token_maker(node, on), node.remember)


def _announce_epoch(node: NodeBase[Any], change: AnnounceEpoch, on: Pipeline) -> Plan[Outcome]:
    return plans.announce_epoch(change, on.fresh, token_maker(node, on))


def _settle(change: Publish | Fill | Retract, own: ItemToken, max_bytes: int, on: Pipeline) -> Plan[Outcome]:
    return plans.settle(change, own, on.fresh, max_bytes)


def _put(change: Put, max_bytes: int, on: Pipeline) -> Plan[Outcome]:
    return plans.put(change, on.fresh, max_bytes)


def _evict(key: str, on: Pipeline) -> Plan[Outcome]:
    del on
    return plans.evict(key)
