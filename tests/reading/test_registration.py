"""`register` and the object that it returns: what is taken, what is refused early, and how it is operated."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.pool import NullPool

import sa_writethrough as wt
from sa_writethrough import events
from sa_writethrough.coherence import Evict, EvictEpoch
from sa_writethrough.stores.memory import MemoryStore
from sa_writethrough.testing import FaultyStore, LoseRequest
from tests.reading.conftest import World


class Unknown(sa.types.UserDefinedType[Any]):
    cache_ok = True


@pytest.fixture
def engine(user: Any, base: Any, sqlite_url: str) -> Any:
    """An engine whose database has User 1, written past the library."""
    made = sa.create_engine(sqlite_url)
    base.metadata.create_all(made)
    with made.begin() as connection:
        connection.execute(user.__table__.insert(), {"id": 1, "name": "ann"})
    yield made
    made.dispose()


@pytest.fixture
def registered() -> Any:
    """Register what a test asks for; unregister all of it at the end."""
    caches: list[Any] = []

    def register(*arguments: Any, **keywords: Any) -> Any:
        caches.append(wt.register(*arguments, **keywords))
        return caches[-1]

    yield register
    for cache in caches:
        cache.unregister()


def serves(session: orm.Session, engine: Any, user: Any) -> bool:
    """Read User 1 twice; tell whether the second read needed no SQL."""
    seen: list[Any] = []

    def note(*arguments: Any) -> None:
        seen.append(arguments)

    session.get(user, 1, options=[wt.from_cache()])
    session.expunge_all()
    sa.event.listen(engine, "before_cursor_execute", note)
    found = session.get(user, 1, options=[wt.from_cache()])
    sa.event.remove(engine, "before_cursor_execute", note)
    session.close()
    return found.name == "ann" and not seen


# --- factories ------------------------------------------------------------------------------------------------------


def test_a_sessionmaker(engine: Any, user: Any, registered: Any) -> None:
    """Its sessions are served; those of another sessionmaker are not."""
    factory, other = orm.sessionmaker(engine), orm.sessionmaker(engine)
    registered(factory)
    assert serves(factory(), engine, user)
    assert not serves(other(), engine, user)


def test_a_sessionmaker_that_has_no_bind_yet(engine: Any, user: Any, registered: Any) -> None:
    """The bind may come later, by `configure` or per session."""
    factory = orm.sessionmaker()
    registered(factory)
    factory.configure(bind=engine)
    assert serves(factory(), engine, user)


def test_a_scoped_session(engine: Any, user: Any, registered: Any) -> None:
    """A scoped_session registers its factory; the proxy is a session for every call."""
    scoped = orm.scoped_session(orm.sessionmaker(engine))
    cache = registered(scoped)
    assert serves(scoped(), engine, user)
    assert cache.get(scoped, user, 1).name == "ann"
    assert cache.get_many(scoped, user, [1])[0].name == "ann"
    scoped.remove()


def test_a_session_class(engine: Any, user: Any, registered: Any) -> None:
    """A Session class registers itself and its subclasses."""

    class Mine(orm.Session):
        pass

    class Derived(Mine):
        pass

    registered(Mine)
    assert serves(Mine(engine), engine, user)
    assert serves(Derived(engine), engine, user)
    assert serves(orm.sessionmaker(engine, class_=Mine)(), engine, user)
    assert not serves(orm.Session(engine), engine, user)


def test_session_itself(engine: Any, user: Any, registered: Any) -> None:
    """`sqlalchemy.orm.Session` registers every session, of factories made before and after."""
    before = orm.sessionmaker(engine)
    cache = registered(orm.Session)
    after = orm.sessionmaker(engine)
    assert serves(orm.Session(engine), engine, user)
    assert serves(before(), engine, user)
    assert serves(after(), engine, user)
    cache.unregister()
    assert not serves(orm.Session(engine), engine, user)


@pytest.mark.parametrize("wrong", [None, 5, "Session", object, lambda: None])
def test_what_is_no_factory_is_refused(wrong: Any) -> None:
    """Anything else is refused in a sentence."""
    with pytest.raises(wt.ConfigurationError, match="give a sessionmaker, a scoped_session"):
        wt.register(wrong)


def test_an_engine_or_a_session_is_refused(engine: Any) -> None:
    """A likely slip: the engine, or one session."""
    with orm.Session(engine) as session:
        for wrong in (engine, session):
            with pytest.raises(wt.ConfigurationError, match="no Session factory"):
                wt.register(wrong)


def test_registering_twice_is_refused(engine: Any, registered: Any) -> None:
    """One factory has one registration."""
    factory = orm.sessionmaker(engine)
    registered(factory)
    for again in (factory, orm.scoped_session(factory)):
        with pytest.raises(wt.ConfigurationError, match="registered already"):
            wt.register(again)


def test_after_unregister_a_factory_can_be_registered_again(engine: Any, user: Any, registered: Any) -> None:
    """`unregister` ends everything, may be called twice, and leaves the factory as new."""
    factory = orm.sessionmaker(engine)
    first = registered(factory)
    assert serves(factory(), engine, user)
    first.unregister()
    first.unregister()
    assert not serves(factory(), engine, user)
    second = registered(factory)
    first.unregister()
    assert serves(factory(), engine, user)
    assert second.stats().hits == 1
    assert first.stats().hits == 1


def test_an_unregistered_factory_writes_without_the_cache(engine: Any, user: Any, registered: Any) -> None:
    """After `unregister` a commit announces nothing, also on engines that were used before."""
    factory = orm.sessionmaker(engine)
    cache = registered(factory)
    serves(factory(), engine, user)
    cache.unregister()
    with factory.begin() as session:
        session.get(user, 1).name = "new"
    assert cache.stats().announced == 0


def test_a_failed_registration_leaves_nothing_behind(base: Any, user: Any, engine: Any, registered: Any) -> None:
    """A factory whose registration was refused can be registered when the fault is mended."""

    class Bad(base):
        __tablename__ = "bad"
        __writethrough__ = "yes"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)

    factory = orm.sessionmaker(engine)
    with pytest.raises(wt.ConfigurationError, match=r"Bad\.__writethrough__ is 'yes'"):
        wt.register(factory)
    assert not serves(factory(), engine, user)
    Bad.__writethrough__ = False
    registered(factory)
    assert serves(factory(), engine, user)


# --- stores ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["nonsense://x", "memcached://", "", "redis:///x?"])
def test_an_unknown_url_is_refused(wrong: str) -> None:
    """A URL that names no store is refused at registration."""
    with pytest.raises(wt.ConfigurationError, match="store URL"):
        wt.register(orm.sessionmaker(), wrong)


@pytest.mark.parametrize("wrong", [None, 5, object()])
def test_what_is_no_store_is_refused(wrong: Any) -> None:
    """Neither a URL nor a region nor a Store."""
    with pytest.raises(wt.ConfigurationError, match="is no store"):
        wt.register(orm.sessionmaker(), wrong)


@pytest.mark.parametrize("wrong", [True, {"ttl": 5}, "always"])
def test_a_wrong_policy_is_refused(wrong: Any) -> None:
    """`policy` is a CachePolicy."""
    with pytest.raises(wt.ConfigurationError, match="give a CachePolicy"):
        wt.register(orm.sessionmaker(), policy=wrong)


def test_two_factories_can_share_a_store(engine: Any, user: Any, registered: Any) -> None:
    """Two registrations with one Store see each other's entries and writes."""
    store = MemoryStore()
    one, two = orm.sessionmaker(engine), orm.sessionmaker(engine)
    first, second = registered(one, store), registered(two, store)
    assert serves(one(), engine, user)
    with two() as session:
        assert second.get(session, user, 1).name == "ann"
        assert second.stats().hits == 1
    with one.begin() as session:
        session.get(user, 1).name = "new"
    with two() as session:
        assert second.get(session, user, 1).name == "new"
    assert first.contains(user, 1)


