"""Collections by reference, by property: two sessions add, move, sort, renumber and delete; readers compare.

HYPOTHESIS_PROFILE=thorough pytest tests/memberships
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import orm
from sqlalchemy.exc import SQLAlchemyError

import sa_writethrough as wt
from sa_writethrough.collecting import Collecting
from sa_writethrough.joining import Joining
from sa_writethrough.routing import Routing
from sa_writethrough.stores.memory import MemoryStore
from sa_writethrough.stores.urls import open_store
from tests.properties.test_properties import _settings

USERS = (1, 2, 3)
ORDERS = tuple(range(1, 6))
NAMES = ("a", "b")

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")


class Base(orm.DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "collecting_user"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    orders: orm.Mapped[list[Order]] = orm.relationship(order_by="Order.place, Order.id", passive_deletes="all")


class Order(Base):
    __tablename__ = "collecting_order"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    user_id: orm.Mapped[int | None] = orm.mapped_column(sa.ForeignKey(User.id))
    place: orm.Mapped[int] = orm.mapped_column(default=0)


POLICIES = {User: wt.CachePolicy(collections=["orders"]), Order: wt.CachePolicy()}


class Collections(RuleBasedStateMachine):
    """Nobody waits for a lock: whoever is in another's way fails, and is rolled back."""

    engine: sa.Engine
    observer: sa.Engine
    open_store: Callable[[], Any]
    lose: Callable[[], None] | None = None
    """Has the cache lose everything, where it can."""
    number = 0

    def __init__(self) -> None:
        super().__init__()
        with orm.Session(self.observer) as session:
            session.execute(sa.delete(Order))
            session.execute(sa.delete(User))
            session.add_all([User(id=user) for user in USERS])
            session.flush()
            session.add_all([Order(id=order, user_id=order % 2 + 1) for order in ORDERS[:3]])
            session.commit()
        type(self).number += 1
        for policy in POLICIES.values():
            object.__setattr__(policy, "namespace", f"collecting{self.number}")
        factory = orm.sessionmaker(self.engine)
        User.__writethrough__ = POLICIES[User]
        Order.__writethrough__ = POLICIES[Order]
        self.cache = wt.register(factory, self.open_store())
        self.factory = factory
        self.sessions = {name: factory() for name in NAMES}
        self.losing = False
        sa.event.listen(self.engine, "commit", self._before_commit)
        self.watching = self.observer.connect().execution_options(isolation_level="AUTOCOMMIT")

    def teardown(self) -> None:
        for session in self.sessions.values():
            session.close()
        self.watching.close()
        sa.event.remove(self.engine, "commit", self._before_commit)
        self.cache.unregister()
        self.engine.dispose()

    @contextlib.contextmanager
    def working(self, name: str) -> Iterator[orm.Session]:
        session = self.sessions[name]
        try:
            yield session
            session.flush()
        except SQLAlchemyError:  # a row that is not there, a key that is taken, a lock that another holds
            session.rollback()

    @rule(name=st.sampled_from(NAMES), order=st.sampled_from(ORDERS), user=st.sampled_from((*USERS, None)))
    def put(self, name: str, order: int, user: int | None) -> None:
        """Insert the order, or move it."""
        with self.working(name) as session:
            session.merge(Order(id=order, user_id=user))

    @rule(name=st.sampled_from(NAMES), order=st.sampled_from(ORDERS), user=st.sampled_from(USERS))
    def append(self, name: str, order: int, user: int) -> None:
        with self.working(name) as session:
            found, owner = session.get(Order, order), session.get(User, user)
            if found is not None and owner is not None and found not in owner.orders:
                owner.orders.append(found)

    @rule(name=st.sampled_from(NAMES), user=st.sampled_from(USERS))
    def pop(self, name: str, user: int) -> None:
        with self.working(name) as session:
            owner = session.get(User, user)
            if owner is not None and owner.orders:
                owner.orders.pop()

    @rule(name=st.sampled_from(NAMES), order=st.sampled_from(ORDERS))
    def delete(self, name: str, order: int) -> None:
        with self.working(name) as session:
            found = session.get(Order, order)
            if found is not None:
                session.delete(found)

    @rule(name=st.sampled_from(NAMES), user=st.sampled_from(USERS))
    def replace(self, name: str, user: int) -> None:
        """Delete a user with its orders, and have a new one with its key."""
        with self.working(name) as session:
            session.execute(sa.delete(Order).where(Order.user_id == user))
            session.execute(sa.delete(User).where(User.id == user))
            session.execute(sa.insert(User).values(id=user))

    @rule(name=st.sampled_from(NAMES), old=st.sampled_from(ORDERS), new=st.sampled_from(ORDERS))
    def renumber(self, name: str, old: int, new: int) -> None:
        with self.working(name) as session:
            found = session.get(Order, old)
            if found is not None:
                found.id = new

    @rule(name=st.sampled_from(NAMES), order=st.sampled_from(ORDERS), place=st.integers(0, 2))
    def sort(self, name: str, order: int, place: int) -> None:
        with self.working(name) as session:
            found = session.get(Order, order)
            if found is not None:
                found.place = place

    @rule(name=st.sampled_from(NAMES), old=st.sampled_from(USERS), new=st.sampled_from(USERS))
    def move_all(self, name: str, old: int, new: int) -> None:
        with self.working(name) as session:
            session.execute(sa.update(Order).where(Order.user_id == old).values(user_id=new))

    @rule(name=st.sampled_from(NAMES), by=st.integers(1, 2))
    def turn(self, name: str, by: int) -> None:
        """Give every order to another user, by an expression."""
        with self.working(name) as session:
            session.execute(sa.update(Order).values(user_id=(Order.user_id + by) % 3 + 1))

    @rule(name=st.sampled_from(NAMES), undone=st.booleans(), user=st.sampled_from(USERS))
    def nest(self, name: str, undone: bool, user: int) -> None:
        with self.working(name) as session, session.begin_nested() as savepoint:
            session.execute(sa.update(Order).where(Order.id == 1).values(user_id=user))
            if undone:
                savepoint.rollback()

    @rule(name=st.sampled_from(NAMES), how=st.sampled_from(["commit", "rollback", "close"]))
    def end(self, name: str, how: str) -> None:
        with self.working(name) as session:
            getattr(session, how)()

    @precondition(lambda self: self.lose is not None)
    @rule(name=st.sampled_from(NAMES))
    def commit_with_loss(self, name: str) -> None:
        """Between the announcement and COMMIT the cache loses everything, and readers come by."""
        with self.working(name) as session:
            session.flush()
            self.losing = True
            try:
                session.commit()
            finally:
                self.losing = False

    def _before_commit(self, _connection: Any) -> None:
        if self.losing:
            self.losing = False
            type(self).lose()
            self.agree()

    @rule(user=st.sampled_from(USERS), order=st.sampled_from(ORDERS))
    def evict(self, user: int, order: int) -> None:
        self.cache.evict(User, user)
        self.cache.evict(Order, order)

    @rule(name=st.sampled_from(NAMES))
    def look(self, name: str) -> None:
        """A session's own view is what its transaction would select."""
        with self.working(name) as session:
            session.flush()
            session.expire_all()
            for user in session.scalars(sa.select(User)).all():
                assert [order.id for order in user.orders] == _selected(session.connection(), user.id)

    @invariant()
    def agree(self) -> None:
        """What a fresh session loads is what any other connection selects, the first time and when it is cached."""
        self.cache.drain()
        for user in USERS:
            for _ in range(2):
                with self.factory() as session:
                    found = self.cache.get(session, User, user)
                    orders = [] if found is None else [order.id for order in found.orders]
                assert orders == _selected(self.watching, user)


