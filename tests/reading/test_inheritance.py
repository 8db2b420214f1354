"""Hierarchies: one identity, one entry, and the class that the row has."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

import sa_writethrough as wt
from tests.reading.conftest import World


def poly(on: str | None = None, identity: str | None = None, **more: Any) -> dict[str, Any]:
    return ({"polymorphic_on": on} if on else {}) | ({"polymorphic_identity": identity} if identity else {}) | more


def single(base: Any, **marks: Any) -> tuple[Any, Any, Any]:
    class Animal(base):
        __tablename__ = "animal"
        __writethrough__ = marks.get("root", True)
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        kind: orm.Mapped[str]
        name: orm.Mapped[str | None]
        __mapper_args__ = poly("kind", "animal")

    class Cat(Animal):
        if "cat" in marks:
            __writethrough__ = marks["cat"]
        lives: orm.Mapped[int | None]
        __mapper_args__ = poly(identity="cat")

    class Dog(Animal):
        if "dog" in marks:
            __writethrough__ = marks["dog"]
        bark: orm.Mapped[str | None]
        __mapper_args__ = poly(identity="dog")

    return Animal, Cat, Dog


def joined(base: Any, **marks: Any) -> tuple[Any, Any, Any]:
    class Animal(base):
        __tablename__ = "animal"
        __writethrough__ = marks.get("root", True)
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        kind: orm.Mapped[str]
        name: orm.Mapped[str | None]
        __mapper_args__ = poly("kind", "animal")

    class Cat(Animal):
        __tablename__ = "cat"
        if "cat" in marks:
            __writethrough__ = marks["cat"]
        cat_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey(Animal.id), primary_key=True)
        lives: orm.Mapped[int | None]
        __mapper_args__ = poly(identity="cat")

    class Dog(Animal):
        __tablename__ = "dog"
        if "dog" in marks:
            __writethrough__ = marks["dog"]
        id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey(Animal.id), primary_key=True)
        bark: orm.Mapped[str | None]
        __mapper_args__ = poly(identity="dog")

    return Animal, Cat, Dog


KINDS = {"single": single, "joined": joined}


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Any:
    return KINDS[request.param]


@pytest.fixture
def zoo(base: Any, make: Any, world_of: Any) -> tuple[World, Any, Any, Any]:
    animal, cat, dog = make(base)
    world = world_of(base)
    world.add(animal(id=1, name="it"), cat(id=2, name="tom", lives=9), dog(id=3, name="rex", bark="wau"))
    return world, animal, cat, dog


@pytest.mark.parametrize("evicted", [False, True], ids=["hit", "miss"])
def test_a_lookup_through_the_base_gives_the_subclass(zoo: Any, evicted: bool) -> None:
    """The base's lookup returns each row as its own class, with the subclass's columns right."""
    world, animal, cat, dog = zoo
    if evicted:
        world.cache.evict_all()
    with world.session() as session:
        found = world.cache.get_many(session, animal, [1, 2, 3])
        assert [type(instance) for instance in found] == [animal, cat, dog]
        assert (found[1].name, found[1].lives, found[2].bark) == ("tom", 9, "wau")
    world.cache.drain()
    with world.session() as session, world.no_sql():
        assert session.get(animal, 2, options=[wt.from_cache()]).lives == 9


@pytest.mark.parametrize("evicted", [False, True], ids=["hit", "miss"])
def test_a_wrong_class_gives_none(zoo: Any, evicted: bool) -> None:
    """A dog is no cat, on a hit as on a miss, by get, by select and by get_many."""
    world, _, cat, _ = zoo
    for ask in (
        lambda session: session.get(cat, 3, options=[wt.from_cache()]),
        lambda session: world.cache.get(session, cat, 3),
        lambda session: world.cache.get(session, cat, 1),
        lambda session: world.cache.get_many(session, cat, [3])[0],
        lambda session: session.scalars(sa.select(cat).where(cat.id == 3).options(wt.from_cache())).one_or_none(),
        lambda session: session.scalars(
            sa.select(cat).where(cat.id.in_([1, 3])).options(wt.from_cache())
        ).one_or_none(),
    ):
        if evicted:
            world.cache.evict_all()
        with world.session() as session:
            assert ask(session) is None


def test_a_wrong_class_in_the_session_gives_none(zoo: Any) -> None:
    """The identity map's dog is no cat either."""
    world, _, cat, dog = zoo
    with world.session() as session:
        rex = session.get(dog, 3)
        assert session.get(cat, 3, options=[wt.from_cache()]) is None
        assert world.cache.get(session, cat, 3) is None
        assert world.cache.get_many(session, cat, [3, 2])[0] is None
        assert session.scalars(sa.select(cat).where(cat.id == 3).options(wt.from_cache())).all() == []
        assert rex in session