# --- models ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def plain(base: Any) -> Any:
    class Plain(base):
        __tablename__ = "plain"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)

    return Plain


@pytest.mark.parametrize(
    "models",
    [
        lambda plain: [plain],
        lambda plain: (sa.inspect(plain),),
        lambda plain: lambda mapper: mapper.class_ is plain,
        lambda plain: iter([plain]),
    ],
    ids=["list", "mappers", "predicate", "iterator"],
)
def test_models_opts_in_what_carries_no_marker(plain: Any, user: Any, base: Any, world_of: Any, models: Any) -> None:
    """A list or a predicate names unmarked classes; marked ones are cached all the same."""
    world = world_of(base, models=models(plain))
    world.add(plain(id=1), user(id=1, name="ann"))
    assert world.is_cached(plain, 1)
    assert world.is_cached(user, 1)


def test_a_marker_of_false_beats_models(base: Any, sqlite_world_of: Any) -> None:
    """A class that opted out stays out."""

    class Out(base):
        __tablename__ = "out"
        __writethrough__ = False
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)

    world = sqlite_world_of(base, models=lambda mapper: True)
    world.add(Out(id=1))
    with pytest.raises(wt.ConfigurationError, match="Out is not cached"):
        world.cache.contains(Out, 1)


@pytest.mark.parametrize("wrong", ["User", 5, [int], ["User"], [None]])
def test_wrong_models_are_refused(wrong: Any) -> None:
    """What names no mapped classes is refused, and an unmapped class is named."""
    with pytest.raises(wt.ConfigurationError, match=r"give a list of mapped classes|is not a mapped class"):
        wt.register(orm.sessionmaker(), models=wrong)


