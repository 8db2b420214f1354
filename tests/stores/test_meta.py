"""The meta protocol's bytes, and the conversations in it; without a server."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sa_writethrough.coherence import (
    BUSY,
    MISSING,
    Announce,
    AnnounceEpoch,
    Failed,
    Fill,
    Hit,
    Intent,
    Leased,
    Publish,
    Put,
    Retract,
    Settled,
)
from sa_writethrough.exceptions import ConfigurationError
from sa_writethrough.stores import _meta as meta
from sa_writethrough.stores import _plans as plans
from sa_writethrough.stores._connecting import Address, ConnectOptions, Credentials, has_explicit_cas
from sa_writethrough.stores._meta import Kind, MalformedReplyError, Reply, ReplyReader
from sa_writethrough.stores._nodes import Node, NodeOptions, random_cas
from sa_writethrough.stores._plans import ItemToken

NODE = Node(Address("nowhere"), NodeOptions())
STAMP = meta.stamp_of(7)


def counted():
    """The server numbers its items itself."""


def chosen():
    """Every new item gets the id 99."""
    return 99


def token(cas, stamp):
    """A token that belongs to no connection."""
    return ItemToken(NODE, None, cas, stamp)


def forget(*_):
    """Remember nothing of an epoch."""


def converse(plan, *rounds):
    """Answer *plan* with *rounds* of server bytes; return all that it sent, and its results."""
    sent, commands = [], next(plan)
    for answer in rounds:
        sent.append(b"".join(commands))
        reader = ReplyReader()
        reader.feed(answer)
        replies = reader.replies(100)
        assert reader.is_empty
        try:
            commands = plan.send(replies)
        except StopIteration as stop:
            return sent, stop.value
    raise AssertionError(f"it wants to send {commands} as well")


# --- commands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ttl", "seconds"), [(None, 0), (0.1, 1), (1.0, 1), (1.01, 2), (3600, 3600), (1e9, meta.MAX_RELATIVE_TTL)]
)
def test_time_limits_are_whole_seconds(ttl, seconds):
    """A limit is rounded up, at least a second, and never so large that memcached takes it for a date."""
    assert meta.expiry(ttl) == seconds


def test_commands_without_ids_of_our_own():
    """Before 1.6.27 nothing is said about ids but what they must be."""
    assert meta.touch_epoch("e", None) == b"mg e f c N0\r\n"
    assert meta.gets(["k", "l"], 10, None) == b"mg k v f c N10\r\nmg l v f c N10\r\n"
    assert meta.looks(["k", "l"]) == b"mg k v f c\r\nmg l v f c\r\n"
    assert meta.tombstone("k", 3, None) == b"ms k 0 T3 F2 c\r\n\r\n"
    assert meta.store("k", b"row", Kind.ROW, None, own=5) == b"ms k 3 T0 F1 C5\r\nrow\r\n"
    assert meta.delete("k", 5) == b"md k C5\r\n"


def test_commands_with_ids_of_our_own():
    """From 1.6.27 on every new item gets an id that no other has had."""
    assert meta.touch_epoch("e", 9) == b"mg e f c N0 E9\r\n"
    assert meta.gets(["k"], 10, 9) == b"mg k v f c N10 E9\r\n"
    assert meta.tombstone("k", 3, 9) == b"ms k 0 T3 F2 c E9\r\n\r\n"
    assert meta.store("k", b"row", Kind.ROW, None, own=5, fresh=9) == b"ms k 3 T0 F1 C5 E9\r\nrow\r\n"


@pytest.mark.parametrize(
    ("version", "explicit"),
    [
        (b"1.6.18", False),
        (b"1.6.26", False),
        (b"1.6.27", True),
        (b"1.6.38_3_gabc", True),
        (b"1.10.0", True),
        (b"?", False),
    ],
)
def test_version_tells_whether_ids_can_be_chosen(version, explicit):
    """Whatever does not look like a new memcached is treated like an old one."""
    assert has_explicit_cas(version) is explicit


def test_random_ids_fit_and_are_not_zero(monkeypatch):
    """An id has 64 bits and is not zero, which would mean: no id."""
    assert 0 < random_cas() < 2**64
    monkeypatch.setattr("os.urandom", bytes)
    assert random_cas() == 1


def test_passwords_are_not_shown():
    """What holds the password does not print it."""
    assert "hush" not in repr(ConnectOptions(credentials=Credentials("user", "hush")))


# --- replies --------------------------------------------------------------------------------------------------------

STREAM = (
    b"HD f0 c7 Z\r\nVA 5 f1 c12\r\na\r\nbc\r\nEN\r\nVA 0 f0 c3 W\r\n\r\n"
    b"NF\r\nEX\r\nNS\r\nHD\r\nSERVER_ERROR out of memory\r\n"
)
REPLIES = [
    Reply(b"HD", cas=7),
    Reply(b"VA", b"a\r\nbc", kind=1, cas=12),
    Reply(b"EN"),
    Reply(b"VA", cas=3, won=True),
    Reply(b"NF"),
    Reply(b"EX"),
    Reply(b"NS"),
    Reply(b"HD"),
    Reply(b"!", error="SERVER_ERROR out of memory"),
]


@given(cuts=st.lists(st.integers(0, len(STREAM))), most=st.integers(1, 9))
def test_replies_do_not_depend_on_how_they_arrive(cuts, most):
    """However the stream is cut into pieces, and however many are taken at once, the replies are the same."""
    reader, replies = ReplyReader(), []
    borders = [0, *sorted(cuts), len(STREAM)]
    for start, end in pairwise(borders):
        reader.feed(STREAM[start:end])
        while some := reader.replies(most):
            assert len(some) <= most
            replies += some
    assert replies == REPLIES
    assert reader.is_empty


def test_reader_says_how_much_is_missing():
    """Of a large value it is known after its first line how much is still to come."""
    reader = ReplyReader()
    reader.feed(b"VA 1000 f1 c1\r\nabc")
    assert reader.replies(1) == []
    assert reader.wanted_bytes == 1000 + 2 - 3
    reader.feed(b"d" * 900)
    assert reader.replies(1) == []
    assert reader.wanted_bytes == 1000 + 2 - 903
    assert not reader.is_empty
    reader.feed(b"e" * 97 + b"\r\nEN\r\n")
    assert reader.replies(9) == [Reply(b"VA", b"abc" + b"d" * 900 + b"e" * 97, kind=1, cas=1), Reply(b"EN")]
    assert reader.wanted_bytes == 0


@pytest.mark.parametrize(
    "nonsense",
    [
        b"HELLO\r\n",
        b"\r\n",
        b"VA\r\n",
        b"VA x f1\r\n",
        b"VA -2 f1 c1\r\n\r\n",
        b"VA 2 f1 cx\r\nab\r\n",
        b"HD fx\r\n",
        b"VA 2 f1 c1\r\nabc\r\n",
    ],
)
def test_nonsense_is_malformed(nonsense):
    """What is no meta reply makes the connection unusable."""
    reader = ReplyReader()
    reader.feed(nonsense)
    with pytest.raises(MalformedReplyError):
        reader.replies(1)


LINE = b"HD f0 c7 Z\r\n"
OPEN = meta.OpenEpoch("e", 7)
USUAL = LINE + b"VA 11 f1 c9\r\n" + STAMP + b"row\r\n"


@pytest.mark.parametrize(
    "unusual",
    [
        b"",
        b"HD f0 c8 Z\r\n" + USUAL[len(LINE) :],
        LINE,
        LINE + b"EN\r\n",
        LINE + b"VA 11 f2 c9\r\n" + STAMP + b"row\r\n",
        LINE + b"VA 11 f1 c9\r\n" + meta.stamp_of(6) + b"row\r\n",
        LINE + b"SERVER_ERROR out of memory\r\n",
        USUAL[:-1],
        USUAL + b"HD\r\n",
    ],
)
def test_hot_path_takes_the_usual_answer_alone(unusual):
    """The fast parser knows one answer; any other it leaves to the reader of replies."""
    assert meta.hit(USUAL, OPEN) == b"row"
    assert meta.hit(unusual, OPEN) is None


ITEMS = {
    b"VA 11 f1 c9\r\n" + STAMP + b"row\r\n": Hit(b"row"),
    b"VA 12 f1 c9\r\n" + STAMP + b"\r\n\r\n\r\n": Hit(b"\r\n\r\n"),
    b"VA 11 f1 c9\r\n" + meta.stamp_of(6) + b"old\r\n": Reply,
    b"VA 0 f2 c9\r\n\r\n": Reply,
    b"VA 0 f0 c9 W\r\n\r\n": Reply,
    b"EN\r\n": Reply,
}
"""What a reader is answered, and what it comes as."""


@given(st.lists(st.sampled_from(sorted(ITEMS))), st.integers(1, 60))
def test_rows_among_other_replies_come_as_hits(items, size):
    """`rows` gives every reply in order, the epoch's own rows as hits, however the bytes are cut."""
    stream, reader, found = b"".join(items), ReplyReader(), []
    for at in range(0, len(stream), size):
        reader.feed(stream[at : at + size])
        found += reader.rows(len(items) - len(found), OPEN)
    assert reader.is_empty
    assert [one if isinstance(one, bytes) else type(one) for one in found] == [ITEMS[item] for item in items]