def _selected(connection: sa.Connection, user: int) -> list[int]:
    table = Order.__table__
    rows = connection.execute(sa.select(table.c.id).where(table.c.user_id == user).order_by("place", "id"))
    return [row[0] for row in rows]


@pytest.fixture
def machine_on(request: pytest.FixtureRequest) -> Iterator[Callable[[str], type[Collections]]]:
    """Return the machine on the embedded parts, "sqlite", or on servers, "postgres"."""
    engines: list[sa.Engine] = []

    def make(kind: str) -> type[Collections]:
        url = request.getfixturevalue(f"{kind}_url")
        memcached = request.getfixturevalue("memcached") if kind == "postgres" else None
        engines.extend([_engine(url), _engine(url)])
        Base.metadata.create_all(engines[0])

        class Machine(Collections):
            engine, observer = engines

            @staticmethod
            def open_store() -> Any:
                return MemoryStore() if memcached is None else open_store(memcached.url)

        if memcached is not None:
            Machine.lose = staticmethod(lambda: memcached.command("flush_all"))
        return Machine

    yield make
    for engine in engines:
        engine.dispose()


def _engine(url: str) -> sa.Engine:
    if url.startswith("postgresql"):
        return sa.create_engine(url, connect_args={"options": "-c lock_timeout=10ms"})
    engine = sa.create_engine(url, connect_args={"timeout": 0})
    sa.event.listen(engine, "connect", _fast)
    return engine


def _fast(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA journal_mode = wal")
    connection.execute("PRAGMA synchronous = OFF")


@pytest.mark.parametrize(("kind", "sequences"), [("sqlite", 60), ("postgres", 20)])
def test_a_cached_collection_is_what_is_selected(
    machine_on: Callable[[str], type[Collections]], kind: str, sequences: int
) -> None:
    """Whatever two sessions do, every fresh session's collection is that of a SELECT."""
    run_state_machine_as_test(machine_on(kind), settings=_settings(sequences))


BROKEN = {
    "no rule": None,
    "who left is not looked for": (Collecting, "_belongs", True),
    "who joins is not announced": (Joining, "_joins", ()),
    "what the session wrote is forgotten": (Routing, "wrote", False),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_the_machine_sees_a_broken_rule(
    machine_on: Callable[[str], type[Collections]], monkeypatch: pytest.MonkeyPatch, broken: Any
) -> None:
    """An order is moved: without a rule of the protocol that is enough for the machine to complain."""
    if broken is not None:
        monkeypatch.setattr(broken[0], broken[1], lambda *_: broken[2])
    machine = machine_on("sqlite")()
    try:
        machine.agree()
        with pytest.raises(AssertionError) if broken else contextlib.nullcontext():
            machine.put("a", 1, 3)
            machine.look("a")
            machine.end("a", "commit")
            machine.agree()
    finally:
        machine.teardown()