@pytest.mark.parametrize("call", ["get", "get_many", "evict", "contains", "evict_all"])
def test_an_unmapped_or_unmarked_class_is_refused(call: str, plain: Any, world: World) -> None:
    """Every method says which class it is and what to do."""
    for wrong, words in (
        (int, "is not a mapped class"),
        (plain, r"Plain is not cached.*models=\[Plain\]"),
        ("User", "is not a mapped class"),
    ):
        arguments = {"evict_all": (wrong,), "evict": (wrong, 1), "contains": (wrong, 1)}
        with world.session() as session, pytest.raises(wt.ConfigurationError, match=words):
            getattr(world.cache, call)(*arguments.get(call, (session, wrong, [1])))


@pytest.mark.parametrize("wrong", ["yes", 1, 5.0, {"ttl": 5}, wt.CachePolicy])
def test_a_marker_of_a_wrong_type_is_refused(base: Any, wrong: Any) -> None:
    """A marker is a CachePolicy, True or False."""

    class Marked(base):
        __tablename__ = "marked"
        __writethrough__ = wrong
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)

    base.registry.configure()
    with pytest.raises(
        wt.ConfigurationError, match=r"Marked\.__writethrough__ is .*give a CachePolicy, True, or False"
    ):
        wt.register(orm.sessionmaker())


def test_a_mapper_that_is_configured_after_registration_is_taken_up(
    base: Any, sqlite_url: str, registered: Any
) -> None:
    """Models that are declared later are cached from their first session."""
    engine = sa.create_engine(sqlite_url)
    factory = orm.sessionmaker(engine)
    cache = registered(factory)

    class Late(base):
        __tablename__ = "late"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)

    base.metadata.create_all(engine)
    with factory.begin() as session:
        session.add(Late(id=1))
    assert cache.contains(Late, 1)
    engine.dispose()


def test_a_subclass_that_is_configured_after_registration_is_taken_up(
    base: Any, sqlite_url: str, registered: Any
) -> None:
    """A later subclass joins its family, whose rows were served before."""

    class Animal(base):
        __tablename__ = "animal"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        kind: orm.Mapped[str]
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}  # noqa: RUF012 - the idiom

    engine = sa.create_engine(sqlite_url)
    factory = orm.sessionmaker(engine)
    cache = registered(factory)
    base.metadata.create_all(engine)
    with factory.begin() as session:
        session.add(Animal(id=1))
    with factory() as session:
        assert cache.get(session, Animal, 1).kind == "animal"

    class Cat(Animal):
        __mapper_args__ = {"polymorphic_identity": "cat"}  # noqa: RUF012 - SQLAlchemy's idiom

    with factory.begin() as session:
        session.add(Cat(id=2))
    for _ in range(2):
        with factory() as session:
            assert type(cache.get(session, Animal, 2)) is Cat
            assert type(cache.get(session, Animal, 1)) is Animal
    engine.dispose()


def test_a_wrong_mapper_that_is_configured_later_is_refused_then(base: Any, user: Any, world: World) -> None:
    """The error comes when the mapper is configured, and names the class."""

    class Late(base):
        __tablename__ = "late"
        __writethrough__ = "yes"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)

    with pytest.raises(wt.ConfigurationError, match=r"Late\.__writethrough__"):
        base.registry.configure()


@pytest.mark.parametrize("type_", [sa.PickleType(), Unknown()])
def test_an_unsupported_column_type_is_named_with_the_remedy(base: Any, type_: Any) -> None:
    """The error names table and column, the type, and both remedies."""

    class Odd(base):
        __tablename__ = "odd"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        thing: orm.Mapped[Any] = orm.mapped_column(type_)

    base.registry.configure()
    with pytest.raises(wt.ConfigurationError, match=r'odd\.thing has the type .*exclude=\["thing"\].*TypeDecorator'):
        wt.register(orm.sessionmaker())


