"""Lookups by unique key: served where pointer and row agree, and right whoever takes a key that another released."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.exc import MultipleResultsFound

import sa_writethrough as wt
from tests.reading.conftest import World


@pytest.fixture
def user(base: Any) -> Any:
    class User(base):
        __tablename__ = "users"
        __writethrough__ = wt.CachePolicy(unique_keys=[("email",), ("tenant", "slug")])
        __table_args__ = (sa.UniqueConstraint("slug", "tenant"),)
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        email: orm.Mapped[str | None] = orm.mapped_column(unique=True)
        tenant: orm.Mapped[int] = orm.mapped_column(default=1)
        slug: orm.Mapped[str | None]
        name: orm.Mapped[str] = orm.mapped_column(default="")

    return User


@pytest.fixture
def world(user: Any, base: Any, world_of: Callable[..., World]) -> World:
    """Users 1 (a, x), 2 (b, y) and 3 (no e-mail, no slug); pointers and rows are cached."""
    made = world_of(base)
    made.add(
        user(id=1, email="a", slug="x"), user(id=2, email="b", slug="y"), user(id=3), user(id=4, tenant=2, slug="x")
    )
    for email in "ab":
        by_email(made, user, email)
    by_slug(made, user, 1, "x")
    return made


def by_email(world: World, user: Any, email: Any) -> Any:
    with world.session(expire_on_commit=False) as session:
        found = world.cache.get_by(session, user, email=email)
    world.cache.drain()
    return None if found is None else found.id


def by_slug(world: World, user: Any, tenant: Any, slug: Any) -> Any:
    with world.session(expire_on_commit=False) as session:
        found = world.cache.get_by(session, user, slug=slug, tenant=tenant)
    world.cache.drain()
    return None if found is None else found.id


def selected(world: World, email: str) -> int | None:
    with world.outside.connect() as connection:
        return connection.scalar(sa.text("SELECT id FROM users WHERE email = :email"), {"email": email})


def agree(world: World, user: Any, *emails: str) -> None:
    for email in emails or "abcd":
        for _ in range(3):
            assert by_email(world, user, email) == selected(world, email)


# --- what is served --------------------------------------------------------------------------------------------------


def test_a_lookup_by_unique_key_is_served_with_no_sql(world: World, user: Any) -> None:
    """By one attribute or by several, in any order of the arguments."""
    with world.no_sql(), world.session() as session:
        found = world.cache.get_by(session, user, email="a")
        assert (found.id, found.email, found.slug) == (1, "a", "x")
        assert found in session
        assert world.cache.get_by(session, user, slug="x", tenant=1) is found
        assert world.cache.get_by(session, user, email="b").id == 2


@pytest.mark.parametrize(
    "statement",
    [
        lambda user: sa.select(user).where(user.email == "a"),
        lambda user: sa.select(user).filter_by(email="a"),
        lambda user: sa.select(user).where(user.slug == "x", user.tenant == 1),
        lambda user: sa.select(user).where(sa.and_(user.tenant == 1, user.slug == "x")),
    ],
)
def test_a_select_by_unique_key_is_served_with_the_option(world: World, user: Any, statement: Any) -> None:
    """`from_cache()` serves a SELECT that asks for a whole unique key and nothing else; without it nothing changes."""
    with world.session() as session:
        for _ in range(2):
            assert session.scalars(statement(user).options(wt.from_cache())).one().id == 1
    with world.no_sql(), world.session() as session:
        assert session.scalars(statement(user).options(wt.from_cache())).one().id == 1
    with world.counting() as seen, world.session() as session:
        assert session.scalars(statement(user)).one().id == 1
    assert len(seen) == 1


@pytest.mark.parametrize(
    "statement",
    [
        lambda user: sa.select(user).where(user.slug == "x"),
        lambda user: sa.select(user).where(user.email == "a", user.tenant == 1),
        lambda user: sa.select(user).where(user.email == "a", user.email == "b"),
        lambda user: sa.select(user).where(user.email != "a"),
        lambda user: sa.select(user).where(user.email == user.slug),
        lambda user: sa.select(user).where(user.email.in_(["a"])),
        lambda user: sa.select(user).where(user.email == "a").limit(1),
        lambda user: sa.select(user).where(sa.or_(user.email == "a", user.email == "b")),
        lambda user: sa.select(user).where(sa.func.lower(user.email) == "a"),
        lambda user: sa.select(alias := orm.aliased(user)).where(alias.email == "a"),
    ],
)
def test_what_asks_for_more_or_less_goes_to_the_database(world: World, user: Any, statement: Any) -> None:
    """And returns what it returns without the option."""
    query = statement(user)
    with world.session() as session, world.counting() as seen:
        found = [each.id for each in session.scalars(query.options(wt.from_cache())).all()]
    assert len(seen) == 1
    with orm.Session(world.outside) as session:
        assert found == [each.id for each in session.scalars(query).all()]


def test_always_serves_without_the_option(base: Any, world_of: Callable[..., World]) -> None:
    """Under `Reads.ALWAYS` a plain SELECT by unique key is served; `bypass_cache()` is its opposite."""

    class Page(base):
        __tablename__ = "page"
        __writethrough__ = wt.CachePolicy(unique_keys=[("path",)], reads=wt.Reads.ALWAYS)
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        path: orm.Mapped[str] = orm.mapped_column()
        __table_args__ = (sa.Index("page_path", "path", unique=True),)

    world = world_of(base)
    world.add(Page(id=1, path="/"))
    with world.session() as session:
        assert session.scalars(sa.select(Page).filter_by(path="/")).one().id == 1
    world.cache.drain()
    with world.no_sql(), world.session() as session:
        assert session.query(Page).filter_by(path="/").one().id == 1
    with world.counting() as seen, world.session() as session:
        assert session.scalars(sa.select(Page).filter_by(path="/").options(wt.bypass_cache())).one().id == 1
    assert len(seen) == 1


def test_null_is_nobodys_key(world: World, user: Any) -> None:
    """Of NULL there may be many: the database answers, and what it answers is what SQLAlchemy makes of it."""
    with world.session() as session:
        assert world.cache.get_by(session, user, slug=None, tenant=1).id == 3
        session.add(user(id=5))
        with pytest.raises(MultipleResultsFound):
            world.cache.get_by(session, user, slug=None, tenant=1)


def test_a_key_that_nobody_has_is_none(world: World, user: Any) -> None:
    """Absence is the database's to tell, each time."""
    for _ in range(2):
        with world.counting() as seen:
            assert by_email(world, user, "nobody") is None
        assert len(seen) == 1


