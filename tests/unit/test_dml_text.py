"""What each text of SQL is understood as."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sa_writethrough as wt
from sa_writethrough import sqltext
from sa_writethrough.dml import writes_of
from sa_writethrough.effects import Undone
from sa_writethrough.entities import Entities
from sa_writethrough.sqlparsing import understand
from tests.orm.models import Base

ALL = "all"
NOTHING: set[str] = set()


@pytest.fixture(scope="module")
def entities() -> Entities:
    """The registry of the ORM tests' models."""
    Base.registry.configure()
    found = Entities(None, wt.CachePolicy())
    for mapper in Base.registry.mappers:
        found.add(mapper)
    return found


def _effects(entities: Entities, sql: str, dialect: str = "postgresql", **options: Any) -> list[Any]:
    context: Any = SimpleNamespace(
        execution_options=options,
        compiled=None,
        isinsert=False,
        isupdate=False,
        isdelete=False,
        dialect=SimpleNamespace(name=dialect),
    )
    return list(writes_of(entities, context, sql))


@pytest.mark.parametrize(
    ("sql", "tables"),
    [
        ("SELECT * FROM account", NOTHING),
        ("SELECT * FROM account FOR UPDATE", NOTHING),
        ("SELECT * FROM account FOR NO KEY UPDATE", NOTHING),
        ("-- update account\nSELECT 1", {"account"}),
        ("  /* x */ UPDATE account SET name = 'a'", {"account"}),
        ("update Account set name = 'a'", {"account"}),
        ("UPDATE public.\"account\" SET name = 'a'", {"account"}),
        ("UPDATE plain SET name = 'x'", NOTHING),
        ("UPDATE names SET name = 'x'", ALL),
        ("UPDATE names SET name = 'x' WHERE id IN (SELECT id FROM plain)", ALL),
        ("DELETE FROM silent", {"silent"}),
        ("DELETE FROM ONLY silent", {"silent"}),
        ("DELETE FROM orders", {"orders", "line", "note"}),
        ("TRUNCATE silent", {"silent"}),
        ("TRUNCATE TABLE silent CASCADE", ALL),
        ("INSERT INTO silent VALUES (1)", NOTHING),
        ("INSERT INTO silent VALUES (1) ON CONFLICT DO UPDATE SET name = 'x'", {"silent"}),
        ("INSERT OR REPLACE INTO silent VALUES (1)", {"silent"}),
        ("REPLACE INTO silent VALUES (1)", {"silent"}),
        ("MERGE INTO silent USING plain ON true WHEN MATCHED THEN DELETE", {"silent"}),
        ("WITH x AS (DELETE FROM silent RETURNING id) SELECT * FROM x", {"silent"}),
        ("WITH x AS (SELECT 1) SELECT * FROM silent", NOTHING),
        ("COPY silent FROM STDIN", {"silent"}),
        ("ALTER TABLE silent ADD COLUMN x int", {"silent"}),
        ("DROP TABLE silent", {"silent"}),
        ("CREATE TABLE unknown (id int)", NOTHING),
        ("CREATE INDEX i ON plain (id)", NOTHING),
        ("CREATE UNIQUE INDEX CONCURRENTLY i ON silent (id)", NOTHING),
        ("DROP INDEX silent", NOTHING),
        ("CREATE INDEX i ON silent (id); DELETE FROM silent", {"silent"}),
        ("/* x */ CREATE INDEX i ON silent (id)", {"silent"}),
        ("PRAGMA foreign_keys = ON", NOTHING),
        ("SET LOCAL statement_timeout = 0", NOTHING),
        ("SELECT 1; DELETE FROM silent", {"silent"}),
        ("SELECT 1; TRUNCATE silent", {"silent"}),
        ("INSERT INTO plain VALUES ('a;b')", NOTHING),
        ("", NOTHING),
    ],
)
def test_a_text_writes_what_it_may_write(entities: Entities, sql: str, tables: Any) -> None:
    """The families whose rows may change, never too few."""
    assert _written(entities, sql) == _tables(entities, tables)


def _written(entities: Entities, sql: str, dialect: str = "postgresql", **options: Any) -> set[str]:
    effects = _effects(entities, sql, dialect, **options)
    return {written.family.base.local_table.name for written in effects if written.identities is None}


