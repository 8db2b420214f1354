"""Alembic's migrations and DDL: what the cache must be told of, and what it sees by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy import orm
from sqlalchemy.pool import NullPool

import sa_writethrough as wt
from sa_writethrough.stores.memory import MemoryStore
from sa_writethrough.stores.urls import open_store

FIRST = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "1", None


def upgrade():
    op.execute("UPDATE users SET name = 'migrated' WHERE id = 1")
    op.bulk_insert(sa.table("users", sa.column("id"), sa.column("name")), [{"id": 3, "name": "new"}])
    op.add_column("users", sa.Column("age", sa.Integer, server_default="7"))


def downgrade():
    op.execute("DELETE FROM users WHERE id = 3")
    op.drop_column("users", "age")
"""
SECOND = """
from alembic import op

revision, down_revision = "2", "1"


def upgrade():
    with op.get_context().autocommit_block():
        op.create_index("users_name", "users", ["name"], postgresql_concurrently=True)
    op.execute("DELETE FROM teams WHERE id = 1")
"""


@dataclass
class Stage:
    """A database with one registered factory, and a directory of migrations."""

    url: str
    open_store: Callable[[], Any]
    base: Any
    user: Any
    team: Any
    engine: sa.Engine
    factory: Any
    cache: wt.WriteThroughCache
    config: Config

    def migrate(self, env: Callable[[Any], None], to: str = "head") -> None:
        """Run `alembic upgrade` with *env* as the content of env.py."""
        self.config.attributes["env"] = env
        command.upgrade(self.config, to)
        self.cache.drain()

    def names(self) -> list[str | None]:
        """Return the users' names as they are read through the cache."""
        with self.factory() as session:
            return [user and user.name for user in self.cache.get_many(session, self.user, [1, 2, 3])]

    def cached(self) -> list[bool]:
        self.cache.drain()
        return [self.cache.contains(self.user, ident) for ident in (1, 2, 3)]


@pytest.fixture(params=["sqlite+memory", "postgresql+memcached"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    """Users 1 and 2 of team 1, all of them cached; and two migrations."""

    class Base(orm.DeclarativeBase):
        pass

    class Team(Base):
        __tablename__ = "teams"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)

    class User(Base):
        __tablename__ = "users"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]
        team_id: orm.Mapped[int | None] = orm.mapped_column(sa.ForeignKey(Team.id, ondelete="SET NULL"))

    if request.param == "sqlite+memory":
        url, store = request.getfixturevalue("sqlite_url"), MemoryStore()
        stores = lambda: store  # noqa: E731 - of one process, so one store
    else:
        url, memcached = request.getfixturevalue("postgres_url"), request.getfixturevalue("memcached")
        stores = lambda: open_store(memcached.url)  # noqa: E731 - each process has its own
    engine = sa.create_engine(url)
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _enforce_foreign_keys)
    Base.metadata.create_all(engine)
    factory = orm.sessionmaker(engine)
    made = Stage(url, stores, Base, User, Team, engine, factory, wt.register(factory, stores()), _config(tmp_path))
    with factory.begin() as session:
        session.add_all([Team(id=1), User(id=1, name="ann", team_id=1), User(id=2, name="bob", team_id=1)])
    assert made.cached() == [True, True, False]
    yield made
    made.cache.unregister()
    engine.dispose()
    Base.registry.dispose()


