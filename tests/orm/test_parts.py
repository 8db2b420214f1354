"""Rows with parts in several tables, which two transactions may write at once."""

from __future__ import annotations

import pytest

from tests.orm.models import Engineer
from tests.orm.worlds import World, around_commit

LEVELS = ["READ COMMITTED", "REPEATABLE READ"]


@pytest.fixture(params=["postgresql", "mariadb"])
def world(request: pytest.FixtureRequest) -> World:
    """Each kind of world in which two can write at once."""
    found: World = request.getfixturevalue(f"{request.param}_world")
    return found


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("first", [0, 1])
def test_one_part_each(world: World, level: str, first: int) -> None:
    """Whoever commits last has read the part that it did not write: before the other's commit, or after it."""
    world.add(Engineer(id=1, name="ann", language="C"))
    bind = world.engine.execution_options(isolation_level=level)
    with world.sessions(bind=bind) as one, world.sessions(bind=bind) as two:
        first_read, second_read = one.get(Engineer, 1), two.get(Engineer, 1)
        first_read.name = "eve"
        one.flush()
        second_read.language = "Ada"
        two.flush()
        both = [one, two]
        both[first].commit()
        world.agrees(Engineer, 1)
        both[1 - first].commit()
        world.agrees(Engineer, 1)
    world.reads_true(Engineer, 1)


@pytest.mark.parametrize("level", LEVELS)
def test_one_part_each_at_once(world: World, level: str) -> None:
    """One commits between the other's announcement and its COMMIT."""
    world.add(Engineer(id=1, name="ann", language="C"))
    bind = world.engine.execution_options(isolation_level=level)
    with world.sessions(bind=bind) as one, world.sessions(bind=bind) as two:
        first_read, second_read = one.get(Engineer, 1), two.get(Engineer, 1)
        first_read.name = "eve"
        one.flush()
        second_read.language = "Ada"
        two.flush()
        waiting = [two]
        with around_commit(world.engine, lambda: waiting.pop().commit() if waiting else None):
            one.commit()
        assert waiting == []
        world.agrees(Engineer, 1)
    world.reads_true(Engineer, 1)
