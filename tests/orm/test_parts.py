"""Rows with parts in several tables, which two transactions may write at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from tests.orm.models import Engineer
from tests.orm.worlds import World, around_commit

LEVELS = ["READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ"]  # in SERIALIZABLE the database refuses one of them


@pytest.fixture(params=["postgresql", "mariadb"])
def world(request: pytest.FixtureRequest) -> World:
    """Each kind of world in which two can write at once."""
    found: World = request.getfixturevalue(f"{request.param}_world")
    return found


@pytest.fixture
def two(world: World) -> Iterator[Callable[..., tuple[Session, Session]]]:
    """Two sessions, of which the first has written one part of a row, and the second the other."""
    with contextlib.ExitStack() as sessions:

        def begin(level: str, *statements: str) -> tuple[Session, Session]:
            world.add(Engineer(id=1, name="ann", language="C"))
            bind = world.engine.execution_options(isolation_level=level) if level else world.engine
            first, second = (sessions.enter_context(world.sessions(bind=bind)) for _ in range(2))
            for session in (first, second):
                for statement in statements:
                    session.execute(sa.text(statement))
            found, same = first.get(Engineer, 1), second.get(Engineer, 1)
            found.name = "eve"
            first.flush()
            same.language = "Ada"
            second.flush()
            return first, second

        yield begin


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_one_part_each(world: World, two: Any, level: str, order: tuple[int, int]) -> None:
    """Whoever commits last has read the part that it did not write: before the other's commit, or after it."""
    both = two(level)
    for place in order:
        both[place].commit()
        world.agrees(Engineer, 1)
    world.reads_true(Engineer, 1)


@pytest.mark.parametrize("level", LEVELS)
def test_one_part_each_at_once(world: World, two: Any, level: str) -> None:
    """One commits between the other's announcement and its COMMIT."""
    first, second = two(level)
    waiting = [second]
    with around_commit(world.engine, lambda: waiting.pop().commit() if waiting else None):
        first.commit()
    assert waiting == []
    world.agrees(Engineer, 1)
    world.reads_true(Engineer, 1)


@pytest.mark.parametrize("level", LEVELS)
def test_a_part_that_is_rolled_back(world: World, two: Any, level: str) -> None:
    """The other one may have read it before, where it reads what is not committed."""
    first, second = two(level)
    first.commit()
    second.rollback()
    world.agrees(Engineer, 1)
    world.reads_true(Engineer, 1)


SNAPSHOTS_BY_TEXT = {
    "postgresql": {
        "transaction": "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "session": "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ",
    },
    "mariadb": {
        "transaction": "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "session": "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
    },
}


@pytest.mark.parametrize("scope", ["transaction", "session"])
def test_a_level_that_is_set_by_text(world: World, two: Any, scope: str) -> None:
    """For this transaction; or for the connection, whose later transactions have it as well."""
    statement = SNAPSHOTS_BY_TEXT[world.dialect][scope]
    if scope == "session":
        with world.sessions() as one, world.sessions() as other:  # the two connections of the pool
            for session in (one, other):
                session.execute(sa.text(statement))
            one.commit()
            other.commit()
    first, second = two("", *([statement] if scope == "transaction" else []))
    first.commit()
    second.commit()
    world.agrees(Engineer, 1)
    world.reads_true(Engineer, 1)
