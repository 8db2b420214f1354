"""What savepoints keep and what they undo."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session

from sa_writethrough.coherence import Announce
from sa_writethrough.testing import Call
from tests.orm.models import Account, Plain
from tests.orm.worlds import World


def _names(world: World, *idents: int) -> list[str]:
    return [world.select(Account, ident)["name"] for ident in idents]


def _announced(world: World) -> set[str]:
    """Return the last parts of the keys that were announced since the last look."""
    sent, world.traffic.changes = world.traffic.changes, []
    return {change.key.rpartition(":")[2] for change in sent if isinstance(change, Announce)}


def test_a_released_savepoint_is_part_of_the_transaction(world: World) -> None:
    """What was written inside is published with the rest."""
    world.add(Account(id=1, name="old"), Account(id=2, name="old"))
    with world.sessions() as session:
        session.get(Account, 1).name = "new"
        with session.begin_nested():
            session.get(Account, 2).name = "new"
        session.commit()
    world.published(Account, 1, 2)
    assert _names(world, 1, 2) == ["new", "new"]


def test_a_row_of_a_rolled_back_savepoint_is_not_announced(world: World) -> None:
    """Its lock is free and its value undone: only the outer row is announced and published."""
    world.add(Account(id=1, name="old"), Account(id=2, name="old"))
    world.traffic.changes.clear()
    with world.sessions() as session:
        session.get(Account, 1).name = "new"
        savepoint = session.begin_nested()
        session.get(Account, 2).name = "undone"
        session.flush()
        savepoint.rollback()
        session.commit()
    assert _announced(world) == {"1"}
    world.published(Account, 1, 2)
    assert _names(world, 1, 2) == ["new", "old"]


def test_an_insert_of_a_rolled_back_savepoint_leaves_nothing(world: World) -> None:
    """No entry for a row that never was."""
    with world.sessions() as session:
        session.add(Plain(id=1, name="x"))
        savepoint = session.begin_nested()
        session.add(Account(id=1, name="a"))
        session.flush()
        savepoint.rollback()
        session.commit()
    assert world.select(Account, 1) is None
    world.reads_true(Account, 1)


def test_a_row_that_was_written_before_and_in_a_rolled_back_savepoint_has_its_outer_value(world: World) -> None:
    """The value from before the savepoint is published, not the undone one."""
    world.add(Account(id=1, name="old"))
    with world.sessions() as session:
        account = session.get(Account, 1)
        account.name = "outer"
        session.flush()
        savepoint = session.begin_nested()
        account.name = "undone"
        session.flush()
        savepoint.rollback()
        session.commit()
    world.published(Account, 1)
    assert _names(world, 1) == ["outer"]


def test_an_unrelated_savepoint_does_not_lose_the_outer_values(world: World) -> None:
    """An inserted row whose value is known stays known: no SQL at COMMIT, and it is published."""
    with world.sessions() as session:
        session.add(Account(id=1, name="a"))
        session.flush()
        session.begin_nested().rollback()
        before = len(world.sql.statements)
        session.commit()
        assert [sql for sql in world.sql.statements[before:] if sql.startswith("SELECT")] == []
    world.published(Account, 1)


OUTCOMES = [(a, b, c) for a in "kr" for b in "kr" for c in "kr"]


@pytest.mark.parametrize("outcomes", OUTCOMES, ids=["".join(o) for o in OUTCOMES])
def test_three_levels_each_kept_or_rolled_back(world: World, outcomes: tuple[str, ...]) -> None:
    """Depth three: a level's rows are published if it and all around it were kept; one row is written by all."""
    world.add(*(Account(id=i, name="old") for i in range(5)))
    with world.sessions() as session:
        session.get(Account, 0).name = session.get(Account, 4).name = "0"
        session.flush()
        levels = []
        for depth in (1, 2, 3):
            levels.append(session.begin_nested())
            session.get(Account, depth).name = session.get(Account, 4).name = str(depth)
            session.flush()
        for level, outcome in zip(reversed(levels), reversed(outcomes), strict=True):
            level.commit() if outcome == "k" else level.rollback()
        session.commit()
    kept = [depth for depth in (1, 2, 3) if "r" not in outcomes[:depth]]
    assert _names(world, 0, 1, 2, 3) == ["0", *(str(d) if d in kept else "old" for d in (1, 2, 3))]
    assert _names(world, 4) == [str(max(kept, default=0))]
    world.published(Account, 0, 1, 2, 3, 4)


