"""`session.get` with `from_cache()`, `cache.get`, and the lazy loads that are lookups: what they return and cost."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.exc import InvalidRequestError

import sa_writethrough as wt
from tests.reading.conftest import World

WAYS = {
    "session.get": lambda world, session, entity, ident: session.get(entity, ident, options=[wt.from_cache()]),
    "cache.get": lambda world, session, entity, ident: world.cache.get(session, entity, ident),
}


@pytest.fixture(params=WAYS)
def get(request: pytest.FixtureRequest) -> Any:
    return WAYS[request.param]


def test_a_committed_row_is_served_without_sql(user: Any, world: World, get: Any) -> None:
    """A hit executes nothing and checks no connection out."""
    with world.session() as session, world.no_sql():
        found = get(world, session, user, 2)
        assert (found.id, found.name, found.age) == (2, "bob", 20)
        assert found in session


def test_a_hit_shows_the_entry_and_not_the_database(user: Any, world: World, get: Any) -> None:
    """What is served is what was published: a write past the library is not seen until it is evicted."""
    world.outside_sql("UPDATE users SET name = 'eve' WHERE id = 1")
    with world.session() as session:
        assert get(world, session, user, 1).name == "ann"
    world.cache.evict(user, 1)
    with world.session() as session:
        assert get(world, session, user, 1).name == "eve"


def test_a_miss_reads_once_and_fills(user: Any, world: World, get: Any) -> None:
    """After a miss, which costs one SELECT, the next session is served."""
    world.cache.evict_all()
    with world.session() as session, world.counting() as seen:
        assert get(world, session, user, 1).name == "ann"
    assert len(seen) == 1
    assert world.is_cached(user, 1)
    assert not world.is_cached(user, 2)


def test_an_identity_that_does_not_exist_gives_none(user: Any, world: World, get: Any) -> None:
    """Absence is not cached: each time the database is asked, and a row inserted since then is found."""
    for _ in range(2):
        with world.session() as session, world.counting() as seen:
            assert get(world, session, user, 99) is None
        assert len(seen) == 1
    world.outside_sql("INSERT INTO users (id, name) VALUES (99, 'new')")
    with world.session() as session:
        assert get(world, session, user, 99).name == "new"


def test_a_row_that_was_deleted_is_absent(user: Any, world: World, get: Any) -> None:
    """After a committed delete the lookup gives None."""
    with world.factory.begin() as session:
        session.delete(session.get(user, 1))
    world.cache.drain()
    with world.session() as session:
        assert get(world, session, user, 1) is None


def test_an_identity_in_the_session_is_returned_as_it_is(user: Any, world: World, get: Any) -> None:
    """The identity map comes first: the same object, with its pending change."""
    with world.session(autoflush=False) as session:
        first = session.get(user, 1)
        first.name = "changed"
        with world.no_sql():
            assert get(world, session, user, 1) is first
        assert first.name == "changed"


def test_a_hit_twice_is_one_instance(user: Any, world: World, get: Any) -> None:
    """A second lookup returns the first one's instance."""
    with world.session() as session, world.no_sql():
        assert get(world, session, user, 1) is get(world, session, user, 1)


def test_a_hit_begins_the_session(user: Any, world: World, get: Any) -> None:
    """A hit autobegins, so that commit and rollback expire what it returned."""
    with world.session() as session:
        assert not session.in_transaction()
        found = get(world, session, user, 1)
        assert session.in_transaction()
        session.rollback()
        assert sa.inspect(found).expired
        with world.counting() as seen:
            assert found.name == "ann"
        assert len(seen) == 1


def test_where_autobegin_is_off_a_hit_raises_as_a_read_does(user: Any, world: World, get: Any) -> None:
    """Without a begun transaction a session with `autobegin=False` refuses."""
    with world.session(autobegin=False) as session:
        with pytest.raises(InvalidRequestError, match="Autobegin is disabled"):
            get(world, session, user, 1)
        with session.begin(), world.no_sql():
            assert get(world, session, user, 1).name == "ann"


