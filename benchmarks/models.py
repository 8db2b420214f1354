"""The entity of the benchmark: twelve columns, in tables that the library caches, and its twins, which it never sees.

A twin maps the same table in a registry of its own, so that no listener of the library is on it.
"""

from __future__ import annotations

import enum
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, DateTime, Enum, Numeric, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sa_writethrough import CachePolicy, OnWrite


class Status(enum.Enum):
    """An account's status."""

    PENDING = "pending"
    ACTIVE = "active"
    SUSPENDED = "suspended"


class Columns:
    """Twelve columns."""

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(80))
    note: Mapped[str] = mapped_column(Text)
    verified: Mapped[bool]
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    balance: Mapped[Decimal] = mapped_column(Numeric(10, 2))
    reference: Mapped[UUID]
    status: Mapped[Status] = mapped_column(Enum(Status, native_enum=False, length=20))
    settings: Mapped[dict[str, Any]] = mapped_column(JSON)
    score: Mapped[float]
    nickname: Mapped[str | None] = mapped_column(String(40))


class Base(DeclarativeBase):
    """What the library may cache. Unmarked classes are named in `register(models=...)`."""


class Plain(DeclarativeBase):
    """What it never sees."""


class Account(Columns, Base):
    __tablename__ = "account"


class PlainAccount(Columns, Plain):
    __tablename__ = "account"


class Versioned(Columns, Base):
    __tablename__ = "versioned"
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - SQLAlchemy's own notation


class PlainVersioned(Columns, Plain):
    __tablename__ = "versioned"
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - the same


class Served(Columns, Base):
    """Read from the cache before it is written: nobody else writes this table, which would leave the entries behind."""

    __tablename__ = "served"
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - the same


class Invalidated(Columns, Base):
    __tablename__ = "invalidated"
    __writethrough__ = CachePolicy(on_write=OnWrite.INVALIDATE)


class PlainInvalidated(Columns, Plain):
    __tablename__ = "invalidated"


class ReadBack(Columns, Base):
    """No version: an UPDATE leaves the other columns unknown, so the row is read back before COMMIT."""

    __tablename__ = "read_back"


class PlainReadBack(Columns, Plain):
    __tablename__ = "read_back"


class Uncached(Columns, Plain):
    """Written through the registered factory, but no model of the library's."""

    __tablename__ = "uncached"


class Large(Columns, Base):
    __tablename__ = "large"


class Small(Columns, Base):
    __tablename__ = "small"


CACHED = [Account, Versioned, Served, ReadBack, Large, Small]
"""And `Invalidated`, by its marker."""
