"""Sessions, interleaved, doing all that an ORM does, while the cache is compared with the database after each step."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from sqlalchemy.orm import Session

import sa_writethrough as wt
from tests.properties import statements
from tests.properties.models import KINDS, NUMBERS, ROOTS, Kind
from tests.properties.worlds import Place, Rows, World, describe_instance

NAMES = ("s1", "s2", "s3")
sessions = st.sampled_from(NAMES)
models = st.sampled_from(sorted(KINDS))
roots = st.sampled_from(ROOTS)
columns = st.sampled_from(statements.COLUMNS)
numbers = st.sampled_from(NUMBERS)
values = st.sampled_from(("a", "b", "c"))
modes = st.sampled_from([mode.name for mode in wt.CacheMode])
flags = st.booleans()
ends = st.sampled_from(("go on", "go on", "commit", "commit", "savepoint", "rollback"))

TO_ONE = {"User.team": "Team", "Item.user": "User", "Badge.user": "User", "City.country": "Country"}
TO_MANY = {"Team.users": "User", "User.items": "Item", "User.badges": "Badge", "Country.cities": "City"}
JOINS = ("conditional_savepoint", "rollback_only", "control_fully", "create_savepoint")


def step(**arguments: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Any]:
    """Make a rule, after which the cache must agree with the database.

    Not by an invariant: Hypothesis prints those between any two steps of the script.
    """

    def wrap(function: Callable[..., None]) -> Any:
        @functools.wraps(function)
        def act_and_agree(self: Transactions, **values: Any) -> None:
            function(self, **values)
            self._agree()

        return rule(**arguments)(act_and_agree)

    return wrap


def write(**arguments: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Any]:
    """Make a step of one session, after which it may end its transaction or set a savepoint."""

    def wrap(function: Callable[..., None]) -> Any:
        @functools.wraps(function)
        def act_and_end(self: Transactions, session: str, then: str, **values: Any) -> None:
            function(self, session, **values)
            if then == "commit":
                self._agree()
                self._commit(session)
            elif then == "rollback":
                self._agree()
                self._roll_back(session)
            elif then == "savepoint":
                self._agree()
                self._save(session)

        return step(session=sessions, then=ends, **arguments)(act_and_end)

    return wrap


@dataclass
class Actor:
    """One session, as an application has it: with its open savepoints and the instances that it holds on to."""

    session: Session
    options: dict[str, Any] = field(default_factory=dict)
    savepoints: list[Any] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)
    outer: Any = None
    """The transaction of somebody else that the session has joined, with its connection."""

    def forget(self) -> None:
        self.savepoints.clear()
        self.kept.clear()


class Transactions(RuleBasedStateMachine):
    """Rows 1 and 2 of each model are there, named 'first', and cached."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.world = World(place)
        self.failures: list[str] = []
        self.may_commit = False
        self.committed = self.world.committed()
        self.meanwhile_committed: list[dict[str, Rows]] = []
        """What others made of the database during this step, with what it was before that."""
        self.actors = {name: Actor(self.world.sessions(autobegin=True)) for name in NAMES}

    def teardown(self) -> None:
        try:
            for actor in self.actors.values():
                self._end(actor, "close")
                actor.session.close()
            self._agree()
        finally:
            self.actors.clear()
            self.world.close()

    # --- the promise ---

    def _agree(self) -> None:
        assert not self.failures, "\n".join(self.failures)
        self.world.cache.drain()
        committed = self.world.committed()
        if not self.may_commit:
            assert committed == self.committed, "something was committed that nobody asked for"
        self.may_commit, self.committed = False, committed
        self.meanwhile_committed.clear()
        for root in ROOTS:
            for identity, entry in self.world.entries(root).items():
                row = committed[root].get(identity)
                assert entry == row, f"{root} {identity}: the cache has {entry}, the database {row}"

    def _do(self, session: str, action: Callable[[Session], Any]) -> Any:
        """Do what may fail as it may without a cache: locks held by others, constraints, sessions that need rollback."""
        try:
            return action(self.actors[session].session)
        except sa.exc.PendingRollbackError:  # it failed before, and was told so for as long as it takes
            self._roll_back(session)
        except sa.exc.SQLAlchemyError as error:
            self._may_be(error)
        return None

    def _may_be(self, error: Exception) -> None:
        if isinstance(error, wt.WriteThroughError):
            raise error

    def _commit(self, session: str) -> None:
        self._ends(session, lambda own: own.commit())
        self.actors[session].savepoints.clear()

    def _roll_back(self, session: str) -> None:
        self._do(session, lambda own: own.rollback())
        self.actors[session].savepoints.clear()

    def _save(self, session: str) -> None:
        savepoint = self._do(session, lambda own: own.begin_nested())
        if savepoint is not None:
            self.actors[session].savepoints.append(savepoint)

    def _ends(self, session: str, action: Callable[[Session], Any]) -> None:
        """Do what may commit. If it raises, nothing was committed."""
        try:
            action(self.actors[session].session)
        except sa.exc.SQLAlchemyError as error:
            self._may_be(error)
            assert self.world.committed() == self.committed, f"it was committed, and raised {error!r}"
        else:
            self.may_commit = True

    # --- reads ---

    def _read(self, session: str, kind: Kind, numbers: tuple[int, ...], read: Callable[[Session], list[Any]]) -> None:
        actor = self.actors[session]
        own = actor.session
        before = [self._before(own, kind, number) for number in numbers]
        pending = bool(own.new or own.dirty or own.deleted)
        found = self._do(session, read)
        if found is None:
            return
        for number, (held, state), instance in zip(numbers, before, found, strict=True):
            what = f"{session} read {kind.cls.__name__} {number}"
            if pending:  # the read has flushed that, and what it left of the instances is SQLAlchemy's business
                assert instance is None or held is None or instance is held, f"{what}: not its own instance"
            elif state is None:  # not there, or expired
                assert held is None or instance is None or instance is held, f"{what}: not its own instance"
                self._is_row(what, own, kind, number, instance)
            elif isinstance(held, kind.cls):
                assert instance is held, f"{what}: not its own instance"
                assert describe_instance(held) == state, f"{what}: its own instance was overwritten"
        actor.kept += [instance for instance in found if instance is not None]

    @staticmethod
    def _before(session: Session, kind: Kind, number: int) -> tuple[Any, Any]:
        held = session.identity_map.get(kind.mapper.identity_key_from_primary_key(kind.identity(number)))
        if held is None:
            return None, None
        state = sa.inspect(held)
        return held, None if state.expired else describe_instance(held)

    def _is_row(self, what: str, session: Session, kind: Kind, number: int, instance: Any) -> None:
        """Assert that a newly loaded instance is the row at some moment during the read, or that there was none."""
        root = kind.mapper.base_mapper.class_.__name__
        moments = [self.world.seen_by(session, root), *(moment[root] for moment in self.meanwhile_committed)]
        rows = [moment.get(kind.identity(number)) for moment in moments]
        rows = [None if row is None or not issubclass(KINDS[row["class"]].cls, kind.cls) else row for row in rows]
        described = None if instance is None else describe_instance(instance)
        if not any(self._describes(described, row, kind) for row in rows):
            # Kept for the end of the step: in the midst of a commit the library may let no exception through.
            self.failures.append(f"{what}: {described}, the database has {' or '.join(map(str, rows))}")

    @staticmethod
    def _describes(described: Any, row: Any, kind: Kind) -> bool:
        if described is None or row is None:
            return described is row is None
        if row["class"] != kind.cls.__name__:  # SQLAlchemy loads a subclass's columns when they are asked for
            row = {name: text for name, text in row.items() if name in described}
        return bool(described == row)

    @step(session=sessions, model=models, id=numbers, way=st.sampled_from(statements.WAYS), mode=modes)
    def read(self, session: str, model: str, id: int, way: str, mode: str) -> None:
        kind = KINDS[model]
        self._read(session, kind, (id,), lambda s: [statements.read(self.world.cache, s, way, mode, kind, id)])

    @step(session=sessions, model=models, way=st.sampled_from(statements.MANY_WAYS), mode=modes)
    def read_many(self, session: str, model: str, way: str, mode: str) -> None:
        self._read_rows(session, model, way, mode)

    def _read_rows(self, session: str, model: str, way: str, mode: str) -> None:
        kind = KINDS[model]
        self._read(
            session, kind, NUMBERS, lambda s: statements.read_many(self.world.cache, s, way, mode, kind, NUMBERS)
        )

    @step(model=models, way=st.sampled_from(statements.MANY_WAYS), mode=modes)
    def visit(self, model: str, way: str, mode: str) -> None:
        """Read with a new session, which nothing keeps from filling."""
        visitor = self.actors["a visitor"] = Actor(self.world.sessions())
        self._read_rows("a visitor", model, way, mode)
        visitor.session.close()
        del self.actors["a visitor"]

    # --- instances ---

    def _get(self, session: Session, model: str, number: int) -> Any:
        return session.get(KINDS[model].cls, KINDS[model].identity(number))

    def _with(self, session: str, model: str, number: int, action: Callable[[Session, Any], Any]) -> None:
        """Do something with an instance if there is one."""

        def act(own: Session) -> None:
            instance = self._get(own, model, number)
            if instance is not None:
                self.actors[session].kept.append(instance)
                action(own, instance)

        self._do(session, act)

    @write(model=models, id=numbers, name=values)
    def add(self, session: str, model: str, id: int, name: str) -> None:
        instance = KINDS[model].make(id, name)
        self.actors[session].kept.append(instance)
        self._do(session, lambda s: s.add(instance))

    @write(column=columns, id=numbers, value=values)
    def change(self, session: str, column: str, id: int, value: str) -> None:
        kind, attribute = statements.column_of(column)
        self._with(session, kind.cls.__name__, id, lambda _s, instance: setattr(instance, attribute, value))

    @write(id=numbers, price=st.sampled_from(("1.005", "2", "-0", "3.10")))
    def price(self, session: str, id: int, price: str) -> None:
        self._with(session, "Product", id, lambda _s, product: setattr(product, "price", Decimal(price)))

    @write(id=numbers, label=values)
    def label(self, session: str, id: int, label: str) -> None:
        self._with(session, "Product", id, lambda _s, product: product.labels.update({label: [1, 2.0, None]}))

    @write(model=models, id=numbers)
    def delete(self, session: str, model: str, id: int) -> None:
        self._with(session, model, id, lambda s, instance: s.delete(instance))

    @write(column=columns, id=numbers, value=values)
    def merge(self, session: str, column: str, id: int, value: str) -> None:
        kind, attribute = statements.column_of(column)

        def merge(own: Session) -> None:
            held = self._get(own, kind.mapper.base_mapper.class_.__name__, id)
            if held is None or type(held) is kind.cls:  # an instance's class cannot change
                self.actors[session].kept.append(own.merge(kind.cls(**{**kind.key(id), attribute: value})))

        self._do(session, merge)

    @write(model=st.sampled_from(statements.REKEYED), id=numbers, to=numbers)
    def change_key(self, session: str, model: str, id: int, to: int) -> None:
        def rekey(_session: Session, instance: Any) -> None:
            for name, part in KINDS[model].key(to).items():
                setattr(instance, name, part)

        self._with(session, model, id, rekey)

    @step(session=sessions, model=models, id=numbers)
    def expire(self, session: str, model: str, id: int) -> None:
        self._with(session, model, id, lambda s, instance: s.expire(instance))

    @step(session=sessions, model=models, id=numbers)
    def refresh(self, session: str, model: str, id: int) -> None:
        self._with(session, model, id, lambda s, instance: s.refresh(instance))

    @step(session=sessions, model=models, id=numbers)
    def expunge(self, session: str, model: str, id: int) -> None:
        self._with(session, model, id, lambda s, instance: s.expunge(instance))

    # --- relationships ---

    @write(relation=st.sampled_from(sorted(TO_ONE)), id=numbers, to=st.none() | numbers)
    def assign(self, session: str, relation: str, id: int, to: int | None) -> None:
        model, _, name = relation.partition(".")

        def assign(own: Session, instance: Any) -> None:
            setattr(instance, name, None if to is None else self._get(own, TO_ONE[relation], to))

        self._with(session, model, id, assign)

    @write(relation=st.sampled_from(sorted(TO_MANY)), id=numbers, member=numbers)
    def append(self, session: str, relation: str, id: int, member: int) -> None:
        model, _, name = relation.partition(".")

        def append(own: Session, instance: Any) -> None:
            other = self._get(own, TO_MANY[relation], member)
            if other is not None:
                getattr(instance, name).append(other)

        self._with(session, model, id, append)

    @write(relation=st.sampled_from(sorted(TO_MANY)), id=numbers)
    def empty(self, session: str, relation: str, id: int) -> None:
        model, _, name = relation.partition(".")
        self._with(session, model, id, lambda _s, instance: getattr(instance, name).clear())

    # --- statements ---

    @write(
        via=st.sampled_from(statements.VIA),
        column=columns,
        where=st.sampled_from(statements.WHERE),
        id=numbers,
        value=values,
    )
    def update_rows(self, session: str, via: str, column: str, where: str, id: int, value: str) -> None:
        self._do(session, lambda s: statements.update(s, via, column, where, id, value))

    @write(
        via=st.sampled_from(statements.VIA),
        model=models,
        where=st.sampled_from(statements.WHERE),
        id=numbers,
        value=values,
    )
    def delete_rows(self, session: str, via: str, model: str, where: str, id: int, value: str) -> None:
        self._do(session, lambda s: statements.delete(s, via, model, where, id, value))

    @write(via=st.sampled_from(statements.INSERTS), model=roots, id=numbers, name=values)
    def insert_row(self, session: str, via: str, model: str, id: int, name: str) -> None:
        self._do(session, lambda s: statements.insert(s, via, model, id, name))

    @write(
        via=st.sampled_from(("orm", "core", "text")),
        model=st.sampled_from(statements.REKEYED),
        id=numbers,
        to=numbers,
    )
    def update_key(self, session: str, via: str, model: str, id: int, to: int) -> None:
        self._do(session, lambda s: statements.rekey(s, via, model, id, to))

    # --- transactions ---

    @step(session=sessions)
    def flush(self, session: str) -> None:
        self._do(session, lambda s: s.flush())

    @step(session=sessions)
    def commit(self, session: str) -> None:
        self._commit(session)

    @step(session=sessions)
    def rollback(self, session: str) -> None:
        self._roll_back(session)

    @step(session=sessions)
    def savepoint(self, session: str) -> None:
        self._save(session)

    @precondition(lambda self: any(actor.savepoints for actor in self.actors.values()))
    @step(session=sessions, savepoint=st.sampled_from((-1, -2)))
    def roll_back_to(self, session: str, savepoint: int) -> None:
        """The last savepoint, or the one before it."""
        opened = self.actors[session].savepoints
        if len(opened) >= -savepoint:
            self._do(session, lambda _s: opened[savepoint].rollback())
            del opened[savepoint:]

    @precondition(lambda self: any(actor.savepoints for actor in self.actors.values()))
    @step(session=sessions, savepoint=st.sampled_from((-1, -2)))
    def release(self, session: str, savepoint: int) -> None:
        """The last savepoint, or the one before it."""
        opened = self.actors[session].savepoints
        if len(opened) >= -savepoint:
            self._do(session, lambda _s: opened[savepoint].commit())
            del opened[savepoint:]

    @step(session=sessions, expire_on_commit=flags, autoflush=flags)
    def close(self, session: str, expire_on_commit: bool, autoflush: bool) -> None:
        """Close it without a commit, and use the same session with other options."""
        self._do(session, lambda s: s.close())
        actor = self.actors[session]
        actor.session.expire_on_commit, actor.session.autoflush = expire_on_commit, autoflush
        actor.forget()

    @step(session=sessions)
    def drop(self, session: str) -> None:
        """Lose the session, and have it collected as garbage in its transaction."""
        actor = self.actors[session]
        if actor.outer is None:
            self.actors[session] = Actor(self.world.sessions())
            del actor
            gc.collect()

    @step(session=sessions)
    def let_go(self, session: str) -> None:
        """Hold on to no instance any more: the session keeps those alone that are changed."""
        self.actors[session].kept.clear()

    # --- somebody else's transaction ---

    @step(session=sessions, mode=st.sampled_from(JOINS), writes_first=flags)
    def join(self, session: str, mode: str, writes_first: bool) -> None:
        """Close the session, and open one in a transaction that somebody else has begun."""
        actor = self.actors[session]
        self._do(session, lambda s: s.close())
        self._end(actor, "rollback")
        connection = self.world.place.engine.connect()
        transaction = connection.begin()
        if writes_first:
            try:
                table = KINDS["Team"].mapper.local_table
                connection.execute(sa.update(table).where(table.c.id == 1).values(name="outer"))
            except sa.exc.DBAPIError:
                connection.close()
                return
        joined = self.world.sessions(bind=connection, join_transaction_mode=mode)
        self.actors[session] = Actor(joined, outer=(connection, transaction))
        if writes_first:
            self._do(session, lambda own: own.connection())  # what a connection writes for no session, nobody sees

    @precondition(lambda self: any(actor.outer for actor in self.actors.values()))
    @step(session=sessions, how=st.sampled_from(("commit", "rollback", "close")))
    def end_outer(self, session: str, how: str) -> None:
        """End the transaction that the session has joined, and the session with it."""
        actor = self.actors[session]
        if actor.outer is None:
            return
        self._ends(session, lambda _s: self._end(actor, how))
        self._do(session, lambda s: s.close())
        self.actors[session] = Actor(self.world.sessions())

    @staticmethod
    def _end(actor: Actor, how: str) -> None:
        if actor.outer is None:
            return
        connection, transaction = actor.outer
        actor.outer = None
        try:
            if how != "close" and transaction.is_active:
                getattr(transaction, how)()
        finally:
            connection.close()

    # --- eviction ---

    @step(model=roots, id=numbers)
    def evict(self, model: str, id: int) -> None:
        self._evict(model, id)

    def _evict(self, model: str, number: int) -> None:
        try:
            self.world.cache.evict(KINDS[model].cls, KINDS[model].identity(number))
        except wt.WriteThroughError as error:
            self._may_be(error)

    @step(model=st.sampled_from((*ROOTS, None)))
    def evict_all(self, model: str | None) -> None:
        try:
            self.world.cache.evict_all(None if model is None else KINDS[model].cls)
        except wt.WriteThroughError as error:
            self._may_be(error)