def _tables(entities: Entities, tables: Any) -> set[str]:
    return {family.base.local_table.name for family in entities.families} if tables == ALL else tables


@pytest.mark.parametrize(
    ("dialect", "sql", "understood", "by_words"),
    [
        ("postgresql", "SELECT * FROM account WHERE action = 'delete'", NOTHING, {"account"}),
        (
            "postgresql",
            "UPDATE silent SET name = (SELECT name FROM account LIMIT 1)",
            {"silent"},
            {"account", "silent"},
        ),
        ("postgresql", "UPDATE silent SET name = %(name)s::TEXT WHERE id = %(id)s", {"silent"}, {"silent"}),
        ("postgresql", "UPDATE silent SET name = $1 FROM account a WHERE a.id = $2", {"silent"}, {"account", "silent"}),
        ("postgresql", "DELETE FROM ONLY silent USING account WHERE account.id = 1", {"silent"}, {"account", "silent"}),
        ("postgresql", "WITH a AS (SELECT * FROM account) DELETE FROM silent", {"silent"}, {"account", "silent"}),
        (
            "postgresql",
            "WITH a AS (DELETE FROM silent RETURNING id) INSERT INTO plain SELECT id FROM a, account",
            {"silent"},
            {"account", "silent"},
        ),
        (
            "postgresql",
            "INSERT INTO silent SELECT id FROM account ON CONFLICT (id) DO UPDATE SET name = 'x'",
            {"silent"},
            {"account", "silent"},
        ),
        ("postgresql", "INSERT INTO plain VALUES ('update account')", NOTHING, {"account"}),
        ("postgresql", "MERGE INTO silent AS s USING account a ON true WHEN MATCHED THEN DELETE", {"silent"}, None),
        ("postgresql", "UPDATE unknown SET name = 'x' WHERE id IN (SELECT id FROM account)", ALL, ALL),
        ("sqlite", "INSERT OR REPLACE INTO silent SELECT * FROM account", {"silent"}, {"account", "silent"}),
        ("sqlite", "UPDATE [silent] SET name = ? WHERE id IN (SELECT id FROM account)", {"silent"}, None),
        ("mysql", "UPDATE silent s JOIN account a ON true SET a.name = 'x'", {"account", "silent"}, None),
        ("mysql", "DELETE s FROM silent s JOIN account a ON true", {"account", "silent"}, None),
        ("mariadb", "INSERT INTO silent VALUES (1) ON DUPLICATE KEY UPDATE name = 'account'", {"silent"}, None),
        ("oracle", "UPDATE silent SET name = (SELECT name FROM account)", {"account", "silent"}, {"account", "silent"}),
    ],
)
def test_a_parser_tells_more_than_words(
    entities: Entities, monkeypatch: pytest.MonkeyPatch, dialect: str, sql: str, understood: Any, by_words: Any
) -> None:
    """A table that is only read costs nothing; and without the parser's help the words still find every table."""
    assert _written(entities, sql, dialect) == _tables(entities, understood)
    monkeypatch.setattr(sqltext, "understand", lambda *_arguments: None)
    searched = _written(entities, sql, dialect)
    assert searched >= _tables(entities, understood) - (_tables(entities, ALL) if understood == ALL else set())
    if by_words is not None:
        assert searched == _tables(entities, by_words)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1 -- \n; DELETE FROM silent",
        "SELECT 5--1; DELETE FROM silent",
        "SELECT 1 /* /* */ ; DELETE FROM silent",
        "SELECT 1 # \n; DELETE FROM silent",
        "SELECT '\\'; DELETE FROM silent WHERE name = '",
        "SELECT $a$ $b$; DELETE FROM silent",
        "SELECT 1 /*! ; DELETE FROM silent */",
        "SELECT * INTO silent FROM plain; ",
        "WITH x AS (SELECT 1) REPLACE INTO silent SELECT * FROM x",
        "UPDATE OR IGNORE silent SET name = 'x'",
        "UPDATE silent SET (name) = (SELECT 1) WHERE CURRENT OF x",
    ],
)
@pytest.mark.parametrize("dialect", ["postgresql", "sqlite", "mysql"])
def test_what_servers_read_differently_is_left_to_the_words(entities: Entities, sql: str, dialect: str) -> None:
    """Where a literal or a comment ends is the server's to say: every word counts there."""
    if "INTO silent FROM" in sql:
        assert understand(sql, dialect) is None
    else:
        assert "silent" in _written(entities, sql, dialect)