def test_a_hit_flushes_first(user: Any, world: World, get: Any) -> None:
    """What is pending is flushed before a lookup, as before any query."""
    with world.session() as session:
        session.add(user(id=7, name="new"))
        with world.counting() as seen:
            assert get(world, session, user, 1).name == "ann"
        assert [sql.split()[0] for sql in seen] == ["INSERT"]


def test_without_autoflush_a_hit_does_not_flush(user: Any, world: World, get: Any) -> None:
    """`autoflush=False` and `no_autoflush` hold for lookups."""
    for options in ({"autoflush": False}, {}):
        with world.session(**options) as session, session.no_autoflush:
            pending = user(id=7, name="new")
            session.add(pending)
            with world.no_sql():
                get(world, session, user, 1)
            assert pending in session.new


def test_a_pending_row_is_found_after_the_flush(user: Any, world: World, get: Any) -> None:
    """The instance that the flush made persistent is the one returned."""
    with world.session() as session:
        pending = user(id=7, name="new")
        session.add(pending)
        assert get(world, session, user, 7) is pending


def test_an_expired_instance_is_refreshed_from_the_database(user: Any, world: World, get: Any) -> None:
    """An identity that the session holds expired is read from the database, in place."""
    world.outside_sql("UPDATE users SET name = 'eve' WHERE id = 1")
    with world.session() as session:
        first = get(world, session, user, 1)
        session.expire(first)
        with world.counting() as seen:
            assert get(world, session, user, 1) is first
            assert first.name == "eve"
        assert len(seen) == 1


def test_an_expired_instance_whose_row_is_gone_gives_none(user: Any, world: World, get: Any) -> None:
    """As SQLAlchemy's own `get` does."""
    with world.session() as session:
        kept = get(world, session, user, 1)
        session.expire_all()
        world.outside_sql("DELETE FROM users WHERE id = 1")
        world.cache.evict(user, 1)
        assert get(world, session, user, 1) is None
        assert kept is not None


def test_an_instance_deleted_in_the_session_is_not_served(user: Any, world: World, get: Any) -> None:
    """A session that deleted the row does not get it back from the cache."""
    with world.session() as session:
        session.delete(session.get(user, 1))
        session.flush()
        assert get(world, session, user, 1) is None


def test_get_takes_what_session_get_takes(user: Any, world: World, get: Any) -> None:
    """A scalar, a tuple or a dict name one identity."""
    for ident in (1, (1,), {"id": 1}):
        with world.session() as session, world.no_sql():
            assert get(world, session, user, ident).name == "ann"


@pytest.mark.parametrize("ident", [(1, 2), (), {"no": 1}, {"id": 1, "name": "x"}])
def test_a_wrong_number_of_values_is_an_error(user: Any, world: World, get: Any, ident: Any) -> None:
    """As in SQLAlchemy an incomplete primary key is an InvalidRequestError."""
    with world.session() as session, pytest.raises(InvalidRequestError):
        get(world, session, user, ident)


@pytest.mark.parametrize("evicted", [False, True], ids=["hit", "miss"])
@pytest.mark.parametrize("ident", ["1", True])
def test_a_value_of_another_type_finds_what_the_database_finds(
    base: Any, user: Any, world: World, get: Any, ident: Any, evicted: bool
) -> None:
    """The database compares '1' with the integer 1; the lookup returns what it returns without the cache."""
    with orm.Session(world.engine) as plain:
        try:
            expected = getattr(plain.get(user, ident), "name", None)
        except sa.exc.DBAPIError:
            pytest.skip("the database refuses such a comparison")
    if evicted:
        world.cache.evict_all()
    with world.session() as session:
        found = get(world, session, user, ident)
        assert getattr(found, "name", None) == expected
    if not evicted:
        assert world.is_cached(user, 1)


def test_none_as_a_primary_key_gives_none(user: Any, world: World, get: Any) -> None:
    """NULL identifies no row."""
    with world.session() as session, pytest.warns(sa.exc.SAWarning, match="fully NULL primary key"):
        assert get(world, session, user, None) is None