def test_a_released_savepoint_is_undone_with_the_outer_transaction(world: World) -> None:
    """Release, then rollback of all: the old row stays served."""
    world.add(Account(id=1, name="old"))
    world.traffic.changes.clear()
    with world.sessions() as session:
        with session.begin_nested():
            session.get(Account, 1).name = "new"
        session.rollback()
    assert _announced(world) == set()
    world.published(Account, 1)
    assert _names(world, 1) == ["old"]


def test_a_savepoint_that_is_released_is_not_visible_before_the_commit(world: World) -> None:
    """The transaction begins with the savepoint (where SQLite's RELEASE would be a COMMIT that nobody announced)."""
    world.add(Account(id=1, name="old"))
    with world.sessions() as session:
        with session.begin_nested():
            session.get(Account, 1).name = "new"
        world.agrees(Account, 1)
        assert _names(world, 1) == ["old"]
        session.commit()
    world.published(Account, 1)
    assert _names(world, 1) == ["new"]


def test_a_commit_of_a_savepoint_publishes_nothing(world: World) -> None:
    """after_commit fires for savepoints too; nothing is sent before the real COMMIT."""
    world.add(Account(id=1, name="old"))
    with world.sessions() as session:
        session.get(Account, 1).name = "new"
        session.flush()
        with world.no_traffic(), session.begin_nested():
            session.get(Account, 1).note = "inner"
        session.commit()
    world.published(Account, 1)


def test_savepoints_by_text_trust_nothing_afterwards(world: World) -> None:
    """SAVEPOINT and ROLLBACK TO as text: what was touched is dropped, not published with an undone value."""
    world.add(Account(id=1, name="old"))
    with world.sessions() as session:
        session.add(Plain(id=1, name="x"))
        session.flush()
        session.execute(sa.text("SAVEPOINT mine"))
        session.get(Account, 1).name = "undone"
        session.flush()
        session.execute(sa.text("ROLLBACK TO SAVEPOINT mine"))
        session.expunge_all()
        session.commit()
    world.agrees(Account, 1)
    world.reads_true(Account, 1)
    assert _names(world, 1) == ["old"]


def test_another_writer_may_take_the_row_that_a_savepoint_freed(postgresql_world: World) -> None:
    """ROLLBACK TO frees the lock: another session's commit in between is what the cache has."""
    world = postgresql_world
    world.add(Account(id=1, name="old"), Account(id=2, name="old"))
    with world.sessions() as first:
        first.get(Account, 1).name = "new"
        savepoint = first.begin_nested()
        first.get(Account, 2).name = "undone"
        first.flush()
        savepoint.rollback()
        with world.sessions() as second:
            second.get(Account, 2).name = "theirs"
            second.commit()
        first.commit()
    world.published(Account, 1, 2)
    assert _names(world, 1, 2) == ["new", "theirs"]


def test_a_failed_flush_in_a_savepoint_leaves_the_rest_intact(world: World) -> None:
    """An IntegrityError inside begin_nested: the outer changes are published, the failed ones are not."""
    world.add(Account(id=1, name="old"), Account(id=2, name="old"))
    with world.sessions() as session:
        session.get(Account, 1).name = "new"
        with pytest.raises(sa.exc.IntegrityError), session.begin_nested():  # noqa: PT012 - the savepoint is the claim
            session.get(Account, 2).name = "undone"
            session.flush()
            session.execute(sa.insert(Account).values(id=1, name="again"))
        session.commit()
    world.published(Account, 1, 2)
    assert _names(world, 1, 2) == ["new", "old"]


def test_a_savepoint_in_before_commit_is_no_commit(world: World) -> None:
    """A listener opens and rolls back a savepoint in before_commit."""
    world.add(Account(id=1, name="old"), Account(id=2, name="old"))

    def probe(session: Session) -> None:
        if session.in_nested_transaction():
            return
        savepoint = session.begin_nested()
        session.get(Account, 2).name = "undone"
        session.flush()
        savepoint.rollback()

    with world.sessions() as session:
        event.listen(session, "before_commit", probe)
        session.get(Account, 1).name = "new"
        session.commit()
    world.published(Account, 1, 2)
    assert _names(world, 1, 2) == ["new", "old"]


def test_the_announcement_is_made_inside_the_transaction(world: World) -> None:
    """At the moment of the announcement the row is still the old one for everybody else."""
    world.add(Account(id=1, name="old"))
    seen: list[str] = []
    world.faults.script.append(Call(Announce, lambda: seen.extend(_names(world, 1))))
    with world.sessions() as session:
        with session.begin_nested():
            session.get(Account, 1).name = "new"
        session.commit()
    assert seen == ["old"]