TABLES = st.sampled_from(["silent", "account", "orders", "plain"])
EXPRESSIONS = st.recursive(
    st.sampled_from(["1", "'x'", "id", "'delete from account'", "%(id)s", "name || 'a'"]),
    lambda inner: st.one_of(
        st.builds("({} + {})".format, inner, inner),
        st.builds("(SELECT {} FROM {} WHERE {} = 1)".format, inner, TABLES, inner),
        st.builds("coalesce({}, {})".format, inner, inner),
    ),
    max_leaves=4,
)


@st.composite
def statements(draw: st.DrawFn) -> tuple[str, set[str]]:
    """Return a statement with the tables it changes."""
    table, value, criterion = draw(TABLES), draw(EXPRESSIONS), draw(EXPRESSIONS)
    sql = draw(
        st.sampled_from(
            [
                f"UPDATE {table} SET name = {value} WHERE id = {criterion}",
                f"UPDATE {table} AS t SET name = {value}, kind = 1 FROM {draw(TABLES)} AS u WHERE t.id = {criterion}",
                f"DELETE FROM {table} WHERE id IN ({criterion})",
                f"DELETE FROM {table} USING {draw(TABLES)} AS u WHERE u.id = {criterion} RETURNING id",
                f"INSERT INTO {table} (id) VALUES ({value}) ON CONFLICT (id) DO UPDATE SET name = {criterion}",
            ]
        )
    )
    if draw(st.booleans()):
        return sql, {table}
    other = draw(TABLES)
    outer = draw(st.sampled_from([f"SELECT * FROM {other}", f"UPDATE {other} SET name = {value}"]))
    with_returning = sql if "RETURNING" in sql else f"{sql} RETURNING id"
    return f"WITH x AS ({with_returning}) {outer}", {table} | ({other} if outer.startswith("UPDATE") else set())


@given(statements())
def test_every_table_that_is_changed_is_found(statement: tuple[str, set[str]]) -> None:
    """The parser names the tables that a statement changes, and no other."""
    sql, tables = statement
    understood = understand(sql, "postgresql")
    assert understood is not None
    assert understood.targets == tables
    assert understood.replaces


@pytest.mark.parametrize("sql", ["SAVEPOINT a", "RELEASE a", "ROLLBACK TO a", "ROLLBACK"])
def test_a_text_that_moves_savepoints_is_told(entities: Entities, sql: str) -> None:
    """Nothing that was known of the transaction's rows is trusted any more."""
    assert _effects(entities, sql) == [Undone(isolation=False)]


def test_a_text_that_sets_the_isolation_level_is_told(entities: Entities) -> None:
    """From then on the transaction may have a snapshot."""
    assert _effects(entities, "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE") == [Undone(isolation=True)]


@pytest.mark.parametrize("sql", ["CALL f()", "DO $$ BEGIN DELETE FROM plain; PERFORM f(); END $$", "EXECUTE x", "WHAT"])
def test_what_is_not_understood_is_refused(entities: Entities, sql: str) -> None:
    """With the remedy, which then works."""
    with pytest.raises(wt.ConfigurationError, match="writethrough_tables"):
        _effects(entities, sql)
    (written,) = _effects(entities, sql, writethrough_tables=["silent"])
    assert written.family.base.local_table.name == "silent"
    assert _effects(entities, sql, writethrough_tables=[]) == []


@pytest.mark.parametrize("sql", ["CALL f()", "DO $$ BEGIN PERFORM f(); END $$", "EXECUTE x", "WHAT"])
def test_what_is_not_understood_evicts_if_every_policy_says_so(sql: str) -> None:
    """One model that says nothing of the kind is enough for a refusal."""
    for refusing in False, True:
        policy = wt.CachePolicy(on_unknown_sql="evict")  # type: ignore[arg-type]
        found = Entities(None, policy)
        for mapper in Base.registry.mappers:
            found.add(mapper)
        if refusing:
            found.families[0].policy = wt.CachePolicy()
            with pytest.raises(wt.ConfigurationError, match="OnUnknownSQL"):
                _effects(found, sql)
        else:
            own = [family for family in found.families if family.policy.on_unknown_sql is wt.OnUnknownSQL.REFUSE]
            for family in own:
                family.policy = policy
            assert _written(found, sql) == _tables(found, ALL)


