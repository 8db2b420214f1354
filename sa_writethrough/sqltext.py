"""What SQL that comes as text writes, as far as words tell: which families, or that nobody can know.

No parser: a word that may be a table's name is taken for one. Decides nothing about sessions or entries.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from sa_writethrough.effects import TABLES_OPTION, Undone, Written, named
from sa_writethrough.entities import Entities, TableName
from sa_writethrough.exceptions import ConfigurationError

__all__ = ["text_writes"]

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
_WRITES = frozenset({"insert", "update", "delete", "merge", "replace", "truncate", "copy"})
_REPLACES = (_WRITES - {"insert", "copy"}) | {"conflict", "duplicate"}
_STRUCTURE = frozenset({"alter", "drop", "create", "refresh", "rename", "import"})
_SAVEPOINTS = frozenset({"savepoint", "release", "rollback", "abort"})
_ENDS = frozenset({"commit", "end", "prepare"})
_OPAQUE = frozenset({"call", "do", "execute"})
_HARMLESS = _QUERIES | {"show", "set", "reset", "pragma", "analyze", "vacuum", "listen", "unlisten", "notify", "lock"}
_HARMLESS |= {"begin", "start", "fetch", "move", "close", "deallocate", "discard", "checkpoint", "grant", "revoke"}
_SETTINGS = frozenset({"set", "reset", "begin", "start"})
_HARMLESS |= {"comment", "reindex", "cluster", "security", "attach", "detach", "load"}


def text_writes(entities: Entities, sql: str) -> Iterator[Written | Undone]:
    """Yield what *sql* writes. Raises `ConfigurationError` where that cannot be known."""
    # The first word decides what kind of statement it is; every word may name a table. String literals and comments
    # are searched too: to find a table too many costs misses, to find one too few would cost the promise.
    words = [word.lower() for word in _WORDS.findall(_ROW_LOCKS.sub(" ", sql))]
    words += [_bare(name) for name in _QUOTED_NAMES.findall(sql)]
    firsts = _first_words(sql)
    for first in firsts:
        yield from _one_of_text(entities, sql, first, words, alone=len(firsts) == 1)


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
    entities: Entities, sql: str, first: str, words: Sequence[str], *, alone: bool
) -> Iterator[Written | Undone]:
    found = set(words)
    verbs = found & (_CTE_VERBS if alone and first in _QUERIES else _WRITES | _STRUCTURE)
    if _REPLACE_INTO.search(sql):
        verbs |= {"replace"}
    sets = first in _SETTINGS or "set_config" in found
    if sets and "search_path" in found:
        raise ConfigurationError(
            f"{sql.strip()[:60]!r}: which schema's rows are read and written from now on cannot be seen. Use "
            f"execution_options(schema_translate_map={{...}}); or say .execution_options({TABLES_OPTION}=[]) if every "
            "cached table has its schema in its name."
        )
    if first in _SAVEPOINTS:
        yield Undone(isolation=False)
    elif first in _ENDS:
        raise ConfigurationError(
            f"{sql.strip()[:60]!r}: a transaction that is ended by text cannot be announced. Use session.commit() or "
            "session.prepare()."
        )
    elif sets and any("isolation" in word for word in found):
        yield Undone(isolation=True)
    elif first in _HARMLESS and not verbs:
        return
    elif first == "insert" and not found & _REPLACES:
        yield from _inserted(entities, sql, words)
    elif verbs and first not in _OPAQUE:
        yield from _named_or_all(entities, sql, words, found)
    else:
        raise ConfigurationError(
            f"What {sql.strip()[:60]!r} changes cannot be known. Say which tables: "
            f".execution_options({TABLES_OPTION}=['user', ...]), or an empty list if none."
        )


def _inserted(entities: Entities, sql: str, words: Sequence[str]) -> Iterator[Written]:
    names, known = _tables(entities, sql, words)
    found = [family for name in names for family in entities.families_of_table(name)] if known else entities.families
    for family in found:
        yield Written(family, (), unseen=True)
    yield from named(entities, filter(entities.replaces, names))


def _tables(entities: Entities, sql: str, words: Sequence[str]) -> tuple[set[TableName], bool]:
    """Return the tables that *sql* may name, and whether every table that follows a verb is among them."""
    names = entities.tables_named_in(words)
    targets = {_bare(target) for target in _TARGETS.findall(_ROW_LOCKS.sub(" ", sql))} - {"set"}
    return names, bool(names) and all(entities.tables_named_in([target]) for target in targets)


def _named_or_all(entities: Entities, sql: str, words: Sequence[str], found: set[str]) -> Iterator[Written]:
    names, known = _tables(entities, sql, words)
    if known and not {"truncate", "cascade"} <= found:
        yield from named(entities, names)
    elif found & _REPLACES:
        # A view, a partition, a table that no metadata knows: it may be behind any entry.
        for family in entities.families:
            yield Written(family, None)