def test_a_lookup_of_the_wrong_class_leaves_the_entry_whole(zoo: Any) -> None:
    """After a miss through the wrong class the right one gets all of its columns."""
    world, _, cat, dog = zoo
    world.cache.evict_all()
    assert world.read(cat, 3) is None
    found = world.read(dog, 3)
    assert found.bark == "wau"


def test_a_row_that_the_base_loaded_in_part_never_fills_the_whole(zoo: Any) -> None:
    """What a base's SELECT loads without the option fills nothing; a hit has all columns."""
    world, animal, cat, _ = zoo
    world.cache.evict_all()
    with world.session() as session:
        assert session.scalars(sa.select(animal).order_by(animal.id)).all()[1].name == "tom"
    assert not world.is_cached(cat, 2)
    assert world.read(animal, 2).lives == 9
    with world.session() as session, world.no_sql():
        assert world.cache.get(session, cat, 2).lives == 9


def test_a_written_subclass_is_published_whole(zoo: Any) -> None:
    """A change of a base's column through the base keeps the subclass's columns in the entry."""
    world, animal, cat, _ = zoo
    with world.factory.begin() as session:
        session.get(animal, 2).name = "new"
    world.cache.drain()
    with world.session() as session, world.no_sql():
        found = world.cache.get(session, cat, 2)
        assert (found.name, found.lives) == ("new", 9)


def test_evicting_through_any_class_evicts_the_row(zoo: Any) -> None:
    """A row has one entry, whichever class names it."""
    world, animal, cat, dog = zoo
    world.cache.evict(animal, 2)
    assert not world.cache.contains(cat, 2)
    assert world.cache.contains(dog, 3)
    world.cache.evict_all(cat)
    assert not world.cache.contains(dog, 3)


def test_a_subclass_that_opted_out_is_read_from_the_database(base: Any, make: Any, world_of: Any) -> None:
    """Its rows are right through itself and through the base, and never cached."""
    animal, cat, dog = make(base, dog=False)
    world = world_of(base)
    world.add(cat(id=2, name="tom", lives=9), dog(id=3, name="rex", bark="wau"))
    assert not world.cache.contains(animal, 3)
    for _ in range(2):
        with world.session() as session:
            found = world.cache.get_many(session, animal, [2, 3])
            assert [type(instance) for instance in found] == [cat, dog]
            assert found[1].bark == "wau"
        with world.session() as session:
            assert session.get(animal, 3, options=[wt.from_cache()]).bark == "wau"
        with world.session() as session:
            assert session.get(dog, 3, options=[wt.from_cache()]).bark == "wau"
    assert not world.cache.contains(animal, 3)
    with world.session() as session, pytest.raises(wt.ConfigurationError, match="Dog is not cached"):
        world.cache.get(session, dog, 3)
    with world.factory.begin() as session:
        session.get(dog, 3).name = "new"
    assert world.read(animal, 3).name == "new"


def test_only_a_subclass_is_cached(base: Any, make: Any, world_of: Any) -> None:
    """Where the base opted out its subclass's rows are cached, and the base's are not."""
    animal, cat, _ = make(base, root=False, cat=True)
    world = world_of(base)
    world.add(animal(id=1, name="it"), cat(id=2, name="tom", lives=9))
    with world.session() as session, world.no_sql():
        assert world.cache.get(session, cat, 2).lives == 9
    assert world.read(animal, 1).name == "it"
    assert world.read(cat, 1) is None
    with world.factory.begin() as session:
        session.get(animal, 2).name = "new"
    world.cache.drain()
    assert world.read(cat, 2).name == "new"


def test_two_policies_in_one_hierarchy_are_refused(base: Any, make: Any, sqlite_world_of: Any) -> None:
    """Rows of one hierarchy share their entries, so they share the policy."""
    make(base, cat=wt.CachePolicy(ttl=5))
    base.registry.configure()
    with pytest.raises(wt.ConfigurationError, match=r"(Animal|Cat|Dog) has another CachePolicy.*on Animal"):
        wt.register(orm.sessionmaker())


