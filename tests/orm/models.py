"""The models of the write side's tests: one for each way in which a row comes to be what it is."""

from __future__ import annotations

import datetime as dt
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

import sa_writethrough as wt


class Base(DeclarativeBase):
    pass


@compiles(sa.ForeignKeyConstraint, "mariadb")
def _not_deferrable(constraint: Any, compiler: Any, **options: Any) -> str:
    """MariaDB checks every constraint at once, and has no words for another wish."""
    constraint.deferrable = constraint.initially = None
    return str(compiler.visit_foreign_key_constraint(constraint, **options))


class Account(Base):
    __tablename__ = "account"
    __writethrough__ = True
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    note: Mapped[str | None]


class Contract(Base):
    """Every writer bumps its version."""

    __tablename__ = "contract"
    __writethrough__ = True
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    note: Mapped[str | None]
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - SQLAlchemy's way


class Document(Base):
    """The database and Python both add to what the application writes."""

    __tablename__ = "document"
    __writethrough__ = True
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    price: Mapped[Any] = mapped_column(sa.Numeric(10, 2), nullable=True)
    body: Mapped[dict[str, Any]] = mapped_column(MutableDict.as_mutable(sa.JSON), default=dict)
    plain: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON)
    size: Mapped[int] = mapped_column(sa.Computed("length(title)", persisted=True))
    state: Mapped[str] = mapped_column(server_default=sa.text("'draft'"))
    editions: Mapped[int] = mapped_column(default=0, onupdate=7)
    changed: Mapped[str] = mapped_column(default="new", onupdate=sa.func.lower("CHANGED"))


class Person(Base):
    __tablename__ = "person"
    __writethrough__ = True
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column()
    name: Mapped[str]
    __mapper_args__ = {"polymorphic_on": kind, "polymorphic_identity": "person"}  # noqa: RUF012


class Engineer(Person):
    __tablename__ = "engineer"
    id: Mapped[int] = mapped_column(sa.ForeignKey(Person.id, ondelete="CASCADE"), primary_key=True)
    language: Mapped[str]
    __mapper_args__ = {"polymorphic_identity": "engineer"}  # noqa: RUF012


class Manager(Person):
    budget: Mapped[int | None]
    __mapper_args__ = {"polymorphic_identity": "manager"}  # noqa: RUF012


class Order(Base):
    """Lines go with it in the database, notes stay without it, parts are the session's own business."""

    __tablename__ = "orders"
    __writethrough__ = True
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    lines: Mapped[list[Line]] = relationship(passive_deletes=True, cascade="all, delete", back_populates="order")
    notes: Mapped[list[Note]] = relationship(passive_deletes="all")
    parts: Mapped[list[Part]] = relationship(cascade="all, delete-orphan")


class Line(Base):
    __tablename__ = "line"
    __writethrough__ = True
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]
    order_id: Mapped[int] = mapped_column(sa.ForeignKey(Order.id, ondelete="CASCADE"))
    order: Mapped[Order] = relationship(back_populates="lines")


class Note(Base):
    __tablename__ = "note"
    __writethrough__ = True
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]
    version: Mapped[int] = mapped_column()
    order_id: Mapped[int | None] = mapped_column(sa.ForeignKey(Order.id, ondelete="SET NULL"))
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012


class Part(Base):
    __tablename__ = "part"
    __writethrough__ = True
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int | None] = mapped_column(sa.ForeignKey(Order.id))


class Country(Base):
    __tablename__ = "country"
    __writethrough__ = True
    code: Mapped[str] = mapped_column(sa.String(10), primary_key=True)
    name: Mapped[str]


class City(Base):
    __tablename__ = "city"
    __writethrough__ = True
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    country: Mapped[str] = mapped_column(sa.ForeignKey(Country.code, onupdate="CASCADE"))


class Claim(Base):
    """Its constraint is checked at COMMIT."""

    __tablename__ = "claim"
    __writethrough__ = True
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    account_id: Mapped[int | None] = mapped_column(
        sa.ForeignKey(Account.id, deferrable=True, initially="DEFERRED", name="claim_account")
    )


class Grade(Base):
    """A trigger changes what is written."""

    __tablename__ = "grade"
    __writethrough__ = wt.CachePolicy(read_back=wt.ReadBack.ALWAYS)
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    shout: Mapped[str | None]


class Silent(Base):
    __tablename__ = "silent"
    __writethrough__ = wt.CachePolicy(on_write=wt.OnWrite.INVALIDATE)
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Lenient(Base):
    __tablename__ = "lenient"
    __writethrough__ = wt.CachePolicy(on_outage=wt.OnOutage.COMMIT)
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Pair(Base):
    __tablename__ = "pair"
    __writethrough__ = True
    a: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    b: Mapped[str] = mapped_column(sa.String(20), primary_key=True)
    name: Mapped[str]


class Ticket(Base):
    """Its key is a UUID that the application has as text."""

    __tablename__ = "ticket"
    __writethrough__ = True
    id: Mapped[str] = mapped_column(sa.Uuid(as_uuid=False), primary_key=True)
    name: Mapped[str]


class Plain(Base):
    """Not cached."""

    __tablename__ = "plain"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    at: Mapped[dt.datetime | None]


SQLITE_EXTRAS = (
    "CREATE VIEW names AS SELECT id, name FROM account",
    (
        "CREATE TRIGGER names_update INSTEAD OF UPDATE ON names "
        "BEGIN UPDATE account SET name = NEW.name WHERE id = NEW.id; END"
    ),
    (
        "CREATE TRIGGER grade_insert AFTER INSERT ON grade "
        "BEGIN UPDATE grade SET shout = upper(NEW.name) WHERE id = NEW.id; END"
    ),
    (
        "CREATE TRIGGER grade_update AFTER UPDATE OF name ON grade "
        "BEGIN UPDATE grade SET shout = upper(NEW.name) WHERE id = NEW.id; END"
    ),
)
POSTGRESQL_EXTRAS = (
    "CREATE VIEW names AS SELECT id, name FROM account",
    (
        "CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN NEW.shout := upper(NEW.name); RETURN NEW; END'"
    ),
    "CREATE TRIGGER grade_shout BEFORE INSERT OR UPDATE ON grade FOR EACH ROW EXECUTE FUNCTION shout()",
)
MARIADB_EXTRAS = (
    "CREATE VIEW names AS SELECT id, name FROM account",
    "CREATE TRIGGER grade_insert BEFORE INSERT ON grade FOR EACH ROW SET NEW.shout = upper(NEW.name)",
    "CREATE TRIGGER grade_update BEFORE UPDATE ON grade FOR EACH ROW SET NEW.shout = upper(NEW.name)",
)
EXTRAS = {"sqlite": SQLITE_EXTRAS, "postgresql": POSTGRESQL_EXTRAS, "mariadb": MARIADB_EXTRAS}


def create_schema(engine: sa.Engine) -> None:
    """Create every table, view and trigger."""
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        for statement in EXTRAS[engine.dialect.name]:
            connection.exec_driver_sql(statement)
