"""The benchmark's harness: that every row runs and compares, never how fast anything is."""

from __future__ import annotations

import json
from math import isfinite

import pytest

pytest.importorskip("rich")

from benchmarks import report
from benchmarks.models import PlainReadBack
from benchmarks.rows import hits, rows, writes, writing
from benchmarks.runner import Measured, Row, measure
from benchmarks.stage import set_up


@pytest.fixture
def stage(postgres_url, memcached):
    """What the rows play on, on servers of the tests' own."""
    with set_up(postgres_url, memcached.host, memcached.port, large=False) as made:
        yield made


# advanced-alchemy 1.12 imports what SQLAlchemy 2.1 deprecates.
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
def test_every_row_runs_and_gives_a_ratio(stage):
    """Each side of each row does its work on real servers."""
    measured = measure(rows(stage, large=False, scale=0.05), passes=1, rounds=2)
    assert len(measured) >= 12
    for one in measured:
        assert isfinite(one.ratio), one.row.what
        assert one.ratio > 0, one.row.what
        assert one.interval[0] <= one.interval[1], one.row.what


def test_a_read_that_is_no_hit_is_refused(stage):
    """A side that is called a hit but needs SQL stops the benchmark instead of flattering us."""

    def read(ident):
        with stage.plain() as session:
            session.connection().exec_driver_sql("SELECT 1")

    with pytest.raises(RuntimeError, match="were no hits"):
        hits(stage.plain, read)


def test_a_write_that_changes_nothing_is_refused(stage):
    """Two sides that write the same value would measure an UPDATE against none."""
    first = writing(stage.plain, PlainReadBack, iter([1, 2, 3, 4]))
    second = writing(stage.plain, PlainReadBack, iter([1, 2, 3, 4]))
    with pytest.raises(RuntimeError, match="not one UPDATE"):
        writes({first: stage.plain, second: stage.plain})


def test_both_sides_of_a_round_are_measured_in_alternating_order():
    """What comes first in one round comes second in the next; the first round of a visit does not count."""
    order = []

    def cost(name, value):
        def measured():
            order.append(name)
            return value

        return measured

    row = Row("what", "against", 0.5, cost("ours", 1.0), cost("theirs", 2.0), rounds=2)
    (one,) = measure([row], passes=1, rounds=1)
    assert order == ["ours", "theirs", "ours", "theirs", "theirs", "ours"]
    assert (one.ratio, len(one.ours), one.holds) == (0.5, 2, True)


def test_the_ratio_compares_medians():
    """One round in which something else had the core changes nothing."""
    row = Row("what", "against", 0.5, float, float)
    one = Measured(row, [1.0, 1.0, 90.0], [2.0, 2.0, 2.0])
    assert one.ratio == 0.5


def test_the_json_says_what_the_table_says(tmp_path):
    """A result can be read by a program."""
    one = Measured(Row("what", "against", 0.4, float, float), [1e-6, 1e-6], [2e-6, 2e-6])
    report.write_json(tmp_path / "result.json", [one], {"cores": 1})
    written = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    (row,) = written["rows"]
    assert (row["ratio"], row["holds"], row["unit"]) == (0.5, False, "us")


def test_the_chart_is_an_svg(tmp_path):
    """The chart of the documentation comes from the benchmark itself."""
    pytest.importorskip("matplotlib")
    one = Measured(Row("what", "against", 0.4, float, float), [1e-6, 1e-6], [2e-6, 2e-6])
    report.draw(tmp_path / "chart.svg", [one])
    assert "<svg" in (tmp_path / "chart.svg").read_text(encoding="utf-8")