@pytest.mark.filterwarnings("ignore:The Query.get")
def test_the_legacy_query_is_served(user: Any, world: World) -> None:
    """`Query.get`, and a Query that asks for a whole primary key, are lookups, too."""
    with world.session() as session:
        session.connection()
        with world.counting() as seen:
            query = session.query(user).options(wt.from_cache())
            assert query.get(1).name == "ann"
            assert query.filter_by(id=2).one().name == "bob"
            assert query.filter(user.id.in_([1, 3])).all()[1].name == "cid"
        assert seen == []
        assert query.get(99) is None


def test_get_one_is_served(user: Any, world: World) -> None:
    """`session.get_one` is a lookup, too, and raises for what does not exist."""
    with world.session() as session:
        with world.no_sql():
            assert session.get_one(user, 1, options=[wt.from_cache()]).name == "ann"
        with pytest.raises(sa.exc.NoResultFound):
            session.get_one(user, 99, options=[wt.from_cache()])


def test_without_the_option_the_database_is_read(user: Any, world: World) -> None:
    """Under `Reads.OPTION` an ordinary `get` neither reads nor fills the cache."""
    world.outside_sql("UPDATE users SET name = 'eve' WHERE id = 1")
    world.cache.evict(user, 2)
    with world.session() as session:
        assert session.get(user, 1).name == "eve"
        session.get(user, 2)
    assert world.read(user, 1).name == "ann"
    assert not world.is_cached(user, 2)


def test_two_sessions_get_two_instances(user: Any, world: World, get: Any) -> None:
    """Sessions share no instance."""
    with world.session() as one, world.session() as two:
        assert get(world, one, user, 1) is not get(world, two, user, 1)


def test_a_hit_never_changes_another_session(user: Any, world: World, get: Any) -> None:
    """What one session changes and rolls back, the next one does not see."""
    with world.session() as one:
        get(world, one, user, 1).name = "changed"
        one.flush()
        with world.session() as two:
            assert get(world, two, user, 1).name == "ann"
        one.rollback()
    assert world.read(user, 1).name == "ann"


def test_the_writing_session_sees_its_own_value(user: Any, world: World, get: Any) -> None:
    """After a flush the row's own session is not served what others are."""
    with world.session() as session:
        session.get(user, 1).name = "changed"
        session.flush()
        session.expunge_all()
        assert get(world, session, user, 1).name == "changed"


def test_execution_options_reach_the_miss(user: Any, world: World) -> None:
    """A miss reads with the options of the lookup: its SELECT is the application's own."""
    world.cache.evict_all()
    seen: list[Any] = []

    def note(_connection: Any, _cursor: Any, _sql: str, _parameters: Any, context: Any, _many: bool) -> None:
        seen.append(context.execution_options.get("colour"))

    sa.event.listen(world.engine, "before_cursor_execute", note)
    with world.session() as session:
        session.get(user, 1, options=[wt.from_cache()], execution_options={"colour": "red"})
    assert seen == ["red"]


# --- lazy loads -----------------------------------------------------------------------------------------------------


def family(base: Any, policy: Any) -> tuple[Any, Any]:
    class Owner(base):
        __tablename__ = "owner"
        __writethrough__ = policy
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]

    class Pet(base):
        __tablename__ = "pet"
        __writethrough__ = policy
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        owner_id: orm.Mapped[int | None] = orm.mapped_column(sa.ForeignKey(Owner.id))
        owner = orm.relationship(Owner)

    return Owner, Pet


def test_with_reads_always_every_lookup_is_served(base: Any, world_of: Any) -> None:
    """`session.get` and a lazy many-to-one need no option under `Reads.ALWAYS`."""
    owner, pet = family(base, wt.CachePolicy(reads=wt.Reads.ALWAYS))
    world = world_of(base)
    world.add(pet(id=1, owner=owner(id=5, name="ann")))
    with world.session() as session, world.no_sql():
        found = session.get(pet, 1)
        assert found.owner.name == "ann"
        assert sa.inspect(found.owner).persistent
        assert session.scalars(sa.select(pet).where(pet.id == 1)).one() is found


