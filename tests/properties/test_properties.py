"""Hypothesis looks for a sequence of steps after which a cached read is wrong, and prints the shortest that it finds.

    pytest tests/properties                                        some hundred sequences, less than two minutes
    HYPOTHESIS_PROFILE=thorough pytest tests/properties            some thousand of longer ones, an hour or so
    SEQUENCES=500 STEPS=60 pytest tests/properties -k postgresql   as many and as long as one likes

Not derandomised, not even in CI: every run looks elsewhere. A failure prints its steps and `@reproduce_failure(...)`;
Hypothesis also remembers it in `.hypothesis` and tries it first when the test is run again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

import sa_writethrough as wt
from sa_writethrough import fences, staging, unit
from sa_writethrough.stores.memory import MemoryStore
from sa_writethrough.stores.urls import open_store
from tests.properties.faults import FaultyTransactions
from tests.properties.machine import Transactions
from tests.properties.worlds import Place
from tests.servers import MemcachedServer

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
SEQUENCES = int(os.environ.get("SEQUENCES", "0"))
STEPS = int(os.environ.get("STEPS", "60" if THOROUGH else "30"))

pytestmark = [
    pytest.mark.timeout(0 if THOROUGH or SEQUENCES else 600),
    # The machine does what SQLAlchemy advises against.
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning"),
]


def _settings(sequences: int, **more: Any) -> settings:
    return settings(
        max_examples=SEQUENCES or (sequences * 50 if THOROUGH else sequences),
        stateful_step_count=STEPS,
        deadline=None,
        derandomize=False,
        print_blob=True,
        report_multiple_bugs=False,
        phases=(Phase.reuse, Phase.generate, Phase.shrink),  # Phase.explain traces every line, for minutes
        suppress_health_check=list(HealthCheck),
        **more,
    )


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[Callable[..., Place]]:
    """Open a place in the database and with the store of these names."""
    opened = []

    def open_place(database: str, store: str, **arguments: Any) -> Place:
        url = request.getfixturevalue(f"{database}_url")
        memcached: MemcachedServer | None = request.getfixturevalue("memcached") if store == "memcached" else None

        def open_one(clock: Callable[[], float]) -> Any:
            return MemoryStore(clock=clock) if memcached is None else open_store(memcached.url)

        opened.append(Place(url, open_one, **arguments))
        return opened[0]

    yield open_place
    for each in opened:
        each.close()


# --- the promise --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("database", "store", "sequences"),
    [("sqlite", "memory", 60), ("postgresql", "memcached", 15), ("postgresql", "memory", 5), ("sqlite", "memcached", 10)],
)
def test_whatever_sessions_do_the_cache_agrees_with_the_database(
    place: Callable[..., Place], database: str, store: str, sequences: int
) -> None:
    """Every cached row is the committed one after each step, and every cached read returns what its own SELECT does."""
    here = place(database, store)
    run_state_machine_as_test(lambda: Transactions(here), settings=_settings(sequences))


@pytest.mark.parametrize(("database", "store", "sequences"), [("sqlite", "memory", 20), ("postgresql", "memcached", 10)])
def test_whatever_the_store_loses_the_cache_agrees_with_the_database(
    place: Callable[..., Place], database: str, store: str, sequences: int
) -> None:
    """The same with lost, late and forgotten entries, with outages, and with others at work between any two steps."""
    here = place(database, store, forgetful=True)
    run_state_machine_as_test(lambda: FaultyTransactions(here), settings=_settings(sequences))


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_lazy_loads_and_plain_gets_agree_where_every_lookup_is_served(place: Callable[..., Place], journal: str) -> None:
    """The same with `Reads.ALWAYS`, where also many-to-one relationships are loaded from the cache."""
    here = place("sqlite", "memory", reads=wt.Reads.ALWAYS, journal=journal)
    run_state_machine_as_test(lambda: Transactions(here), settings=_settings(15))


# --- that it can fail ---------------------------------------------------------------------------------------------------


def _rows_of_a_rolled_back_savepoint_stay(_unit: Any, _name: str) -> None:
    """`Unit.rollback_to` that does nothing."""


def _no_epoch_is_touched(_unit: Any, _key: str, _model: Any) -> None:
    """`Unit.touch_epoch` that does nothing."""


def _publish_what_was_touched_before(key: str, token: Any, touch: Any) -> Any:
    """`staging._publication` that publishes deleted rows as well."""
    return staging.Publication(key, token, touch.payload or b"", None)


def _verify_nothing(_fence: Any, _identity: Any, selection: Any) -> Any:
    """`Fence._verified` that takes every row for unlocked."""
    return selection


def _find(machine: Callable[[], Transactions]) -> str:
    """Return the steps that Hypothesis prints, always the same ones."""
    with pytest.raises(AssertionError, match="the database has") as found:
        run_state_machine_as_test(
            machine, settings=settings(_settings(1000), max_examples=1000, derandomize=True, database=None)
        )
    return "\n".join(getattr(found.value, "__notes__", []))
