"""The checker against brute force, and against violations that were planted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.chaos.checker import BEFORE, NEVER, VERSION, Kind, check, check_key
from tests.chaos.log import NOT_READ, READ, Source

MOMENTS = 6
CACHE, DATABASE = Source.CACHE, Source.DATABASE


def versions(*rows):
    """Make versions of key 7 out of (number, gone, low, high); number 1 was there from the beginning."""
    made = np.zeros(len(rows), VERSION)
    for one, (number, gone, low, high) in zip(made, rows, strict=True):
        values = (0, 0) if gone else (number, number)
        one["key"], one["version"], one["gone"], one["low"], one["high"] = 7, number, gone, low, high
        one["a"], one["b"] = values
    return made


def reads(*rows):
    """Make reads of key 7 out of (start, end, number, source); number 0 found no row."""
    made = np.zeros(len(rows), READ)
    for one, (start, end, number, source) in zip(made, rows, strict=True):
        one["key"], one["start"], one["end"], one["a"], one["b"], one["source"] = 7, start, end, number, number, source
    return made


def kinds(versions, reads):
    return [one.kind for one in check_key(versions, reads)]


TWO = versions((1, False, BEFORE, BEFORE), (2, False, 10, 20))


# --- planted violations, one of each kind ---


@pytest.mark.parametrize(("note", "found"), [(5, []), (4, [Kind.DIRTY]), (0, [Kind.DIRTY]), (NOT_READ, [])])
def test_a_column_of_one_model_alone_is_part_of_the_row(note, found):
    """A row that the old model put together for the new one is nobody's; the old model does not read the column."""
    written, seen = versions((1, False, BEFORE, BEFORE)), reads((5, 6, 1, CACHE))
    written["note"], seen["note"] = 5, note
    assert kinds(written, seen) == found


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        ((21, 22, 1, CACHE), Kind.STALE),
        ((5, 9, 2, CACHE), Kind.FUTURE),
        ((12, 13, 3, CACHE), Kind.DIRTY),
        ((12, 13, 0, CACHE), Kind.DIRTY),
    ],
)
def test_a_wrong_read_is_found(read, kind):
    """Outdated, premature, never committed, and a row that was never deleted."""
    assert kinds(TWO, reads(read)) == [kind]


@pytest.mark.parametrize("read", [(5, 9, 1, CACHE), (20, 22, 1, CACHE), (5, 10, 2, CACHE), (30, 31, 2, CACHE)])
def test_a_read_that_may_be_right_is_let_pass(read):
    """While a COMMIT is under way both values are right."""
    assert kinds(TWO, reads(read)) == []


def test_a_read_that_goes_back_is_found():
    """Each of the two is right by itself: the COMMIT came back only later."""
    assert kinds(TWO, reads((11, 12, 2, CACHE), (13, 14, 1, CACHE))) == [Kind.NON_MONOTONIC]


def test_overlapping_reads_may_see_different_versions():
    """Neither comes before the other."""
    assert kinds(TWO, reads((11, 13, 2, CACHE), (12, 14, 1, CACHE))) == []


def test_a_row_of_two_versions_is_dirty():
    """A column of the old row beside one of the new."""
    torn = reads((30, 31, 2, CACHE))
    torn["b"] = 1
    assert kinds(TWO, torn) == [Kind.DIRTY]


def test_what_the_database_shows_proves_a_commit_that_nobody_came_back_from():
    """The writer was killed; the old value is stale once somebody has read the new one from the database."""
    unknown = versions((1, False, BEFORE, BEFORE), (2, False, 10, NEVER))
    assert kinds(unknown, reads((50, 60, 1, CACHE))) == []
    assert kinds(unknown, reads((30, 40, 2, DATABASE), (50, 60, 1, CACHE))) == [Kind.STALE]


def test_a_later_commit_proves_an_earlier_one():
    """The later writer could write only after the earlier one was visible."""
    unknown = versions((1, False, BEFORE, BEFORE), (2, False, 10, NEVER), (3, False, 30, 40))
    assert kinds(unknown, reads((41, 42, 1, CACHE))) == [Kind.STALE]
    assert kinds(unknown, reads((41, 42, 2, CACHE))) == [Kind.STALE]


