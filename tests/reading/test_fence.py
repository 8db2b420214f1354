"""The verified fill: what a writer may hold is served and not filled, by schedules of two connections."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

import sa_writethrough as wt
from sa_writethrough.stores.memory import MemoryStore
from tests.reading.conftest import World


@pytest.fixture
def postgres_world(user: Any, base: Any, postgres_world_of: Any) -> World:
    world = postgres_world_of(base)
    world.add(user(id=1, name="ann", age=1))
    return world


def key_of(world: World, entity: Any, ident: Any) -> str:
    """Learn the key of a row's entry from an event."""
    seen: list[Any] = []
    end = world.cache.subscribe(seen.append)
    world.cache.evict(entity, ident)
    end()
    return seen[0].keys[0]


def lose(memcached: Any, key: str) -> None:
    assert memcached.command(f"delete {key}") in {b"DELETED\r\n", b"NOT_FOUND\r\n"}


def test_a_row_held_by_a_writer_whose_tombstone_was_lost_is_not_filled(
    user: Any, postgres_world: World, memcached: Any
) -> None:
    """The writer is about to COMMIT; its tombstone is deleted by hand; a reader serves the row and fills nothing."""
    key = key_of(postgres_world, user, 1)
    with postgres_world.session() as writer:
        writer.get(user, 1).name = "new"

        def before_commit(_connection: Any) -> None:
            lose(memcached, key)
            assert postgres_world.read(user, 1).name == "ann"
            assert not postgres_world.cache.contains(user, 1)

        sa.event.listen(postgres_world.engine, "commit", before_commit)
        writer.commit()
        sa.event.remove(postgres_world.engine, "commit", before_commit)
    assert postgres_world.cache.stats().fills_refused == 1
    assert postgres_world.read(user, 1).name == "new"


def test_a_row_held_before_the_announcement_is_not_filled(user: Any, postgres_world: World) -> None:
    """A row that another connection has updated and not committed is served, and not filled."""
    postgres_world.cache.evict_all()
    with postgres_world.outside.begin() as writer:
        writer.execute(sa.text("UPDATE users SET name = 'new'"))
        assert postgres_world.read(user, 1).name == "ann"
        assert not postgres_world.cache.contains(user, 1)
    assert postgres_world.read(user, 1).name == "new"
    assert postgres_world.is_cached(user, 1)


@pytest.mark.parametrize(
    "sql", ["DELETE FROM users", "SELECT 1 FROM users FOR UPDATE", "SELECT 1 FROM users FOR NO KEY UPDATE"]
)
def test_every_exclusive_lock_refuses_the_fill(user: Any, postgres_world: World, sql: str) -> None:
    """A deletion or an explicit lock under way refuses the fill, too."""
    postgres_world.cache.evict_all()
    with postgres_world.outside.connect() as writer:
        writer.execute(sa.text(sql))
        assert postgres_world.read(user, 1).name == "ann"
        assert not postgres_world.cache.contains(user, 1)
        writer.rollback()
    assert postgres_world.read(user, 1).name == "ann"
    assert postgres_world.is_cached(user, 1)


def test_an_aborted_update_does_not_keep_a_row_uncached(user: Any, postgres_world: World) -> None:
    """The xmax that a rolled-back update leaves is looked into: the row is filled."""
    postgres_world.cache.evict_all()
    with postgres_world.outside.connect() as writer:
        writer.execute(sa.text("UPDATE users SET name = 'new'"))
        writer.rollback()
        assert writer.execute(sa.text("SELECT xmax::text FROM users")).scalar() != "0"
        writer.rollback()
    with postgres_world.counting() as seen:
        assert postgres_world.read(user, 1).name == "ann"
    assert any("SHARE" in sql for sql in seen)
    assert postgres_world.is_cached(user, 1)


def test_the_key_share_lock_of_a_child_row_does_not_refuse_the_fill(
    base: Any, user: Any, postgres_world_of: Any
) -> None:
    """An uncommitted INSERT of a child holds FOR KEY SHARE on its parent, which changes nothing in it."""
    sa.Table("child", base.metadata, sa.Column("user_id", sa.ForeignKey("users.id")))
    world = postgres_world_of(base)
    world.add(user(id=1, name="ann"))
    world.cache.evict_all()
    with world.outside.begin() as writer:
        writer.execute(sa.text("INSERT INTO child VALUES (1)"))
        assert world.read(user, 1).name == "ann"
        assert world.is_cached(user, 1)


