"""`CachePolicy(negative=True)`: that a row does not exist is cached where that can be right, and refused elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

import sa_writethrough as wt
from sa_writethrough.coherence import Fill, Intent, Reading
from sa_writethrough.stores.base import Reply
from sa_writethrough.stores.memory import MemoryStore
from tests.reading.conftest import World


@pytest.fixture
def user(base: Any) -> Any:
    class User(base):
        __tablename__ = "users"
        __writethrough__ = wt.CachePolicy(negative=True, reads=wt.Reads.ALWAYS)
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str] = orm.mapped_column(default="")

    return User


@pytest.fixture
def world(user: Any, base: Any, sqlite_world_of: Callable[..., World]) -> World:
    """User 1 is there; that 2 and 3 are not is cached."""
    made = sqlite_world_of(base)
    made.add(user(id=1, name="ann"))
    for ident in (2, 3):
        assert made.read(user, ident) is None
    return made


def knows_absent(world: World, user: Any, ident: int) -> bool:
    with world.counting() as seen:
        assert world.read(user, ident) is None
    return seen == []


def test_absence_is_served(world: World, user: Any) -> None:
    """By every way of asking, alone or among others, with no SQL."""
    with world.no_sql(), world.session() as session:
        assert session.get(user, 2) is None
        assert world.cache.get(session, user, 3) is None
        assert [found and found.id for found in world.cache.get_many(session, user, [2, 1, 3])] == [None, 1, None]
        assert session.scalars(sa.select(user).where(user.id.in_([1, 2]))).one().id == 1
        assert not world.cache.contains(user, 2)
        assert world.cache.contains(user, 1)


def _add(session: orm.Session, user: Any) -> None:
    session.add_all([user(id=2), user(id=3)])


def _add_unnumbered(session: orm.Session, user: Any) -> None:
    session.add_all([user(), user()])


def _insert(session: orm.Session, user: Any) -> None:
    session.execute(sa.insert(user).values(id=2))


def _insert_many(session: orm.Session, user: Any) -> None:
    session.execute(sa.insert(user), [{"name": "b"}, {"name": "c"}])


def _insert_core(session: orm.Session, user: Any) -> None:
    session.connection().execute(sa.insert(user.__table__), [{"name": "b"}, {"name": "c"}])


def _insert_select(session: orm.Session, user: Any) -> None:
    session.execute(sa.insert(user.__table__).from_select(["id", "name"], sa.select(user.id + 1, user.name)))


def _text(session: orm.Session, user: Any) -> None:
    session.execute(sa.text("INSERT INTO users (id, name) VALUES (2, 'b')"))


def _renumber(session: orm.Session, user: Any) -> None:
    session.get(user, 1).id = 2


def _renumber_in_bulk(session: orm.Session, user: Any) -> None:
    session.execute(sa.update(user).values(id=user.id + 1))


def _renumber_by_core(session: orm.Session, user: Any) -> None:
    session.connection().execute(sa.update(user.__table__).where(user.id == 1).values(id=3))


def _merge(session: orm.Session, user: Any) -> None:
    session.merge(user(id=3, name="c"))


def _savepoint(session: orm.Session, user: Any) -> None:
    with session.begin_nested():
        session.add(user(id=3))
    with session.begin_nested() as undone:
        session.add(user(id=2))
        session.flush()
        undone.rollback()


CHANGES = {
    change.__name__.strip("_"): change
    for change in (
        _add,
        _add_unnumbered,
        _insert,
        _insert_many,
        _insert_core,
        _insert_select,
        _text,
        _renumber,
        _renumber_in_bulk,
        _renumber_by_core,
        _merge,
        _savepoint,
    )
}


def agree(world: World, user: Any) -> None:
    world.cache.drain()
    with orm.Session(world.outside) as session:
        there = set(session.scalars(sa.select(user.id)))
    for ident in (1, 2, 3, 4):
        for _ in range(2):
            assert (world.read(user, ident) is not None) is (ident in there)


@pytest.mark.parametrize("ending", ["commit", "rollback"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_row_that_comes_to_be_is_found(world: World, user: Any, change: Any, ending: str) -> None:
    """However it is inserted, and only if that is committed; the session sees it before."""
    with world.session() as session:
        change(session, user)
        session.flush()
        there = set(session.connection().scalars(sa.text("SELECT id FROM users")))
        for ident in (1, 2, 3):
            assert (session.get(user, ident) is not None) is (ident in there)
        getattr(session, ending)()
    agree(world, user)


def test_a_deleted_row_is_known_to_be_gone(world: World, user: Any) -> None:
    """From its first reader on; and when it comes back, it is back."""
    with world.session() as session:
        session.delete(session.get(user, 1))
        session.commit()
    assert not knows_absent(world, user, 1)
    assert knows_absent(world, user, 1)
    world.add(user(id=1, name="new"))
    assert world.read(user, 1).name == "new"


def test_an_eviction_forgets_absence(world: World, user: Any) -> None:
    """After an INSERT past the library, as with any row."""
    world.outside_sql("INSERT INTO users (id, name) VALUES (2, 'b'), (3, 'c')")
    world.cache.evict(user, 2)
    assert world.read(user, 2).name == "b"
    world.cache.evict_all(user)
    assert world.read(user, 3).name == "c"


class StandingStore(MemoryStore):
    """A store before whose next step, of one kind, something else happens."""

    happens: tuple[str, Callable[[], None]] | None = None

    def _stand(self, what: str) -> None:
        if self.happens is not None and self.happens[0] == what:
            (_, run), self.happens = self.happens, None
            run()

    def read(self, keys: Any, epoch: str | None, intent: Intent) -> list[Reading]:
        self._stand("before the lease")
        found = list(super().read(keys, epoch, intent))
        self._stand("after the lease")
        return found

    def submit(self, changes: Any) -> Reply:
        reply = super().submit(changes)
        self._stand("announced")
        return reply

    def post(self, changes: Any) -> None:
        if any(isinstance(change, Fill) for change in changes):
            self._stand("before the fill")
        super().post(changes)


@pytest.mark.parametrize("step", ["before the lease", "after the lease", "before the fill"])
@pytest.mark.parametrize("change", [_add, _insert, _insert_many, _text, _renumber])
def test_a_row_is_inserted_while_a_reader_stands(
    base: Any, user: Any, sqlite_world_of: Callable[..., World], step: str, change: Any
) -> None:
    """The reader may miss it, as it began before; whoever begins later does not."""
    store = StandingStore()
    world = sqlite_world_of(base, store=store)
    world.add(user(id=1))

    def insert() -> None:
        with world.session() as session:
            change(session, user)
            session.commit()

    store.happens = step, insert
    with world.session() as session:
        world.cache.get(session, user, 2)
    assert store.happens is None
    agree(world, user)


def test_a_reader_comes_between_announcement_and_commit(
    base: Any, user: Any, sqlite_world_of: Callable[..., World]
) -> None:
    """It may not fill, whether it had asked before or not."""
    store = StandingStore()
    world = sqlite_world_of(base, store=store)
    world.add(user(id=1))
    found: list[Any] = []
    with world.session() as session:
        session.add(user(id=2))
        session.flush()
        store.happens = "announced", lambda: found.append(world.read(user, 2))
        session.commit()
    assert found == [None]
    agree(world, user)


@pytest.mark.parametrize("value", [2.0, "2", True])
def test_a_key_of_another_type_is_not_filled(world: World, user: Any, value: Any) -> None:
    """What only the database can compare, it compares every time."""
    world.cache.evict_all()
    with world.session() as session:
        session.get(user, value if value is not True else False)
    assert not knows_absent(world, user, 2)


# --- where it is refused ---------------------------------------------------------------------------------------------


def test_a_store_that_may_lose_tombstones_is_refused(base: Any, user: Any, sqlite_url: str, memcached: Any) -> None:
    """SQLite with memcached: an announcement may be lost while the INSERT is under way."""
    factory = orm.sessionmaker(sa.create_engine(sqlite_url))
    with pytest.raises(wt.ConfigurationError, match="on sqlite with a MemcachedStore"):
        wt.register(factory, memcached.url)


def test_a_database_without_a_fence_is_refused(base: Any, user: Any) -> None:
    """An INSERT that is under way is invisible to PostgreSQL's readers."""
    factory = orm.sessionmaker(sa.create_engine("postgresql+psycopg://localhost/nothing"))
    with pytest.raises(wt.ConfigurationError, match=r"negative=True.*of User: on postgresql with a MemoryStore"):
        wt.register(factory, "memory://")


def test_a_bind_that_comes_later_is_refused_then(base: Any, user: Any, postgres_url: str) -> None:
    """A factory without a bind does not tell its database; the first lookup does."""
    factory = orm.sessionmaker()
    cache = wt.register(factory, "memory://")
    engine = sa.create_engine(postgres_url)
    base.metadata.create_all(engine)
    with factory(bind=engine) as session, pytest.raises(wt.ConfigurationError, match="on postgresql"):
        cache.get(session, user, 1)
    cache.unregister()
    engine.dispose()
