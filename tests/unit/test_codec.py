"""The codec: rows to bytes and back, and what it refuses in either direction."""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sa_writethrough import wire
from sa_writethrough.codec import Field, RowCodec, fingerprint_in, fingerprint_of
from sa_writethrough.exceptions import CodecError

FINGERPRINT = fingerprint_of(["id", "name", "born"])
SECRET = b"a secret of the fleet"

FIELDS = [
    Field("t.id", int),
    Field("t.name", str),
    wire.DECIMAL.field("t.price"),
    wire.UUID.field("t.token"),
    wire.AWARE_DATETIME.field("t.seen"),
    wire.JSON.field("t.prefs"),
    wire.array_of(wire.INT, list).field("t.scores"),
]
ROW = (
    7,
    "Ada",
    Decimal("12.50"),
    uuid.UUID(int=9),
    dt.datetime(2024, 5, 6, tzinfo=dt.timezone(dt.timedelta(hours=2))),
    {"theme": "dark", "n": [1, None, 2.5]},
    [[1, 2], [3, 4]],
)

PLAIN = RowCodec(FIELDS, FINGERPRINT)
SIGNED = RowCodec(FIELDS, FINGERPRINT, SECRET)

codecs = pytest.mark.parametrize("codec", [PLAIN, SIGNED], ids=["plain", "signed"])


@codecs
@pytest.mark.parametrize("row", [ROW, (None,) * len(FIELDS)], ids=["values", "nulls"])
def test_a_row_comes_back_as_it_was(codec: RowCodec, row: tuple[Any, ...]) -> None:
    """Values, types and offsets survive a stay in the cache."""
    decoded = codec.decode(codec.encode(row))
    assert decoded == row
    assert repr(decoded) == repr(row)


def test_a_row_without_converters_comes_back() -> None:
    """Fields that travel as they are need no converter in either direction."""
    codec = RowCodec([Field("a", int), Field("b", str), Field("c", int | float)], FINGERPRINT)
    assert [codec.decode(codec.encode(row)) for row in ((1, "x", 1), (1, None, 1.0))] == [(1, "x", 1), (1, None, 1.0)]


def test_a_row_of_no_columns_comes_back() -> None:
    """The codec of a schema without columns is not a special case."""
    codec = RowCodec([], FINGERPRINT)
    assert codec.decode(codec.encode(())) == ()


def test_a_decoded_row_shares_nothing_with_the_encoded_one() -> None:
    """What the application does to a dict after it was encoded does not reach the cache."""
    prefs: dict[str, Any] = {"theme": "dark"}
    payload = RowCodec([wire.JSON.field("prefs")], FINGERPRINT).encode([prefs])
    prefs["theme"] = "light"
    assert RowCodec([wire.JSON.field("prefs")], FINGERPRINT).decode(payload) == ({"theme": "dark"},)


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63), 2**64 - 1])
def test_integers_of_64_bit_travel(value: int) -> None:
    """The whole range of a BIGINT, and of an unsigned one, is carried."""
    codec = RowCodec([Field("t.id", int)], FINGERPRINT)
    assert codec.decode(codec.encode([value])) == (value,)


def test_json_beyond_64_bit_travels_as_text() -> None:
    """JSON has no largest integer and knows lone surrogates; MessagePack does not."""
    codec = RowCodec([wire.JSON.field("prefs")], FINGERPRINT)
    for value in (2**64, {"a": [2**100, "\ud800"]}, {"\ud800": None}):
        assert codec.decode(codec.encode([value])) == (value,)


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        (Field("t.id", int), 2**64, "int"),
        (Field("t.id", int), True, "bool"),
        (Field("t.id", int), "400", "str"),
        (Field("t.ratio", float), 1, "int"),
        (Field("t.ratio", int | float), Decimal(1), "Decimal"),
        (Field("t.name", str), Text("x"), "Text"),
        (Field("t.name", str), "\ud800", "str"),
        (Field("t.name", str), object(), "object"),
        (wire.DATE.field("t.day"), dt.datetime(2024, 1, 1), "datetime"),
        (wire.JSON.field("t.prefs"), {"a": {1, 2}}, "dict"),
        (wire.UUID.field("t.token"), "not one", "str"),
    ],
)
@codecs
def test_a_value_that_would_not_come_back_is_refused(codec: RowCodec, field: Field, value: Any, said: str) -> None:
    """CodecError names the field and the type of the value, whatever was the matter with it."""
    refusing = RowCodec([Field("t.other", str), field], FINGERPRINT, None if codec is PLAIN else SECRET)
    with pytest.raises(CodecError, match=rf"^{field.name}: a value of type .*{said} cannot be cached"):
        refusing.encode(("fine", value))