def test_a_deleted_row_is_stale_and_so_is_its_absence_later():
    """Deletion is a version like any other."""
    gone = versions((1, False, BEFORE, BEFORE), (2, True, 10, 20), (3, False, 30, 40))
    assert kinds(gone, reads((21, 22, 1, CACHE))) == [Kind.STALE]
    assert kinds(gone, reads((41, 42, 0, CACHE))) == [Kind.STALE]
    assert kinds(gone, reads((5, 6, 0, CACHE))) == [Kind.FUTURE]
    assert kinds(gone, reads((25, 26, 0, CACHE))) == []


def test_the_evidence_names_the_read_and_the_newer_commit():
    """What is reported can be argued with."""
    (one,) = check_key(TWO, reads((50, 60, 1, CACHE)))
    assert (one.key, one.read, one.saw, one.by) == (7, (50, 60), (1, 1), 30)
    assert "sent at 10 and came back at 20" in one.evidence


def test_keys_are_checked_apart():
    """A version of another key proves nothing."""
    both = np.concatenate([versions((1, False, BEFORE, BEFORE)), TWO])
    both["key"][0] = 6
    mixed = reads((50, 60, 1, CACHE), (50, 60, 1, CACHE), (50, 60, 2, DATABASE))
    mixed["key"][0] = 6
    findings = check(both, mixed)
    assert (findings.reads, findings.hits, dict(findings.counts)) == (3, 2, {Kind.STALE: 1})


# --- brute force ---


def assignments(versions, reads) -> Iterator[tuple[int, ...]]:
    """Yield every order of events: the moment at which each version became visible."""
    ranges = [range(max(0, int(v["low"])), min(MOMENTS, int(v["high"])) + 1) for v in versions]
    for moments in itertools.product(*ranges):
        if all(one <= other for one, other in itertools.pairwise(moments)) and all(
            right(versions, moments, read) or not seen(versions, read) for read in reads if read["source"] == DATABASE
        ):
            yield moments


def seen(versions, read) -> bool:
    """Tell whether the read shows a row that committed."""
    return any(not v["gone"] and v["version"] == read["a"] for v in versions)


def right(versions, moments, read) -> bool:
    """Tell whether there is a moment during the read at which what it saw was the row."""
    ends = (*moments[1:], 10 * MOMENTS)
    return any(
        begin <= moment <= end and (version["version"] == read["a"] if not version["gone"] else read["a"] == 0)
        for version, begin, end in zip(versions, moments, ends, strict=True)
        for moment in range(int(read["start"]), int(read["end"]) + 1)
    )


@st.composite
def histories(draw):
    rows = [(1, False, BEFORE, BEFORE)]
    for number in range(2, draw(st.integers(2, 5))):
        low = draw(st.integers(1, MOMENTS))
        high = draw(st.integers(low, MOMENTS) | st.just(int(NEVER)))
        rows.append((number, draw(st.booleans()) and not rows[-1][1], low, high))
    some = []
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, MOMENTS))
        some.append(
            (
                start,
                draw(st.integers(start, MOMENTS)),
                draw(st.integers(0, 5)),
                draw(st.sampled_from([CACHE, DATABASE])),
            )
        )
    return versions(*rows), reads(*some)


@given(histories())
def test_a_read_is_called_wrong_if_no_order_of_events_makes_it_right(history):
    """Brute force over all moments at which the commits can have become visible, of a handful of reads."""
    made, some = history
    database = some[some["source"] == DATABASE]
    assume(not check_key(made, database))  # the database itself is right
    orders = list(assignments(made, database))
    assume(orders)
    wrong = {(one.read, one.saw[0], one.source) for one in check_key(made, some) if one.kind is not Kind.NON_MONOTONIC}
    for read in some:
        known = (int(read["start"]), int(read["end"])), int(read["a"]), Source(int(read["source"]))
        possible = any(right(made, moments, read) for moments in orders)
        assert (known in wrong) == (not possible), (read, made)


@given(histories())
def test_reads_that_are_all_called_right_fit_into_one_order_of_events(history):
    """And where they do not, at least one is called non-monotonic."""
    made, some = history
    some = some[some["a"] > 0]
    found = kinds(made, some)
    assume(set(found) <= {Kind.NON_MONOTONIC})
    assume(list(assignments(made, some[:0])))
    together = any(all(right(made, moments, read) for read in some) for moments in assignments(made, some[:0]))
    assert together == (not found)
