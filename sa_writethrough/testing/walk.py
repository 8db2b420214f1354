"""Any sequence of operations on a store, compared with the model step by step. For the conformance suite."""

from __future__ import annotations

import itertools
import secrets
from collections import defaultdict
from collections.abc import Sequence

from hypothesis import strategies as st

from sa_writethrough.coherence import (
    Announce,
    AnnounceEpoch,
    Change,
    Evict,
    EvictEpoch,
    Fill,
    Intent,
    Leased,
    Publish,
    Retract,
    Token,
)
from sa_writethrough.stores.base import Store
from sa_writethrough.testing.entry import TOMBSTONE_TTL
from sa_writethrough.testing.model import Model

__all__ = ["STEPS", "Walk"]

STEPS = st.lists(
    st.tuples(st.sampled_from("rrrrllaappffteeoAARRE"), st.integers(0, 2), st.integers(0, 6)), min_size=1, max_size=40
)
"""Letters as in `Walk`, the likely ones several times; a key; one of the latest tokens."""


class Walk:
    """A sequence of operations on three keys of two epochs. Of each step the letter says what, the numbers where."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._model = Model()
        name = secrets.token_hex(8)
        self._keys = [f"{name}:a", f"{name}:b", f"{name}:c"]
        self._epochs = [f"{name}:epoch1", f"{name}:epoch1", f"{name}:epoch2"]
        self._leases: defaultdict[str, list[Token]] = defaultdict(list)
        self._tombstones: defaultdict[str, list[Token]] = defaultdict(list)
        self._numbers = itertools.count()

    def take(self, steps: Sequence[tuple[str, int, int]]) -> None:
        """Do all *steps*. Raises AssertionError where the store's answer is not the table's."""
        for letter, place, which in steps:
            key, epoch = self._keys[place], self._epochs[place]
            if letter in "rl":
                self._read(key, epoch, Intent.FILL if letter == "r" else Intent.LOOK)
            else:
                self._change(letter, key, epoch, which)

    def _read(self, key: str, epoch: str, intent: Intent) -> None:
        (reading,) = self._store.read([key], epoch, intent)
        self._model.saw_reading(key, epoch, intent, reading)
        if isinstance(reading, Leased):
            self._leases[key].append(reading.token)

    def _change(self, letter: str, key: str, epoch: str, which: int) -> None:
        change = self._chosen(letter, key, epoch, which)
        if change is None:
            return
        (outcome,) = self._store.submit([change]).wait()
        self._model.saw_outcome(change, outcome)
        if isinstance(outcome, Token):
            self._tombstones[change.key].append(outcome)

    def _chosen(self, letter: str, key: str, epoch: str, which: int) -> Change | None:
        simple: dict[str, Change] = {
            "a": Announce(key, epoch, TOMBSTONE_TTL),
            "e": Evict(key),
            "A": AnnounceEpoch(epoch, TOMBSTONE_TTL),
            "E": EvictEpoch(epoch),
        }
        if letter in simple:
            return simple[letter]
        tokens = self._leases[key] if letter == "f" else self._tombstones[epoch if letter == "R" else key]
        if not tokens:
            return None
        # The latest ones are the interesting ones.
        token = tokens[-1 - which % min(len(tokens), 3)]
        owned: dict[str, Change] = {
            "p": Publish(key, token, b"%d" % next(self._numbers), None),
            "o": Publish(key, token, None, None),
            "f": Fill(key, token, b"%d" % next(self._numbers), None),
            "t": Retract(key, token),
            "R": Retract(epoch, token),
        }
        return owned[letter]
