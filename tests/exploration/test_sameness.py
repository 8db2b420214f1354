"""What the search leaves out changes nothing that can be seen: with it and without it the same comes to pass."""

from __future__ import annotations

from unittest.mock import patch

import pytest

from sa_writethrough.coherence import Evict, Fill, Publish, Retract, Settled, Value
from tests.exploration import search
from tests.exploration.remote import NOBODY, Entry, Message, deliver, empty
from tests.exploration.runs import ExploredToken
from tests.exploration.sameness import _kept
from tests.exploration.scenarios import SCENARIOS
from tests.exploration.states import DATABASE, STORE, Budget
from tests.exploration.world import World

# No two actors of one kind: of twins either may stand for both.
WITHOUT_TWINS = ["3w1r", "insert against delete", "unknown commit", "rolled back", "store that keeps tombstones"]
TOKEN = ExploredToken(0, 1, 0)
STORED = empty(["@epoch"])


def _seen(name: str) -> set[object]:
    """Return every pair of committed rows and cached rows that can be."""
    pairs = set()

    class Watched(World):
        def wrong(self, state):
            contents = self.stores.values[state[STORE]]
            rows = tuple((e.key, e.state, e.generation) for e in contents.entries if isinstance(e.state, Value))
            pairs.add((self.databases.values[state[DATABASE]], contents.epochs, rows))
            return super().wrong(state)

    with Watched(SCENARIOS[name], Budget(*SCENARIOS[name].short)) as world:
        assert search.explore(world).violation is None
    return pairs


@pytest.mark.parametrize("name", WITHOUT_TWINS)
def test_what_is_forgotten_makes_no_difference(name):
    """The database and the readable rows go through the same states, whether or not the rest is forgotten."""
    forgetting = _seen(name)
    with patch.object(search, "Sameness", lambda _world: lambda state: state):
        assert _seen(name) == forgetting


def _message(change: object, number: int = 2) -> Message:
    return Message(0, number, change, awaited=False)


def test_a_refused_change_leaves_a_row_in_its_epoch():
    """What comes late, with the token of an older epoch, does not move the row there."""
    stored = STORED.with_entry(Entry("item:1", Value(b"row"), 1))
    assert deliver(stored, _message(Retract("item:1", TOKEN))) == (stored, Settled.REFUSED)


def test_a_fill_whose_lease_is_gone_is_forgotten():
    """It would be refused, whatever it meets."""
    assert list(_kept([_message(Fill("item:1", TOKEN, b"row", None))], STORED, set())) == []


def test_a_publication_whose_tombstone_is_gone_is_an_eviction():
    """It takes away what it meets, and cannot put its row there."""
    kept = list(_kept([_message(Publish("item:1", TOKEN, b"row", None))], STORED, set()))
    assert kept == [Message(NOBODY, 0, Evict("item:1"), awaited=False)]


def test_a_publication_whose_announcement_is_still_to_come_is_kept():
    """The announcement would make the tombstone that it is looking for."""
    publication = _message(Publish("item:1", TOKEN, b"row", None))
    assert publication in list(_kept([_message(Evict("item:1"), number=1), publication], STORED, set()))