def test_exclude_is_the_remedy(base: Any, world_of: Any) -> None:
    """An excluded column may have any type; a hit loads it from the database when it is asked for."""

    class Odd(base):
        __tablename__ = "odd"
        __writethrough__ = wt.CachePolicy(exclude=["thing"])
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]
        thing: orm.Mapped[Any] = orm.mapped_column(sa.PickleType)

    world = world_of(base)
    world.add(Odd(id=1, name="a", thing={1, 2}))
    with world.session() as session:
        with world.no_sql():
            found = world.cache.get(session, Odd, 1)
            assert found.name == "a"
        with world.counting() as seen:
            assert found.thing == {1, 2}
        assert len(seen) == 1


def test_an_unknown_name_in_exclude_is_refused(base: Any) -> None:
    """A misspelt attribute is an error that lists the right ones."""

    class Misspelt(base):
        __tablename__ = "misspelt"
        __writethrough__ = wt.CachePolicy(exclude=["foto"])
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        photo: orm.Mapped[str]

    base.registry.configure()
    with pytest.raises(wt.ConfigurationError, match=r"\['foto'\].*Misspelt has no such attribute. It has id, photo"):
        wt.register(orm.sessionmaker())


def test_the_primary_key_is_cached_even_if_excluded(base: Any, sqlite_world_of: Any) -> None:
    """An entry always carries its row's identity."""

    class Keyed(base):
        __tablename__ = "keyed"
        __writethrough__ = wt.CachePolicy(exclude=["id", "name"])
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]

    world = sqlite_world_of(base)
    world.add(Keyed(id=1, name="a"))
    assert world.is_cached(Keyed, 1)


def test_a_mapping_of_a_select_is_refused(base: Any, user: Any) -> None:
    """What is mapped to no table cannot be known to change."""

    class View(base):
        __table__ = sa.select(user.__table__).subquery()
        __writethrough__ = True
        __mapper_args__ = {"primary_key": [__table__.c.id]}  # noqa: RUF012 - SQLAlchemy's idiom

    base.registry.configure()
    with pytest.raises(wt.ConfigurationError, match="View is mapped to Subquery, not to a table"):
        wt.register(orm.sessionmaker())


# --- engines --------------------------------------------------------------------------------------------------------


def test_an_unsupported_database_is_refused(user: Any, registered: Any) -> None:
    """The first read of a cached model through a dialect that has no fence says so."""
    factory = orm.sessionmaker()
    registered(factory)
    engine = sa.create_engine("sqlite://")
    engine.dialect.name = "oracle"
    with factory(bind=engine) as session:
        session.connection()  # what is not about cached models is none of our business
        with pytest.raises(wt.ConfigurationError, match=r"'oracle'.*not supported.*sqlite"):
            session.get(user, 1, options=[wt.from_cache()])
    engine.dispose()


def test_a_pool_that_commits_is_refused(user: Any, sqlite_url: str, registered: Any) -> None:
    """`pool_reset_on_return='commit'` commits what nobody announced."""
    engine = sa.create_engine(sqlite_url, pool_reset_on_return="commit")
    factory = orm.sessionmaker(engine)
    registered(factory)
    with factory() as session, pytest.raises(wt.ConfigurationError, match="pool_reset_on_return='commit'"):
        session.get(user, 1, options=[wt.from_cache()])
    engine.dispose()


def test_a_password_is_not_shown(user: Any, registered: Any) -> None:
    """An error that names an engine hides the password of its URL."""
    factory = orm.sessionmaker()
    registered(factory)
    engine = sa.create_engine("sqlite://", pool_reset_on_return="commit")
    engine.url = sa.make_url("sqlite://me:secret@/x")
    with factory(bind=engine) as session, pytest.raises(wt.ConfigurationError) as error:
        session.connection()
    assert "secret" not in str(error.value)
    engine.dispose()


def test_a_detached_connection_is_refused(user: Any, engine: Any, registered: Any) -> None:
    """A detached connection's end cannot be seen."""
    factory = orm.sessionmaker()
    registered(factory)
    with engine.connect() as connection:
        connection.detach()
        with factory(bind=connection) as session, pytest.raises(wt.ConfigurationError, match="detached connection"):
            session.get(user, 1, options=[wt.from_cache()])