def _enforce_foreign_keys(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA foreign_keys = ON")


def _config(directory: Path) -> Config:
    versions = directory / "migrations" / "versions"
    versions.mkdir(parents=True)
    (versions / "first.py").write_text(FIRST)
    (versions / "second.py").write_text(SECOND)
    (versions.parent / "env.py").write_text("from alembic import context\ncontext.config.attributes['env'](context)\n")
    config = Config()
    config.set_main_option("path_separator", "os")
    config.set_main_option("script_location", str(versions.parent))
    return config


def _run(context: Any, connection: sa.Connection, **options: Any) -> None:
    """What Alembic's own template of an env.py does."""
    context.configure(connection=connection, **options)
    with context.begin_transaction():
        context.run_migrations()


def _unseen(stage: Stage) -> Callable[[Any], None]:
    """The env.py of another program: an engine of its own, and no session."""

    def env(context: Any) -> None:
        engine = sa.create_engine(stage.url, poolclass=NullPool)
        if engine.dialect.name == "sqlite":
            sa.event.listen(engine, "connect", _enforce_foreign_keys)
        with engine.connect() as connection:
            _run(context, connection)

    return env


# --- migrations that the library does not see -------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["all", "model", "table", "name", "qualified", "parent"])
def test_one_call_after_a_migration_evicts_what_it_touched(stage: Stage, what: str) -> None:
    """Rows that op.execute and op.bulk_insert wrote are read as they are; models and tables may be named."""
    stage.migrate(_unseen(stage), "1")
    assert stage.cached() == [True, True, False]  # nobody has told: the entry is stale
    named = {
        "all": (),
        "model": (stage.user,),
        "table": (stage.user.__table__,),
        "name": ("users",),
        "qualified": ("public.USERS",),
        "parent": ("teams",),
    }[what]
    stage.cache.evict_all(*named)
    assert stage.cached() == [False, False, False]
    assert stage.names() == ["migrated", "bob", "new"]
    assert stage.cached() == [True, True, True]


def test_a_call_of_another_process_evicts_as_well(stage: Stage) -> None:
    """The process that migrates has read and written nothing through its own registration: its call suffices."""
    stage.migrate(_unseen(stage))
    engine = sa.create_engine(stage.url, poolclass=NullPool)
    factory = orm.sessionmaker(engine)
    theirs = wt.register(factory, stage.open_store())
    theirs.evict_all()
    assert stage.cached() == [False, False, False]
    assert stage.names() == ["migrated", "bob", "new"]
    with stage.factory() as session:
        assert stage.cache.get(session, stage.user, 1).team_id is None
    theirs.unregister()


def test_a_schema_that_this_process_has_not_used_needs_a_bind(stage: Stage) -> None:
    """With bind only that database and schema's entries are dropped, whether or not they were ever read here."""
    elsewhere = stage.engine.execution_options(schema_translate_map={None: "tenant"})
    stage.cache.evict_all(bind=elsewhere)
    assert stage.cached() == [True, True, False]
    stage.cache.evict_all("users", bind=stage.engine)
    assert stage.cached() == [False, False, False]


def test_a_table_that_nobody_knows_is_refused(stage: Stage) -> None:
    """A misspelt name, or a model that is not cached, is an error and evicts nothing."""
    with pytest.raises(wt.ConfigurationError, match=r"evict_all\('user'\): .* no table that"):
        stage.cache.evict_all("user")
    with pytest.raises(wt.ConfigurationError, match="Team is not cached"):
        stage.cache.evict_all(stage.team)
    assert stage.cached() == [True, True, False]


# --- migrations that it sees ------------------------------------------------------------------------------------------


def test_a_migration_in_a_registered_session_needs_no_call(stage: Stage) -> None:
    """Old rows are served until its COMMIT, and none afterwards."""
    before: list[Any] = []

    def env(context: Any) -> None:
        with stage.factory() as session:
            _run(context, session.connection())
            before.extend(stage.cached())
            session.commit()

    stage.migrate(env, "1")
    assert before == [True, True, False]
    assert stage.cached() == [False, False, False]
    assert stage.names() == ["migrated", "bob", "new"]
    command.downgrade(stage.config, "base")
    assert stage.cached() == [False, False, False]
    assert stage.names() == ["migrated", "bob", None]


def test_a_migration_in_a_registered_session_that_fails_leaves_nothing_stale(stage: Stage) -> None:
    """Whatever of it the database rolls back (PostgreSQL: DDL as well), the cache agrees."""

    def env(context: Any) -> None:
        with stage.factory() as session:
            _run(context, session.connection())
            raise RuntimeError("a migration that fails")

    with pytest.raises(RuntimeError):
        stage.migrate(env, "1")
    if stage.engine.dialect.name == "postgresql":
        assert stage.cached() == [True, True, False]
    with stage.engine.connect() as connection:
        names = dict(connection.execute(sa.text("SELECT id, name FROM users")).all())
    assert stage.names() == [names.get(ident) for ident in (1, 2, 3)]


def test_a_connection_that_a_session_has_begun_on_is_seen_from_then_on(stage: Stage) -> None:
    """With a transaction for each migration, indexes in AUTOCOMMIT between them, and an engine of env.py's own."""

    def env(context: Any) -> None:
        engine = sa.create_engine(stage.url, poolclass=NullPool)
        if engine.dialect.name == "sqlite":
            sa.event.listen(engine, "connect", _enforce_foreign_keys)
        with engine.connect() as connection:
            with stage.factory(bind=connection) as session:
                session.connection()
            _run(context, connection, transaction_per_migration=True)

    stage.migrate(env)
    assert stage.cached() == [False, False, False]
    assert stage.names() == ["migrated", "bob", "new"]
    with stage.factory() as session:
        assert [stage.cache.get(session, stage.user, i).team_id for i in (1, 2, 3)] == [None, None, None]


# --- DDL in the same process ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["session", "connection"])
def test_ddl_through_a_session_closes_the_tables_entries(stage: Stage, way: str) -> None:
    """ALTER TABLE, ADD and DROP COLUMN: the table's entries are not served after its COMMIT, others are filled anew."""
    for statement in ("ALTER TABLE users ADD COLUMN age INTEGER DEFAULT 7", "ALTER TABLE users DROP COLUMN age"):
        stage.names()
        assert stage.cached()[:2] == [True, True]
        with stage.factory() as session:
            if way == "session":
                session.execute(sa.text(statement))
            else:
                session.connection().execute(sa.DDL(statement))
            session.commit()
        assert stage.cached() == [False, False, False]
        assert stage.names() == ["ann", "bob", None]


def test_an_index_changes_no_row(stage: Stage) -> None:
    """CREATE and DROP INDEX through a session leave the entries."""
    with stage.factory() as session:
        index = sa.Index("users_name", stage.user.__table__.c.name)
        index.create(session.connection())
        index.drop(session.connection())
        session.commit()
    assert stage.cached() == [True, True, False]


def test_a_model_with_another_column_does_not_read_old_entries(stage: Stage) -> None:
    """After ADD COLUMN a process of the new version misses what the old one's wrote, and both are right."""

    class New(orm.DeclarativeBase):
        pass

    class User(New):
        __tablename__ = "users"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]
        team_id: orm.Mapped[int | None]
        age: orm.Mapped[int | None]

    with stage.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE users ADD COLUMN age INTEGER DEFAULT 7"))
    engine = sa.create_engine(stage.url, poolclass=NullPool)
    factory = orm.sessionmaker(engine)
    theirs = wt.register(factory, stage.open_store(), models=[User])
    for _ in range(2):
        with factory() as session:
            assert theirs.get(session, User, 1).age == 7
        theirs.drain()
        assert stage.names()[:2] == ["ann", "bob"]
    with factory.begin() as session:
        session.get(User, 1).name = "eve"
    theirs.drain()
    assert stage.names()[:2] == ["eve", "bob"]
    theirs.unregister()
    New.registry.dispose()
