"""What SQL that comes as text writes: which families, or that nobody can know.

A parser tells which tables a statement changes (`sqlparsing`). Where it does not understand, words are searched, and
one that may be a table's name is taken for one. Decides nothing about sessions or entries.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from sa_writethrough.effects import TABLES_OPTION, Undone, Written, named
from sa_writethrough.entities import Entities, TableName
from sa_writethrough.exceptions import ConfigurationError
from sa_writethrough.policy import OnUnknownSQL
from sa_writethrough.sqlparsing import understand

__all__ = ["commits_by_itself", "text_writes"]

_WORDS = re.compile(r"\w+")
_ROW_LOCKS = re.compile(r"\bfor\s+(?:no\s+key\s+)?update\b", re.IGNORECASE)
_COMMENTS = re.compile(r"/\*.*?\*/|--[^\n]*", re.DOTALL)
_QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|(\$\w*\$).*?\1|/\*.*?\*/|--[^\n]*""", re.DOTALL)
_NAME = r"""(?:"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\]|\w+)"""
_QUOTED_NAMES = re.compile(r""""(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\]""")
_TARGETS = re.compile(
    r"""(?<!on\s)(?<!do\s)\b(?:update|delete\s+from|into|truncate)\b\s*(?:(?:or\s+\w+|only|table)\b\s*)*"""
    rf"""(?:{_NAME}\s*\.\s*)*({_NAME})""",
    re.IGNORECASE,
)
"""The table that follows a verb."""
_REPLACE_INTO = re.compile(r"\breplace(?:\s|/\*.*?\*/|--[^\n]*\n)+into\b", re.IGNORECASE | re.DOTALL)
"""SQLite's verb, which may follow WITH; a mere `replace(` is a function."""
_QUERIES = frozenset({"select", "with", "values", "table", "explain", "declare"})
_CTE_VERBS = frozenset({"insert", "update", "delete", "merge"})
_INDEXES = re.compile(r"\s*(?:create\s+(?:unique\s+)?index|(?:drop|alter)\s+index)\b", re.IGNORECASE)
"""They change no row, and some must be executed in AUTOCOMMIT."""
_WRITES = frozenset({"insert", "update", "delete", "merge", "replace", "truncate", "copy"})
_REPLACES = (_WRITES - {"insert", "copy"}) | {"conflict", "duplicate", "load"}
_STRUCTURE = frozenset({"alter", "drop", "create", "refresh", "rename", "import"})
_SAVEPOINTS = frozenset({"savepoint", "release", "rollback", "abort"})
_ENDS = frozenset({"commit", "end", "prepare"})
_OPAQUE = frozenset({"call", "do", "execute"})
_HARMLESS = _QUERIES | {"show", "set", "reset", "pragma", "analyze", "vacuum", "listen", "unlisten", "notify", "lock"}
_HARMLESS |= {"begin", "start", "fetch", "move", "close", "deallocate", "discard", "checkpoint", "grant", "revoke"}
_SETTINGS = frozenset({"set", "reset", "begin", "start"})
_HARMLESS |= {"xa", "optimize", "repair", "check", "flush", "unlock", "kill", "describe", "desc"}
_HARMLESS |= {"comment", "reindex", "cluster", "security", "attach", "detach", "load"}


_COMMITTING = frozenset({"alter", "analyze", "begin", "cache", "change", "check", "create", "drop", "flush", "grant"})
_COMMITTING |= {"install", "load", "lock", "optimize", "rename", "repair", "reset", "revoke", "start", "truncate"}
_COMMITTING |= {"uninstall", "unlock"}
_MARIADBS_OWN = re.compile(r"#[^\n]*|/\*M?!\d*|\*/|^\s*set\s+statement\b.*?\bfor\b", re.IGNORECASE | re.DOTALL)
"""What is a comment there and not elsewhere, what is none, and what another statement follows."""
_OF_ONE_TRANSACTION = re.compile(r"\s*(?:begin|start|set\s+(?:local\s+)?transaction)\b", re.IGNORECASE)
_TEMPORARY = re.compile(r"\b(?:create|drop)\s+(?:or\s+replace\s+)?temporary\b", re.IGNORECASE)
_AUTOCOMMIT = re.compile(r"\bautocommit\b", re.IGNORECASE)


def commits_by_itself(sql: str) -> bool:
    """Tell whether MariaDB commits when it executes *sql*: DDL, and what begins another transaction.

    https://mariadb.com/kb/en/sql-statements-that-cause-an-implicit-commit/
    """
    for first in _first_words(sql):
        if first in _COMMITTING and not _TEMPORARY.search(sql):
            return True
        if first == "set" and _AUTOCOMMIT.search(sql):
            return True
    return False


def text_writes(entities: Entities, sql: str, dialect: str) -> Iterator[Written | Undone]:
    """Yield what *sql* writes. Raises `ConfigurationError` where that cannot be known, and is not allowed for."""
    # The first word decides what kind of statement it is; every word may name a table. String literals and comments
    # are searched too: to find a table too many costs misses, to find one too few would cost the promise.
    words = [word.lower() for word in _WORDS.findall(_ROW_LOCKS.sub(" ", sql))]
    words += [_bare(name) for name in _QUOTED_NAMES.findall(sql)]
    firsts = _first_words(sql)
    if dialect == "mariadb" and _MARIADBS_OWN.search(sql):
        # Inside a literal it is neither; so what may do anything counts wherever it stands.
        firsts = _first_words(_MARIADBS_OWN.sub(" ", sql)) + [word for word in words if word in {"call", "execute"}]
        dialect = ""
    elif len(firsts) == 1 and _INDEXES.match(sql):
        return
    for first in firsts:
        yield from _one_of_text(entities, sql, first, words, dialect if dialect and len(firsts) == 1 else None)