def test_the_check_leaves_no_lock_behind(user: Any, postgres_world: World) -> None:
    """While the reader's transaction is still open another connection updates the row at once."""
    postgres_world.cache.evict_all()
    with postgres_world.outside.connect() as writer:
        writer.execute(sa.text("UPDATE users SET name = 'new'"))
        writer.rollback()
    with postgres_world.session() as reader:
        assert reader.get(user, 1, options=[wt.from_cache()]).name == "ann"
        assert reader.in_transaction()
        with postgres_world.outside.begin() as writer:
            writer.execute(sa.text("SELECT 1 FROM users FOR UPDATE NOWAIT"))
            writer.execute(sa.text("UPDATE users SET name = 'new'"))
        assert reader.execute(sa.text("SELECT 1")).scalar() == 1


def test_a_refused_check_leaves_the_transaction_usable(user: Any, postgres_world: World) -> None:
    """After a fill that was refused the reader's transaction goes on, what it wrote included."""
    postgres_world.cache.evict_all()
    with postgres_world.outside.connect() as writer:
        writer.execute(sa.text("UPDATE users SET name = 'new' WHERE id = 1"))
        with postgres_world.session() as reader:
            reader.add(user(id=2, name="bob"))
            assert reader.get(user, 1, options=[wt.from_cache()]).name == "ann"
            reader.commit()
        writer.rollback()
    assert postgres_world.read(user, 2).name == "bob"


def test_a_read_only_transaction_serves_what_it_cannot_lock(user: Any, postgres_world: World) -> None:
    """In a read-only transaction a clean row is filled; an ambiguous one is served, and nothing fails."""
    postgres_world.cache.evict_all()
    with postgres_world.session() as reader:
        reader.execute(sa.text("SET TRANSACTION READ ONLY"))
        assert reader.get(user, 1, options=[wt.from_cache()]).name == "ann"
        reader.commit()
    assert postgres_world.is_cached(user, 1)
    postgres_world.cache.evict_all()
    with postgres_world.outside.connect() as writer:
        writer.execute(sa.text("UPDATE users SET name = 'new'"))
        writer.rollback()
    with postgres_world.session() as reader:
        reader.execute(sa.text("SET TRANSACTION READ ONLY"))
        assert reader.get(user, 1, options=[wt.from_cache()]).name == "ann"
        assert reader.execute(sa.text("SELECT count(*) FROM users")).scalar() == 1
    assert not postgres_world.cache.contains(user, 1)


@pytest.mark.parametrize("table", ["person", "boss"])
def test_joined_inheritance_needs_the_rows_of_all_tables(base: Any, postgres_world_of: Any, table: str) -> None:
    """A writer of either table's row refuses the fill; afterwards it is filled, with an aborted update in both."""

    class Person(base):
        __tablename__ = "person"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        kind: orm.Mapped[str]
        name: orm.Mapped[str]
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}  # noqa: RUF012 - the idiom

    class Boss(Person):
        __tablename__ = "boss"
        id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey(Person.id), primary_key=True)
        title: orm.Mapped[str]
        __mapper_args__ = {"polymorphic_identity": "boss"}  # noqa: RUF012 - SQLAlchemy's idiom

    world = postgres_world_of(base)
    world.add(Boss(id=1, name="ann", title="ceo"))
    world.cache.evict_all()
    with world.outside.connect() as writer:
        writer.execute(sa.text(f"UPDATE {table} SET id = id"))
        assert world.read(Person, 1).title == "ceo"
        assert not world.cache.contains(Person, 1)
        writer.rollback()
        writer.execute(sa.text("UPDATE person SET id = id"))
        writer.execute(sa.text("UPDATE boss SET id = id"))
        writer.rollback()
    assert world.read(Boss, 1).title == "ceo"
    assert world.is_cached(Boss, 1)


def test_the_check_is_not_heard_as_an_error(user: Any, postgres_world: World) -> None:
    """A refused lock calls none of the application's error listeners."""
    errors: list[Any] = []
    sa.event.listen(postgres_world.engine, "handle_error", errors.append)
    postgres_world.cache.evict_all()
    with postgres_world.outside.connect() as writer:
        writer.execute(sa.text("UPDATE users SET name = 'new'"))
        postgres_world.read(user, 1)
        writer.rollback()
    assert errors == []


def test_a_batch_fills_what_is_free_and_leaves_what_is_held(user: Any, postgres_world: World) -> None:
    """Of several misses in one SELECT only the row that a writer holds is not filled."""
    postgres_world.add(user(id=2, name="bob"), user(id=3, name="cid"))
    postgres_world.cache.evict_all()
    with postgres_world.outside.connect() as writer:
        writer.execute(sa.text("UPDATE users SET name = 'new' WHERE id = 2"))
        with postgres_world.session() as reader:
            found = postgres_world.cache.get_many(reader, user, [1, 2, 3])
            assert [instance.name for instance in found] == ["ann", "bob", "cid"]
        writer.rollback()
    assert [postgres_world.is_cached(user, i) for i in (1, 2, 3)] == [True, False, True]