def test_a_row_of_another_length_is_refused() -> None:
    """CodecError says how many values there were, and for which fields."""
    with pytest.raises(CodecError, match=r"a row of 2 values for 7 fields: t\.id, t\.name"):
        PLAIN.encode((1, "x"))


def test_what_only_the_whole_row_shows_is_refused() -> None:
    """A converter that fails the first time and not the second still ends in CodecError."""
    calls = iter([ValueError("once"), None])

    def to_wire(value: Any) -> Any:
        error = next(calls)
        if error:
            raise error
        return value

    with pytest.raises(CodecError, match="a row of t\\.x cannot be cached: once"):
        RowCodec([Field("t.x", str, to_wire)], FINGERPRINT).encode(["x"])


def test_a_structure_needs_a_converter_that_checks_it() -> None:
    """A field of lists without to_wire could let through what comes back as something else."""
    with pytest.raises(ValueError, match=r"t\.x: values of list\[int\] need a to_wire"):
        RowCodec([Field("t.x", list[int])], FINGERPRINT)


@pytest.mark.parametrize("fingerprint", [b"", b"seven b", b"nine byte"])
def test_a_fingerprint_has_eight_bytes(fingerprint: bytes) -> None:
    """A fingerprint of another length would shift the payload."""
    with pytest.raises(ValueError, match="a fingerprint has 8 bytes"):
        RowCodec(FIELDS, fingerprint)


def test_a_secret_is_not_empty() -> None:
    """An empty secret would sign nothing and look as if it did."""
    with pytest.raises(ValueError, match="the secret is empty"):
        RowCodec(FIELDS, FINGERPRINT, b"")


@codecs
def test_many_rows_are_opened_as_they_travelled(codec: RowCodec) -> None:
    """`open` decodes each row and leaves it to the caller to apply `from_wire`."""
    rows = codec.open([codec.encode(ROW), codec.encode((None,) * len(FIELDS))])
    assert rows is not None
    first, second = rows
    converted = [
        value if value is None or field.from_wire is None or type(value) is field.unchanged else field.from_wire(value)
        for field, value in zip(FIELDS, first, strict=True)
    ]
    assert tuple(converted) == ROW
    assert second == (None,) * len(FIELDS)


@codecs
@pytest.mark.parametrize("payload", [b"", b"\x7f" + PLAIN.encode(ROW)[1:], RowCodec([], FINGERPRINT, b"x").encode(())])
def test_one_payload_that_is_not_ours_opens_none(codec: RowCodec, payload: bytes) -> None:
    """A foreign or forged payload among many is left to `decode`, and so are the others."""
    assert codec.open([codec.encode(ROW), payload]) is None
    assert codec.open_one(payload) is None


@codecs
def test_one_row_is_opened_like_many(codec: RowCodec) -> None:
    """`open_one` gives what `open` gives; a damaged row raises where there is no signature that shows it first."""
    rows = codec.open([codec.encode(ROW)])
    assert rows is not None
    assert codec.open_one(codec.encode(ROW)) == next(rows)
    if codec is PLAIN:
        with pytest.raises(msgspec.DecodeError):
            codec.open_one(codec.encode(ROW)[:-1])
    else:
        assert codec.open_one(codec.encode(ROW)[:-1]) is None


def test_a_damaged_row_is_found_when_it_is_reached() -> None:
    """`open` gives the rows before it; the damaged one raises."""
    rows = PLAIN.open([PLAIN.encode(ROW), PLAIN.encode(ROW)[:-1]])
    assert rows is not None
    next(rows)
    with pytest.raises(msgspec.DecodeError):
        next(rows)


# --- what is not ours -------------------------------------------------------------------------------------------------


def test_another_schema_is_a_miss() -> None:
    """A reader with another version of the model reads nothing."""
    assert RowCodec(FIELDS, fingerprint_of(["other"])).decode(PLAIN.encode(ROW)) is None


def test_another_format_is_a_miss() -> None:
    """A payload of a later version of the library is not read."""
    assert PLAIN.decode(b"\x7f" + PLAIN.encode(ROW)[1:]) is None


@pytest.mark.parametrize("reader", [PLAIN, RowCodec(FIELDS, FINGERPRINT, b"another secret")], ids=["none", "other"])
def test_a_signed_payload_needs_its_secret(reader: RowCodec) -> None:
    """Who has no secret, or another one, reads nothing that is signed."""
    assert reader.decode(SIGNED.encode(ROW)) is None