def _first_words(sql: str) -> list[str]:
    """Return the first word of each statement in *sql*; a driver may send several at once."""
    # A backslash may escape a quote: then a semicolon inside a literal counts as well.
    bare = (_COMMENTS if "\\" in sql else _QUOTED).sub(" ", sql)
    found = [_WORDS.search(part) for part in bare.split(";")]
    return [word.group().lower() for word in found if word]


def _bare(name: str) -> str:
    """Return a name without its quotes."""
    if name[0] in '"`[':
        return name[1:-1].replace(name[0] * 2, name[0]).lower()
    return name.lower()


def _one_of_text(
    entities: Entities, sql: str, first: str, words: Sequence[str], dialect: str | None
) -> Iterator[Written | Undone]:
    """Yield what one statement writes. *dialect*: None if it does not stand alone."""
    found = set(words)
    verbs = found & (_CTE_VERBS if dialect is not None and first in _QUERIES else _WRITES | _STRUCTURE)
    if _REPLACE_INTO.search(sql):
        verbs |= {"replace"}
    sets = first in _SETTINGS or "set_config" in found
    if first == "load" and "into" in found:
        verbs |= {first}
    _refuse(sql, first, found, sets=sets)
    if first in _SAVEPOINTS:
        yield Undone(isolation=False)
    elif sets and any("isolation" in word for word in found):
        yield Undone(isolation=True, lasting=not _OF_ONE_TRANSACTION.match(sql))
    elif first not in _HARMLESS or verbs:
        understood = None if dialect is None else understand(sql, dialect)
        if understood is None:
            yield from _by_words(entities, sql, first, words, writes=bool(verbs))
        elif understood.replaces:
            yield from _replaced(entities, _tables_of(entities, understood.targets))
        elif understood.targets:
            yield from _inserted(entities, _tables_of(entities, understood.targets))


def _refuse(sql: str, first: str, found: Collection[str], *, sets: bool) -> None:
    """Raise `ConfigurationError` for a statement after which nobody knows where rows are, or what was committed."""
    if first == "use" or (sets and "search_path" in found):
        raise ConfigurationError(
            f"{sql.strip()[:60]!r}: which schema's rows are read and written from now on cannot be seen. Use "
            f"execution_options(schema_translate_map={{...}}); or say .execution_options({TABLES_OPTION}=[]) if every "
            "cached table has its schema in its name."
        )
    if first in _ENDS or (first == "xa" and not {"begin", "start"}.intersection(found)):
        raise ConfigurationError(
            f"{sql.strip()[:60]!r}: a transaction that is ended by text cannot be announced. Use session.commit() or "
            "session.prepare()."
        )


def _by_words(
    entities: Entities, sql: str, first: str, words: Sequence[str], *, writes: bool
) -> Iterator[Written | Undone]:
    """Yield what a statement may write that is not understood further."""
    found = set(words)
    if first == "insert" and not found & _REPLACES:
        yield from _inserted(entities, _tables_in(entities, sql, words))
    elif writes and first not in _OPAQUE:
        tables = _tables_in(entities, sql, words)
        if {"truncate", "cascade"} <= found:
            yield from _anything(entities)
        elif tables.known or found & _REPLACES:
            yield from _replaced(entities, tables)
    elif all(family.policy.on_unknown_sql is OnUnknownSQL.EVICT for family in entities.families):
        yield from _anything(entities)
    else:
        raise ConfigurationError(
            f"What {sql.strip()[:60]!r} changes cannot be known. Say which tables: "
            f".execution_options({TABLES_OPTION}=['user', ...]), or an empty list if none. Or let such statements "
            "evict every cached model: CachePolicy(on_unknown_sql=OnUnknownSQL.EVICT) for each."
        )


class _Tables(NamedTuple):
    """Tables that a statement may write; and whether they are known to be all."""

    names: set[TableName]
    known: bool


def _inserted(entities: Entities, tables: _Tables) -> Iterator[Written]:
    families = [family for name in tables.names for family in entities.families_of_table(name)]
    for family in families if tables.known else entities.families:
        yield Written(family, (), unseen=True)
    yield from named(entities, filter(entities.replaces, tables.names))


def _replaced(entities: Entities, tables: _Tables) -> Iterator[Written]:
    # A view, a partition, a table that no metadata knows: it may be behind any entry.
    return named(entities, tables.names) if tables.known else _anything(entities)


def _anything(entities: Entities) -> Iterator[Written]:
    for family in entities.families:
        yield Written(family, None)


def _tables_in(entities: Entities, sql: str, words: Sequence[str]) -> _Tables:
    """Return the tables that *sql* may name; known if every table that follows a verb is among them."""
    names = entities.tables_named_in(words)
    targets = {_bare(target) for target in _TARGETS.findall(_ROW_LOCKS.sub(" ", sql))} - {"set"}
    return _Tables(names, bool(names) and all(entities.tables_named_in([target]) for target in targets))


def _tables_of(entities: Entities, targets: Collection[str]) -> _Tables:
    """Return the tables of these names."""
    return _Tables(entities.tables_named_in(targets), all(entities.tables_named_in([target]) for target in targets))