def test_rows_that_are_cut_all_at_once_are_those_that_replies_give():
    """Where there is nothing but rows, the cut finds what the general reader finds, and leaves as much behind."""
    rows = [b"VA %d f1 c9\r\n" % (8 + size) + STAMP + b"\n" * size + b"\r\n" for size in (0, 3, 11)]
    fast, general = ReplyReader(), ReplyReader()
    for reader in (fast, general):
        reader.feed(b"".join(rows) + b"EN\r\n")
    assert fast.rows(3, OPEN) == [reply.value[8:] for reply in general.replies(3)]
    assert fast.replies(1) == general.replies(1)
    assert fast.is_empty


def test_a_row_that_holds_what_a_reply_begins_with_is_not_cut_there():
    """A row's length decides where it ends, and not what its bytes look like."""
    inner = b"VA 11 f1 c9\r\n" + STAMP + b"row"
    item = b"VA %d f1 c9\r\n" % (10 + len(inner)) + STAMP + b"\r\n" + inner + b"\r\n"
    reader = ReplyReader()
    reader.feed(item * 3)
    assert reader.rows(3, OPEN) == [b"\r\n" + inner] * 3
    assert reader.is_empty


def test_rows_leave_what_was_not_asked_for():
    """`rows` takes as many replies as it was told to and no more."""
    reader = ReplyReader()
    reader.feed(b"EN\r\n" + USUAL[len(LINE) :] * 3)
    assert len(reader.rows(2, OPEN)) == 2
    assert not reader.is_empty
    assert reader.rows(2, OPEN) == [Hit(b"row")] * 2