@pytest.mark.parametrize("value", ["A", "a ", 1, b"a", uuid.UUID(int=1)])
def test_a_value_that_only_the_database_can_compare_goes_there(world: World, user: Any, value: Any) -> None:
    """Another case, a blank, another type: whether that is the key, the database says."""
    try:
        with orm.Session(world.outside) as session:
            expected = session.scalars(sa.select(user.id).where(user.email == value)).one_or_none()
    except sa.exc.SQLAlchemyError as error:
        with pytest.raises(type(error)):
            by_email(world, user, value)
    else:
        assert by_email(world, user, value) == expected


@pytest.mark.parametrize("value", [Decimal(1), True, "1"])
def test_a_number_of_another_type_goes_to_the_database(world: World, user: Any, value: Any) -> None:
    """What the driver makes of it, an answer or an error, is what the caller gets, whatever is cached for 1."""
    try:
        with orm.Session(world.outside) as session:
            expected = session.scalars(sa.select(user.id).where(user.tenant == value, user.slug == "x")).one_or_none()
    except sa.exc.SQLAlchemyError as error:
        with pytest.raises(type(error)):
            by_slug(world, user, value, "x")
    else:
        with world.counting() as seen:
            assert by_slug(world, user, value, "x") == expected
        assert seen != []


def test_the_sessions_own_instances_stay(world: World, user: Any) -> None:
    """An instance that is in the session is returned as it is; an expired one is refreshed by the SELECT."""
    with world.session() as session, session.no_autoflush:
        mine = session.get(user, 1)
        mine.name = "mine"
        with world.no_sql():
            assert world.cache.get_by(session, user, email="a") is mine
        assert mine.name == "mine"
        session.rollback()
        session.expire(mine)
        with world.counting() as seen:
            assert world.cache.get_by(session, user, email="a") is mine
            assert mine.__dict__["name"] == ""
        assert len(seen) == 1


def test_a_session_sees_what_it_wrote(world: World, user: Any) -> None:
    """Pending changes are flushed, and its own transaction's keys come from the database."""
    with world.session() as session:
        session.get(user, 1).email = "c"
        assert world.cache.get_by(session, user, email="a") is None
        assert world.cache.get_by(session, user, email="c").id == 1
        session.get(user, 2).email = "a"
        assert world.cache.get_by(session, user, email="a").id == 2
        session.rollback()
    agree(world, user)