def test_a_session_on_a_connection_is_served(user: Any, engine: Any, registered: Any) -> None:
    """A session that is bound to a connection reads the cache outside of a snapshot."""
    factory = orm.sessionmaker()
    registered(factory)
    with engine.connect() as connection:
        assert serves(factory(bind=connection), engine, user)


@pytest.mark.parametrize("by", ["mapper", "base class", "table"])
def test_a_session_with_binds_of_its_own_is_served(user: Any, base: Any, engine: Any, registered: Any, by: str) -> None:
    """`binds` by mapper, base class or table lead to the same entries."""
    target = {"mapper": user, "base class": base, "table": user.__table__}[by]
    factory = orm.sessionmaker(binds={target: engine})
    registered(factory)
    assert serves(factory(), engine, user)


# --- tenants --------------------------------------------------------------------------------------------------------


def test_two_schemas_have_entries_of_their_own(user: Any, base: Any, postgres_world_of: Any) -> None:
    """Under `schema_translate_map`, of engine, connection or statement, the same key is another row."""
    world = postgres_world_of(base)
    world.outside_sql("CREATE SCHEMA other")
    world.outside_sql("CREATE TABLE other.users AS SELECT 1 AS id, 'eve'::varchar AS name, 1 AS age")
    world.add(user(id=1, name="ann"))
    translated = world.engine.execution_options(schema_translate_map={None: "other"})
    for _ in range(2):
        with world.session(bind=translated) as session:
            assert world.cache.get(session, user, 1).name == "eve"
        with world.session() as session:
            assert world.cache.get(session, user, 1).name == "ann"
        with world.session() as session:
            session.connection(execution_options={"schema_translate_map": {None: "other"}})
            assert world.cache.get(session, user, 1).name == "eve"
        with world.session() as session:
            options = {"schema_translate_map": {None: "other"}}
            assert session.get(user, 1, options=[wt.from_cache()], execution_options=options).name == "eve"
        world.cache.drain()
    with world.factory.begin() as session:
        session.connection(execution_options={"schema_translate_map": {None: "other"}})
        session.execute(sa.update(user).where(user.id == 1).values(name="new"))
    world.cache.drain()
    assert world.read(user, 1).name == "ann"
    with world.session(bind=translated) as session:
        assert world.cache.get(session, user, 1).name == "new"


def test_two_databases_have_entries_of_their_own(user: Any, base: Any, tmp_path: Any, sqlite_world_of: Any) -> None:
    """The same key in two databases is two rows; contains and evict take a bind."""
    store = MemoryStore()
    one = sqlite_world_of(base, store=store, url=f"sqlite:///{tmp_path}/one.db")
    two = sa.create_engine(f"sqlite:///{tmp_path}/two.db", poolclass=NullPool)
    base.metadata.create_all(two)
    one.add(user(id=1, name="ann"))
    with one.factory(bind=two) as session:
        session.add(user(id=1, name="eve"))
        session.commit()
    with one.factory(bind=two) as session:
        assert one.cache.get(session, user, 1).name == "eve"
    assert one.read(user, 1).name == "ann"
    assert one.cache.contains(user, 1, bind=two)
    one.cache.evict(user, 1, bind=two)
    assert not one.cache.contains(user, 1, bind=two)
    assert one.cache.contains(user, 1, bind=one.engine)
    assert one.cache.contains(user, 1)


def test_two_namespaces_have_entries_of_their_own(user: Any, engine: Any, registered: Any) -> None:
    """Applications with different namespaces do not share entries."""
    store = MemoryStore()
    caches = []
    for namespace in ("a", "b"):
        factory = orm.sessionmaker(engine)
        cache = registered(factory, store, policy=wt.CachePolicy(namespace=namespace))
        caches.append((factory, cache))
    with caches[0][0]() as session:
        caches[0][1].get(session, user, 1)
    assert caches[0][1].contains(user, 1)
    assert not caches[1][1].contains(user, 1)


# --- operating ------------------------------------------------------------------------------------------------------


def test_evicting_before_any_session_needs_a_bind(user: Any, engine: Any, registered: Any) -> None:
    """Without a bind the database is not known yet; with one, of the factory or given, it is."""
    unbound = registered(orm.sessionmaker())
    for call in (lambda: unbound.evict(user, 1), lambda: unbound.contains(user, 1), lambda: unbound.evict_all(user)):
        with pytest.raises(wt.ConfigurationError, match=r"not known yet.*bind=engine"):
            call()
    assert not unbound.contains(user, 1, bind=engine)
    unbound.evict(user, 1, bind=engine)
    bound = registered(orm.sessionmaker(engine))
    bound.evict(user, 1)
    bound.evict_all(user)
    assert not bound.contains(user, 1)