@pytest.mark.parametrize("behind", [b"XY", b"VA"])
def test_a_row_that_is_not_as_long_as_it_says_is_malformed(behind):
    """The stream is out of step: nothing that follows can be trusted."""
    reader = ReplyReader()
    reader.feed(USUAL[len(LINE) :] + USUAL[len(LINE) : -2] + behind + USUAL)
    with pytest.raises(MalformedReplyError):
        reader.rows(4, OPEN)


# --- conversations --------------------------------------------------------------------------------------------------


def reading(answer, *more, intent=Intent.FILL, epoch="e", fresh=counted):
    """What reading one key gives when the server says *answer*."""
    commands = plans.read_commands(["k"], epoch, intent, 10, fresh)
    plan = plans.read(["k"], epoch, intent, lease_ttl=10, fresh=fresh, token=token, remember=forget)
    (_, *sent), (result,) = converse(plan, answer, *more)
    return [commands, *sent], result


def test_read_asks_for_the_epoch_first():
    """One pipeline: the epoch, then the key; whoever would not fill asks for no lease."""
    assert reading(LINE + b"EN\r\n")[0] == [b"mg e f c N0\r\nmg k v f c N10\r\n"]
    assert reading(LINE + b"EN\r\n", fresh=chosen)[0] == [b"mg e f c N0 E99\r\nmg k v f c N10 E99\r\n"]
    assert reading(LINE + b"EN\r\n", intent=Intent.LOOK)[0] == [b"mg e f c N0\r\nmg k v f c\r\n"]
    assert reading(b"EN\r\n", epoch=None)[0] == [b"mg k v f c N10\r\n"]


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (b"EN\r\n", MISSING),
        (b"VA 11 f1 c9\r\n" + STAMP + b"row\r\n", Hit(b"row")),
        (b"VA 0 f2 c9\r\n\r\n", BUSY),
        (b"VA 0 f0 c9 Z\r\n\r\n", BUSY),
    ],
)
def test_items_and_what_they_are_read_as(item, expected):
    """A row of the epoch is a hit; a tombstone and a foreign lease are busy."""
    assert reading(LINE + item, intent=Intent.LOOK)[1] == expected
    assert reading(LINE + item)[1] == expected


