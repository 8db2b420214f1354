"""Hypothesis looks for a sequence of steps after which a cached read is wrong, and prints the shortest that it finds.

    pytest tests/properties                                        some hundred sequences, less than two minutes
    HYPOTHESIS_PROFILE=thorough pytest tests/properties            some thousand of longer ones, an hour or so
    SEQUENCES=500 STEPS=60 pytest tests/properties -k postgres     as many and as long as one likes

Under CI=true the sequences are always the same; elsewhere every run looks elsewhere. A failure prints its steps and
`@reproduce_failure(...)`; Hypothesis also remembers it in `.hypothesis` and tries it first when the test is run again.
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import inspect
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value

import sa_writethrough as wt
from sa_writethrough import _sqla, fences, lookups, unit
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
    pytest.mark.timeout(0 if THOROUGH or SEQUENCES else 900),
    # The machine does what SQLAlchemy advises against.
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning"),
]


def _settings(sequences: int, **more: Any) -> settings:
    return settings(
        max_examples=SEQUENCES or (sequences * 50 if THOROUGH else sequences),
        stateful_step_count=STEPS,
        deadline=None,
        derandomize=os.environ.get("CI", "").lower() == "true",
        print_blob=True,
        report_multiple_bugs=False,
        phases=(Phase.reuse, Phase.generate, Phase.shrink),  # Phase.explain traces every line, for minutes
        suppress_health_check=list(HealthCheck),
        **more,
    )


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Callable[..., AbstractContextManager[Place]]:
    """Open a place in the database and with the store of these names."""
    faulthandler.cancel_dump_traceback_later()  # shrinking takes minutes; pytest-timeout's own limit remains

    @contextmanager
    def open_place(database: str, store: str, **arguments: Any) -> Iterator[Place]:
        url = request.getfixturevalue(f"{database}_url")
        memcached: MemcachedServer | None = request.getfixturevalue("memcached") if store == "memcached" else None

        def open_one(clock: Callable[[], float]) -> Any:
            return MemoryStore(clock=clock) if memcached is None else open_store(memcached.url)

        opened = Place(url, open_one, **arguments)
        yield opened
        opened.close()

    return open_place


# --- the promise --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("database", "store", "sequences"),
    [
        ("sqlite", "memory", 60),
        ("postgres", "memcached", 15),
        ("postgres", "memory", 5),
        ("sqlite", "memcached", 10),
        ("mariadb", "memcached", 10),
        ("mariadb", "memory", 5),
    ],
)
def test_whatever_sessions_do_the_cache_agrees_with_the_database(
    place: Callable[..., AbstractContextManager[Place]], database: str, store: str, sequences: int
) -> None:
    """Every cached row is the committed one after each step, and every cached read returns what its own SELECT does."""
    with place(database, store) as here:
        run_state_machine_as_test(lambda: Transactions(here), settings=_settings(sequences))


@pytest.mark.parametrize(
    ("database", "store", "sequences"),
    [("sqlite", "memory", 20), ("postgres", "memcached", 10), ("mariadb", "memcached", 10)],
)
def test_whatever_the_store_loses_the_cache_agrees_with_the_database(
    place: Callable[..., AbstractContextManager[Place]], database: str, store: str, sequences: int
) -> None:
    """The same with lost, late and forgotten entries, with outages, and with others at work between any two steps."""
    with place(database, store, forgetful=True) as here:
        run_state_machine_as_test(lambda: FaultyTransactions(here), settings=_settings(sequences))


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_lazy_loads_and_plain_gets_agree_where_every_lookup_is_served(
    place: Callable[..., AbstractContextManager[Place]], journal: str
) -> None:
    """The same with `Reads.ALWAYS`, where also many-to-one relationships are loaded from the cache."""
    with place("sqlite", "memory", reads=wt.Reads.ALWAYS, journal=journal) as here:
        run_state_machine_as_test(lambda: Transactions(here), settings=_settings(15))


# --- that it can fail ---------------------------------------------------------------------------------------------------


def _do_nothing(*_arguments: Any) -> None:
    """Stand in for what a rule of the protocol has to do."""


def _verify_nothing(_fence: fences.Fence, _identity: Any, selection: Any) -> Any:
    """Take every row for one that no writer holds."""
    return selection


def _find(machine: Callable[[], Transactions], steps: int = 30, *phases: Phase) -> list[str]:
    """Return the steps that Hypothesis prints for the defect that it finds, the same ones every time."""
    with pytest.raises(AssertionError, match="the database") as found:
        run_state_machine_as_test(
            machine,
            settings=settings(
                _settings(1),
                max_examples=2000,
                stateful_step_count=steps,
                phases=(Phase.generate, *phases),
                derandomize=True,
                database=None,
            ),
        )
    lines = "\n".join(getattr(found.value, "__notes__", [])).splitlines()
    return [line for line in lines if line.startswith("state.") and line != "state.teardown()"]


def test_it_finds_statements_that_are_not_announced(
    place: Callable[..., AbstractContextManager[Place]], monkeypatch: Any
) -> None:
    """Rows that cannot be named are changed, and their entries stay; the script of it can be read at a glance."""
    monkeypatch.setattr(unit.Unit, "touch_epoch", _do_nothing)
    with place("sqlite", "memory") as here:
        assert 1 <= len(_find(lambda: Transactions(here), 10, Phase.shrink)) <= 2


def test_it_finds_rows_that_a_savepoint_undid(
    place: Callable[..., AbstractContextManager[Place]], monkeypatch: Any
) -> None:
    """What was touched since a savepoint, and is undone with it, is published all the same."""
    monkeypatch.setattr(unit.Unit, "rollback_to", _do_nothing)
    with place("sqlite", "memory") as here:
        assert _find(lambda: Transactions(here))


def test_it_finds_fills_that_are_not_verified(
    place: Callable[..., AbstractContextManager[Place]], monkeypatch: Any
) -> None:
    """Without the database's word, a lost tombstone lets the old row in."""
    monkeypatch.setattr(fences.Fence, "_verified", _verify_nothing)
    with place("sqlite", "memory", forgetful=True) as here:
        assert _find(lambda: FaultyTransactions(here))


def test_it_finds_a_refresh_that_refreshes_nothing(
    place: Callable[..., AbstractContextManager[Place]], monkeypatch: Any
) -> None:
    """What `session.refresh` leaves is compared with the row."""
    monkeypatch.setattr(Session, "refresh", _do_nothing)
    with place("sqlite", "memory") as here:
        assert _find(lambda: Transactions(here))


def test_it_finds_lazy_loads_of_other_rows(
    place: Callable[..., AbstractContextManager[Place]], monkeypatch: Any
) -> None:
    """What a many-to-one relationship loads from the cache is compared with the row."""
    on_execute = lookups.Lookups.on_execute

    def spoil_lazy_loads(own: lookups.Lookups, state: Any) -> Any:
        result = on_execute(own, state)
        if result is None or state.lazy_loaded_from is None:
            return result
        found = result.scalars().all()
        for instance in found:
            column = next(p.key for p in inspect(instance).mapper.column_attrs if not p.columns[0].primary_key)
            set_committed_value(instance, column, None)
        return _sqla.entity_result(_sqla.entity_metadata(state.bind_mapper), found)

    monkeypatch.setattr(lookups.Lookups, "on_execute", spoil_lazy_loads)
    with place("sqlite", "memory", reads=wt.Reads.ALWAYS) as here:
        assert _find(lambda: Transactions(here))