def test_with_reads_option_a_lazy_load_reads_the_database(base: Any, world_of: Any) -> None:
    """A lazy load carries no option, and the option of its parent does not reach it."""
    owner, pet = family(base, wt.CachePolicy())
    world = world_of(base)
    world.add(pet(id=1, owner=owner(id=5, name="ann")))
    with world.session() as session, world.counting() as seen:
        assert session.get(pet, 1, options=[wt.from_cache()]).owner.name == "ann"
    assert len(seen) == 1


def test_bypass_cache_reads_the_database(base: Any, world_of: Any) -> None:
    """`bypass_cache()` is the opposite of `from_cache()`, and fills nothing."""
    owner, _ = family(base, wt.CachePolicy(reads=wt.Reads.ALWAYS))
    world = world_of(base)
    world.add(owner(id=5, name="ann"))
    world.outside_sql("UPDATE owner SET name = 'eve'")
    with world.session() as session:
        assert session.get(owner, 5, options=[wt.bypass_cache()]).name == "eve"
    assert world.read(owner, 5).name == "ann"
    with world.session() as session:
        statement = sa.select(owner).where(owner.id == 5).options(wt.bypass_cache())
        assert session.scalars(statement).one().name == "eve"


def test_a_lazy_load_of_a_missing_parent_gives_none(base: Any, sqlite_world_of: Any) -> None:
    """A dangling foreign key gives None as without the cache."""
    _, pet = family(base, wt.CachePolicy(reads=wt.Reads.ALWAYS))
    world = sqlite_world_of(base)
    world.add(pet(id=1, owner_id=77))
    with world.session() as session:
        assert session.get(pet, 1).owner is None


def test_a_collection_is_not_a_lookup(base: Any, world_of: Any) -> None:
    """A one-to-many load selects by a foreign key and goes to the database."""
    owner, pet = family(base, wt.CachePolicy(reads=wt.Reads.ALWAYS))
    owner.pets = orm.relationship(pet, viewonly=True)
    world = world_of(base)
    world.add(pet(id=1, owner=owner(id=5, name="ann")))
    with world.session() as session, world.counting() as seen:
        assert [p.id for p in session.get(owner, 5).pets] == [1]
    assert len(seen) == 1


@pytest.mark.parametrize("loader", [orm.selectinload, orm.joinedload, orm.subqueryload, orm.immediateload])
def test_eager_loads_give_what_they_give_without_the_cache(base: Any, world_of: Any, loader: Any) -> None:
    """Loader options load the same graph under `Reads.ALWAYS`."""
    owner, pet = family(base, wt.CachePolicy(reads=wt.Reads.ALWAYS))
    world = world_of(base)
    ann = owner(id=5, name="ann")
    world.add(pet(id=1, owner=ann), pet(id=2, owner=ann), pet(id=3))
    with world.session() as session:
        pets = session.scalars(sa.select(pet).order_by(pet.id).options(loader(pet.owner))).all()
        with world.no_sql():
            assert [p.owner.name if p.owner else None for p in pets] == ["ann", "ann", None]


def test_selectinload_of_a_many_to_one_is_right(base: Any, world_of: Any) -> None:
    """`selectinload` selects parents by `in_`; what it loads belongs to each child."""
    owner, pet = family(base, wt.CachePolicy(reads=wt.Reads.ALWAYS))
    world = world_of(base)
    world.add(*(pet(id=i, owner=owner(id=10 * i, name=f"o{i}")) for i in (1, 2, 3)))
    world.cache.evict(owner, 20)
    with world.session() as session:
        pets = session.scalars(sa.select(pet).options(orm.selectinload(pet.owner))).all()
        assert {p.id: p.owner.name for p in pets} == {1: "o1", 2: "o2", 3: "o3"}
