"""Every private name of SQLAlchemy that `_sqla` uses: it exists, and does what is said of it."""

from __future__ import annotations

import gc
import inspect
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.exc import InvalidRequestError, NoResultFound
from sqlalchemy.pool import NullPool

from sa_writethrough import _instances, _sqla


@pytest.fixture
def base() -> Iterator[Any]:
    class Base(orm.DeclarativeBase):
        pass

    yield Base
    Base.registry.dispose()


@pytest.fixture
def user(base: Any) -> Any:
    class User(base):
        __tablename__ = "users"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str] = orm.mapped_column()

    return User


@pytest.fixture
def engine(base: Any, user: Any) -> Iterator[sa.Engine]:
    made = sa.create_engine("sqlite://")
    base.metadata.create_all(made)
    with made.begin() as connection:
        connection.execute(user.__table__.insert(), [{"id": 1, "name": "ann"}, {"id": 2, "name": "bob"}])
    yield made
    made.dispose()


@pytest.fixture
def session(engine: sa.Engine) -> Iterator[orm.Session]:
    with orm.Session(engine) as made:
        yield made


def test_every_function_of_these_rooms_is_tested_here() -> None:
    """A function that is added there fails here until it has a test whose text names it."""
    functions = {
        f"{room.__name__.rpartition('.')[2]}.{name}"
        for room in (_sqla, _instances)
        for name, thing in vars(room).items()
        if inspect.isfunction(thing) and thing.__module__ == room.__name__ and not name.startswith("_")
    }
    text = Path(__file__).read_text(encoding="utf-8")
    assert "_instances.materializer" in functions
    assert {name for name in functions if name not in text} == set()


def states(session: orm.Session, run: Any) -> list[Any]:
    """Return the ORMExecuteStates of the statements that *run* executes."""
    seen: list[Any] = []
    listener = seen.append
    sa.event.listen(session, "do_orm_execute", listener)
    run()
    sa.event.remove(session, "do_orm_execute", listener)
    return seen


# --- sessions -------------------------------------------------------------------------------------------------------


def test_autobegin_begins_once(session: orm.Session, engine: sa.Engine) -> None:
    """`_sqla.autobegin` begins where nothing is begun, and raises where autobegin is off."""
    _sqla.autobegin(session)
    transaction = session.get_transaction()
    assert transaction is not None
    _sqla.autobegin(session)
    assert session.get_transaction() is transaction
    with orm.Session(engine, autobegin=False) as strict, pytest.raises(InvalidRequestError, match="Autobegin"):
        _sqla.autobegin(strict)


def test_autoflush_flushes_what_is_pending(session: orm.Session, user: Any) -> None:
    """`_sqla.autoflush` flushes, tells whether there was something, and obeys `no_autoflush`."""
    assert _sqla.autoflush(session) is False
    session.add(user(id=3, name="new"))
    with session.no_autoflush:
        _sqla.autoflush(session)
        assert session.new
    assert _sqla.autoflush(session) is True
    assert not session.new


def test_attach_makes_an_instance_persistent(session: orm.Session, user: Any) -> None:
    """`_sqla.attach` puts a new instance where the loader puts one."""
    instance = user.__mapper__.class_manager.new_instance()
    state = sa.inspect(instance)
    key = (user, (7,), None)
    arguments = {
        "session": session,
        "state": state,
        "key": key,
        "session_id": session.hash_key,
        "identity_map": session.identity_map,
    }
    _sqla.attach(*(arguments[name] for name in inspect.signature(_sqla.attach).parameters))
    assert state.persistent
    assert state.key == key
    assert state.identity_token is None
    assert instance in session
    assert session.identity_map[key] is instance
    assert orm.object_session(instance) is session


def test_states_of_gives_what_the_session_holds(session: orm.Session, user: Any) -> None:
    """`_sqla.states_of` has the state of each persistent instance under its identity key."""
    assert not _sqla.states_of(session)
    instance = session.get(user, 1)
    assert dict(_sqla.states_of(session)) == {(user, (1,), None): sa.inspect(instance)}