def test_a_reader_paused_over_a_commit_is_refused(user: Any, postgres_world: World) -> None:
    """A reader whose SELECT came before another's commit fills nothing: its lease is gone."""
    postgres_world.cache.evict_all()

    waiting = [True]

    def after_select(_connection: Any, _cursor: Any, sql: str, *_rest: Any) -> None:
        if not waiting:
            return
        waiting.clear()
        with postgres_world.factory.begin() as writer:
            writer.get(user, 1).name = "new"
        postgres_world.cache.drain()

    with postgres_world.session() as reader:
        reader.connection()
        sa.event.listen(postgres_world.engine, "after_cursor_execute", after_select)
        assert reader.get(user, 1, options=[wt.from_cache()]).name == "ann"
    assert postgres_world.read(user, 1).name == "new"


# --- SQLite with a store that can lose tombstones -------------------------------------------------------------------


@pytest.fixture
def sqlite_world(user: Any, base: Any, sqlite_world_of: Any, memcached: Any) -> World:
    world = sqlite_world_of(base, store=memcached.url)
    world.add(user(id=1, name="ann", age=1))
    world.cache.evict_all()
    return world


def test_sqlite_fills_under_the_write_lock(user: Any, sqlite_world: World) -> None:
    """With memcached the row is read again under BEGIN IMMEDIATE, and filled from that."""
    with sqlite_world.counting() as seen:
        assert sqlite_world.read(user, 1).name == "ann"
    assert "BEGIN IMMEDIATE" in seen
    assert sqlite_world.is_cached(user, 1)


def test_sqlite_does_not_fill_while_a_writer_holds_the_lock(user: Any, sqlite_world: World) -> None:
    """Under somebody's write lock the row is served at once and not filled."""
    with sqlite_world.outside.connect() as writer:
        writer.exec_driver_sql("BEGIN IMMEDIATE")
        assert sqlite_world.read(user, 1).name == "ann"
        assert not sqlite_world.cache.contains(user, 1)
        writer.rollback()
    sqlite_world.read(user, 1)
    assert sqlite_world.is_cached(user, 1)


def test_sqlite_gets_its_patience_back(user: Any, base: Any, sqlite_world_of: Any, memcached: Any) -> None:
    """After the check, refused or not, every pooled connection waits for locks as long as before."""
    engine = {"connect_args": {"timeout": 7}, "pool_size": 2, "max_overflow": 0}
    world = sqlite_world_of(base, store=memcached.url, engine=engine)
    world.add(user(id=1, name="ann"))
    for locked in (False, True):
        world.cache.evict_all()
        with world.outside.connect() as writer:
            if locked:
                writer.exec_driver_sql("BEGIN IMMEDIATE")
            world.read(user, 1)
            writer.rollback()
        with world.engine.connect() as one, world.engine.connect() as two:
            for connection in (one, two):
                assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 7000
                assert connection.connection.driver_connection.in_transaction is False


def test_sqlite_without_a_connection_to_spare_fills(user: Any, base: Any, sqlite_world_of: Any, memcached: Any) -> None:
    """Where the pool has no second connection the row is verified on one that is not the pool's."""
    engine = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.01}
    world = sqlite_world_of(base, store=memcached.url, engine=engine)
    world.add(user(id=1, name="ann"))
    world.cache.evict_all()
    assert world.read(user, 1).name == "ann"
    assert world.is_cached(user, 1)


def test_sqlite_in_memory_with_a_lossy_store_serves_and_does_not_fill(
    user: Any, base: Any, sqlite_world_of: Any
) -> None:
    """Another connection would be another database: what cannot be checked is not filled."""
    store = MemoryStore()
    store.keeps_tombstones = False  # type: ignore[misc] # as a store is that may lose one
    world = sqlite_world_of(base, url="sqlite://", store=store)
    base.metadata.create_all(world.engine)
    world.add(user(id=1, name="ann"))
    world.cache.evict_all()
    assert world.read(user, 1).name == "ann"
    assert not world.cache.contains(user, 1)


def test_sqlite_with_the_in_process_store_needs_no_lock(base: Any, user: Any, sqlite_world_of: Any) -> None:
    """The in-process store cannot lose a tombstone: a fill needs no BEGIN IMMEDIATE, and works while a writer waits."""
    world = sqlite_world_of(base)
    world.add(user(id=1, name="ann"))
    world.cache.evict_all()
    with world.outside.connect() as writer:
        writer.exec_driver_sql("BEGIN IMMEDIATE")
        with world.counting() as seen:
            world.read(user, 1)
        writer.rollback()
    assert len(seen) == 1
    assert world.is_cached(user, 1)
