"""SQLModel's classes are mapped classes, and cached like them."""

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

import sa_writethrough as wt
from tests.reading.conftest import World

sqlmodel = pytest.importorskip("sqlmodel", reason="SQLModel is for SQLAlchemy 2.0 alone", exc_type=ImportError)


class Base(sqlmodel.SQLModel, registry=sa.orm.registry()):
    __writethrough__ = True


class Team(Base, table=True):
    id: int = sqlmodel.Field(primary_key=True)
    name: str
    heroes: list["Hero"] = sqlmodel.Relationship(back_populates="team")


class Hero(Base, table=True):
    id: int = sqlmodel.Field(primary_key=True)
    name: str
    age: int | None = None
    team_id: int | None = sqlmodel.Field(default=None, foreign_key="team.id")
    team: Team | None = sqlmodel.Relationship(back_populates="heroes")


def test_it_is_served_written_and_validated(world_of: Callable[..., World]) -> None:
    """A hit is the very thing that the database gives: fields, relationships, pydantic's own methods."""
    world = world_of(Base)
    with world.session() as session:
        session.add(Team(id=1, name="a"))
        session.flush()
        session.add(Hero(id=1, name="old", team_id=1))
        session.commit()
    world.cache.drain()
    found: list[Any] = []
    for option in (wt.from_cache(), wt.bypass_cache()):
        with world.counting() as sql, world.session() as session:
            hero = session.get(Hero, 1, options=[option])
            found.append((hero.model_dump(), sorted(str(hero).split()), hero.model_fields_set, hero.team.name))
        assert (len(sql) < 2) is (found[1:] == [])
    assert found[0] == found[1]
    with world.session() as session:
        session.get(Hero, 1, options=[wt.from_cache()]).name = "new"
        session.commit()
    assert world.is_cached(Hero, 1)
    assert world.read(Hero, 1).name == "new"