def test_plain_bind_is_what_get_bind_gives(session: orm.Session, engine: sa.Engine, user: Any) -> None:
    """`_sqla.plain_bind` gives the bind of a session that has one and nothing else to choose by."""
    assert _sqla.plain_bind(session) is session.get_bind(user) is engine
    with engine.connect() as connection, orm.Session(connection) as bound:
        assert _sqla.plain_bind(bound) is connection


def test_plain_bind_leaves_the_choice_to_the_session(session: orm.Session, engine: sa.Engine, user: Any) -> None:
    """`_sqla.plain_bind` gives None for `binds`, `get_bind` of a class or of one session, and no bind at all."""

    class Choosing(orm.Session):
        def get_bind(self, *_arguments: Any, **_options: Any) -> Any:
            return engine

    assert _sqla.plain_bind(orm.Session(binds={user: engine})) is None
    assert _sqla.plain_bind(orm.Session(engine, binds={user: engine})) is None
    assert _sqla.plain_bind(Choosing(engine)) is None
    assert _sqla.plain_bind(orm.Session()) is None
    session.get_bind = lambda **_arguments: engine  # type: ignore[assignment,method-assign]  # as a test may
    assert _sqla.plain_bind(session) is None


def test_info_of_does_not_make_it(session: orm.Session, engine: sa.Engine) -> None:
    """`_sqla.info_of` is `Session.info` once somebody used that, and leaves the session without it before."""
    assert _sqla.info_of(session) == {}
    assert "info" not in vars(session)
    session.info["mine"] = 1
    assert _sqla.info_of(session) is session.info
    assert _sqla.info_of(orm.Session(engine, info={"given": 2})) == {"given": 2}


def test_pooled_has_the_info_of_a_connection(engine: sa.Engine) -> None:
    """`_sqla.pooled` is what `Connection.info` asks, and None where a connection was closed or invalidated."""
    with engine.connect() as connection:
        assert _sqla.pooled(connection).info is connection.info
        connection.invalidate()
        assert _sqla.pooled(connection) is None
    assert _sqla.pooled(connection) is None


def test_rows_that_were_fetched_are_discarded(engine: sa.Engine, user: Any) -> None:
    """After `_sqla.discard_rows` the result is that of an UPDATE without RETURNING, with its count."""

    def fetch(cursor: Any, sql: str, parameters: Any, context: Any) -> bool:
        cursor.execute(f"{sql} RETURNING id", parameters)
        assert cursor.fetchall() == [(1,)]
        _sqla.discard_rows(context)
        return True

    with engine.begin() as connection:
        sa.event.listen(engine, "do_execute", fetch)
        result = connection.execute(sa.update(user.__table__).where(user.__table__.c.id == 1).values(name="eve"))
        sa.event.remove(engine, "do_execute", fetch)
        assert not result.returns_rows
        assert result.rowcount == 1


def materializer(user: Any, **values: str) -> Any:
    made = _instances.materializer(
        user.__mapper__, {"id": "c0", "name": "c1", **values}, ["id"], missing=[], names={"upper": str.upper}
    )
    assert made is not None
    return made


def make_one(made: _instances.Materializer, key: Any, row: Any, session: orm.Session) -> Any:
    """Make an instance alone."""
    return made.one(key, row, session)


def make_among_many(made: _instances.Materializer, key: Any, row: Any, session: orm.Session) -> Any:
    """Make an instance with the function for several."""
    (instance,) = made.many([key], iter([row]), session)
    return instance


alone_or_among_many = pytest.mark.parametrize("make", [make_one, make_among_many])


