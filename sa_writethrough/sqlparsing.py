"""SQL text as a parser understands it: the tables that a statement changes.

sqlglot does the parsing. It accepts more than a database does, and servers differ in where comments and literals end;
so what it says is taken only for one statement of a kind whose parts it knows, with nothing in it that hides text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

__all__ = ["Understood", "understand"]

_DIALECTS = {"postgresql": "postgres", "sqlite": "sqlite", "mysql": "mysql", "mariadb": "mysql"}
_FIRST = frozenset({"select", "with", "values", "table", "insert", "update", "delete", "merge"})
_HIDING = re.compile(r"\\|/\*|\*/|--|#|\$(?!\d)")
"""Where a literal or a comment begins or ends depends on the server's settings."""


@dataclass(frozen=True, slots=True)
class Understood:
    """The tables whose rows one statement writes, by their bare names in lower case; none: it reads."""

    targets: frozenset[str]
    replaces: bool
    """Whether it does more than to insert new rows."""


@lru_cache(1024)
def understand(sql: str, dialect: str) -> Understood | None:
    """Return what *sql* writes in SQLAlchemy's *dialect*, or None where that is not certain."""
    words = sql.split(None, 1)
    if dialect not in _DIALECTS or not words or words[0].lower() not in _FIRST or _HIDING.search(sql):
        return None
    import sqlglot  # noqa: PLC0415 - a third of a second, for those alone whose text writes
    from sqlglot import exp  # noqa: PLC0415

    try:
        statements = sqlglot.parse(sql, read=_DIALECTS[dialect])
    except (sqlglot.errors.SqlglotError, RecursionError):
        return None
    statement = statements[0] if len(statements) == 1 else None
    known = exp.Query, exp.Insert, exp.Update, exp.Delete, exp.Merge
    if not isinstance(statement, known) or statement.find(exp.Command, exp.Into) is not None:
        return None
    targets: set[str] = set()
    replaces = False
    for node in statement.find_all(exp.Insert, exp.Update, exp.Delete, exp.Merge):
        names = _targets(node, exp.Table)
        if not names:
            return None
        targets |= names
        replaces = replaces or not isinstance(node, exp.Insert) or any(node.args.get(more) for more in _REPLACING)
    return Understood(frozenset(targets), replaces)


_REPLACING = ("conflict", "alternative", "overwrite")


def _targets(node: Any, table: Any) -> set[str]:
    """Return the tables of a node: all where several are joined, as some databases change several."""
    tables = list(node.this.find_all(table))
    named = {found.name.lower() for found in (*tables, *(node.args.get("tables") or ()))}
    return named - {found.alias.lower() for found in tables if found.alias.lower() != found.name.lower()}
