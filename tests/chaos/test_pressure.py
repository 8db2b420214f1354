"""Memory pressure reaches what the library keeps in memcached, and the rig knows whether it did."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

import sa_writethrough as wt
from tests.chaos import pressure
from tests.servers import MemcachedServer


class Base(DeclarativeBase):
    """Of one table."""


class Item(Base):
    """As small as the rig's own."""

    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    a: Mapped[int]
    b: Mapped[int]


def press(node):
    """Put *node* under pressure."""
    with node._connect(5.0) as connection:
        return pressure.press(connection)


def test_rows_and_tombstones_go():
    """What is planted stands for the library's own entries, and those go with it."""
    engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    Base.metadata.create_all(engine)
    sessions: sessionmaker[Session] = sessionmaker(engine)
    with MemcachedServer("-m", "1", "-I", "512k") as node:
        cache = wt.register(sessions, node.url, models=[Item])
        with sessions.begin() as session:
            session.add_all([Item(id=key, a=2**31 + key, b=2**31) for key in range(100)])
        with sessions() as session:
            cache.get_many(session, Item, range(100))
        assert sum(cache.contains(Item, key) for key in range(100)) == 100
        with sessions() as writer:
            for item in cache.get_many(writer, Item, range(50)):
                item.a += 1
            writer.connection().exec_driver_sql("SELECT 1")
            writer.flush()
            assert press(node) > 0.5
            assert sum(cache.contains(Item, key) for key in range(50, 100)) < 10
        cache.unregister()
    engine.dispose()


def test_pressure_that_moves_nothing_is_no_fault(monkeypatch):
    """A node with room enough keeps all of it, and says so."""
    monkeypatch.setattr(pressure, "FILLERS", 10)
    with MemcachedServer("-m", "64") as node:
        assert press(node) == 0
