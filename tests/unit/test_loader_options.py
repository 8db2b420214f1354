"""SQLAlchemy's internals that concern loader options: each function against what SQLAlchemy itself does."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

import sa_writethrough as wt
from sa_writethrough import _loader_options


class Models:
    def __init__(self, base: Any) -> None:
        class Country(base):
            __tablename__ = "country"
            id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
            name: orm.Mapped[str | None]
            cities: orm.Mapped[list[Any]] = orm.relationship("City", viewonly=True)

        class Area(base):
            __tablename__ = "area"
            kind: orm.Mapped[int] = orm.mapped_column(primary_key=True)
            number: orm.Mapped[int] = orm.mapped_column(primary_key=True)

        class City(base):
            __tablename__ = "city"
            __table_args__ = (sa.ForeignKeyConstraint(["area_kind", "area_number"], ["area.kind", "area.number"]),)
            id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
            country_id: orm.Mapped[int | None] = orm.mapped_column(sa.ForeignKey("country.id"))
            area_kind: orm.Mapped[int | None]
            area_number: orm.Mapped[int | None]
            country: orm.Mapped[Any] = orm.relationship("Country")
            area: orm.Mapped[Any] = orm.relationship("Area")
            kept: orm.Mapped[Any] = orm.relationship("Country", viewonly=True, lazy="joined")
            by_name: orm.Mapped[Any] = orm.relationship(
                "Country",
                primaryjoin="foreign(City.country_id) == Country.id + 0",
                viewonly=True,
            )

        self.country, self.area, self.city = Country, Area, City


@pytest.fixture
def models() -> Iterator[Models]:
    class Base(orm.DeclarativeBase):
        pass

    yield Models(Base)
    Base.registry.dispose()


@pytest.fixture
def session(models: Models) -> Iterator[orm.Session]:
    engine = sa.create_engine("sqlite://")
    models.city.metadata.create_all(engine)
    with orm.Session(engine) as session:
        session.add_all([models.country(id=1), models.area(kind=1, number=2)])
        session.add_all(models.city(id=i, country_id=1, area_kind=1, area_number=2) for i in (1, 2))
        session.commit()
        yield session


def states(session: orm.Session, statement: Any) -> list[Any]:
    """Return the ORMExecuteStates that *statement* leads to."""
    seen: list[Any] = []
    listener = seen.append
    sa.event.listen(session, "do_orm_execute", listener)
    session.scalars(statement).all()
    sa.event.remove(session, "do_orm_execute", listener)
    return seen


@contextmanager
def answering(session: orm.Session, answer: Callable[[], Any]) -> Iterator[None]:
    """Have what relationships load be what *answer* returns."""

    def listener(state: Any) -> Any:
        return answer() if state.is_relationship_load else None

    sa.event.listen(session, "do_orm_execute", listener)
    yield
    sa.event.remove(session, "do_orm_execute", listener)


def test_every_function_of_this_room_is_tested_here() -> None:
    """A function or class that is added there fails here until it has a test whose text names it."""
    things = {
        name
        for name, thing in vars(_loader_options).items()
        if getattr(thing, "__module__", "") == _loader_options.__name__ and not name.startswith("_")
    }
    assert things >= {"KeyedOption"}
    assert all(inspect.isfunction(thing) or inspect.isclass(thing) for thing in map(vars(_loader_options).get, things))
    text = Path(__file__).read_text(encoding="utf-8")
    assert {name for name in things if f"_loader_options.{name}" not in text} == set()


def test_selected_targets(session: orm.Session, models: Models) -> None:
    """`_loader_options.selected_targets` is the keys that `selectinload` of that very attribute asks for."""
    for attribute, identities in (models.city.country, [(1,)]), (models.city.area, [(1, 2)]):
        relationship = attribute.property
        session.expunge_all()
        first, loads = states(session, sa.select(models.city).options(orm.selectinload(attribute)))
        assert _loader_options.selected_targets(first, relationship) is None
        assert _loader_options.selected_targets(loads, relationship) == identities
    assert _loader_options.selected_targets(loads, models.city.country.property) is None


def test_selected_targets_by_another_column(session: orm.Session, models: Models) -> None:
    """`_loader_options.selected_targets` is none where the relationship is not by primary key."""
    statement = sa.select(models.city).options(orm.selectinload(models.city.by_name))
    for state in states(session, statement):
        assert _loader_options.selected_targets(state, models.city.by_name.property) is None


def test_targets_result(session: orm.Session, models: Models) -> None:
    """`_loader_options.targets_result` is taken by `selectinload` for its statement's result, with one key or two."""
    for attribute, target in (models.city.country, models.country), (models.city.area, models.area):
        session.expunge_all()
        stranger = target()
        identity = (1,) if target is models.country else (1, 2)
        pair, mapper = (identity, stranger), sa.inspect(target)
        statement = sa.select(models.city).options(orm.selectinload(attribute))
        with answering(session, lambda pair=pair, mapper=mapper: _loader_options.targets_result(mapper, [pair])):
            cities = session.scalars(statement).all()
            assert [vars(city)[attribute.key] for city in cities] == [stranger, stranger]
        session.expunge_all()
        with answering(session, lambda mapper=mapper: _loader_options.targets_result(mapper, [])):
            assert [vars(city)[attribute.key] for city in session.scalars(statement)] == [None, None]


