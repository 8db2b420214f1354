"""The checker against brute force, and against violations that were planted."""

from __future__ import annotations

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


# --- reads that found no row, as evidence ---

GONE = versions((1, False, BEFORE, BEFORE), (2, False, 10, 20), (3, True, 30, 50), (4, False, 60, 80))
"""Each planted violation lies where both values are right as far as the COMMITs tell."""
TWICE = versions(
    (1, False, BEFORE, BEFORE), (2, True, 10, 20), (3, False, 30, 40), (4, True, 50, 60), (5, False, 70, 90)
)
UNKNOWN = versions((1, False, BEFORE, BEFORE), (2, True, 10, NEVER), (3, False, 30, NEVER), (4, True, 50, NEVER))
"""Nobody came back from any COMMIT."""


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        ((81, 90, 0, CACHE), Kind.STALE),
        ((21, 29, 0, CACHE), Kind.FUTURE),
        ((51, 55, 2, CACHE), Kind.STALE),
    ],
)
def test_an_absence_has_a_time_like_any_other_version(read, kind):
    """The row was back long since; it was not deleted yet; it was deleted long since."""
    assert kinds(GONE, reads(read)) == [kind]


def test_a_row_that_rises_from_the_dead_is_found():
    """Who found no row has proven the deletion, and with it every version before."""
    assert kinds(GONE, reads((31, 35, 0, CACHE), (36, 40, 2, CACHE))) == [Kind.NON_MONOTONIC]
    assert kinds(GONE, reads((31, 36, 0, CACHE), (36, 40, 2, CACHE))) == []
    assert kinds(GONE, reads((31, 35, 0, DATABASE), (36, 40, 2, CACHE))) == [Kind.STALE]


def test_an_absence_after_the_row_came_back_is_found():
    """Each is right by itself."""
    assert kinds(GONE, reads((61, 65, 4, CACHE), (66, 70, 0, CACHE))) == [Kind.NON_MONOTONIC]
    assert kinds(GONE, reads((61, 66, 4, CACHE), (66, 70, 0, CACHE))) == []
    assert kinds(GONE, reads((61, 65, 4, DATABASE), (66, 70, 0, CACHE))) == [Kind.STALE]


def test_the_database_without_a_row_proves_what_was_not_yet():
    """Neither the row's return before that read began, nor the deletion before a read of the row did."""
    assert kinds(GONE, reads((66, 70, 0, DATABASE), (61, 65, 4, CACHE))) == [Kind.FUTURE]
    assert kinds(GONE, reads((66, 70, 0, DATABASE), (61, 66, 4, CACHE))) == []
    assert kinds(GONE, reads((40, 45, 2, DATABASE), (31, 39, 0, CACHE))) == [Kind.FUTURE]
    assert kinds(GONE, reads((40, 45, 2, DATABASE), (31, 40, 0, CACHE))) == []


def test_an_absence_proves_no_more_than_the_first_deletion_that_explains_it():
    """Of two deletions it may have seen either."""
    assert kinds(UNKNOWN, reads((60, 65, 0, DATABASE), (70, 75, 3, CACHE))) == []
    assert kinds(UNKNOWN, reads((60, 65, 0, DATABASE), (70, 75, 1, CACHE))) == [Kind.STALE]
    assert kinds(UNKNOWN, reads((40, 45, 0, DATABASE), (31, 35, 3, CACHE))) == [Kind.FUTURE]


def test_what_is_known_of_other_versions_decides_which_deletion_explains_an_absence():
    """The first one was over: a row has proven that, or the COMMIT of what followed."""
    found, after = (52, 55, 3, CACHE), (70, 75, 3, CACHE)
    assert kinds(UNKNOWN, reads((60, 65, 0, CACHE), after)) == []
    assert kinds(UNKNOWN, reads(found, (60, 65, 0, CACHE), after)) == [Kind.NON_MONOTONIC]
    assert kinds(UNKNOWN, reads((52, 55, 3, DATABASE), (60, 65, 0, DATABASE), after)) == [Kind.STALE]
    assert kinds(TWICE, reads((52, 53, 0, CACHE), (54, 55, 3, CACHE))) == [Kind.NON_MONOTONIC]