# --- a key changes hands ---------------------------------------------------------------------------------------------


def _release(session: orm.Session, user: Any) -> None:
    session.get(user, 1).email = None


def _take_over(session: orm.Session, user: Any) -> None:
    session.get(user, 1).email = "c"
    session.flush()
    session.get(user, 2).email = "a"


def _swap(session: orm.Session, user: Any) -> None:
    session.get(user, 1).email = None
    session.flush()
    session.get(user, 2).email = "a"
    session.flush()
    session.get(user, 1).email = "b"


def _delete_and_insert(session: orm.Session, user: Any) -> None:
    session.delete(session.get(user, 1))
    session.flush()
    session.add(user(id=9, email="a"))


def _same_key_other_email(session: orm.Session, user: Any) -> None:
    session.delete(session.get(user, 1))
    session.flush()
    session.add(user(id=1, email="d"))


def _bulk(session: orm.Session, user: Any) -> None:
    session.execute(sa.update(user).where(user.email.is_not(None)).values(email=user.email + "x"))
    session.execute(sa.update(user).where(user.id == 3).values(email="a"))


def _renumber(session: orm.Session, user: Any) -> None:
    session.get(user, 1).id = 7


def _text(session: orm.Session, user: Any) -> None:
    session.execute(sa.text("UPDATE users SET email = 'c' WHERE email = 'a'"))


CHANGES = {
    change.__name__.strip("_"): change
    for change in (_release, _take_over, _swap, _delete_and_insert, _same_key_other_email, _bulk, _renumber, _text)
}