@alone_or_among_many
def test_materializer_makes_what_the_loader_makes(
    session: orm.Session, engine: sa.Engine, user: Any, make: Callable[..., Any]
) -> None:
    """The functions of `_instances.materializer` leave an instance and a state as SQLAlchemy's own loader does."""
    made = make(materializer(user), (user, (1,), None), (1, "ann"), session)
    with orm.Session(engine) as other:
        loaded = other.get(user, 1)
        ours, theirs = sa.inspect(made), sa.inspect(loaded)
        slots = [name for name in orm.InstanceState.__slots__ if not name.startswith("__") and name != "obj"]
        assert {name: getattr(ours, name) for name in slots} == {name: getattr(theirs, name) for name in slots}
        assert ours.obj() is made
        assert ours.obj.__callback__ == ours._cleanup
        assert ours.key == theirs.key
        assert set(vars(ours)) == set(vars(theirs)) - {"runid", "load_path", "load_options"}  # of a query
        assert ours._instance_dict() is session.identity_map
        assert {**vars(made), "_sa_instance_state": None} == {**vars(loaded), "_sa_instance_state": None}
    assert ours.persistent
    assert made in session
    assert orm.object_session(made) is session


@alone_or_among_many
def test_materializer_lets_go_of_an_instance(session: orm.Session, user: Any, make: Callable[..., Any]) -> None:
    """What `_instances.materializer` put into the session leaves it when nobody holds it any more."""
    make(materializer(user), (user, (1,), None), (1, "ann"), session)
    assert not _sqla.states_of(session)


@alone_or_among_many
def test_materializer_evaluates_and_expires(session: orm.Session, user: Any, make: Callable[..., Any]) -> None:
    """Values are what the expressions given to `_instances.materializer` make of them; what is missing is expired."""
    orm.configure_mappers()
    partly = _instances.materializer(user.__mapper__, {"id": "c0"}, ["id"], missing=["name"], names={})
    made = make(partly, (user, (2,), None), (2,), session)
    assert sa.inspect(made).expired_attributes == {"name"}
    assert made.name == "bob"
    changed = make(materializer(user, name="upper(c1)"), (user, (1,), None), (1, "ann"), session)
    assert changed.name == "ANN"


def test_materializer_refuses_a_row_that_is_not_the_keys(session: orm.Session, user: Any) -> None:
    """The functions of `_instances.materializer` raise for it, and leave nothing in the session."""
    with pytest.raises(LookupError):
        materializer(user).one((user, (1,), None), (2, "bob"), session)
    assert not _sqla.states_of(session)
    keys = [(user, (1,), None), (user, (2,), None)]
    with pytest.raises(LookupError):
        materializer(user).many(keys, iter([(1, "ann"), (3, "cid")]), session)
    assert not _sqla.states_of(session)


def test_materializer_is_not_for_classes_that_are_made_otherwise(base: Any) -> None:
    """`_instances.materializer` gives None for `__new__`, `__setattr__`, a state in a slot, and manager classes."""

    class Made(base):
        __tablename__ = "made"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)

        def __new__(cls, *_arguments: Any) -> Any:
            return super().__new__(cls)

    class Guarded(base):
        __tablename__ = "guarded"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)

    class Slotted:
        __slots__ = ("__dict__", "__weakref__", "_sa_instance_state")

    table = sa.Table("slotted", base.metadata, sa.Column("id", sa.Integer, primary_key=True))
    base.registry.map_imperatively(Slotted, table)
    for entity in (Made, Guarded, Slotted):
        assert _instances.materializer(sa.inspect(entity), {"id": "c0"}, ["id"], missing=[], names={}) is None


def test_commit_all_makes_a_state_clean(session: orm.Session, user: Any) -> None:
    """`_sqla.commit_all` forgets that an instance was modified."""
    instance = session.get(user, 1)
    assert instance is not None
    instance.name = "new"
    state = sa.inspect(instance)
    assert state.modified
    _sqla.commit_all(state, instance.__dict__, session.identity_map)
    assert not state.modified
    assert not session.dirty
    assert instance.name == "new"


# --- engines --------------------------------------------------------------------------------------------------------


def test_root_engine(engine: sa.Engine) -> None:
    """`_sqla.root_engine` undoes any number of `execution_options`."""
    derived = engine.execution_options(a=1).execution_options(b=2)
    assert derived is not engine
    assert _sqla.root_engine(derived) is engine
    assert _sqla.root_engine(engine) is engine


