"""What each text of SQL is understood as."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import sa_writethrough as wt
from sa_writethrough.dml import writes_of
from sa_writethrough.effects import Undone
from sa_writethrough.entities import Entities
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


def _effects(entities: Entities, sql: str, **options: Any) -> list[Any]:
    context: Any = SimpleNamespace(
        execution_options=options, compiled=None, isinsert=False, isupdate=False, isdelete=False
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
    found = {written.family.base.local_table.name for written in _effects(entities, sql) if written.identities is None}
    assert found == ({family.base.local_table.name for family in entities.families} if tables == ALL else tables)


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


@pytest.mark.parametrize("sql", ["COMMIT", "END", "PREPARE TRANSACTION 'x'", "SELECT 1; COMMIT"])
def test_a_text_may_not_end_the_transaction(entities: Entities, sql: str) -> None:
    """Nobody could announce it."""
    with pytest.raises(wt.ConfigurationError, match=r"session\.commit"):
        _effects(entities, sql)


def test_the_option_wants_a_list(entities: Entities) -> None:
    """A string is not a list of names."""
    with pytest.raises(wt.ConfigurationError, match="give a list"):
        _effects(entities, "DO x", writethrough_tables="silent")
