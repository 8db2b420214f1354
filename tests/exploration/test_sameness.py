"""What the search leaves out changes nothing that can be seen: with it and without it the same comes to pass."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from unittest.mock import patch

import pytest

from sa_writethrough.coherence import Evict, Fill, Publish, Retract, Settled, Value
from tests.exploration import sameness, search
from tests.exploration.plain import PlainWorld, Watched, explore_plainly
from tests.exploration.remote import NOBODY, Entry, Message, deliver, empty
from tests.exploration.runs import ExploredToken
from tests.exploration.sameness import _kept
from tests.exploration.scenarios import SCENARIOS
from tests.exploration.states import DATABASE, STORE, Budget
from tests.exploration.world import World
from tests.mutants.mutations import MUTANTS

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


# --- with nothing left out --------------------------------------------------------------------------------------------

ONE_OF_EACH = Budget(1, 1, 1, 1)
# Mutants, because what they break must show in both searches; together they have every reduction's occasion: twins,
# losses, late and lost replies, deaths, cuts, savepoints, snapshots, epochs.
SMALL = {
    "announcement before the lock": MUTANTS["announcement before the lock"].budget,
    "lease not compared": MUTANTS["lease not compared"].budget,
    "eviction drops tombstones": MUTANTS["eviction drops tombstones"].budget,
    "failed announcement ignored": ONE_OF_EACH,
    "no verified fill": ONE_OF_EACH,
    "lost epoch comes back": ONE_OF_EACH,
    "fill from an old snapshot": ONE_OF_EACH,
    "publish after an unknown outcome": ONE_OF_EACH,
    "publish what a savepoint undid": ONE_OF_EACH,
    "publish the instance": ONE_OF_EACH,
    "fingerprint in the key": ONE_OF_EACH,
}


def _came_to_pass(name: str, *, mutant: bool = True, plainly: bool) -> tuple[object, ...]:
    """Return all violations, every readable row beside the committed ones, and all that reads returned."""
    scenario = replace(MUTANTS[name].scenario, pipelined=name == "no verified fill")
    without_rule = MUTANTS[name].entered() if mutant else nullcontext()
    with without_rule, (PlainWorld if plainly else Watched)(scenario, SMALL[name]) as world:
        assert (explore_plainly if plainly else search.explore)(world).complete
    return world.found, world.readable, world.returned


@pytest.mark.parametrize("name", SMALL)
def test_what_is_left_out_hides_no_violation(name):
    """A search in which every fault and every reply is a move of its own, and no state is another one, finds the same."""
    reduced = _came_to_pass(name, plainly=False)
    assert reduced[0]
    assert _came_to_pass(name, plainly=True) == reduced


def test_nothing_is_violated_where_nothing_is_left_out():
    """Of the library as it is, that search finds nothing either."""
    reduced = _came_to_pass("no verified fill", mutant=False, plainly=False)
    assert not reduced[0]
    assert _came_to_pass("no verified fill", mutant=False, plainly=True) == reduced


@pytest.mark.parametrize(
    ("room", "rule", "unsound"),
    [
        (sameness, "_has_no_owner", lambda _token, _over: True),
        (sameness, "_is_there", lambda _token, _contents: False),
        (search, "_symmetries", lambda _scenario: [(1, 0)]),
    ],
)
def test_a_reduction_that_is_not_sound_would_be_seen(room, rule, unsound):
    """Forgetting whose a token is that somebody can still name; a fill whose lease is there; who is a reader, who a writer."""
    whole = _came_to_pass("fingerprint in the key", plainly=True)
    with patch.object(room, rule, unsound):
        assert _came_to_pass("fingerprint in the key", plainly=False) != whole


# --- messages ---------------------------------------------------------------------------------------------------------


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