@pytest.mark.parametrize("ending", ["commit", "rollback"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_key_that_changes_hands(world: World, user: Any, change: Any, ending: str) -> None:
    """Whoever has the key by now is found, by the first lookup and when it is cached again."""
    before = [selected(world, email) for email in "abcd"]
    with world.session() as session:
        change(session, user)
        session.flush()
        getattr(session, ending)()
    world.cache.drain()
    assert ([selected(world, email) for email in "abcd"] == before) is (ending == "rollback")
    agree(world, user)
    with world.no_sql():
        for email in "ab":
            if selected(world, email) is not None:
                by_email(world, user, email)


@pytest.mark.parametrize("pointers", list(itertools.product([1, 2, 3, 99], repeat=2)))
def test_a_pointer_may_point_anywhere(world: World, user: Any, pointers: tuple[int, int]) -> None:
    """A pointer is a hint: whatever it says, and however old, the row has the last word."""
    core = world.cache._core
    family = core.entities.family_of(user.__mapper__)
    unique = core.unique_keys.of(family)[frozenset({"email"})]
    for email, ident in zip("ab", pointers, strict=True):
        for scope in family.scopes():
            key = unique.key(scope, [email])
            core.cache.evict([key])
            reading = core.cache.store.read([key], scope.epoch, wt.coherence.Intent.FILL)[0]
            payload = unique.encode((ident,), world.engine.dialect)
            core.cache.fill([wt.cache.Filling(key, reading.token, payload, None)])
    world.cache.drain()
    assert [by_email(world, user, email) for email in "ab"] == [1, 2]
    agree(world, user)


@pytest.mark.parametrize("moment", range(4))
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_while_a_reader_stands_between_its_steps(world: World, user: Any, change: Any, moment: int) -> None:
    """A key changes hands before any step of a lookup: it sees before or after, and leaves nothing wrong behind."""
    before = selected(world, "a")
    store = world.cache._core.cache.store
    steps = [0]
    read = store.read

    def standing(*arguments: Any) -> Any:
        steps[0] += 1
        if steps[0] == moment + 1:
            with world.session() as session:
                change(session, user)
                session.commit()
        return read(*arguments)

    world.cache._core.cache.store = Standing(store, standing)
    if moment > 1:
        world.cache.evict(user, 1)
        steps[0] = 2
    found = by_email(world, user, "a")
    world.cache._core.cache.store = store
    assert found in {before, selected(world, "a")}
    agree(world, user)


class Standing:
    """A store whose reads are somebody else's."""

    def __init__(self, inner: Any, read: Any) -> None:
        self.inner, self.read = inner, read

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


# --- what is no unique key -------------------------------------------------------------------------------------------


def _model(base: Any, keys: Any = (("code",),), *, exclude: Any = (), arguments: Any = (), **columns: Any) -> Any:
    members: dict[str, Any] = {
        "__tablename__": "thing",
        "__writethrough__": wt.CachePolicy(unique_keys=keys, exclude=exclude),
        "__table_args__": tuple(arguments),
        "id": sa.Column(sa.Integer, primary_key=True),
        "code": sa.Column(sa.String, unique=not (columns or arguments)),
        **columns,
    }
    return type("Thing", (base,), members)


REFUSED = {
    "not unique": (lambda base: _model(base, code=sa.Column(sa.String)), "no unique constraint"),
    "part of a key": (
        lambda base: _model(base, arguments=[sa.UniqueConstraint("code", "other")], other=sa.Column(sa.Integer)),
        "no unique constraint",
    ),
    "partial index": (
        lambda base: _model(
            base,
            arguments=[sa.Index("i", "code", unique=True, sqlite_where=sa.text("id > 1"))],
            n=sa.Column(sa.Integer),
        ),
        "no unique constraint",
    ),
    "function": (
        lambda base: _model(
            base, arguments=[sa.Index("i", sa.func.lower(sa.text("code")), unique=True)], n=sa.Column(sa.Integer)
        ),
        "no unique constraint",
    ),
    "deferrable": (
        lambda base: _model(base, arguments=[sa.UniqueConstraint("code", deferrable=True)], n=sa.Column(sa.Integer)),
        "no unique constraint",
    ),
    "no attribute": (lambda base: _model(base, [("nothing",)]), "no column attribute 'nothing'"),
    "excluded": (lambda base: _model(base, exclude=["code"]), "code is not cached"),
    "float": (lambda base: _model(base, code=sa.Column(sa.Float, unique=True)), "only the database knows"),
    "datetime": (lambda base: _model(base, code=sa.Column(sa.DateTime, unique=True)), "only the database knows"),
}


@pytest.mark.parametrize(("declare", "why"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_unique_key_is_refused(base: Any, declare: Any, why: str) -> None:
    """Registration says which key, and why."""
    held = declare(base)
    with pytest.raises(wt.ConfigurationError, match=why) as raised:
        wt.register(orm.sessionmaker(sa.create_engine("sqlite://")), "memory://")
    assert "unique_keys=[" in str(raised.value)
    del held


@pytest.mark.parametrize("keys", ["email", ["email"], [()], [("email", 1)], 5, [None]])
def test_a_policys_unique_keys_are_tuples_of_names(keys: Any) -> None:
    """Anything else is refused with an example."""
    with pytest.raises(wt.ConfigurationError, match=r'unique_keys=\[\("email",\), \("tenant_id", "slug"\)\]'):
        wt.CachePolicy(unique_keys=keys)


def test_get_by_asks_by_a_key_of_the_policy(world: World, user: Any) -> None:
    """The error names the keys that there are."""
    with world.session() as session:
        with pytest.raises(wt.ConfigurationError, match=r"no cached unique key of name.*\(email\) of User"):
            world.cache.get_by(session, user, name="ann")
        with pytest.raises(wt.ConfigurationError, match="of nothing"):
            world.cache.get_by(session, user)


# --- inheritance -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("joined", [False, True])
def test_a_key_of_a_subclass(base: Any, world_of: Callable[..., World], joined: bool) -> None:
    """It is asked by that class; a row of another class is not found by it."""

    class Person(base):
        __tablename__ = "person"
        __writethrough__ = wt.CachePolicy(unique_keys=[("email",), ("badge",)])
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        kind: orm.Mapped[str] = orm.mapped_column()
        email: orm.Mapped[str] = orm.mapped_column(unique=True)
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}  # noqa: RUF012

    class Engineer(Person):
        if joined:
            __tablename__ = "engineer"
            id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey(Person.id), primary_key=True)
        badge: orm.Mapped[int | None] = orm.mapped_column(unique=True)
        __mapper_args__ = {"polymorphic_identity": "engineer"}  # noqa: RUF012

    world = world_of(base)
    world.add(Person(id=1, email="a"), Engineer(id=2, email="b", badge=7))
    for _ in range(3):
        with world.session() as session, world.counting() as seen:
            assert world.cache.get_by(session, Engineer, badge=7).id == 2
            assert type(world.cache.get_by(session, Person, email="b")) is Engineer
            assert world.cache.get_by(session, Engineer, email="a") is None
            assert world.cache.get_by(session, Person, email="a").id == 1
            with pytest.raises(wt.ConfigurationError, match="badge"):
                world.cache.get_by(session, Person, badge=7)
        world.cache.drain()
    assert seen == []
