"""What a store may have lost when a message reaches it.

A loss can be seen by the next message that looks at what was lost, and by nobody else before: until then the store holds
more, and of more it is claimed that it is right. So a loss is no step of its own. It comes right before the message
that meets it, and every loss at an earlier moment is covered by that one.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

from sa_writethrough.coherence import Absent, Announce, AnnounceEpoch, EvictEpoch, Retract, Value
from tests.exploration import remote
from tests.exploration.remote import Contents, Look, Message
from tests.exploration.scenarios import Scenario

__all__ = ["COUNT", "Loss", "before"]


class Loss(Enum):
    """What is gone."""

    NOTHING = ""
    ENTRY = "the entry is lost"
    EPOCH = "the epoch alone is lost"
    BOTH = "the epoch and the entry are lost"
    RESTART = "it restarts, empty"


COUNT = {Loss.NOTHING: 0, Loss.ENTRY: 1, Loss.EPOCH: 1, Loss.BOTH: 2, Loss.RESTART: 1}
"""How many losses each is."""


def before(
    contents: Contents, message: Message, scenario: Scenario, most: int, *, looks: bool = False
) -> Iterator[tuple[Loss, Contents]]:
    """Yield what the store may hold when *message* reaches it, after at most so many losses.

    looks: the message looks at its epoch alone, and at its entry later.
    """
    yield Loss.NOTHING, contents
    if not most:
        return
    key, epoch = _met(message)
    entry = None if looks or key is None else contents.entry(key).state
    entry_is_there = entry is not None and not isinstance(entry, Absent)
    if entry_is_there and (isinstance(entry, Value) or not scenario.lossless):
        yield Loss.ENTRY, remote.lose(contents, key or "")
    if epoch is not None and not scenario.lossless:
        without = remote.lose_epoch(contents, epoch)
        yield Loss.EPOCH, without
        if entry_is_there and most >= COUNT[Loss.BOTH]:
            yield Loss.BOTH, remote.lose(without, key or "")
    if scenario.restarts:
        yield Loss.RESTART, remote.restart(contents)


def _met(message: Message) -> tuple[str | None, str | None]:
    """Return the entry and the epoch that a message looks at."""
    match message.what:
        case AnnounceEpoch(key=key) | EvictEpoch(key=key):
            return None, key
        case Retract(key=key) if key.endswith("@epoch"):
            return None, key
        case Look(key=key, epoch=epoch) | Announce(key=key, epoch=epoch):
            return key, epoch if message.seen is None else None
    return message.what.key, None