def test_a_joined_subclass_without_a_discriminator_is_refused(base: Any) -> None:
    """Without polymorphic_on an entry could not tell the class."""

    class Animal(base):
        __tablename__ = "animal"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)

    class Cat(Animal):
        __tablename__ = "cat"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey(Animal.id), primary_key=True)

    with pytest.raises(wt.ConfigurationError, match="without a polymorphic_on"):
        wt.register(orm.sessionmaker())


def test_a_row_that_changes_its_class_is_read_as_the_new_one(base: Any, world_of: Any) -> None:
    """After the discriminator was changed by an UPDATE a lookup gives the new class."""
    animal, cat, dog = single(base)
    world = world_of(base)
    world.add(cat(id=2, name="tom"))
    with world.factory.begin() as session:
        session.execute(sa.update(animal).where(animal.id == 2).values(kind="dog"))
    world.cache.drain()
    assert type(world.read(animal, 2)) is dog
    assert world.read(cat, 2) is None


# --- concrete tables ------------------------------------------------------------------------------------------------


def concrete(base: Any) -> tuple[Any, Any]:
    class Animal(base):
        __tablename__ = "animal"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]

    class Cat(Animal):
        __tablename__ = "cat"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]
        lives: orm.Mapped[int]
        __mapper_args__ = {"concrete": True}  # noqa: RUF012 - SQLAlchemy's idiom

    return Animal, Cat


def test_concrete_classes_have_entries_of_their_own(base: Any, world_of: Any) -> None:
    """Two tables with the same primary key are two rows; each class finds its own, as without the cache."""
    animal, cat = concrete(base)
    world = world_of(base)
    world.add(animal(id=1, name="it"), cat(id=1, name="tom", lives=9))
    for _ in range(2):
        assert world.read(cat, 1).name == "tom"
        assert world.read(animal, 1).name == "it"
        with world.session() as session:
            assert world.cache.get(session, cat, 1).lives == 9
        with world.session() as session:
            assert world.cache.get(session, animal, 1).name == "it"
    assert world.read(cat, 2) is None
    with world.factory.begin() as session:
        session.get(cat, 1).name = "new"
    world.cache.drain()
    assert world.read(cat, 1).name == "new"
    assert world.read(animal, 1).name == "it"


def test_mixin_and_abstract_bases_carry_the_marker(base: Any, world_of: Any) -> None:
    """A marker on a mixin or an abstract base opts in what is mapped below it."""

    class Cached:
        __writethrough__ = True

    class Abstract(base, Cached):
        __abstract__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)

    class Thing(Abstract):
        __tablename__ = "thing"

    class Other(Abstract):
        __tablename__ = "other"
        __writethrough__ = False

    world = world_of(base)
    world.add(Thing(id=1), Other(id=1))
    assert world.is_cached(Thing, 1)
    assert not world.is_cached(Other, 1)


def test_with_polymorphic_mappings_are_right(base: Any, world_of: Any) -> None:
    """A mapper with `with_polymorphic="*"` finds the same through the cache."""

    class Animal(base):
        __tablename__ = "animal"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        kind: orm.Mapped[str]
        __mapper_args__ = poly("kind", "animal", with_polymorphic="*")

    class Cat(Animal):
        __tablename__ = "cat"
        id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey(Animal.id), primary_key=True)
        lives: orm.Mapped[int]
        __mapper_args__ = poly(identity="cat", polymorphic_load="inline")

    world = world_of(base)
    world.add(Animal(id=1), Cat(id=2, lives=9))
    for _ in range(2):
        with world.session() as session:
            found = session.scalars(sa.select(Animal).where(Animal.id.in_([1, 2])).options(wt.from_cache())).all()
            assert {type(instance) for instance in found} == {Animal, Cat}
            assert world.cache.get(session, Animal, 2).lives == 9
        world.cache.evict_all()


def test_a_discriminator_by_expression_is_right(base: Any, world_of: Any) -> None:
    """Where polymorphic_on is an SQL expression the class is still told."""

    class Animal(base):
        __tablename__ = "animal"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        code: orm.Mapped[int]
        __mapper_args__ = {  # noqa: RUF012 - SQLAlchemy's idiom
            "polymorphic_on": sa.case((sa.literal_column("code") == 7, "cat"), else_="animal"),
            "polymorphic_identity": "animal",
        }

    class Cat(Animal):
        __mapper_args__ = poly(identity="cat")

    world = world_of(base)
    world.add(Animal(id=1, code=1), Cat(id=2, code=7))
    for _ in range(2):
        assert type(world.read(Animal, 1)) is Animal
        assert type(world.read(Animal, 2)) is Cat
        world.cache.evict_all()
