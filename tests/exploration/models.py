"""One table, mapped by two versions of an application: the older one knows no column b."""

from __future__ import annotations

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class New(DeclarativeBase):
    """The models of one version."""


class Old(DeclarativeBase):
    """The models of the version before it."""


class Item(New):
    """A row."""

    __tablename__ = "item"
    __mapper_args__ = {"confirm_deleted_rows": False}  # noqa: RUF012 - SQLAlchemy's own idiom

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    a: Mapped[int]
    b: Mapped[int]


class OldItem(Old):
    """A row, as the older version sees it."""

    __tablename__ = "item"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    a: Mapped[int]