@pytest.mark.parametrize(
    ("mode", "outer", "expected"),
    [
        ("create_savepoint", False, "sa_savepoint_1"),
        ("create_savepoint", True, "sa_savepoint_2"),
        ("conditional_savepoint", False, None),
        ("conditional_savepoint", True, "sa_savepoint_2"),
        ("rollback_only", True, None),
        ("control_fully", True, None),
    ],
)
def test_savepoint_joined_by(engine: sa.Engine, mode: Any, outer: bool, expected: str | None) -> None:
    """`_sqla.savepoint_joined_by` names the savepoint that a session set when it joined, and nobody else's."""
    seen = []
    with engine.connect() as connection, connection.begin():
        if outer:
            connection.begin_nested()
        with orm.Session(connection, join_transaction_mode=mode) as session:
            sa.event.listen(session, "after_begin", lambda s, _t, c: seen.append(_sqla.savepoint_joined_by(s, c)))
            session.connection()
            session.begin_nested()
    with orm.Session(engine) as session:
        seen.append(_sqla.savepoint_joined_by(session, session.connection()))
    assert seen[0] == expected
    assert seen[-1] is None


def test_is_autocommit(engine: sa.Engine) -> None:
    """`_sqla.is_autocommit` sees the connection's option and the engine's."""
    with engine.connect() as connection:
        assert not _sqla.is_autocommit(connection)
        connection.execution_options(isolation_level="AUTOCOMMIT")
        assert _sqla.is_autocommit(connection)
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        assert _sqla.is_autocommit(connection)
    other = sa.create_engine("sqlite://", isolation_level="AUTOCOMMIT")
    with other.connect() as connection:
        assert _sqla.is_autocommit(connection)
    other.dispose()


def test_connect_isolation_level(engine: sa.Engine) -> None:
    """`_sqla.connect_isolation_level` is create_engine's argument."""
    assert _sqla.connect_isolation_level(engine.dialect) is None
    other = sa.create_engine("sqlite://", isolation_level="SERIALIZABLE")
    assert _sqla.connect_isolation_level(other.dialect) == "SERIALIZABLE"


@pytest.mark.parametrize(("reset", "expected"), [("commit", True), ("rollback", False), (None, False)])
@pytest.mark.parametrize("pool", [None, NullPool])
def test_commits_on_return(reset: Any, expected: bool, pool: Any) -> None:
    """`_sqla.commits_on_return` sees pool_reset_on_return='commit' alone."""
    engine = sa.create_engine("sqlite://", pool_reset_on_return=reset, poolclass=pool)
    assert _sqla.commits_on_return(engine) is expected


@pytest.mark.parametrize("other", ["do_execute", "do_executemany", "do_execute_no_params"])
def test_executes_alone(other: str) -> None:
    """`_sqla.executes_alone` sees whether a second listener may execute statements."""
    engine = sa.create_engine("sqlite://")
    for name in ("do_execute", "do_executemany", "do_execute_no_params"):
        sa.event.listen(engine, name, lambda *_: None)
    assert _sqla.executes_alone(engine.dialect)
    sa.event.listen(engine, other, lambda *_: False)
    assert not _sqla.executes_alone(engine.dialect)


# --- mappers --------------------------------------------------------------------------------------------------------


def test_all_mappers(user: Any) -> None:
    """`_sqla.all_mappers` lists every mapper of every registry."""
    assert user.__mapper__ in list(_sqla.all_mappers())


def test_identity_class(base: Any, user: Any, session: orm.Session) -> None:
    """`_sqla.identity_class` is what an identity key begins with, for subclasses too."""

    class Special(user):
        __mapper_args__ = {"polymorphic_on": "name", "polymorphic_identity": "special"}  # noqa: RUF012 - the idiom

    assert _sqla.identity_class(user.__mapper__) is user
    assert _sqla.identity_class(Special.__mapper__) is user
    assert sa.inspect(session.get(user, 1)).key[0] is user


