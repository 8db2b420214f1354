"""States that differ in nothing that can still matter are one state.

What the future cannot ask for is forgotten, each by a rule that holds for every store's table (a rule that needs the
table asks the table itself, with the mutation in it where there is one):

- How a program ended, once it has ended. It has no further step, and so is as good as dead; what it still waited for
  would reach nobody.
- Whose a lease or a tombstone is, once nobody can name its token: its owner has ended, and no message carries it. To
  name a token one must have been given it, and a token is given to its owner alone; all that the table asks of one is
  whether it is the one that a change names.
- A message that changes nothing, whatever it meets. Its token is gone and cannot come back, for a token is made once,
  when the message that asks for it arrives; where that one is still under way the token is still to come. With the
  message goes the occasion for a loss right before it; but what is lost there may as well be lost before the next
  message that looks at it (`losses`).
- The payload, sender and token of a publication that can only take away what it meets, for the same reason: it is an
  eviction. Likewise who sent a read or an eviction that nobody waits for.

An argument can be wrong. `test_sameness.py` compares what is found with all that is found where nothing is left out
(`plain`), with rules taken out of the library, so that there is something to find; and it takes the care out of these
rules, and sees it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sa_writethrough import coherence
from sa_writethrough.coherence import ABSENT, Evict, Fill, Lease, Publish, Retract, Tombstone, Value
from tests.exploration.remote import NOBODY, Contents, Look, Message
from tests.exploration.runs import Done, ExploredToken
from tests.exploration.states import ACTORS, BUDGET, DATABASE, DEAD, MESSAGES, STORE, Actor, State
from tests.exploration.world import World

__all__ = ["Sameness"]

_NOBODYS = ExploredToken(None, 0, None)
_FRESH = ExploredToken(None, -1, None)
_PROBES = (ABSENT, Value(b"probe"), Lease(_NOBODYS), Tombstone(_NOBODYS))
"""An entry of each kind, whose token no message has."""


class Sameness:
    """Says for each state of a world which one stands for it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._dead = world.actors(Actor(DEAD))
        self._ended: list[dict[int, bool]] = [{} for _ in world.names]
        self._memo: dict[tuple[int, int, int], tuple[int, int]] = {}

    def __call__(self, state: State) -> State:
        """Return the state that stands for this one."""
        actors = list(state[ACTORS:])
        ended = 0
        for index, number in enumerate(actors):
            over = self._ended[index].get(number)
            if over is None:
                over = self._ended[index][number] = self._has_ended(index, number)
            if over:
                ended |= 1 << index
                actors[index] = self._dead
        key = (state[STORE], state[MESSAGES], ended)
        parts = self._memo.get(key)
        if parts is None:
            parts = self._memo[key] = self._parts(state[STORE], state[MESSAGES], ended)
        return (state[DATABASE], *parts, state[BUDGET], *actors)

    def _has_ended(self, index: int, number: int) -> bool:
        node = self._world.actors.values[number].node
        return node == DEAD or isinstance(self._world.cast.stop(index, node).question, Done)

    def _parts(self, store: int, messages: int, ended: int) -> tuple[int, int]:
        contents = self._world.stores.values[store]
        over = {index for index in range(len(self._world.names)) if ended >> index & 1}
        kept = list(_kept(self._world.messages.values[messages], contents, over))
        carried = {token for message in kept if (token := getattr(message.what, "token", None)) is not None}
        forgotten = {token for token in _tokens(contents) if _has_no_owner(token, over) and token not in carried}
        return (
            self._world.stores(_without(contents, forgotten)),
            self._world.messages(tuple(sorted(kept, key=_order))),
        )


def _has_no_owner(token: ExploredToken, over: set[int]) -> bool:
    return token.owner in {None, NOBODY} or token.owner in over


def _order(message: Message) -> tuple[Any, ...]:
    return message.owner, message.number, message.what.key, type(message.what).__name__, repr(message.seen)


# --- messages ---------------------------------------------------------------------------------------------------------


def _kept(messages: Sequence[Message], contents: Contents, over: set[int]) -> Iterator[Message]:
    """Yield the messages that can still do something, as what they can still do."""
    coming = {(message.owner, message.number) for message in messages}
    for message in messages:
        kept = message._replace(awaited=message.awaited and message.owner not in over)
        if kept.awaited:
            yield kept
            continue
        match kept.what:
            case Look() | Evict():
                yield kept._replace(owner=NOBODY, number=0)
            case Publish(token=ExploredToken() as token) | Fill(token=ExploredToken() as token) if (
                not _is_there(token, contents) and (token.owner, token.number) not in coming
            ):
                if _does_as(kept.what, None):
                    continue
                eviction = Evict(kept.what.key)
                yield Message(NOBODY, 0, eviction, awaited=False) if _does_as(kept.what, eviction) else kept
            case Retract(token=ExploredToken() as token) if (
                not _is_there(token, contents) and (token.owner, token.number) not in coming
            ):
                if not _does_as(kept.what, None):
                    yield kept
            case _:
                yield kept


def _is_there(token: ExploredToken, contents: Contents) -> bool:
    return token in set(_tokens(contents))


def _does_as(change: Any, other: Any) -> bool:
    """Tell whether a change whose token is gone makes of every entry what another one makes of it; None: nothing."""
    return all(
        coherence.after(probe, change, _FRESH)[0]
        == (probe if other is None else coherence.after(probe, other, _FRESH)[0])
        for probe in _PROBES
    )


# --- tokens -----------------------------------------------------------------------------------------------------------


def _tokens(contents: Contents) -> Iterator[ExploredToken]:
    for entry in contents.entries:
        if isinstance(entry.state, Lease | Tombstone) and isinstance(entry.state.token, ExploredToken):
            yield entry.state.token
    for epoch in contents.epochs:
        if isinstance(epoch.closed, ExploredToken):
            yield epoch.closed


def _without(contents: Contents, forgotten: set[ExploredToken]) -> Contents:
    """Return contents in which nobody's are the leases and tombstones whose tokens are forgotten."""
    entries = tuple(
        entry._replace(state=type(entry.state)(_NOBODYS))
        if isinstance(entry.state, Lease | Tombstone) and entry.state.token in forgotten
        else entry
        for entry in contents.entries
    )
    epochs = tuple(epoch._replace(closed=_NOBODYS) if epoch.closed in forgotten else epoch for epoch in contents.epochs)
    return Contents(entries, epochs)
