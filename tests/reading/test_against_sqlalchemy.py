"""Whatever is done to an instance does the same, whether it came from the database or from the cache."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext.mutable import MutableDict

import sa_writethrough as wt
from tests.reading.against import done
from tests.reading.conftest import World

CACHED, LOADED = [wt.from_cache()], [wt.bypass_cache()]


class Point:
    def __init__(self, x: int, y: int) -> None:
        self.x, self.y = x, y

    def __composite_values__(self) -> tuple[int, int]:
        return self.x, self.y

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and self.__composite_values__() == other.__composite_values__()

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"Point({self.x}, {self.y})"


class Base(orm.DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customer"
    __writethrough__ = True
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str]
    orders: orm.Mapped[list[Order]] = orm.relationship(back_populates="customer", order_by="Order.id")


class Order(Base):
    __tablename__ = "orders"
    __writethrough__ = True
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str | None] = orm.mapped_column()
    extra: orm.Mapped[dict[str, Any] | None] = orm.mapped_column(MutableDict.as_mutable(sa.JSON))
    x: orm.Mapped[int | None] = orm.mapped_column()
    y: orm.Mapped[int | None] = orm.mapped_column()
    version: orm.Mapped[int] = orm.mapped_column()
    customer_id: orm.Mapped[int | None] = orm.mapped_column(sa.ForeignKey(Customer.id))
    memo: orm.Mapped[str | None] = orm.mapped_column(deferred=True)
    remark: orm.Mapped[str | None] = orm.mapped_column(deferred=True, deferred_group="more")
    label: orm.Mapped[str] = orm.column_property(sa.func.upper(name), deferred=True)
    at: orm.Mapped[Point] = orm.composite(Point, x, y)
    customer: orm.Mapped[Customer | None] = orm.relationship(back_populates="orders")
    lines: orm.Mapped[list[Line]] = orm.relationship(cascade="all, delete-orphan", order_by="Line.id")
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - SQLAlchemy's way


class Line(Base):
    __tablename__ = "line"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    order_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey(Order.id))
    text: orm.Mapped[str]


@pytest.fixture
def world(sqlite_world_of: Callable[..., World]) -> World:
    """Customers with orders with lines: the orders are cached, and their customers."""
    made = sqlite_world_of(Base)
    made.add(Customer(id=1, name="ann"), Customer(id=2, name="bob"), Order(id=2, name="other", customer_id=1))
    _put_back(made)
    return made


def _get(options: list[Any]) -> Callable[[orm.Session], Any]:
    return lambda session: session.get(Order, 1, options=options)


def _select(options: list[Any]) -> Callable[[orm.Session], Any]:
    return lambda session: session.scalars(sa.select(Order).where(Order.id == 1).options(*options)).unique().one()


LOADS = {"get": _get, "select": _select}


def _other(session: orm.Session) -> Any:
    return session.get(Order, 2)


def _set(**values: Any) -> Callable[[orm.Session, Any], None]:
    def do(session: orm.Session, order: Any) -> None:
        for name, value in values.items():
            setattr(order, name, value)
        session.flush()

    return do


def _nested(session: orm.Session, order: Any) -> Any:
    with session.begin_nested() as savepoint:
        order.name = "nested"
        session.flush()
        savepoint.rollback()
    return order.name


def _pickled(session: orm.Session, order: Any) -> Any:
    session.expunge(order)
    back = pickle.loads(pickle.dumps(order))
    session.add(back)
    back.name = "from far"
    session.flush()
    return back


def _again(**options: Any) -> Callable[[orm.Session, Any], Any]:
    return lambda session, order: session.get(type(order), 1, **options)


def _changed_elsewhere(then: Callable[[orm.Session, Any], Any]) -> Callable[[orm.Session, Any], Any]:
    """Do something after the row was changed by somebody else: who looks at it anew sees that."""

    def do(session: orm.Session, order: Any) -> Any:
        session.connection().exec_driver_sql("UPDATE orders SET name = 'else', version = version + 1 WHERE id = 1")
        return then(session, order)

    return do


def _without_autoflush(session: orm.Session, order: Any) -> Any:
    with session.no_autoflush:
        order.name = "x"
        return _other(session).id


OPERATIONS: dict[str, Callable[[orm.Session, Any], Any]] = {
    # attributes
    "nothing": lambda s, o: None,
    "a column": lambda s, o: (o.id, o.name, o.extra, o.version, o.customer_id),
    "a composite": lambda s, o: repr(o.at),
    "a deferred column": lambda s, o: o.memo,
    "a deferred group": lambda s, o: o.remark,
    "a deferred expression": lambda s, o: o.label,
    "many to one": lambda s, o: o.customer.name,
    "one to many": lambda s, o: [line.text for line in o.lines],
    "the other side": lambda s, o: [each.id for each in o.customer.orders],
    "the same value": _set(name="old"),
    "another value": _set(name="new"),
    "a value and back": lambda s, o: (setattr(o, "name", "x"), setattr(o, "name", "old"), s.is_modified(o)),
    "a change of a dictionary": lambda s, o: (o.extra.update(b=2), s.flush()),
    "a change of a composite": _set(at=Point(9, 9)),
    "a deferred column, written": _set(memo="new"),
    "an SQL expression": _set(name=sa.func.upper("x")),
    "a primary key": _set(id=7),
    "a foreign key": _set(customer_id=2),
    "a relationship": lambda s, o: (setattr(o, "customer", s.get(Customer, 2)), s.flush()),
    "a relationship, to nobody": _set(customer=None),
    "an append": lambda s, o: (o.lines.append(Line(id=9, text="new")), s.flush()),
    "an orphan": lambda s, o: (o.lines.pop().id, s.flush()),
    "a deleted attribute": lambda s, o: (delattr(o, "name"), s.flush()),
    "an attribute of no column": lambda s, o: setattr(o, "anything", 1),
    "history": lambda s, o: (setattr(o, "name", "x"), repr(sa.inspect(o).attrs.name.history)),
    "loaded value": lambda s, o: (sa.inspect(o).attrs.name.loaded_value, repr(sa.inspect(o).attrs.memo.loaded_value)),
    "load history": lambda s, o: repr(sa.inspect(o).attrs.memo.load_history()),
    "has changes": lambda s, o: orm.attributes.flag_modified(o, "name"),
    "set committed": lambda s, o: orm.attributes.set_committed_value(o, "name", "c"),
    # the session's methods
    "refresh": lambda s, o: s.refresh(o),
    "refresh of one": lambda s, o: s.refresh(o, ["name"]),
    "refresh of a deferred one": lambda s, o: s.refresh(o, ["memo"]),
    "refresh of a relationship": lambda s, o: s.refresh(o, ["lines"]),
    "refresh for update": lambda s, o: s.refresh(o, with_for_update=True),
    "refresh after a change": _changed_elsewhere(lambda s, o: s.refresh(o)),
    "expire": lambda s, o: (s.expire(o), o.name),
    "expire of one": lambda s, o: (s.expire(o, ["name"]), o.name),
    "expire after a change": _changed_elsewhere(lambda s, o: (s.expire(o), o.name)),
    "expire all": lambda s, o: (s.expire_all(), o.name),
    "expire a pending change": lambda s, o: (setattr(o, "name", "x"), s.expire(o), o.name),
    "expunge": lambda s, o: (s.expunge(o), o.name),
    "expunge, then a deferred column": lambda s, o: (s.expunge(o), o.memo),
    "expunge, then a relationship": lambda s, o: (s.expunge(o), o.customer),
    "expunge and add": lambda s, o: (s.expunge(o), s.add(o), setattr(o, "name", "x"), s.flush()),
    "expunge all": lambda s, o: s.expunge_all(),
    "merge of itself": lambda s, o: s.merge(o),
    "merge of another": lambda s, o: s.merge(type(o)(id=1, name="merged")),
    "merge without a load": lambda s, o: (s.expunge(o), s.merge(o, load=False))[1],
    "merge of a detached one": lambda s, o: (s.expunge(o), setattr(o, "name", "x"), s.merge(o))[2],
    "delete": lambda s, o: s.delete(o),
    "delete and flush": lambda s, o: (s.delete(o), s.flush()),
    "delete and roll back": lambda s, o: (s.delete(o), s.flush(), s.rollback(), o.name),
    "add again": lambda s, o: s.add(o),
    "commit": lambda s, o: (s.commit(), o.name),
    "change and commit": lambda s, o: (setattr(o, "name", "x"), s.commit(), o.name, o.version),
    "change and roll back": lambda s, o: (setattr(o, "name", "x"), s.rollback(), o.name),
    "flush and roll back": lambda s, o: (setattr(o, "name", "x"), s.flush(), s.rollback(), o.name),
    "savepoint": _nested,
    "is modified": lambda s, o: (s.is_modified(o), o in s, s.identity_key(instance=o)),
    "close": lambda s, o: s.close(),
    "reset": lambda s, o: s.reset(),
    "invalidate": lambda s, o: s.invalidate(),
    "prepare": lambda s, o: s.prepare(),
    "no autoflush": _without_autoflush,
    "autoflush before a lookup": lambda s, o: (setattr(o, "name", "x"), _other(s).id),
    "enable relationship loading": lambda s, o: s.enable_relationship_loading(o),
    "bulk save": lambda s, o: (setattr(o, "name", "x"), s.bulk_save_objects([o])),
    "bulk update": lambda s, o: s.bulk_update_mappings(type(o), [{"id": 1, "version": 1, "name": "x"}]),
    "a stale version": _changed_elsewhere(_set(name="mine")),
    # statements
    **{
        f"update, synchronized by {how}": lambda s, o, how=how: s.execute(
            sa.update(type(o)).where(type(o).id == 1).values(name="bulk"), execution_options={"synchronize_session": how}
        ).rowcount
        for how in ("auto", "evaluate", "fetch", False)
    },
    **{
        f"delete, synchronized by {how}": lambda s, o, how=how: s.execute(
            sa.delete(type(o)).where(type(o).id == 1), execution_options={"synchronize_session": how}
        ).rowcount
        for how in ("auto", "evaluate", "fetch", False)
    },
    "get again": _again(),
    "get one again": lambda s, o: s.get_one(type(o), 1),
    "get and populate": _changed_elsewhere(_again(populate_existing=True)),
    "get for update": _changed_elsewhere(_again(with_for_update=True)),
    "select again": lambda s, o: s.scalars(sa.select(type(o)).where(type(o).id == 1)).one(),
    "select and populate": _changed_elsewhere(
        lambda s, o: s.scalars(
            sa.select(type(o)).where(type(o).id == 1).execution_options(populate_existing=True)
        ).one()
    ),
    "query": lambda s, o: s.query(type(o)).filter_by(name="old").one(),
    # outside
    "object session": lambda s, o: orm.object_session(o) is s,
    "make transient": lambda s, o: (s.expunge(o), orm.make_transient(o)),
    "make transient to detached": lambda s, o: (
        s.expunge(o), orm.make_transient(o), orm.make_transient_to_detached(o), s.add(o), o.name,
    ),
    "pickle": _pickled,
    "copy": lambda s, o: copy.copy(o.extra),
    "was deleted": lambda s, o: (s.delete(o), s.flush(), orm.util.was_deleted(o)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning", "ignore::sqlalchemy.exc.MovedIn20Warning")
@pytest.mark.parametrize(
    ("name", "expire_on_commit"),
    [(name, True) for name in OPERATIONS] + [(name, False) for name in OPERATIONS if "commit" in name],
)
@pytest.mark.parametrize("how", LOADS)
def test_what_is_done_to_it(world: World, name: str, how: str, expire_on_commit: bool) -> None:
    """The same values, states, history, events, SQL and errors."""
    found = []
    for options in (CACHED, LOADED):
        with world.counting() as sql, world.session() as session:
            LOADS[how](options)(session)
        assert bool(sql) is (options is LOADED)
        found.append(done(world, LOADS[how](options), OPERATIONS[name], expire_on_commit=expire_on_commit))
        _put_back(world)
    assert found[0] == found[1]


def _put_back(world: World) -> None:
    """Have the first rows again, and their entries."""
    world.outside_sql("DELETE FROM line")
    world.outside_sql("DELETE FROM orders WHERE id NOT IN (2)")
    world.outside_sql(
        "INSERT INTO orders (id, name, extra, x, y, version, customer_id, memo, remark) "
        "VALUES (1, 'old', '{\"a\": 1}', 1, 2, 1, 1, 'm', 'r')"
    )
    world.outside_sql("INSERT INTO line (id, order_id, text) VALUES (1, 1, 'one'), (2, 1, 'two')")
    world.cache.evict_all()
    with world.session() as session:
        world.cache.get_many(session, Order, [1, 2])
    world.cache.drain()


OPTIONS: dict[str, Callable[[], Any]] = {
    "load_only": lambda: orm.load_only(Order.name),
    "load_only, raising": lambda: orm.load_only(Order.name, raiseload=True),
    "defer": lambda: orm.defer(Order.name),
    "defer, raising": lambda: orm.defer(Order.name, raiseload=True),
    "undefer": lambda: orm.undefer(Order.memo),
    "undefer_group": lambda: orm.undefer_group("more"),
    "undefer all": lambda: orm.undefer("*"),
    "raiseload": lambda: orm.raiseload(Order.customer),
    "raiseload all": lambda: orm.raiseload("*"),
    "raiseload, SQL only": lambda: orm.raiseload(Order.customer, sql_only=True),
    "noload": lambda: orm.noload(Order.lines),
    "lazyload": lambda: orm.lazyload(Order.customer),
    "joinedload": lambda: orm.joinedload(Order.customer),
    "joinedload of many": lambda: orm.joinedload(Order.lines),
    "selectinload": lambda: orm.selectinload(Order.lines),
    "selectinload of one": lambda: orm.selectinload(Order.customer),
    "subqueryload": lambda: orm.subqueryload(Order.lines),
    "immediateload": lambda: orm.immediateload(Order.customer),
    "defaultload": lambda: orm.defaultload(Order.customer).load_only(Customer.name),
    "selectinload, two steps": lambda: orm.selectinload(Order.customer).selectinload(Customer.orders),
    "with_loader_criteria": lambda: orm.with_loader_criteria(Line, Line.text == "one"),
    "Load": lambda: orm.Load(Order).joinedload(Order.customer),
}
READS: dict[str, Callable[[orm.Session, Any], Any]] = {
    "columns": lambda s, o: (o.name, o.x, o.version),
    "deferred columns": lambda s, o: (o.memo, o.remark, o.label),
    "many to one": lambda s, o: (o.customer.id, o.customer.name),
    "one to many": lambda s, o: [line.text for line in o.lines],
    "refresh": lambda s, o: s.refresh(o),
    "expire": lambda s, o: (s.expire(o), o.name, o.customer_id),
    "change": _set(name="new"),
}


def _read_all(session: orm.Session, order: Any) -> Any:
    """Return what each of the reads returns or raises, and what is loaded after each."""
    told: list[Any] = []
    for name, read in READS.items():
        try:
            told.append((name, repr(read(session, order))))
        except sa.exc.SQLAlchemyError as error:
            told.append((name, type(error), str(error)))
        told.append(sorted(sa.inspect(order).unloaded))
    return told


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning", "ignore::sqlalchemy.exc.SADeprecationWarning")
@pytest.mark.parametrize("how", LOADS)
@pytest.mark.parametrize("name", OPTIONS)
def test_loader_options(world: World, name: str, how: str) -> None:
    """With every loader option each attribute has, loads or refuses what it does without the cache."""
    option = OPTIONS[name]()
    found = []
    for options in (CACHED, LOADED):
        seen = done(world, LOADS[how]([option, *options]), _read_all)
        found.append({key: value for key, value in seen.items() if key not in _HOW})
        _put_back(world)
    assert found[0] == found[1]


_HOW = {"sql", "events", "load events"}
"""What tells by which statements a relationship was loaded: of a hit by its own, which is documented."""