def test_persistence_cache_marks_statements_of_the_unit_of_work(
    session: orm.Session, engine: sa.Engine, user: Any
) -> None:
    """`_sqla.persistence_cache` is the compiled cache of what a flush executes, and of nothing else."""
    seen: list[bool] = []

    def note(_c: Any, _cursor: Any, _sql: str, _parameters: Any, context: Any, _many: bool) -> None:
        seen.append(context.execution_options.get("compiled_cache") is _sqla.persistence_cache(user.__mapper__))

    sa.event.listen(engine, "before_cursor_execute", note)
    session.add(user(id=3, name="new"))
    session.flush()
    session.execute(sa.update(user).where(user.id == 3).values(name="x"))
    assert seen == [True, False]


# --- statements -----------------------------------------------------------------------------------------------------


NOT_PLAIN = {
    "limit": lambda s, u: s.limit(1),
    "offset": lambda s, u: s.offset(0),
    "fetch": lambda s, u: s.fetch(1),
    "distinct": lambda s, u: s.distinct(),
    "group_by": lambda s, u: s.group_by(u.id),
    "having": lambda s, u: s.having(sa.true()),
    "order_by": lambda s, u: s.order_by(u.id),
    "for_update": lambda s, u: s.with_for_update(),
    "select_from": lambda s, u: s.select_from(u),
    "join": lambda s, u: s.join(orm.aliased(u), sa.true()),
    "outerjoin": lambda s, u: s.outerjoin(orm.aliased(u), sa.true()),
    "prefix": lambda s, u: s.prefix_with("x"),
    "suffix": lambda s, u: s.suffix_with("x"),
    "hint": lambda s, u: s.with_hint(u, "x"),
    "statement hint": lambda s, u: s.with_statement_hint("x"),
    "correlate": lambda s, u: s.correlate(u),
    "cte": lambda s, u: s.add_cte(sa.select(u.id).cte()),
    "two columns": lambda s, u: s.add_columns(u.name),
    "with_only_columns": lambda s, u: s.join(orm.aliased(u), sa.true()).with_only_columns(u),
}


@pytest.mark.parametrize("change", NOT_PLAIN.values(), ids=NOT_PLAIN)
def test_is_plain_select(user: Any, change: Any) -> None:
    """`_sqla.is_plain_select` is true for `select(X).where(...)` and false with anything more."""
    plain = sa.select(user).where(user.id == 1)
    assert _sqla.is_plain_select(plain)
    assert not _sqla.is_plain_select(change(plain, user))


def test_clauses_of(user: Any) -> None:
    """`_sqla.clauses_of` are the WHERE clauses in order."""
    one, two = user.id == 1, user.name == "x"
    assert list(_sqla.clauses_of(sa.select(user))) == []
    clauses = _sqla.clauses_of(sa.select(user).where(one).where(two))
    assert [str(clause) for clause in clauses] == [str(one), str(two)]


def test_options_of(user: Any) -> None:
    """`_sqla.options_of` are the options in order."""
    one, two = orm.load_only(user.name), orm.raiseload("*")
    assert list(_sqla.options_of(sa.select(user).options(one, two))) == [one, two]


def test_selected_mapper(user: Any) -> None:
    """`_sqla.selected_mapper` knows `select(Class)`, and nothing else."""
    alias = orm.aliased(user)
    assert _sqla.selected_mapper(sa.select(user)) is user.__mapper__
    others = [
        sa.select(user.id),
        sa.select(user.__table__),
        sa.select(alias),
        sa.select(user, alias),
        sa.select(orm.Bundle("b", user.id)),
        sa.select(sa.func.count()),
        sa.select(sa.text("1")),
        sa.select(orm.with_polymorphic(user, [])),
    ]
    assert [_sqla.selected_mapper(statement) for statement in others] == [None] * len(others)


