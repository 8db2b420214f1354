"""Found in review: an inserted instance is not always the row that was inserted; and what foreign keys do in two steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, column_property, mapped_column, relationship, sessionmaker

import sa_writethrough as wt
from tests.orm.models import Account
from tests.orm.worlds import World, open_engine


class Base(DeclarativeBase):
    pass


class Album(Base):
    __tablename__ = "review_album"
    __writethrough__ = True
    id: Mapped[int] = mapped_column(primary_key=True)
    tracks_count: Mapped[int] = mapped_column(default=0)
    note: Mapped[str | None]
    original_id: Mapped[int | None] = mapped_column(sa.ForeignKey("review_album.id"))
    tracks: Mapped[list[Track]] = relationship(back_populates="album")
    original: Mapped[Album | None] = relationship(remote_side="Album.id")


class Track(Base):
    """Not cached. Its listeners keep its album's count, one way or another."""

    __tablename__ = "review_track"
    id: Mapped[int] = mapped_column(primary_key=True)
    album_id: Mapped[int | None] = mapped_column(sa.ForeignKey("review_album.id"))
    album: Mapped[Album | None] = relationship(back_populates="tracks")


class Label(Base):
    __tablename__ = "review_label"
    __writethrough__ = True
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str | None]
    size: Mapped[int | None]


class Renamed(Base):
    """Two attributes of one column: SQLAlchemy writes one of them."""

    __tablename__ = "review_renamed"
    __writethrough__ = True
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]


class Single(Base):
    """Written one by one, each with its listeners before it."""

    __tablename__ = "review_single"
    __writethrough__ = True
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str | None]
    __mapper_args__ = {"batch": False}  # noqa: RUF012 - SQLAlchemy's way


Renamed.__mapper__.add_property("title", column_property(Renamed.__table__.c.name))


class Land(Base):
    __tablename__ = "review_land"
    id: Mapped[int] = mapped_column(primary_key=True)


class Region(Base):
    __tablename__ = "review_region"
    id: Mapped[int] = mapped_column(primary_key=True)
    land_id: Mapped[int | None] = mapped_column(sa.ForeignKey(Land.id, ondelete="SET NULL"), unique=True)


class Town(Base):
    __tablename__ = "review_town"
    __writethrough__ = True
    id: Mapped[int] = mapped_column(primary_key=True)
    land_id: Mapped[int | None] = mapped_column(sa.ForeignKey(Region.land_id, onupdate="CASCADE"))


@pytest.fixture
def own(world: World) -> Iterator[World]:
    """The world, with the tables of this module."""
    Base.metadata.create_all(world.observer)
    yield world
    with world.observer.begin() as connection:
        Base.metadata.drop_all(connection)


@contextmanager
def _listening(target: Any, name: str, listener: Callable[..., None]) -> Iterator[None]:
    event.listen(target, name, listener)
    try:
        yield
    finally:
        event.remove(target, name, listener)


_albums: Any = Album.__table__
_labels: Any = Label.__table__


def _counts(_mapper: Any, connection: Any, track: Track) -> None:
    connection.execute(
        sa.update(_albums).where(_albums.c.id == track.album_id).values(tracks_count=_albums.c.tracks_count + 1)
    )


def _deletes(_mapper: Any, connection: Any, track: Track) -> None:
    connection.execute(sa.delete(_albums).where(_albums.c.id == track.id))


def _changes(_mapper: Any, _connection: Any, track: Track) -> None:
    if track.album is not None:
        track.album.note = "of the instance alone"


@pytest.mark.parametrize("name", ["before_insert", "after_insert"])
@pytest.mark.parametrize("listener", [_counts, _changes], ids=["counts", "changes"])
def test_a_listener_of_another_class_in_the_flush_that_inserts_the_row(own: World, name: str, listener: Any) -> None:
    """The usual counter: it comes after the album's INSERT and before the flush is done."""
    with _listening(Track, name, listener):
        own.add(Album(id=1, tracks_count=0, tracks=[Track(id=1)]))
    own.published(Album, 1)


def test_a_listener_that_changes_an_instance_which_was_written_before_it(own: World) -> None:
    """Without batches the first instance's INSERT comes before the second one's listener."""
    first = Single(id=1, note="of the row")

    def change(_mapper: Any, _connection: Any, single: Single) -> None:
        if single.id == 2:
            first.note = "of the instance alone"

    with _listening(Single, "before_insert", change):
        own.add(first, Single(id=2))
    assert own.select(Single, 1)["note"] == "of the row"
    own.published(Single, 1)


def test_sql_that_an_engines_listener_executes_after_the_insert(own: World) -> None:
    """No listener of a mapper tells of it; that the row was touched does."""

    def follow(connection: Any, _cursor: Any, sql: str, *_rest: Any) -> None:
        if sql.startswith("INSERT INTO review_label"):
            connection.execute(sa.update(_labels).where(_labels.c.id == 1).values(size=7))

    with _listening(own.engine, "after_cursor_execute", follow):
        own.add(Label(id=1, note="of the instance", size=1))
    assert own.select(Label, 1)["size"] == 7
    own.agrees(Label, 1)
    own.reads_true(Label, 1)


