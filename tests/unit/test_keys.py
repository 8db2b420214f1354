"""Keys: one for equal values, printable, short, and different for different rows."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import uuid
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sa_writethrough import keys


class Colour(enum.Enum):
    RED = "r"
    BLUE = "b"


class Number(enum.IntEnum):
    ONE = 1


ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=120)
DECIMALS = st.decimals(allow_nan=False, allow_infinity=False)
ZONES = st.timezones()
CANONICAL = (
    st.integers(),
    ANY_TEXT,
    st.uuids(),
    st.binary(max_size=300),
    st.dates(),
    st.datetimes(),
    st.datetimes(min_value=dt.datetime(2, 1, 1), max_value=dt.datetime(9990, 1, 1), timezones=ZONES),
    DECIMALS,
    st.sampled_from(Colour),
)
# As `entities` has them: a policy's namespace, and the tag of a database.
NAMES = st.text(st.sampled_from("abcXYZ019-_."), max_size=64).map(lambda namespace: f"{namespace}:0123456789")


def key_of(prefix: str, identity: tuple[Any, ...]) -> str:
    parts = [keys.canonical_part(value) for value in identity]
    assert None not in parts
    return keys.entry_key(prefix, None, parts)  # type: ignore[arg-type]  # checked above


@given(
    st.builds(keys.family_prefix, NAMES, st.none() | ANY_TEXT, ANY_TEXT),
    st.none() | st.integers() | ANY_TEXT | st.tuples(ANY_TEXT, ANY_TEXT),
    st.lists(st.one_of(*CANONICAL), min_size=1, max_size=6),
)
def test_a_key_is_printable_and_short(prefix: str, token: Any, identity: list[Any]) -> None:
    """Whatever table, token and values: printable ASCII without blanks, at most 250 bytes."""
    key = keys.entry_key(prefix, token, [keys.canonical_part(value) for value in identity])
    assert key.isascii()
    assert key.isprintable()
    assert " " not in key
    assert 0 < len(key) <= keys.MAX_KEY_BYTES


@pytest.mark.parametrize("values", CANONICAL, ids=str)
def test_different_values_have_different_keys(values: st.SearchStrategy[Any]) -> None:
    """Two rows whose keys differ in the database do not share an entry."""

    @given(st.lists(st.tuples(values, values), min_size=1, max_size=3))
    def check(pairs: list[tuple[Any, Any]]) -> None:
        one, two = zip(*pairs, strict=True)
        assert (key_of("p:", one) == key_of("p:", two)) == (one == two)

    check()


@given(st.lists(ANY_TEXT, min_size=2, max_size=2), st.lists(ANY_TEXT, min_size=2, max_size=2))
def test_parts_cannot_run_into_each_other(one: list[str], two: list[str]) -> None:
    """No value can contain what separates the parts: ("a,b", "c") is not ("a", "b,c")."""
    assert (key_of("p:", tuple(one)) == key_of("p:", tuple(two))) == (one == two)


@given(DECIMALS, st.integers(0, 20))
def test_a_decimal_has_one_key_at_every_scale(value: decimal.Decimal, zeros: int) -> None:
    """1.5 and 1.500 are equal in the database."""
    sign, digits, exponent = value.as_tuple()
    longer = decimal.Decimal((sign, (*digits, *[0] * zeros), exponent - zeros))
    assert longer == value
    assert keys.canonical_part(longer) == keys.canonical_part(value)


def test_a_negative_zero_is_zero() -> None:
    """-0, 0 and 0.00 are one key."""
    zeros = [decimal.Decimal(text) for text in ("0", "-0", "0.00", "-0.0", "0E+5", "0E-5")]
    assert {keys.canonical_part(zero) for zero in zeros} == {"0"}


@given(st.integers(-(10**30), 10**30))
def test_an_integer_and_its_decimal_have_one_key(value: int) -> None:
    """A NUMERIC key that is given as an integer is the same row."""
    assert keys.canonical_part(decimal.Decimal(value)) == keys.canonical_part(value)


@given(st.datetimes(min_value=dt.datetime(2, 1, 1), max_value=dt.datetime(9990, 1, 1), timezones=ZONES), ZONES)
def test_a_moment_has_one_key_in_every_zone(moment: dt.datetime, zone: Any) -> None:
    """TIMESTAMP WITH TIME ZONE compares moments."""
    assert keys.canonical_part(moment.astimezone(zone)) == keys.canonical_part(moment)


@given(ANY_TEXT, st.integers(0, 5))
def test_a_loose_key_ignores_case_and_trailing_blanks(text: str, blanks: int) -> None:
    """Where the database may hold two strings equal they share a key."""
    assume(len(text.casefold()) == len(text.upper().casefold()))
    assert keys.loose_part(text + " " * blanks) == keys.loose_part(text)
    assert keys.loose_part(text.swapcase().casefold()) == keys.loose_part(text.swapcase())


@given(st.text("abcABC ", max_size=10), st.text("abcABC ", max_size=10))
def test_a_loose_key_tells_other_strings_apart(one: str, two: str) -> None:
    """Strings that differ otherwise have different keys."""
    same = one.lower().rstrip(" ") == two.lower().rstrip(" ")
    assert (keys.loose_part(one) == keys.loose_part(two)) is same


@pytest.mark.parametrize("value", [1.5, None, object(), [1], (1,), decimal.Decimal("NaN"), decimal.Decimal("Infinity")])
def test_what_has_no_one_text_has_no_key(value: Any) -> None:
    """Floats, foreign types and NaN are not keys; the caller goes to the database."""
    assert keys.canonical_part(value) is None


@pytest.mark.parametrize("value", [1, b"a", None, uuid.UUID(int=1)])
def test_only_strings_are_loose(value: Any) -> None:
    """`loose_part` is for strings alone."""
    assert keys.loose_part(value) is None


def test_a_subclass_of_a_type_is_not_that_type() -> None:
    """True is no integer, and a subclass may compare as it likes."""

    class Text(str):
        __slots__ = ()

    assert keys.canonical_part(True) != keys.canonical_part(1)
    assert keys.canonical_part(Text("a")) is None
    assert keys.canonical_part(Number.ONE) == "ONE"
    assert keys.canonical_part(Colour.RED) == "RED"


def test_prefixes_tell_namespaces_schemas_and_tables_apart() -> None:
    """Namespace, schema and table are each part of the prefix."""
    parts = [("", None, "t"), ("n", None, "t"), ("", "s", "t"), ("", None, "s.t"), ("", "s.t", "u"), ("", "s", "t.u")]
    assert len({keys.family_prefix(*part) for part in parts}) == len(parts)
    assert keys.family_prefix("n", "s", "t") == "wt1:n:s.t:"


def test_a_schema_and_a_table_with_dots_are_told_apart() -> None:
    """Schema "a.b" with table "c" is not schema "a" with table "b.c"."""
    assert keys.family_prefix("", "a.b", "c") != keys.family_prefix("", "a", "b.c")
    assert keys.family_prefix("", None, "a.b") != keys.family_prefix("", "a", "b")


@given(
    st.builds(keys.family_prefix, NAMES, st.none() | ANY_TEXT, ANY_TEXT), st.one_of(*CANONICAL), st.none() | ANY_TEXT
)
def test_no_row_has_the_key_of_an_epoch(prefix: str, value: Any, token: Any) -> None:
    """The epoch's key is nobody's, and is printable and short as well."""
    epoch = keys.epoch_key(prefix)
    assert keys.entry_key(prefix, token, [keys.canonical_part(value)]) != epoch
    assert epoch.isascii()
    assert epoch.isprintable()
    assert len(epoch) <= keys.MAX_KEY_BYTES


def test_identity_tokens_have_keys_of_their_own() -> None:
    """Two shards' rows with one primary key have two keys."""
    made = {keys.entry_key("p:", token, ["1"]) for token in (None, 0, "0", "a", ("a", 1))}
    assert len(made) == 5