LOADS = {
    "select": (lambda s, u: s.scalars(sa.select(u).where(u.id == 1)).all(), True),
    "get": (lambda s, u: s.get(u, 1), True),
    "populate_existing": (lambda s, u: s.get(u, 1, populate_existing=True), False),
    "identity_token": (lambda s, u: s.get(u, 1, identity_token="x"), False),
    "token option": (lambda s, u: s.scalars(sa.select(u).execution_options(identity_token="x")).all(), False),
    "yield_per": (lambda s, u: s.scalars(sa.select(u).execution_options(yield_per=1)).all(), False),
    "stream_results": (lambda s, u: s.scalars(sa.select(u).execution_options(stream_results=True)).all(), False),
    "bind": (lambda s, u: s.scalars(sa.select(u), bind_arguments={"bind": s.bind}).all(), False),
    "query": (lambda s, u: s.query(u).filter(u.id == 1).all(), True),
    "tuples only": (lambda s, u: s.query(u).only_return_tuples(True).all(), False),
}


@pytest.mark.parametrize(("run", "plain"), LOADS.values(), ids=LOADS)
def test_is_plain_load(session: orm.Session, user: Any, run: Any, plain: bool) -> None:
    """`_sqla.is_plain_load` is false where more, or less, than new whole instances is asked for."""
    (state,) = states(session, lambda: run(session, user))
    assert _sqla.is_plain_load(state) is plain


def test_a_refresh_is_no_plain_load(session: orm.Session, user: Any) -> None:
    """`_sqla.is_plain_load` is false for a refresh."""
    instance = session.get(user, 1)
    (state,) = states(session, lambda: session.refresh(instance))
    assert not _sqla.is_plain_load(state)


def test_changes_to_come(session: orm.Session, user: Any) -> None:
    """`_sqla.changes_to_come` is true while further listeners are to be called."""
    seen: list[bool] = []
    for _ in range(3):
        sa.event.listen(session, "do_orm_execute", lambda state: seen.append(_sqla.changes_to_come(state)))
    session.scalars(sa.select(user)).all()
    assert seen == [True, True, False]


def test_has_cycles(base: Any, engine: sa.Engine) -> None:
    """`_sqla.has_cycles` is true where instances of one mapper depend on each other."""

    class Node(base):
        __tablename__ = "nodes"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        parent_id: orm.Mapped[int | None] = orm.mapped_column(sa.ForeignKey("nodes.id"))
        parent: orm.Mapped[Any] = orm.relationship("Node", remote_side="Node.id")

    class Leaf(base):
        __tablename__ = "leaves"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)

    base.metadata.create_all(engine)
    found: list[bool] = []
    with orm.Session(engine) as session:
        sa.event.listen(session, "after_flush", lambda _session, context: found.append(_sqla.has_cycles(context)))
        for instance in (Leaf(id=1), Node(id=2, parent=Node(id=1))):
            session.add(instance)
            session.flush()
    assert found == [False, True]


def test_flushes_first(session: orm.Session, user: Any) -> None:
    """`_sqla.flushes_first` is the statement's autoflush."""
    (state,) = states(session, lambda: session.scalars(sa.select(user)).all())
    assert _sqla.flushes_first(state)
    statement = sa.select(user).execution_options(autoflush=False)
    (state,) = states(session, lambda: session.scalars(statement).all())
    assert not _sqla.flushes_first(state)


def test_is_expired(session: orm.Session, user: Any) -> None:
    """`_sqla.is_expired` is true for an instance that the session has and would refresh."""
    key = (user, (1,), None)
    assert not _sqla.is_expired(session, key)
    instance = session.get(user, 1)
    assert not _sqla.is_expired(session, key)
    session.expire(instance)
    assert _sqla.is_expired(session, key)


def test_has_ordered(user: Any) -> None:
    """`_sqla.has_ordered` is true for an UPDATE whose values SQLAlchemy 2.0 keeps in a place of their own."""
    assert not _sqla.has_ordered(sa.update(user.__table__).values(name="x"))
    ordered = sa.update(user.__table__).ordered_values((user.__table__.c.name, "x"))
    assert _sqla.has_ordered(ordered) is sa.__version__.startswith("2.0.")
    assert _sqla.dml_values(ordered) == {"name"}