def test_a_read_that_is_wrong_itself_proves_nothing():
    """Not even one of the database. Of the absence: one deletion was over, and the other one was not yet."""
    assert kinds(TWO, reads((30, 31, 1, DATABASE), (25, 28, 2, CACHE))) == [Kind.STALE]
    assert kinds(TWO, reads((5, 9, 2, DATABASE), (12, 13, 1, CACHE))) == [Kind.FUTURE]
    assert kinds(TWICE, reads((42, 45, 0, DATABASE), (46, 48, 3, CACHE))) == [Kind.STALE]


def test_before_the_first_insert_there_is_no_row():
    """It ends like a deletion ends, and a key without versions never had a row."""
    born = versions((1, False, 10, 20))
    assert kinds(born, reads((5, 9, 0, CACHE), (15, 16, 0, CACHE), (17, 18, 1, CACHE))) == []
    assert kinds(born, reads((5, 9, 1, CACHE))) == [Kind.FUTURE]
    assert kinds(born, reads((21, 22, 0, CACHE))) == [Kind.STALE]
    assert kinds(born, reads((15, 16, 1, CACHE), (17, 18, 0, CACHE))) == [Kind.NON_MONOTONIC]
    assert kinds(born[:0], reads((5, 9, 0, CACHE), (5, 9, 1, CACHE))) == [Kind.DIRTY]


def test_the_evidence_against_an_absence_names_the_commit_that_proves_it():
    """After the last of the deletions, and since when; or the first deletion, which was yet to come."""
    (one,) = check_key(TWICE, reads((91, 93, 0, CACHE)))
    assert (one.kind, one.read, one.saw, one.by) == (Kind.STALE, (91, 93), (0, 0), 1)
    assert "the COMMIT of version 5 was sent at 70 and came back at 90" in one.evidence
    (one,) = check_key(TWICE, reads((71, 75, 5, CACHE), (80, 81, 0, CACHE)))
    assert (one.kind, one.read, one.saw, one.by) == (Kind.NON_MONOTONIC, (80, 81), (0, 0), 5)
    assert "version 5 was seen or committed by 75" in one.evidence
    (one,) = check_key(TWICE, reads((5, 8, 0, CACHE)))
    assert (one.kind, one.by) == (Kind.FUTURE, 2)
    assert "the COMMIT of version 2 was sent at 10" in one.evidence


# --- a database that is right ---


@pytest.mark.parametrize("moments", [30, 300, 100_000])
@pytest.mark.parametrize("seed", range(8))
def test_what_a_database_would_have_shown_is_never_called_wrong(moments, seed):
    """Each read shows the row at one moment during the read; commits and reads lie closely together, or far apart."""
    assert check_key(*simulated(np.random.default_rng(seed), 60, 400, moments)) == []