def test_an_unsigned_payload_is_not_read_where_there_is_a_secret() -> None:
    """Whoever can write to the cache cannot pass a row without the secret."""
    payload = PLAIN.encode(ROW)
    assert SIGNED.decode(payload) is None
    assert SIGNED.decode(b"\x02" + payload[1:]) is None
    assert SIGNED.decode(b"\x02" + payload[1:9] + bytes(16) + payload[9:]) is None


@pytest.mark.parametrize("position", range(len(SIGNED.encode(ROW))))
def test_a_signed_payload_cannot_be_changed(position: int) -> None:
    """One flipped bit anywhere, header included, makes it a miss."""
    payload = bytearray(SIGNED.encode(ROW))
    payload[position] ^= 1
    assert SIGNED.decode(bytes(payload)) is None


@codecs
@pytest.mark.parametrize("length", range(len(SIGNED.encode(ROW))))
def test_a_truncated_payload_is_a_miss(codec: RowCodec, length: int) -> None:
    """However much of it arrives, a part is no row."""
    payload = codec.encode(ROW)
    assert codec.decode(payload[: min(length, len(payload) - 1)]) is None


@codecs
def test_a_payload_with_more_behind_it_is_a_miss(codec: RowCodec) -> None:
    """Bytes after the row are not ignored."""
    assert codec.decode(codec.encode(ROW) + b"\x00") is None


def body(*values: Any) -> bytes:
    """Return a payload of one's own making."""
    return PLAIN.encode(ROW)[:9] + msgspec.msgpack.encode(values)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        body(),
        body(*[None] * 6),
        body(*[None] * 8),
        body("7", *[None] * 6),
        body(None, 7, *[None] * 5),
        body(None, None, "much", *[None] * 4),
        body(*[None] * 4, [1.5, "Nowhere/Land"], None, None),
        body(*[None] * 6, [[0], [1]]),
        body(*[None] * 5, msgspec.msgpack.Ext(2, b""), None),
        body(*[None] * 5, msgspec.msgpack.Ext(1, b"{"), None),
        body(*[None] * 7)[:-2] + b"\x91" * 100_000,
        body(*[None] * 7)[:-2] + b"\xdd\xff\xff\xff\xff\xc0",
    ],
)
def test_a_damaged_payload_is_a_miss(payload: bytes) -> None:
    """Wrong types, lengths, zones, extensions and depths are all the same to the reader: nothing."""
    assert PLAIN.decode(payload) is None


@codecs
@given(payload=st.binary())
@example(payload=b"\x01")
def test_no_bytes_make_decode_raise(codec: RowCodec, payload: bytes) -> None:
    """Arbitrary bytes, alone or behind our header, are a row or None."""
    header = codec.encode(ROW)[:9]
    assert codec.decode(payload) is None
    assert isinstance(codec.decode(header + payload), tuple | None)


@codecs
@given(data=st.data())
def test_no_mutation_makes_decode_raise(codec: RowCodec, data: st.DataObject) -> None:
    """A payload with bytes replaced, cut or inserted is a row or None; a signed one is None."""
    payload = codec.encode(ROW)
    start = data.draw(st.integers(0, len(payload)))
    end = data.draw(st.integers(start, len(payload)))
    mutated = payload[:start] + data.draw(st.binary(max_size=8)) + payload[end:]
    decoded = codec.decode(mutated)
    if mutated == payload:
        assert decoded == ROW
    elif codec is SIGNED:
        assert decoded is None
    else:
        assert decoded is None or len(decoded) == len(FIELDS)


# --- fingerprints -----------------------------------------------------------------------------------------------------


def test_a_fingerprint_is_the_same_in_every_process() -> None:
    """It depends on the text alone: no hash seed, no address."""
    assert fingerprint_of(["id:int", "name:text"]).hex() == "960dcbb1f137feb2"


@given(st.lists(st.text()), st.lists(st.text()))
@example(["ab", "c"], ["a", "bc"])
@example(["a", "b"], ["b", "a"])
@example([""], [])
@example(["1:a"], ["", "a"])
def test_other_parts_have_another_fingerprint(first: list[str], second: list[str]) -> None:
    """Neither the order nor the borders of the parts are lost."""
    assert (fingerprint_of(first) == fingerprint_of(second)) == (first == second)


@codecs
def test_a_payload_tells_its_fingerprint(codec: RowCodec) -> None:
    """A reader of several schemas finds out which one a payload has."""
    assert fingerprint_in(codec.encode(ROW)) == codec.fingerprint == FINGERPRINT