def test_dml_values(user: Any) -> None:
    """`_sqla.dml_values` names what an UPDATE sets, however it is said."""
    assert _sqla.dml_values(sa.update(user)) == set()
    assert _sqla.dml_values(sa.update(user).values(name="x")) == {"name"}
    assert _sqla.dml_values(sa.update(user).values({user.name: "x", "id": 1})) == {"name", "id"}
    assert _sqla.dml_values(sa.update(user).ordered_values((user.name, "x"), ("id", 2))) == {"name", "id"}


def test_entity_result_is_the_result_of_a_select(session: orm.Session, user: Any) -> None:
    """`_sqla.entity_result` with `_sqla.entity_metadata` gives rows with the names, mappings and uniqueness of a SELECT."""
    statement = sa.select(user).where(user.id == 1)
    instance = session.scalars(statement).one()

    def made() -> Any:
        return _sqla.entity_result(_sqla.entity_metadata(user.__mapper__), [instance, instance])

    theirs = session.execute(statement)
    assert list(made().keys()) == list(theirs.keys()) == ["User"]
    row = made().first()
    assert row.User is row[0] is row._mapping[user] is instance
    assert made().scalars().all() == [instance, instance]
    assert made().unique().scalars().all() == [instance]
    for name in ("filtered", "is_single_entity"):
        assert made()._attributes[name] == session.execute(statement)._attributes[name]


def test_entity_result_of_one_is_short_and_whole(session: orm.Session, user: Any) -> None:
    """`_sqla.entity_result` of one instance answers `session.get`'s questions, and every other, as a SELECT's does."""
    instance = session.get(user, 1)

    def made(*instances: Any) -> Any:
        return _sqla.entity_result(_sqla.entity_metadata(user.__mapper__), instances)

    result = made(instance)
    assert result.unique().scalars().one() is instance
    assert result.closed
    with pytest.raises(NoResultFound):
        made().unique().scalars().one()
    assert made(instance).one().User is instance
    assert made(instance).unique().all() == [(instance,)]
    assert made(instance).scalars().unique().all() == [instance]
    assert made(instance).mappings().one() == {"User": instance}
    assert made(instance).freeze()().scalar_one() is instance
    assert [list(part) for part in made(instance).scalars().partitions(1)] == [[instance]]


def test_empty_result() -> None:
    """`_sqla.empty_result` has no rows, and is a result as any."""
    assert _sqla.empty_result().all() == []


def test_has_returning(user: Any) -> None:
    """`_sqla.has_returning` sees RETURNING."""
    assert not _sqla.has_returning(sa.update(user))
    assert _sqla.has_returning(sa.update(user).returning(user.id))
    assert _sqla.has_returning(sa.delete(user).returning(user.id))


def test_without_rows(session: orm.Session, user: Any) -> None:
    """`_sqla.without_rows` gives a result that has a row count and no rows."""
    connection = session.connection()
    result = connection.execute(user.__table__.update().values(name="x").returning(user.__table__.c.id))
    count = len(result.all())
    assert _sqla.without_rows(SimpleNamespace(raw=result), count) is result
    assert _sqla.without_rows(result, count).rowcount == count == 2


def test_has_prefixes(user: Any) -> None:
    """`_sqla.has_prefixes` sees words after the verb."""
    assert not _sqla.has_prefixes(sa.insert(user))
    assert _sqla.has_prefixes(sa.insert(user).prefix_with("OR REPLACE"))


