"""What a transaction's end leaves in the cache, however it ends."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

import sa_writethrough as wt
from sa_writethrough.coherence import Announce, AnnounceEpoch, Fill, Publish
from sa_writethrough.testing import Call, LoseReply, LoseRequest
from tests.orm.models import Account, Claim, Contract, Lenient, Plain, Silent
from tests.orm.worlds import ABSENT, World, around_commit


def test_an_inserted_row_is_cached_when_it_is_committed(world: World) -> None:
    """Insert, commit: the row is served with no SQL."""
    world.add(Account(id=1, name="a"))
    world.published(Account, 1)


def test_a_rolled_back_insert_leaves_nothing(world: World) -> None:
    """Insert, flush, rollback: no row and no entry."""
    with world.sessions() as session:
        session.add(Account(id=1, name="a"))
        session.flush()
        session.rollback()
    assert world.entry(Account, 1) == ABSENT
    assert world.select(Account, 1) is None
    world.reads_true(Account, 1)


def test_the_last_of_several_writes_is_published(world: World) -> None:
    """Insert, update, update, commit: the newest value."""
    with world.sessions() as session:
        account = Account(id=1, name="a")
        session.add(account)
        session.flush()
        account.name = "b"
        session.flush()
        account.note = "c"
        session.commit()
    world.published(Account, 1)
    assert world.entry(Account, 1)["name"] == "b"


def test_an_insert_and_an_update_that_are_rolled_back_leave_nothing(world: World) -> None:
    """Insert, update, rollback: no entry."""
    with world.sessions() as session:
        account = Account(id=1, name="a")
        session.add(account)
        session.flush()
        account.name = "b"
        session.flush()
        session.rollback()
    assert world.entry(Account, 1) == ABSENT
    world.reads_true(Account, 1)


def test_expiring_everything_after_a_flush_loses_nothing(world: World) -> None:
    """Insert, flush, expire_all, commit: the row is served (Hibernate's InsertedDataTest)."""
    with world.sessions() as session:
        session.add(Account(id=1, name="a"))
        session.flush()
        session.expire_all()
        session.commit()
    world.published(Account, 1)


def test_a_deleted_row_is_gone_from_the_cache(world: World) -> None:
    """Delete, commit: no entry, and a read says None."""
    world.add(Account(id=1, name="a"))
    with world.sessions() as session:
        session.delete(session.get(Account, 1))
        session.commit()
    world.absent(Account, 1)


def test_a_rolled_back_delete_keeps_the_row(world: World) -> None:
    """Delete, flush, rollback: the row is read as before."""
    world.add(Account(id=1, name="a"))
    with world.sessions() as session:
        session.delete(session.get(Account, 1))
        session.flush()
        session.rollback()
    world.published(Account, 1)


def test_others_read_the_old_value_until_the_commit(world: World) -> None:
    """Update and flush: another session has the old value, the writer its own; after the rollback the old one stays."""
    world.add(Account(id=1, name="old"))
    with world.sessions() as writer:
        writer.get(Account, 1).name = "new"
        writer.flush()
        assert world.entry(Account, 1)["name"] == "old"
        writer.expire_all()
        assert world.cache.get(writer, Account, 1).name == "new"
        writer.expunge_all()
        assert world.cache.get(writer, Account, 1).name == "new"
        writer.rollback()
        assert world.cache.get(writer, Account, 1).name == "old"
    world.published(Account, 1)


def test_merge_publishes(world: World) -> None:
    """A merged instance is written like any other."""
    world.add(Account(id=1, name="old"))
    with world.sessions() as session:
        session.merge(Account(id=1, name="new"))
        session.commit()
    world.published(Account, 1)
    assert world.entry(Account, 1)["name"] == "new"


def _update(session: Session) -> None:
    session.get(Account, 1).name = "new"


def _delete(session: Session) -> None:
    session.delete(session.get(Account, 1))


def _bulk(session: Session) -> None:
    session.execute(sa.update(Account).where(Account.name == "old").values(name="new"))


def _core(session: Session) -> None:
    session.execute(sa.text("UPDATE account SET name = 'new' WHERE name = 'old'"))


@pytest.mark.parametrize("write", [_update, _delete, _bulk, _core])
@pytest.mark.parametrize("emptied", [False, True])
def test_a_fill_that_was_paused_across_a_commit_is_refused(world: World, write: Any, emptied: bool) -> None:
    """A reader misses, is paused, and fills after another session's commit: its old row is not kept."""
    world.add(Account(id=1, name="old"))
    world.cache.evict(Account, 1)

    def commit_and_empty() -> None:
        with world.sessions() as writer:
            write(writer)
            writer.commit()
        if emptied:
            world.cache.evict_all()

    world.faults.script.append(Call(Fill, commit_and_empty))
    with world.sessions() as reader:
        assert world.cache.get(reader, Account, 1).name == "old"
    assert world.faults.script == []
    world.agrees(Account, 1)
    world.reads_true(Account, 1)


# --- a commit that fails ----------------------------------------------------------------------------------------------


def test_a_constraint_that_fails_at_commit_leaves_the_old_value(world: World) -> None:
    """A deferred foreign key fails in COMMIT: database and cache keep the old row, and the connection is clean."""
    world.add(Claim(id=1, name="old"))
    with world.sessions() as session:
        claim = session.get(Claim, 1)
        claim.name, claim.account_id = "new", 99
        with pytest.raises(IntegrityError):
            session.commit()
    assert world.idle()
    world.reads_true(Claim, 1)
    assert world.select(Claim, 1)["name"] == "old"
    world.warm(Claim, 1)


def test_an_unreachable_cache_aborts_the_commit(world: World) -> None:
    """An announcement that is not acknowledged: nothing is written, the pool is clean, the next session works."""
    world.add(Account(id=1, name="old"), Account(id=2, name="old"))
    world.faults.script.append(LoseReply(Announce))
    with world.sessions() as session:
        session.get(Account, 1).name = "new"
        session.get(Account, 2).name = "new"
        with pytest.raises(wt.CacheUnavailableError, match="nothing was committed"):
            session.commit()
        session.rollback()
        assert session.get(Account, 1).name == "old"
    assert world.idle()
    assert world.select(Account, 1)["name"] == world.select(Account, 2)["name"] == "old"
    world.reads_true(Account, 1, 2)
    with world.sessions() as session:
        session.get(Account, 1).name = "newer"
        session.commit()
    world.published(Account, 1)


def test_an_outage_aborts_a_commit_that_leaves_its_session_open(world: World) -> None:
    """The same session can try again once the node is back."""
    world.add(Account(id=1, name="old"))
    with world.sessions() as session:
        with world.faults.outage():
            session.get(Account, 1).name = "new"
            with pytest.raises(wt.CacheUnavailableError):
                session.commit()
        session.rollback()
        session.get(Account, 1).name = "newer"
        session.commit()
    world.published(Account, 1)
    assert world.entry(Account, 1)["name"] == "newer"


def test_the_aborted_connection_holds_no_lock(world: World) -> None:
    """After an aborted commit, and before its session ends, another connection can write the row."""
    world.add(Account(id=1, name="old"))
    with world.sessions() as session, world.faults.outage():
        session.get(Account, 1).name = "new"
        with pytest.raises(wt.CacheUnavailableError):
            session.commit()
        world.outside("UPDATE account SET note = 'free' WHERE id = 1")


def test_on_outage_commit_writes_the_row_all_the_same(world: World) -> None:
    """OnOutage.COMMIT: the row is committed although no node acknowledged."""
    world.add(Lenient(id=1, name="old"))
    with world.sessions() as session, world.faults.outage():
        session.get(Lenient, 1).name = "new"
        session.commit()
    assert world.select(Lenient, 1)["name"] == "new"
    assert world.idle()


def test_on_outage_commit_drops_the_entry_where_only_the_answer_was_lost(world: World) -> None:
    """OnOutage.COMMIT tries to drop what it could not announce."""
    world.add(Lenient(id=1, name="old"))
    world.faults.script.append(LoseRequest(Announce))
    with world.sessions() as session:
        session.get(Lenient, 1).name = "new"
        session.commit()
    world.absent(Lenient, 1)


def test_on_outage_commit_drops_all_entries_where_rows_cannot_be_named(world: World) -> None:
    """The same, of a whole epoch."""
    world.add(Lenient(id=1, name="old"), Lenient(id=2, name="old"))
    world.faults.script.append(LoseRequest(AnnounceEpoch))
    with world.sessions() as session:
        session.execute(sa.text("UPDATE lenient SET name = 'new'"))
        session.commit()
    world.absent(Lenient, 1, 2)


def test_no_fault_of_the_cache_after_commit_reaches_the_caller(world: World) -> None:
    """A store that raises in post: the commit succeeds, and the tombstone stands."""
    world.add(Account(id=1, name="old"))

    def explode() -> None:
        raise RuntimeError("the store is broken")

    world.faults.script.append(Call(Publish, explode))
    with world.sessions() as session:
        session.get(Account, 1).name = "new"
        session.commit()
    assert world.select(Account, 1)["name"] == "new"
    assert world.entry(Account, 1) == ABSENT
    world.reads_true(Account, 1)


def test_a_publication_that_is_lost_leaves_a_tombstone(world: World) -> None:
    """The process ends, or the network fails, between COMMIT and publish: reads come from the database."""
    world.add(Account(id=1, name="old"))
    world.faults.script.append(LoseRequest(Publish))
    with world.sessions() as session:
        session.get(Account, 1).name = "new"
        session.commit()
    assert world.entry(Account, 1) == ABSENT
    with world.sessions() as session:
        assert world.cache.get(session, Account, 1).name == "new"
    assert world.entry(Account, 1) == ABSENT  # a tombstone never turns into a value by itself


# --- listeners of the application -------------------------------------------------------------------------------------


def test_a_listener_may_flush_more_in_before_commit(world: World) -> None:
    """What another before_commit listener writes after ours is announced and published, too."""
    world.add(Account(id=1, name="old"), Account(id=2, name="old"))

    def more(session: Session) -> None:
        session.get(Account, 2).name = "new"
        session.flush()

    with world.sessions() as session:
        event.listen(session, "before_commit", more)
        session.get(Account, 1).name = "new"
        session.commit()
        event.remove(session, "before_commit", more)
    world.published(Account, 1, 2)
    assert world.entry(Account, 2)["name"] == "new"


def test_a_listener_that_raises_in_before_commit_changes_nothing(world: World) -> None:
    """The commit does not happen, and the old entry stays."""
    world.add(Account(id=1, name="old"))

    def refuse(_session: Session) -> None:
        raise RuntimeError("no")

    with world.sessions() as session:
        event.listen(session, "before_commit", refuse)
        session.get(Account, 1).name = "new"
        with pytest.raises(RuntimeError):
            session.commit()
    assert world.entry(Account, 1)["name"] == "old"
    world.published(Account, 1)
    assert world.idle()


def test_a_listener_that_raises_in_after_commit_costs_freshness_alone(world: World) -> None:
    """The row is committed and the caller hears of the listener; no stale entry is left."""
    world.add(Account(id=1, name="old"))

    def explode(_session: Session) -> None:
        raise RuntimeError("too late")

    with world.sessions() as session:
        event.listen(session, "after_commit", explode, insert=True)
        session.get(Account, 1).name = "new"
        with pytest.raises(RuntimeError):
            session.commit()
    assert world.select(Account, 1)["name"] == "new"
    world.reads_true(Account, 1)


# --- a transaction that is left -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["close", "reset", "expunge", "collect", "invalidate", "connection"])
def test_a_transaction_that_is_left_changes_nothing(world: World, end: str) -> None:
    """Close, reset, garbage collection, a connection lost: the old row stays, and nothing reaches a later commit."""
    world.add(Account(id=1, name="old"), Account(id=2, name="old"))
    session = world.sessions()
    session.get(Account, 1).name = "new"
    session.flush()
    if end == "close":
        session.close()
    elif end == "reset":
        session.reset()
    elif end == "expunge":
        session.expunge_all()
        session.rollback()
    elif end == "collect":
        session = world.sessions()
        gc.collect()
    elif end == "invalidate":
        session.invalidate()
    else:
        session.connection().invalidate()
        session.rollback()
    world.traffic.kinds()
    session.get(Account, 2).name = "new"
    session.commit()
    session.close()
    assert world.traffic.kinds().count("Announce") == 1
    world.published(Account, 1, 2)
    assert world.select(Account, 1)["name"] == "old"
    assert world.select(Account, 2)["name"] == "new"


def test_two_sessions_that_begin_on_one_connection_in_turn_do_not_mix(world: World) -> None:
    """What a closed session left on a pooled connection is not the next session's."""
    world.add(Account(id=1, name="old"))
    for name in ("b", "c"):
        with world.sessions() as session:
            session.get(Account, 1).name = name
            session.flush()
    with world.no_traffic(), world.sessions() as session:
        session.add(Plain(id=1, name="x"))
        session.commit()
    world.published(Account, 1)


# --- no traffic ---------------------------------------------------------------------------------------------------------


def test_a_transaction_that_touched_no_cached_row_asks_nothing_of_the_store(world: World) -> None:
    """Reads, writes of uncached models, savepoints, commits and rollbacks: no store traffic at all."""
    world.add(Account(id=1, name="a"))
    with world.no_traffic():
        with world.sessions() as session:
            session.add(Plain(id=1, name="x"))
            with session.begin_nested():
                session.add(Plain(id=2, name="x"))
            session.commit()
            session.execute(select(Account)).all()
            session.commit()
            session.execute(sa.update(Plain).values(name="y"))
            session.rollback()
            session.execute(sa.text("UPDATE plain SET name = 'z'"))
            session.commit()
        with world.sessions() as session:
            session.get(Account, 1)
    assert world.select(Plain, 1)["name"] == "z"


def test_a_rollback_of_touched_rows_asks_nothing_of_the_store(world: World) -> None:
    """Nothing was announced yet, so nothing is taken back."""
    world.add(Account(id=1, name="a"))
    with world.no_traffic(), world.sessions() as session:
        session.get(Account, 1).name = "b"
        session.flush()
        session.rollback()


def test_a_commit_announces_in_one_batch_and_publishes_in_one(world: World) -> None:
    """Many rows: one acknowledged round trip before COMMIT and one after it."""
    world.add(*(Account(id=i, name="a") for i in range(1, 21)))
    world.traffic.calls.clear()
    with world.sessions() as session:
        for account in session.scalars(select(Account)):
            account.name = "b"
        session.commit()
    assert world.traffic.calls == ["submit", "post"]
    world.published(Account, 1, 20)


def test_invalidate_leaves_nothing_and_reads_nothing_back(world: World) -> None:
    """OnWrite.INVALIDATE: no entry after a write, and no SQL but the write's own."""
    world.add(Silent(id=1, name="old"))
    world.absent(Silent, 1)
    world.warm(Silent, 1)
    with world.sessions() as session:
        session.get(Silent, 1).name = "new"
        session.flush()
        before = len(world.sql.statements)
        session.commit()
        assert world.sql.statements[before:] == []
    world.absent(Silent, 1)


# --- two writers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first_publishes_first", [True, False])
def test_of_two_writers_the_later_commit_wins(world: World, first_publishes_first: bool) -> None:
    """Two sessions write one row in turn, and their publications arrive in either order."""
    world.add(Account(id=1, name="a"))

    def second() -> None:
        with world.sessions() as session:
            session.get(Account, 1).name = "c"
            session.commit()

    if not first_publishes_first:
        world.faults.script.append(Call(Publish, second))
    with world.sessions() as session:
        session.get(Account, 1).name = "b"
        session.commit()
    if first_publishes_first:
        second()
    assert world.faults.script == []
    assert world.select(Account, 1)["name"] == "c"
    assert first_publishes_first or world.entry(Account, 1) == ABSENT  # the late publication found a value: healed
    world.reads_true(Account, 1)
    world.published(Account, 1)


def test_the_loser_of_an_optimistic_lock_leaves_no_entry_of_its_own(world: World) -> None:
    """version_id_col: the entry is the winner's."""
    world.add(Contract(id=1, name="old"))
    with world.sessions() as loser:
        contract = loser.get(Contract, 1)
        loser.commit()  # hold no lock on SQLite
        loser.refresh(contract)
        loser.expunge(contract)
        with world.sessions() as winner:
            winner.get(Contract, 1).name = "winner"
            winner.commit()
        loser.add(contract)
        contract.name = "loser"
        with pytest.raises(StaleDataError):
            loser.commit()
    world.published(Contract, 1)
    assert world.entry(Contract, 1)["name"] == "winner"


def test_a_commit_listener_that_writes_is_announced_with_the_rest(world: World) -> None:
    """SQL of another listener of the connection's commit event changes a cached row: nothing stale is left."""
    world.add(Account(id=1, name="old"), Account(id=2, name="old"))
    world.warm(Account, 1, 2)

    def late(connection: Any) -> None:
        if seen:  # the observer's own commit
            return
        connection.execute(sa.update(Account.__table__).where(Account.__table__.c.id == 2).values(name="late"))
        seen.append(connection)

    seen: list[Any] = []
    entries: list[Any] = []
    with world.sessions() as session:
        session.get(Account, 1).name = "new"
        event.listen(world.engine, "commit", late)
        try:
            with around_commit(world.engine, lambda: entries.append(world.entry(Account, 2))):
                session.commit()
        finally:
            event.remove(world.engine, "commit", late)
    assert entries[0] == ABSENT
    assert world.select(Account, 2)["name"] == "late"
    world.agrees(Account, 1, 2)
    world.reads_true(Account, 1, 2)
