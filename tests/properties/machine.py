"""Sessions, interleaved, doing all that an ORM does, while the cache is compared with the database after each step."""

# ruff: noqa: A002 - the arguments' names are words of the scripts that Hypothesis prints

from __future__ import annotations

import gc
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition
from sqlalchemy.orm import Session

import sa_writethrough as wt
from tests.properties import statements
from tests.properties.models import GROUPS, KINDS, NUMBERS, ROOTS
from tests.properties.sessions import NAMES, Actor, Sessions, model_in, one_of, step, write

sessions = one_of("names")
models = one_of("models")
roots = one_of("roots")
columns = one_of("columns")
numbers = st.sampled_from(NUMBERS)
values = st.sampled_from(("a", "b", "c"))
modes = st.sampled_from([mode.name for mode in wt.CacheMode])
flags = st.booleans()

JOINS = ("conditional_savepoint", "rollback_only", "control_fully", "create_savepoint")


class Transactions(Sessions):
    """Rows 1 and 2 of each model are there, named 'first', and cached."""

    @initialize(sessions=st.integers(2, len(NAMES)), models=st.sampled_from(GROUPS))
    def work_on(self, sessions: int, models: tuple[str, ...]) -> None:
        self.begin(sessions, models)

    # --- reads ---

    @step(session=sessions, model=models, id=numbers, way=st.sampled_from(statements.WAYS), mode=modes)
    def read(self, session: str, model: str, id: int, way: str, mode: str) -> None:
        kind = KINDS[model]
        identities = [kind.identity(id)]
        cache = self.world.cache
        self._read(
            session,
            kind,
            identities,
            lambda s: [statements.read(cache, s, way, mode, kind, id)],
            selects=way == "select",
        )

    @step(session=sessions, model=models, way=st.sampled_from(statements.MANY_WAYS), mode=modes)
    def read_many(self, session: str, model: str, way: str, mode: str) -> None:
        self._read_rows(session, model, way, mode)

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
        self._set(session, column, id, value)

    def _set(self, session: str, column: str, number: int, value: str) -> None:
        kind, attribute = statements.column_of(column)
        self._with(session, kind.cls.__name__, number, lambda _s, instance: setattr(instance, attribute, value))

    @precondition(lambda self: "Product" in self.models)
    @write(id=numbers, price=st.sampled_from(("1.005", "2", "-0", "3.10")))
    def price(self, session: str, id: int, price: str) -> None:
        self._with(session, "Product", id, lambda _s, product: setattr(product, "price", Decimal(price)))

    @precondition(lambda self: "Product" in self.models)
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

    @precondition(lambda self: self.rekeyed)
    @write(model=one_of("rekeyed"), id=numbers, to=numbers)
    def change_key(self, session: str, model: str, id: int, to: int) -> None:
        def rekey(_session: Session, instance: Any) -> None:
            for name, part in KINDS[model].key(to).items():
                setattr(instance, name, part)

        self._with(session, model, id, rekey)

    @step(session=sessions, model=models, id=numbers)
    def expire(self, session: str, model: str, id: int) -> None:
        self._with(session, model, id, lambda s, instance: s.expire(instance))

    @step(session=sessions, column=columns, id=numbers, meanwhile=st.none() | values)
    def refresh(self, session: str, column: str, id: int, meanwhile: str | None) -> None:
        """Refresh an instance, which somebody else may have written since it was loaded."""

        def refresh(own: Session, instance: Any) -> None:
            if meanwhile is not None:
                self._by_another(lambda another: statements.update(another, "core", column, "key", id, meanwhile))
            own.refresh(instance)
            kind = KINDS[type(instance).__name__]
            identity = sa.inspect(instance).identity
            self._is_row(f"{session} refreshed {kind.cls.__name__} {identity}", own, kind, identity, instance)

        self._with(session, model_in(column), id, refresh)

    @step(session=sessions, model=models, id=numbers)
    def expunge(self, session: str, model: str, id: int) -> None:
        self._with(session, model, id, lambda s, instance: s.expunge(instance))

    # --- relationships ---

    @precondition(lambda self: self.to_one)
    @step(session=sessions, relation=one_of("to_one"), id=numbers, writes=st.none() | values)
    def follow(self, session: str, relation: str, id: int, writes: str | None) -> None:
        """Load a relationship lazily: a read of the row that its foreign key names, and the session may have written."""
        model, _, name = relation.partition(".")
        target = statements.TO_ONE[relation]

        def follow(own: Session, instance: Any) -> None:
            if writes is not None:
                statements.update(own, "core", f"{target}.name", "all", id, writes)
            key = statements.foreign_key_of(instance, name)
            if key is not None and name not in sa.inspect(instance).dict:
                self._read(session, KINDS[target], [(key,)], lambda _s: [getattr(instance, name)])

        self._with(session, model, id, follow)

    @precondition(lambda self: self.to_one)
    @write(relation=one_of("to_one"), id=numbers, to=st.none() | numbers)
    def assign(self, session: str, relation: str, id: int, to: int | None) -> None:
        model, _, name = relation.partition(".")

        def assign(own: Session, instance: Any) -> None:
            setattr(instance, name, None if to is None else self._get(own, statements.TO_ONE[relation], to))

        self._with(session, model, id, assign)

    @precondition(lambda self: self.to_many)
    @write(relation=one_of("to_many"), id=numbers, member=numbers)
    def append(self, session: str, relation: str, id: int, member: int) -> None:
        model, _, name = relation.partition(".")

        def append(own: Session, instance: Any) -> None:
            other = self._get(own, statements.TO_MANY[relation], member)
            if other is not None:
                getattr(instance, name).append(other)

        self._with(session, model, id, append)

    @precondition(lambda self: self.to_many)
    @write(relation=one_of("to_many"), id=numbers)
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

    @precondition(lambda self: self.rekeyed)
    @write(
        via=st.sampled_from(("orm", "core", "text")),
        model=one_of("rekeyed"),
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

    @step(session=sessions, column=columns, meanwhile=st.none() | values)
    def begin_snapshot(self, session: str, column: str, meanwhile: str | None) -> None:
        """Begin a transaction whose reads all see one moment: this one, if somebody else writes rows just after it."""

        def begin(own: Session) -> None:
            if own.get_bind().dialect.name == "sqlite":
                own.connection().exec_driver_sql("BEGIN")
            else:
                own.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            if meanwhile is not None:
                self.world.seen_by(own, "Team")  # it is the first read that chooses the moment
                self._by_another(lambda another: statements.update(another, "core", column, "all", 1, meanwhile))
                self._read_rows(session, model_in(column), "cache.get_many", "NORMAL")

        if self.actors[session].outer is None:
            self._do(session, begin)

    @write(model=models, id=numbers, name=values, keeps=flags)
    def try_to_add(self, session: str, model: str, id: int, name: str, keeps: bool) -> None:
        """Insert inside a savepoint, which an error rolls back."""

        def attempt(own: Session) -> None:
            with own.begin_nested() as savepoint:
                own.add(KINDS[model].make(id, name))
                own.flush()
                if not keeps:
                    savepoint.rollback()

        self._do(session, attempt)

    @write(column=columns, id=numbers, value=values, keeps=flags)
    def try_to_change(self, session: str, column: str, id: int, value: str, keeps: bool) -> None:
        """Update inside a savepoint, which an error rolls back."""
        kind, attribute = statements.column_of(column)

        def attempt(own: Session) -> None:
            with own.begin_nested() as savepoint:
                instance = self._get(own, kind.cls.__name__, id)
                if instance is not None:
                    setattr(instance, attribute, value)
                    own.flush()
                if not keeps:
                    savepoint.rollback()

        self._do(session, attempt)

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
            self.world.cache.evict_all(*([] if model is None else [KINDS[model].cls]))
        except wt.WriteThroughError as error:
            self._may_be(error)