@pytest.mark.parametrize("load", [orm.selectinload, orm.joinedload, orm.subqueryload, orm.immediateload])
def test_eager_names(models: Models, load: Any) -> None:
    """`_loader_options.eager_names` are of what was selected, or of what a path leads to; what is deeper is not told."""
    city, country = sa.inspect(models.city), sa.inspect(models.country)
    below = (models.city.country.property,)
    for option, selected, below_country in (
        (load(models.city.country), {"country": False}, {}),
        (load(models.city.area), {"area": False}, {}),
        (load(models.city.country).joinedload(models.country.cities), {"country": True}, {"cities": False}),
        (load(models.city.country).load_only(models.country.name), {"country": True}, None),
        (orm.defaultload(models.city.country).options(load(models.country.cities)), {}, {"cities": False}),
        (orm.lazyload(models.city.country), {}, {}),
        (
            orm.Load(models.city).options(load(models.city.country), load(models.city.area)),
            {"country": False, "area": False},
            {},
        ),
        (load(models.city.area).raiseload("*"), {"area": True}, {}),
    ):
        assert _loader_options.eager_names(option, (), city) == selected, option
        assert _loader_options.eager_names(option, below, country) == below_country, option


def test_eager_names_of_more_than_that(models: Models) -> None:
    """`_loader_options.eager_names` are none where an option may ask for anything else of the instances."""
    city, country = sa.inspect(models.city), sa.inspect(models.country)
    for option in (
        orm.raiseload(models.city.country),
        orm.joinedload(models.city.country, innerjoin=True),
        orm.selectinload(models.city.country.and_(models.country.id > 0)),
        orm.selectinload(models.city.country.of_type(orm.with_polymorphic(models.country, "*"))),
        orm.selectinload(models.city.kept),
        orm.defer(models.city.area_kind),
        orm.load_only(models.city.area_kind),
        orm.lazyload("*"),
        orm.Load(models.city).raiseload("*"),
        orm.selectinload(models.country.cities),
        orm.with_loader_criteria(models.country, models.country.id > 0),
        orm.selectin_polymorphic(models.city, []),
        wt.from_cache(),
    ):
        assert _loader_options.eager_names(option, (), city) is None, option
    below = (models.city.country.property,)
    for option in (
        orm.selectinload(models.city.country).defer(models.country.name),
        orm.selectinload(models.city.country.and_(models.country.id > 0)),
        orm.selectinload(models.city.country).raiseload("*"),
        orm.lazyload("*"),
    ):
        assert _loader_options.eager_names(option, below, country) is None, option


def test_is_plain_selectin(models: Models) -> None:
    """`_loader_options.is_plain_selectin` is false as soon as an option asks for more of the attribute, or may."""
    country, area = models.city.country, models.city.area
    for option in orm.selectinload(country), orm.selectinload(area), orm.joinedload(area), orm.defer(models.city.id):
        assert _loader_options.is_plain_selectin(option, country.property), option
    for option in (
        orm.joinedload(country),
        orm.selectinload(country).load_only(models.country.id),
        orm.selectinload(country.and_(models.country.id > 0)),
        orm.selectinload(country, recursion_depth=2),
        orm.lazyload("*"),
        orm.with_loader_criteria(models.country, models.country.id > 0),
        wt.from_cache(),
    ):
        assert not _loader_options.is_plain_selectin(option, country.property), option


def test_keyed_options(models: Models) -> None:
    """`_loader_options.KeyedOption`s make statements differ by what they say, and by nothing else."""
    assert issubclass(wt.from_cache, _loader_options.KeyedOption)
    country, area = models.city.country, models.city.area

    def key(*options: Any) -> Any:
        made = sa.select(models.city).options(*options)._generate_cache_key()
        assert made is not None  # else no statement with the option would be cached
        return made.key

    assert key(wt.from_cache(country)) == key(wt.from_cache(country))
    keys = [
        key(*options)
        for options in (
            (),
            (wt.from_cache(),),
            (wt.from_cache(country),),
            (wt.from_cache(area),),
            (wt.bypass_cache(country),),
            (wt.from_cache(country), wt.from_cache(area)),
        )
    ]
    assert len(set(keys)) == len(keys)
