"""Steps around the methods of one dialect, and nothing left when they are gone."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from sa_writethrough.taps import tap, untap


class Noting:
    """A tap that notes what it is told of, and what came of it."""

    def __init__(self, name: str, seen: list[str]) -> None:
        self.name, self.seen = name, seen

    def __getattr__(self, method: str) -> Any:
        def told(do: Any, *arguments: Any, **keywords: Any) -> None:
            self.seen.append(f"{self.name} before {method}")
            do(*arguments, **keywords)
            self.seen.append(f"{self.name} after {method}")

        return told


@pytest.fixture
def engine() -> Any:
    made = sa.create_engine("sqlite://")
    yield made
    made.dispose()


def commit(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
        connection.commit()


def around(method: str, *names: str) -> list[str]:
    return [f"{name} before {method}" for name in names] + [f"{name} after {method}" for name in reversed(names)]


def test_a_tap_is_told_before_and_after_each_step(engine: sa.Engine) -> None:
    """Begin, COMMIT, and the pool's ROLLBACK when the connection comes back."""
    seen: list[str] = []
    commit(engine)  # the dialect's own first look at the database
    tap(engine.dialect, Noting("a", seen))
    commit(engine)
    assert seen == around("do_begin", "a") + around("do_commit", "a") + around("do_rollback", "a")


def test_the_first_tap_is_the_outermost(engine: sa.Engine) -> None:
    """Two registrations on one engine: each COMMIT is told to both, one within the other."""
    seen: list[str] = []
    commit(engine)
    tap(engine.dialect, Noting("a", seen))
    tap(engine.dialect, Noting("b", seen))
    commit(engine)
    assert [step for step in seen if "do_commit" in step] == around("do_commit", "a", "b")


def test_a_step_that_raises_before_keeps_the_driver_from_it(engine: sa.Engine) -> None:
    """What an outer tap raises comes before the driver's COMMIT."""
    seen: list[str] = []

    class Refusing(Noting):
        def do_commit(self, do: Any, dbapi_connection: Any) -> None:
            raise RuntimeError("not now")

    commit(engine)
    tap(engine.dialect, Refusing("a", seen))
    tap(engine.dialect, Noting("b", seen))
    with pytest.raises(RuntimeError, match="not now"):
        commit(engine)
    assert not [step for step in seen if "do_commit" in step]


def test_the_last_tap_that_goes_leaves_the_dialect_as_it_was(engine: sa.Engine) -> None:
    """In whatever order they go; the one that stays is still told."""
    seen: list[str] = []
    commit(engine)
    before = dict(vars(engine.dialect))
    one, other = Noting("a", seen), Noting("b", seen)
    tap(engine.dialect, one)
    tap(engine.dialect, other)
    untap(engine.dialect, one)
    commit(engine)
    assert [step for step in seen if "do_commit" in step] == around("do_commit", "b")
    untap(engine.dialect, other)
    assert vars(engine.dialect) == before


def test_what_somebody_put_around_a_step_outlives_the_taps(engine: sa.Engine) -> None:
    """Another library wraps the same method later: it stays, and calls the dialect's own."""
    seen: list[str] = []
    one = Noting("a", seen)
    commit(engine)
    tap(engine.dialect, one)
    inner = engine.dialect.do_commit

    def outer(dbapi_connection: Any) -> None:
        seen.append("outer")
        inner(dbapi_connection)

    engine.dialect.do_commit = outer
    untap(engine.dialect, one)
    commit(engine)
    assert seen == ["outer"]