def test_keys_are_stable() -> None:
    """The text of a key is a promise between versions: it changes with the `wt1` in front alone."""
    prefix = keys.family_prefix("app", "public", "user")
    assert keys.entry_key(prefix, None, ["7"]) == "wt1:app:public.user::7"
    assert keys.entry_key(prefix, None, [keys.canonical_part("a b")]) == "wt1:app:public.user::a%20b"
    assert keys.canonical_part(dt.datetime(2024, 1, 2, 3, 4, 5)) == "2024-01-02T03%3A04%3A05"
    assert keys.canonical_part(b"\xff") == "xff"
    assert keys.epoch_key(prefix) == "wt1:app:public.user:@epoch"


def test_a_key_that_would_be_too_long_is_a_digest() -> None:
    """Many long parts give one short key, different for different parts."""
    one, two = (keys.entry_key("wt1:n:t:", None, ["x" * 60] * 5 + [last]) for last in "ab")
    assert one != two
    assert one.startswith("wt1:#")
    assert len(one) <= keys.MAX_KEY_BYTES


ASCII = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)


@given(ASCII, st.integers(0, 3))
def test_what_mariadb_may_hold_equal_has_one_key(value: str, blanks: int) -> None:
    """Case, trailing blanks, and letters that some languages do not tell apart."""
    part = keys.folded_part(value)
    assert part is not None
    assert part == keys.folded_part(value.upper() + " " * blanks) == keys.folded_part(value.lower())
    assert part == keys.folded_part(value.replace("y", "i").replace("J", "I").replace("w", "v").replace("U", "V"))


@given(ASCII, ASCII)
def test_strings_that_differ_in_more_have_two_keys(one: str, other: str) -> None:
    """No row is kept out by another one's entry without need."""
    bare = [value.rstrip().lower().translate(str.maketrans("jyvw", "iiuu")) for value in (one, other)]
    assert (keys.folded_part(one) == keys.folded_part(other)) is (bare[0] == bare[1])


@pytest.mark.parametrize("value", ["é", "ß", "a\tb", "a\x00", "\N{SOFT HYPHEN}", "\ud800"])
def test_what_only_the_collation_knows_has_no_key(value: str) -> None:
    """Characters that some collations ignore, or hold equal to others."""
    assert keys.folded_part(value) is None