def simulated(chance, count, amount, moments):
    """Return *count* versions and *amount* reads of a database that is right; half of the COMMITs never came back."""
    at = np.sort(chance.integers(1, moments, count))
    gone = chance.random(count) < 0.4
    gone[1:] &= ~gone[:-1]
    gone[0] = False
    made = np.zeros(count, VERSION)
    made["key"], made["version"], made["gone"] = 7, np.arange(1, count + 1), gone
    made["a"] = made["b"] = np.where(gone, 0, made["version"])
    made["low"] = np.maximum(1, at - chance.integers(0, 2 + moments // 5, count))
    made["high"] = np.where(chance.random(count) < 0.5, NEVER, at + chance.integers(0, 2 + moments // 5, count))
    some = np.zeros(amount, READ)
    moment = chance.integers(1, moments, amount)
    some["key"], some["source"] = 7, chance.choice(list(Source), amount)
    some["start"] = np.maximum(1, moment - chance.integers(0, 2 + moments // 20, amount))
    some["end"] = moment + chance.integers(0, 2 + moments // 20, amount)
    shown = np.append(0, made["a"])[np.searchsorted(at, moment, side="right")]
    some["a"] = some["b"] = shown
    return made, some


# --- brute force: the definition, over all moments at which the versions can have become visible ---


def orders(versions, reads) -> list[tuple[int, ...]]:
    """Return every order of events that makes all *reads* right: the moment at which each version became visible."""
    after = MOMENTS + 1  # not before the last read was over
    bounds = [(int(one["low"]), min(after, int(one["high"]))) for one in versions]
    found: list[tuple[int, ...]] = [()]
    for low, high in bounds:
        found = [(*some, at) for some in found for at in range(max((low, *some)), high + 1)]
    return [moments for moments in found if all(right(versions, moments, read) for read in reads)]


def right(versions, moments, read) -> bool:
    """Tell whether there is a moment during the read at which what it saw was the row, or at which there was none.

    At the moment of a COMMIT both is right. Before its first version a key has no row.
    """
    rows = [0, *(0 if one["gone"] else int(one["version"]) for one in versions)]
    begins, ends = (-1, *moments), (*moments, 10 * MOMENTS)
    return any(
        row == read["a"] and begin <= moment <= end
        for row, begin, end in zip(rows, begins, ends, strict=True)
        for moment in range(int(read["start"]), int(read["end"]) + 1)
    )


def of(read) -> tuple[tuple[int, int], int, Source]:
    return (int(read["start"]), int(read["end"])), int(read["a"]), Source(int(read["source"]))


def called(versions, reads, *wanted) -> set[tuple[tuple[int, int], int, Source]]:
    """Return the reads that are said to be of one of the *wanted* kinds."""
    return {(one.read, one.saw[0], one.source) for one in check_key(versions, reads) if one.kind in wanted}


@st.composite
def histories(draw):
    """Draw a few versions, and reads of them that are as often absences as rows; moment 0 is before all reads."""
    rows = [(1, False, BEFORE, BEFORE)] if draw(st.booleans()) else []
    for number in range(len(rows) + 1, draw(st.integers(2, 6))):
        low = draw(st.integers(1, MOMENTS))
        high = draw(st.integers(low, MOMENTS) | st.just(int(NEVER)))
        rows.append((number, draw(st.booleans()) and bool(rows) and not rows[-1][1], low, high))
    some = []
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(1, MOMENTS))
        end = draw(st.integers(start, MOMENTS))
        some.append((start, end, draw(st.just(0) | st.integers(1, 6)), draw(st.sampled_from([CACHE, DATABASE]))))
    made = versions(*rows)
    assume(orders(made, []))
    return made, reads(*some)


@given(histories())
def test_a_read_is_called_wrong_if_no_order_of_events_makes_it_right(history):
    """That is, none in which the database is right."""
    made, some = history
    database = some[some["source"] == DATABASE]
    possible = orders(made, database)
    assume(possible)
    wrong = called(made, some, Kind.STALE, Kind.FUTURE, Kind.DIRTY)
    for read in some:
        assert (of(read) in wrong) != any(right(made, moments, read) for moments in possible), (read, made)


@given(histories())
def test_a_read_is_called_non_monotonic_if_it_contradicts_those_that_ended_before_it(history):
    """That is, none of the orders of events that make the database and these right makes it right as well."""
    made, some = history
    assume(orders(made, some[some["source"] == DATABASE]))
    wrong = called(made, some, Kind.STALE, Kind.FUTURE, Kind.DIRTY)
    back = called(made, some, Kind.NON_MONOTONIC)
    assert not wrong & back
    for read in (read for read in some if of(read) not in wrong):
        possible = orders(made, some[(some["source"] == DATABASE) | (some["end"] < read["start"])])
        if possible:
            assert (of(read) in back) != any(right(made, moments, read) for moments in possible), (read, made)


@given(histories())
def test_reads_that_are_all_called_right_fit_into_one_order_of_events(history):
    """And where they do not, at least one is called wrong."""
    made, some = history
    assert bool(orders(made, some)) == (not check_key(made, some))