def test_ends_transaction(session: orm.Session, engine: sa.Engine) -> None:
    """`_sqla.ends_transaction` is true where the session's commit is the connection's COMMIT."""
    connection = session.connection()
    assert _sqla.ends_transaction(session, connection)
    with engine.connect() as foreign:
        assert not _sqla.ends_transaction(session, foreign)
    session.close()
    assert not _sqla.ends_transaction(session, connection)
    with engine.connect() as outer, outer.begin():
        for mode, ends in (("create_savepoint", False), ("rollback_only", False), ("control_fully", True)):
            with orm.Session(outer, join_transaction_mode=mode) as joined:
                joined.connection()
                assert _sqla.ends_transaction(joined, outer) is ends, mode
                if mode == "control_fully":
                    joined.rollback()


def test_identity_of_get(session: orm.Session, user: Any) -> None:
    """`_sqla.identity_of_get` knows what `session.get` asks for, where it can tell, and no other statement."""
    seen: list[Any] = []

    def note(state: Any) -> None:
        seen.append(_sqla.identity_of_get(user.__mapper__, state.statement, state.parameters))

    sa.event.listen(session, "do_orm_execute", note)
    session.get(user, 7)
    session.scalars(sa.select(user).where(user.id == 7)).all()
    assert seen == [(7,) if sa.__version__.startswith("2.1") else None, None]


def test_returns_rows(session: orm.Session, engine: sa.Engine, user: Any) -> None:
    """`_sqla.returns_rows` sees RETURNING in what is about to be executed."""
    seen: list[bool] = []

    def note(_c: Any, _cursor: Any, _sql: str, _parameters: Any, context: Any, _many: bool) -> None:
        seen.append(_sqla.returns_rows(context))

    sa.event.listen(engine, "before_cursor_execute", note)
    table = user.__table__
    session.execute(table.update().values(name="x"))
    session.execute(table.update().values(name="y").returning(table.c.id)).all()
    assert seen == [False, True]


def test_let_go_of_cursors() -> None:
    """`_sqla.let_go_of_cursors` frees what an interrupted call held, although its frame refers to its traceback."""

    class Held:
        pass

    def interrupted() -> None:
        held = Held()
        noted.append(weakref.ref(held))
        kept = KeyboardInterrupt()  # its traceback has this frame: a cycle, as in SQLAlchemy's own
        raise kept

    noted: list[Any] = []
    gc.disable()
    try:
        interrupted()
    except KeyboardInterrupt as error:
        assert noted[0]() is not None
        _sqla.let_go_of_cursors(error)
        assert noted[0]() is None
    finally:
        gc.enable()


def test_is_joined(engine: sa.Engine) -> None:
    """`_sqla.is_joined` tells a session that was bound to a connection from one that checked it out."""
    with orm.Session(engine) as own:
        assert not _sqla.is_joined(own, own.connection())
    with engine.connect() as outer, orm.Session(outer) as joined:
        joined.connection()
        assert _sqla.is_joined(joined, outer)


def test_query_expressions() -> None:
    """`_instances.is_query_expression`, `_instances.has_default` and `_instances.is_loaded_at_once` know what is loaded."""
    base = orm.declarative_base()

    class Expressive(base):
        __tablename__ = "expressive"
        id = sa.Column(sa.Integer, primary_key=True)
        late = orm.deferred(sa.Column(sa.Integer))
        asked = orm.query_expression()
        given = orm.query_expression(sa.literal(5))
        made = orm.column_property(sa.literal(5))

    found = {
        attribute.key: (
            _instances.is_query_expression(attribute),
            _instances.is_query_expression(attribute) and _instances.has_default(attribute),
            _instances.is_loaded_at_once(attribute),
        )
        for attribute in sa.inspect(Expressive).column_attrs
    }
    engine = sa.create_engine("sqlite://")
    base.metadata.create_all(engine)
    with orm.Session(engine) as session:
        session.add(Expressive(id=1))
        session.commit()
        session.expunge_all()
        loaded = session.get(Expressive, 1).__dict__
    assert {name for name, (_, _, at_once) in found.items() if at_once} == set(loaded) - {"_sa_instance_state"}
    assert {name for name, (asked, _, _) in found.items() if asked} == {"asked", "given"}
    assert {name for name, (_, default, _) in found.items() if default} == {"given"}
    engine.dispose()
    base.registry.dispose()