def test_a_listener_that_deletes_the_row_in_the_flush_that_inserts_it(own: World) -> None:
    """Its instance is persistent afterwards; its row is not there."""
    with _listening(Track, "after_insert", _deletes):
        own.add(Album(id=7), Track(id=7))
    assert own.select(Album, 7) is None
    own.agrees(Album, 7)


def test_a_listener_that_changes_an_instance_of_the_same_class_which_was_inserted_before(own: World) -> None:
    """Instances that depend on each other are written in turns."""

    def change(_mapper: Any, _connection: Any, album: Album) -> None:
        if album.original is not None:
            album.original.note = "of the instance alone"

    with _listening(Album, "before_insert", change):
        own.add(Album(id=2, original=Album(id=1)))
    own.published(Album, 1, 2)


def test_a_listener_that_changes_the_instance_when_its_defaults_are_learnt(own: World) -> None:
    """`refresh_flush` comes after the INSERT."""

    def change(album: Album, _context: Any, _attributes: Any) -> None:
        album.note = "of the instance alone"

    with _listening(Album, "refresh_flush", change):
        own.add(Album(id=1))
    own.published(Album, 1)


def test_a_listener_that_comes_before_every_insert_costs_no_select(own: World) -> None:
    """What changes an instance before its own SQL changes the row as well."""

    def change(_mapper: Any, _connection: Any, account: Account) -> None:
        account.note = "of the row"

    with _listening(Account, "before_insert", change), own.sessions() as session:
        session.add(Account(id=1, name="a"))
        session.flush()
        before = len(own.sql.statements)
        session.commit()
        assert [sql for sql in own.sql.statements[before:] if sql.startswith("SELECT")] == []
    own.published(Account, 1)


@pytest.mark.parametrize("values", [{}, {"note": None}, {"note": "new"}], ids=str)
def test_an_instance_takes_the_row_of_a_deleted_one(own: World, values: Any) -> None:
    """SQLAlchemy updates what the new instance says, and no more: there may be no UPDATE at all."""
    own.add(Label(id=1, note="old", size=5))
    with own.sessions() as session:
        session.add(Label(id=2))
        session.flush()
        session.delete(session.get_one(Label, 1))
        session.add(Label(id=1, **values))
        session.commit()
    own.agrees(Label, 1, 2)
    own.reads_true(Label, 1)


def test_two_attributes_of_one_column(own: World) -> None:
    """What the one says that is not written is not the row."""
    own.add(Renamed(id=1, name="a"), Renamed(id=2, title="b"))
    own.published(Renamed, 1, 2)


def test_a_delete_sets_null_what_other_rows_follow(own: World) -> None:
    """ON DELETE SET NULL is an update of the child, which ON UPDATE CASCADE passes on."""
    own.add(Land(id=1))
    own.add(Region(id=1, land_id=1))
    own.add(Town(id=1, land_id=1))
    own.published(Town, 1)
    with own.sessions() as session:
        session.execute(sa.delete(Land))
        session.commit()
    own.absent(Town, 1)


@pytest.mark.parametrize("statement", [sa.text("SELECT bump()"), sa.select(sa.func.bump())], ids=["text", "core"])
def test_a_function_that_writes_is_declared(postgresql_world: World, statement: Any) -> None:
    """Its SELECT says nothing of it; `writethrough_tables` does."""
    world = postgresql_world
    world.outside("CREATE FUNCTION bump() RETURNS text LANGUAGE sql AS 'UPDATE account SET note = name RETURNING note'")
    try:
        world.add(Account(id=1, name="a"))
        with world.sessions() as session:
            session.execute(statement, execution_options={"writethrough_tables": ["account"]})
            session.commit()
        world.absent(Account, 1)
    finally:
        world.outside("DROP FUNCTION bump()")


def test_horizontal_shards(sqlite_copy: Callable[[str], str]) -> None:
    """A row is published in the shard that holds it, and `cache.get` leaves the choice of a shard to the session."""
    engines = {name: open_engine(sqlite_copy(f"{name}.db")) for name in ("odd", "even")}

    def shard_of(ident: Any) -> str:
        return "odd" if ident % 2 else "even"

    def choose(_mapper: Any, instance: Any, _clause: Any = None) -> str:
        return "even" if instance is None else shard_of(instance.id)

    sessions = sessionmaker(
        class_=ShardedSession,
        shards=engines,
        shard_chooser=choose,
        identity_chooser=lambda _mapper, key, **_: [shard_of(key[0])],
        execute_chooser=lambda _: list(engines),
    )
    cache = wt.register(sessions)
    try:
        with sessions() as session:
            session.add_all([Account(id=1, name="a"), Account(id=2, name="b")])
            session.commit()
        assert [cache.contains(Account, i, bind=engines[shard_of(i)]) for i in (1, 2)] == [True, True]
        with sessions() as session:
            session.execute(sa.update(Account).where(Account.name.in_(["a", "b"])).values(name="c"))
            session.commit()
        with sessions() as session:
            assert [cache.get(session, Account, i).name for i in (1, 2)] == ["c", "c"]
        with sessions() as session:
            assert [account.name for account in cache.get_many(session, Account, [1, 2])] == ["c", "c"]
        for ident in (1, 2):
            with Session(engines[shard_of(ident)]) as session:
                assert session.scalars(sa.select(Account.name)).all() == ["c"]
    finally:
        cache.unregister()
        for engine in engines.values():
            engine.dispose()