@pytest.mark.parametrize("sql", ["COMMIT", "END", "PREPARE TRANSACTION 'x'", "SELECT 1; COMMIT"])
def test_a_text_may_not_end_the_transaction(entities: Entities, sql: str) -> None:
    """Nobody could announce it."""
    with pytest.raises(wt.ConfigurationError, match=r"session\.commit"):
        _effects(entities, sql)


def test_the_option_wants_a_list(entities: Entities) -> None:
    """A string is not a list of names."""
    with pytest.raises(wt.ConfigurationError, match="give a list"):
        _effects(entities, "DO x", writethrough_tables="silent")


@pytest.mark.parametrize(
    ("sql", "tables"),
    [
        ("UPDATE `account` SET name = 'x'", {"account"}),
        ("INSERT INTO account (id) SELECT id FROM silent ON DUPLICATE KEY UPDATE name = 'x'", {"account"}),
        ("REPLACE INTO account SELECT * FROM plain", {"account"}),
        ("UPDATE plain, account SET account.name = 'x'", {"account"}),
        ("UPDATE plain JOIN account ON plain.id = account.id SET plain.name = 'x'", {"account"}),
        ("DELETE account FROM plain JOIN account ON plain.id = account.id", {"account"}),
        ("DELETE FROM account USING account JOIN silent ON silent.id = account.id", {"account"}),
        ("SELECT '#fff', note FROM account", NOTHING),
        ("SELECT 1 # update account", {"account"}),
        ("# show\nDELETE FROM account", {"account"}),
        ("/*! DELETE FROM account */", {"account"}),
        ("/*M!100000 DELETE FROM account */", {"account"}),
        ("SET STATEMENT max_statement_time = 1 FOR DELETE FROM account", {"account"}),
        ("SET @x = 1", NOTHING),
        ("LOAD DATA INFILE 'f' INTO TABLE account", {"account"}),
        ("LOAD DATA INFILE 'f' INTO TABLE names", ALL),
        ("RENAME TABLE account TO other", {"account"}),
        ("OPTIMIZE TABLE account", NOTHING),
        ("XA BEGIN 'x'", NOTHING),
    ],
)
def test_what_mariadb_understands(entities: Entities, sql: str, tables: Any) -> None:
    """Its comments, its verbs, several tables at once. A table too many costs misses, one too few the promise."""
    effects = _effects(entities, sql, "mariadb")
    found = {effect.family.base.local_table.name for effect in effects if effect.identities is None}
    everything = {family.base.local_table.name for family in entities.families}
    assert found >= (everything if tables is ALL else tables)
    assert tables is ALL or found < everything
    assert tables is not NOTHING or found == NOTHING


@pytest.mark.parametrize(
    "sql",
    ["USE other", "XA COMMIT 'x'", "XA END 'x'", "COMMIT", "/*! COMMIT */", "CALL f()", "# x\nCALL f()", "EXECUTE s"],
)
def test_what_mariadb_does_that_nobody_can_know(entities: Entities, sql: str) -> None:
    """It is refused."""
    with pytest.raises(wt.ConfigurationError):
        _effects(entities, sql, "mariadb")


@pytest.mark.parametrize(
    ("sql", "commits"),
    [
        ("CREATE TABLE x (id INT)", True),
        ("/* x */ drop table x", True),
        ("TRUNCATE x", True),
        ("ALTER TABLE x ADD y INT", True),
        ("LOCK TABLES x READ", True),
        ("BEGIN", True),
        ("START TRANSACTION", True),
        ("SET autocommit = 1", True),
        ("SET @x = 1", False),
        ("CREATE TEMPORARY TABLE x (id INT)", False),
        ("CREATE OR REPLACE TEMPORARY TABLE x (id INT)", False),
        ("DROP TEMPORARY TABLE x", False),
        ("INSERT INTO x VALUES ('create table')", False),
        ("UPDATE x SET y = 1", False),
        ("SAVEPOINT x", False),
    ],
)
def test_what_commits_by_itself(sql: str, commits: bool) -> None:
    """DDL, but for temporary tables, and what begins another transaction."""
    assert sqltext.commits_by_itself(sql) is commits