def test_evicting_everything_of_models_that_were_never_used_is_allowed(
    user: Any, plain: Any, base: Any, sqlite_world_of: Any
) -> None:
    """`evict_all()` covers used and unused models alike."""
    world = sqlite_world_of(base, models=[plain])
    world.add(user(id=1, name="ann"))
    world.cache.evict_all()
    assert not world.cache.contains(user, 1)


def test_evict_all_of_one_model_leaves_the_others(user: Any, plain: Any, base: Any, world_of: Any) -> None:
    """One model's epoch is not another's."""
    world = world_of(base, models=[plain])
    world.add(plain(id=1), user(id=1, name="ann"))
    world.cache.evict_all(plain)
    assert not world.cache.contains(plain, 1)
    assert world.cache.contains(user, 1)


def test_an_eviction_that_is_not_acknowledged_raises(user: Any, base: Any, sqlite_world_of: Any) -> None:
    """`evict` and `evict_all` say when a node did not answer."""
    store = FaultyStore(MemoryStore())
    world = sqlite_world_of(base, store=store)
    world.add(user(id=1, name="ann"))
    store.script += [LoseRequest(Evict), LoseRequest(EvictEpoch)]
    with pytest.raises(wt.CacheUnavailableError, match="did not acknowledge the eviction"):
        world.cache.evict(user, 1)
    with pytest.raises(wt.CacheUnavailableError, match="evict again"):
        world.cache.evict_all(user)
    assert world.cache.contains(user, 1)


def test_stats_count_from_registration(user: Any, world: World) -> None:
    """Hits, misses, fills, announcements and evictions are counted; what `stats` returned does not change."""
    before = world.cache.stats()
    with world.session() as session:
        world.cache.get(session, user, 1)
    world.cache.evict(user, 1)
    world.read(user, 1)
    after = world.cache.stats()
    assert (after.hits - before.hits, after.misses - before.misses, after.fills - before.fills) == (1, 1, 1)
    assert after.reads - before.reads == 2
    assert after.evicted - before.evicted == 1
    assert after.announced == after.published == 3


def test_a_subscriber_hears_every_event(user: Any, world: World) -> None:
    """Events name the keys; after the returned function was called none comes any more."""
    heard: list[Any] = []
    end = world.cache.subscribe(heard.append)
    with world.session() as session:
        world.cache.get(session, user, 1)
    world.cache.evict(user, 1)
    world.read(user, 1)
    with world.factory.begin() as session:
        session.get(user, 2).name = "new"
    assert [type(event) for event in heard] == [
        events.Hit,
        events.Evicted,
        events.Miss,
        events.Filled,
        events.Announced,
        events.Published,
    ]
    assert all(len(event.keys) == 1 for event in heard)
    end()
    world.read(user, 1)
    assert len(heard) == 6


def test_a_failing_subscriber_harms_nobody(user: Any, world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Its exception is logged; readers, writers and other subscribers go on."""
    heard: list[Any] = []

    def fail(_event: Any) -> None:
        raise RuntimeError("subscriber")

    world.cache.subscribe(fail)
    world.cache.subscribe(heard.append)
    with caplog.at_level(logging.ERROR, "sa_writethrough"):
        assert world.read(user, 1).name == "ann"
        with world.factory.begin() as session:
            session.get(user, 1).name = "new"
    assert [type(event) for event in heard] == [events.Hit, events.Announced, events.Published]
    assert len([record for record in caplog.records if "subscriber failed" in record.getMessage()]) == 3


def test_drain_waits_for_what_was_sent_without_waiting(user: Any, world: World) -> None:
    """After `drain` a fill can be seen."""
    world.cache.evict_all()
    with world.session() as session:
        world.cache.get(session, user, 1)
    world.cache.drain()
    assert world.cache.contains(user, 1)


def test_two_threads_register_and_read(user: Any, base: Any, sqlite_world_of: Any) -> None:
    """A session of another thread is served by the same registration."""
    world = sqlite_world_of(base)
    world.add(user(id=1, name="ann"))
    with ThreadPoolExecutor(4) as pool:
        names = list(pool.map(lambda _: world.read(user, 1).name, range(50)))
    assert names == ["ann"] * 50