def test_lease_is_the_items_id():
    """A stub that we made is leased by its id."""
    lease = reading(LINE + b"VA 0 f0 c9 W\r\n\r\n")[1]
    assert isinstance(lease, Leased)
    assert (lease.token.cas, lease.token.stamp) == (9, STAMP)


def test_of_an_epoch_that_is_over_one_reader_takes_the_lease():
    """It replaces the row by its lease; whoever comes too late finds it busy, or gone; nothing is taken without intent."""
    for item in (b"VA 11 f1 c9\r\n" + meta.stamp_of(6) + b"row\r\n", b"VA 3 f3 c9\r\nraw\r\n"):
        sent, lease = reading(LINE + item, b"HD c12\r\n")
        assert sent[1:] == [b"ms k 0 T10 F0 C9 c\r\n\r\n"]
        assert isinstance(lease, Leased)
        assert (lease.token.cas, lease.token.stamp) == (12, STAMP)
        assert reading(LINE + item, b"EX\r\n")[1] == BUSY
        assert reading(LINE + item, b"NF\r\n")[1] == BUSY
        assert isinstance(reading(LINE + item, b"SERVER_ERROR out of memory\r\n")[1], Failed)
        assert reading(LINE + item, b"HD c99\r\n", fresh=chosen)[0][1:] == [b"ms k 0 T10 F0 C9 c E99\r\n\r\n"]
    assert reading(LINE + b"VA 11 f1 c9\r\n" + meta.stamp_of(6) + b"row\r\n", intent=Intent.LOOK)[1] == MISSING


def test_needless_leases_are_given_back():
    """While its epoch is announced everything is busy, and the lease that came with reading is dropped."""
    sent, result = reading(b"HD f2 c8\r\nVA 0 f0 c9 W\r\n\r\n", b"HD\r\n")
    assert sent[1:] == [b"md k C9\r\n"]
    assert result == BUSY
    assert reading(b"HD f2 c8\r\nEN\r\n")[1] == BUSY


def test_errors_are_failures_with_a_remedy():
    """What the server refuses is told with its words and with what to do."""
    failed = reading(b"SERVER_ERROR out of memory\r\nEN\r\n")[1]
    assert isinstance(failed, Failed)
    assert "out of memory" in str(failed.error)
    assert isinstance(reading(LINE + b"SERVER_ERROR oops\r\n")[1], Failed)
    assert "1.6.10" in str(reading(b"ERROR\r\nERROR\r\n")[1].error)


def test_items_without_ids_are_a_configuration_error():
    """Without ids the protocol cannot be kept."""
    with pytest.raises(ConfigurationError, match="-C"):
        reading(b"HD f0 c0 W\r\nVA 0 f0 c0 W\r\n\r\n")


def test_announcement():
    """One pipeline: the epoch's stamp, then a tombstone for each key."""
    changes = [Announce("a", "e", 3), Announce("b", "e", None)]
    sent, (one, two) = converse(
        plans.announce(changes, chosen, token, forget), LINE + b"HD c99\r\nSERVER_ERROR full\r\n"
    )
    assert sent == [b"mg e f c N0 E99\r\nms a 0 T3 F2 c E99\r\n\r\nms b 0 T0 F2 c E99\r\n\r\n"]
    assert (one.cas, one.stamp) == (99, STAMP)
    assert isinstance(two, Failed)
    _, (late,) = converse(plans.announce(changes[:1], counted, token, forget), b"HD f2 c8\r\nHD c9\r\n")
    assert late.stamp is None
    _, (lost,) = converse(plans.announce(changes[:1], counted, token, forget), b"SERVER_ERROR full\r\nHD c9\r\n")
    assert isinstance(lost, Failed)


def test_announcement_of_an_epoch():
    """The epoch's own item becomes a tombstone."""
    change = AnnounceEpoch("e", 3)
    sent, (own,) = converse(plans.announce_epoch(change, chosen, token), b"HD c99\r\n")
    assert sent == [b"ms e 0 T3 F2 c E99\r\n\r\n"]
    assert own.cas == 99
    assert isinstance(converse(plans.announce_epoch(change, counted, token), b"SERVER_ERROR full\r\n")[1][0], Failed)


def publication(*rounds, payload=b"row", stamp=STAMP, max_bytes=1000, fresh=counted):
    """What publishing over the tombstone 9 sends and gives."""
    change = Publish("k", token(9, stamp), payload, 60)
    sent, (outcome,) = converse(plans.settle(change, change.token, fresh, max_bytes), *rounds)
    return sent, outcome


