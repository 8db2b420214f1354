"""The models of the state machine: one for each way in which a row comes to be what it is, and the rows it starts with."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    __writethrough__ = True


class Team(Base):
    """Deleted in the database alone: its users stay without it."""

    __tablename__ = "team"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    users: Mapped[list[User]] = relationship(back_populates="team", passive_deletes="all")


class User(Base):
    """Its items go with it in the database, its badges are orphans that the session deletes."""

    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    note: Mapped[str | None]
    team_id: Mapped[int | None] = mapped_column(sa.ForeignKey(Team.id, ondelete="SET NULL"))
    team: Mapped[Team | None] = relationship(back_populates="users")
    items: Mapped[list[Item]] = relationship(
        back_populates="user", passive_deletes=True, cascade="save-update, merge, delete"
    )
    badges: Mapped[list[Badge]] = relationship(back_populates="user", cascade="all, delete-orphan")


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    user_id: Mapped[int] = mapped_column(sa.ForeignKey(User.id, ondelete="CASCADE"))
    user: Mapped[User] = relationship(back_populates="items")


class Badge(Base):
    __tablename__ = "badge"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    user_id: Mapped[int] = mapped_column(sa.ForeignKey(User.id))
    user: Mapped[User] = relationship(back_populates="badges")


class Contract(Base):
    """Every writer bumps its version."""

    __tablename__ = "contract"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    note: Mapped[str | None]
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - SQLAlchemy's way


class Product(Base):
    """The database and Python both change what the application writes."""

    __tablename__ = "product"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    code: Mapped[str] = mapped_column(sa.CHAR(4), default="c")
    price: Mapped[Any] = mapped_column(sa.Numeric(8, 2), default=Decimal("1.5"))
    labels: Mapped[dict[str, Any]] = mapped_column(MutableDict.as_mutable(sa.JSON), default=dict)
    size: Mapped[int] = mapped_column(sa.Computed("length(name)", persisted=True))
    state: Mapped[str] = mapped_column(server_default=sa.text("'draft'"))
    edits: Mapped[int] = mapped_column(default=0, onupdate=7)
    changed: Mapped[str] = mapped_column(default="new", onupdate=sa.func.lower("CHANGED"))


class Price(Base):
    """The database normalises what the application writes, and adds nothing to it."""

    __tablename__ = "price"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    code: Mapped[str] = mapped_column(sa.CHAR(4), default="c")
    amount: Mapped[Any] = mapped_column(sa.Numeric(8, 2), default=Decimal("1.5"))


class Person(Base):
    __tablename__ = "person"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column()
    name: Mapped[str]
    __mapper_args__ = {"polymorphic_on": kind, "polymorphic_identity": "person"}  # noqa: RUF012


class Engineer(Person):
    __tablename__ = "engineer"
    id: Mapped[int] = mapped_column(sa.ForeignKey(Person.id, ondelete="CASCADE"), primary_key=True)
    language: Mapped[str | None]
    __mapper_args__ = {"polymorphic_identity": "engineer"}  # noqa: RUF012


class Manager(Person):
    budget: Mapped[int | None]
    __mapper_args__ = {"polymorphic_identity": "manager"}  # noqa: RUF012


class Seat(Base):
    __tablename__ = "seat"
    row: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    letter: Mapped[str] = mapped_column(sa.String(20), primary_key=True)
    name: Mapped[str]


class Country(Base):
    """Its key changes, and the database changes it in its cities."""

    __tablename__ = "country"
    code: Mapped[str] = mapped_column(sa.String(10), primary_key=True)
    name: Mapped[str]
    cities: Mapped[list[City]] = relationship(back_populates="country", passive_updates=True, passive_deletes="all")


class City(Base):
    __tablename__ = "city"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    country_code: Mapped[str | None] = mapped_column(
        sa.ForeignKey(Country.code, onupdate="CASCADE", ondelete="SET NULL")
    )
    country: Mapped[Country | None] = relationship(back_populates="cities")


@dataclass(frozen=True)
class Kind:
    """How the machine uses one class: how a new instance is filled, and which columns it changes."""

    cls: type[Any]
    required: dict[str, Any]
    texts: tuple[str, ...] = ("name",)

    @property
    def mapper(self) -> Any:
        return sa.inspect(self.cls)

    def identity(self, number: int) -> tuple[Any, ...]:
        """Return the primary key that the machine calls *number*."""
        if self.cls is Seat:
            return (number, "ab"[number % 2])
        if self.cls is Country:
            return (f"c{number}",)
        return (number,)

    def key(self, number: int) -> dict[str, Any]:
        """Return the same by attribute."""
        names = [self.mapper.get_property_by_column(column).key for column in self.mapper.primary_key]
        return dict(zip(names, self.identity(number), strict=True))

    def make(self, number: int, name: str) -> Any:
        return self.cls(**self.key(number), name=name, **self.required)


KINDS = {
    kind.cls.__name__: kind
    for kind in (
        Kind(Team, {}),
        Kind(User, {"team_id": 1}, ("name", "note")),
        Kind(Item, {"user_id": 1}),
        Kind(Badge, {"user_id": 1}),
        Kind(Contract, {}, ("name", "note")),
        Kind(Product, {}, ("name", "code", "state")),
        Kind(Price, {}, ("name", "code")),
        Kind(Person, {}),
        Kind(Engineer, {"language": "c"}, ("name", "language")),
        Kind(Manager, {"budget": 1}),
        Kind(Seat, {}),
        Kind(Country, {}),
        Kind(City, {"country_code": "c1"}),
    )
}
ROOTS = tuple(name for name, kind in KINDS.items() if kind.mapper.inherits is None)
GROUPS = (
    ("User", "Team"),
    ("User", "Item", "Badge"),
    ("Contract",),
    ("Product",),
    ("Price", "Seat"),
    ("Person", "Engineer", "Manager"),
    ("Country", "City"),
    tuple(KINDS),
)
"""What one example is about: the fewer models, the more often its steps have to do with each other."""
NUMBERS = (1, 2, 3)
"""Of the rows that the machine writes and looks at. Rows 1 and 2 of each root class are there when it starts."""


def first_rows() -> list[Any]:
    """Return what every table holds at first; person 2 is an engineer."""
    return [
        KINDS["Engineer" if name == "Person" and number == 2 else name].make(number, "first")
        for name in ROOTS
        for number in (1, 2)
    ]
