"""Every cell of the protocol's table: state by verb."""

from __future__ import annotations

from typing import Any

import pytest

from sa_writethrough.coherence import (
    ABSENT,
    BUSY,
    MISSING,
    Announce,
    AnnounceEpoch,
    Evict,
    EvictEpoch,
    Fill,
    Hit,
    Intent,
    Lease,
    Leased,
    Publish,
    Put,
    Retract,
    Settled,
    Token,
    Tombstone,
    Value,
    after,
    on_read,
)

OWN, FOREIGN, FRESH = Token(), Token(), Token()
STATES: dict[str, Any] = {
    "absent": ABSENT,
    "own lease": Lease(OWN),
    "foreign lease": Lease(FOREIGN),
    "own tombstone": Tombstone(OWN),
    "foreign tombstone": Tombstone(FOREIGN),
    "value": Value(b"old"),
}
NEW = Value(b"new")
APPLIED, REFUSED, HEALED = Settled.APPLIED, Settled.REFUSED, Settled.HEALED
CHANGES: dict[str, Any] = {
    "announce": Announce("k", "e", None),
    "announce epoch": AnnounceEpoch("k", None),
    "publish": Publish("k", OWN, b"new", None),
    "publish absent": Publish("k", OWN, None, None),
    "fill": Fill("k", OWN, b"new", None),
    "retract": Retract("k", OWN),
    "evict": Evict("k"),
    "evict epoch": EvictEpoch("k"),
    "put": Put("k", b"new", None),
}
SAME = "as it was"
# In the order of STATES: what the state becomes, and what the caller is told.
TABLE: dict[str, list[tuple[Any, Any]]] = {
    "announce": [(Tombstone(FRESH), FRESH)] * 6,
    "announce epoch": [(Tombstone(FRESH), FRESH)] * 6,
    "publish": [(SAME, REFUSED), (ABSENT, HEALED), (ABSENT, HEALED), (NEW, APPLIED), (SAME, REFUSED), (ABSENT, HEALED)],
    "publish absent": [
        (SAME, REFUSED),
        (ABSENT, HEALED),
        (ABSENT, HEALED),
        (ABSENT, APPLIED),
        (SAME, REFUSED),
        (ABSENT, HEALED),
    ],
    "fill": [(SAME, REFUSED), (NEW, APPLIED), *[(SAME, REFUSED)] * 4],
    "retract": [
        (SAME, REFUSED),
        (ABSENT, APPLIED),
        (SAME, REFUSED),
        (ABSENT, APPLIED),
        (SAME, REFUSED),
        (SAME, REFUSED),
    ],
    "evict": [
        (SAME, REFUSED),
        (ABSENT, APPLIED),
        (ABSENT, APPLIED),
        (SAME, REFUSED),
        (SAME, REFUSED),
        (ABSENT, APPLIED),
    ],
    "evict epoch": [
        (SAME, REFUSED),
        (ABSENT, APPLIED),
        (ABSENT, APPLIED),
        (SAME, REFUSED),
        (SAME, REFUSED),
        (ABSENT, APPLIED),
    ],
    "put": [(NEW, APPLIED)] * 6,
}
CELLS = [
    pytest.param(change, state, *TABLE[change][place], id=f"{change}-{state}")
    for change in CHANGES
    for place, state in enumerate(STATES)
]


@pytest.mark.parametrize(("change", "state", "becomes", "told"), CELLS)
def test_a_change_does_to_a_state_what_the_table_says(change: str, state: str, becomes: Any, told: Any) -> None:
    """One cell."""
    expected = STATES[state] if becomes == SAME else becomes
    assert after(STATES[state], CHANGES[change], FRESH) == (expected, told)


READS = {
    "absent": (Lease(FRESH), Leased(FRESH), MISSING),
    "own lease": (SAME, BUSY, BUSY),
    "foreign lease": (SAME, BUSY, BUSY),
    "own tombstone": (SAME, BUSY, BUSY),
    "foreign tombstone": (SAME, BUSY, BUSY),
    "value": (SAME, Hit(b"old"), Hit(b"old")),
}


@pytest.mark.parametrize("state", STATES)
def test_a_reader_gets_what_the_table_says(state: str) -> None:
    """Only an absent entry is leased, and only to a reader that will fill."""
    becomes, filler, looker = READS[state]
    expected = STATES[state] if becomes == SAME else becomes
    assert on_read(STATES[state], Intent.FILL, FRESH) == (expected, filler)
    assert on_read(STATES[state], Intent.LOOK, FRESH) == (STATES[state], looker)