def test_publication():
    """The row replaces the tombstone, after its stamp; one not known, not readable or too large goes as absent."""
    row = b"ms k 11 T60 F1 C9%b\r\n" + STAMP + b"row\r\n"
    assert publication(b"HD c10\r\n") == ([row % b""], Settled.APPLIED)
    assert publication(b"HD c99\r\n", fresh=chosen) == ([row % b" E99"], Settled.APPLIED)
    assert publication(b"NF\r\n") == ([row % b""], Settled.REFUSED)
    for absent in ({"payload": None}, {"stamp": None}, {"max_bytes": 10}):
        assert publication(b"HD\r\n", **absent) == ([b"md k C9\r\n"], Settled.APPLIED)


def test_publication_heals():
    """Over something else: a later writer's tombstone is left alone, anything else is dropped."""
    look, drop = b"mg k v f c\r\n", b"md k C12\r\n"
    assert publication(b"EX\r\n", b"VA 0 f2 c12\r\n\r\n")[1] is Settled.REFUSED
    assert publication(b"EX\r\n", b"EN\r\n")[1] is Settled.REFUSED
    sent, outcome = publication(b"EX\r\n", b"VA 0 f0 c12 Z\r\n\r\n", b"HD\r\n")
    assert (sent[1:], outcome) == ([look, drop], Settled.HEALED)
    sent, outcome = publication(b"EX\r\n", b"VA 0 f1 c11\r\n\r\n", b"EX\r\n", b"VA 0 f1 c12\r\n\r\n", b"HD\r\n")
    assert (sent[3:], outcome) == ([look, drop], Settled.HEALED)
    assert isinstance(publication(b"EX\r\n", b"SERVER_ERROR oops\r\n")[1], Failed)


def test_row_that_the_server_will_not_take_is_published_as_absent():
    """A row that the server has no room for does not stay a tombstone."""
    sent, outcome = publication(b"SERVER_ERROR object too large for cache\r\n", b"HD\r\n")
    assert (sent[1:], outcome) == ([b"md k C9\r\n"], Settled.APPLIED)
    assert isinstance(publication(b"SERVER_ERROR oops\r\n", b"SERVER_ERROR oops\r\n")[1], Failed)


def test_fill():
    """A fill needs the lease's id; too large a row gives the lease back."""

    def filling(answer, stamp=STAMP, max_bytes=1000):
        change = Fill("k", token(9, stamp), b"row", None)
        sent, (outcome,) = converse(plans.settle(change, change.token, chosen, max_bytes), answer)
        return sent[0], outcome

    assert filling(b"HD c99\r\n") == (b"ms k 11 T0 F1 C9 E99\r\n" + STAMP + b"row\r\n", Settled.APPLIED)
    assert filling(b"HD c99\r\n", stamp=b"") == (b"ms k 3 T0 F3 C9 E99\r\nrow\r\n", Settled.APPLIED)
    assert filling(b"EX\r\n")[1] is Settled.REFUSED
    assert filling(b"NF\r\n")[1] is Settled.REFUSED
    assert filling(b"HD\r\n", max_bytes=10) == (b"md k C9\r\n", Settled.REFUSED)


def test_retraction_and_put():
    """The own tombstone is dropped by its id; bytes are stored without one."""
    change = Retract("k", token(9, STAMP))
    assert converse(plans.settle(change, change.token, chosen, 1000), b"HD\r\n") == (
        [b"md k C9\r\n"],
        [Settled.APPLIED],
    )
    assert converse(plans.settle(change, change.token, chosen, 1000), b"EX\r\n")[1] == [Settled.REFUSED]
    put = Put("k", b"raw", None)
    assert converse(plans.put(put, chosen, 100), b"HD c99\r\n") == (
        [b"ms k 3 T0 F3 E99\r\nraw\r\n"],
        [Settled.APPLIED],
    )
    assert converse(plans.put(put, chosen, 1), b"EN\r\n")[1] == [Settled.REFUSED]


def test_eviction_gives_up_after_many_races():
    """An entry that changes each time it is looked at is not evicted for ever."""
    rounds = [b"VA 0 f1 c5\r\n\r\n", b"EX\r\n"] * 32
    _, (outcome,) = converse(plans.evict("k"), *rounds)
    assert isinstance(outcome, Failed)
    assert "changed 32 times" in str(outcome.error)
