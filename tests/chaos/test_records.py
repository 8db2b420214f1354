"""From what processes wrote down to versions with bounds, and from findings to figures that add up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from tests.chaos import comparison, schema
from tests.chaos.checker import BEFORE, NEVER, Findings, Kind, Violation
from tests.chaos.client import zipf
from tests.chaos.comparison import Compared
from tests.chaos.figures import Figures, added, from_json, percentiles, shortcomings, show, to_json
from tests.chaos.log import COMMIT, READ, Event, RecordLog, Source, pack_commit, pack_read, records
from tests.chaos.rig import checked


def commits(*rows):
    return [np.array(list(rows), COMMIT)]


def history(*rows):
    """Rows of (key, version, a, b, gone, op, transaction), and without a note."""
    return np.array([(*row, 0) for row in rows], "<i8")


def test_a_record_that_a_kill_cut_short_is_left_out(tmp_path):
    """The whole ones before it count."""
    path = tmp_path / "reads-1.log"
    log = RecordLog(path)
    log.add(pack_read(1, 2, 3, 4, 5, 6, Source.CACHE))
    log.write_now(b"")
    log.close()
    path.write_bytes(path.read_bytes() + b"torn")
    (found,) = records([path], READ)
    assert found.tolist() == [(1, 2, 3, 4, 5, 6, Source.CACHE)]


def test_what_must_survive_a_kill_is_written_at_once(tmp_path):
    """Before a COMMIT is sent its record is in the file."""
    log = RecordLog(tmp_path / "commits-1.log")
    log.write_now(pack_commit(7, 8, Event.SENT))
    (found,) = records([tmp_path / "commits-1.log"], COMMIT)
    log.close()
    assert found.tolist() == [(7, 8, Event.SENT)]


def test_a_commit_bounds_its_versions():
    """Sent and come back; come back with an error, or not at all, says nothing of the end."""
    found = schema.versions_of(
        history((1, 5, 5, 5, 0, 0, 90), (1, 6, 6, 5, 0, 41, 91), (1, 8, 6, 8, 0, 42, 92)),
        commits((41, 100, Event.SENT), (41, 110, Event.DONE), (42, 120, Event.SENT), (42, 130, Event.FAILED)),
    )
    bounds = [(int(one["version"]), int(one["low"]), int(one["high"])) for one in found]
    assert bounds == [(5, BEFORE, BEFORE), (6, 100, 110), (8, 120, NEVER)]


def test_of_several_versions_of_one_transaction_the_last_is_visible():
    """The others nobody can have seen."""
    found = schema.versions_of(
        history((1, 6, 6, 6, 0, 41, 91), (1, 7, 7, 6, 0, 41, 91)), commits((41, 1, Event.SENT), (41, 2, Event.DONE))
    )
    assert found["version"].tolist() == [7]


def test_a_version_that_nobody_sent_is_no_finding_but_a_broken_rig():
    """Its bounds would make anything right."""
    with pytest.raises(RuntimeError, match="the rig is broken"):
        schema.versions_of(history((1, 6, 6, 6, 0, 41, 91)), commits((40, 1, Event.SENT)))


def test_reads_are_checked_in_parts_with_the_control_of_each(tmp_path, monkeypatch):
    """The control's reads are evidence; they are not counted."""
    monkeypatch.setattr("tests.chaos.rig.PART", 2)
    (tmp_path / "reads-1.log").write_bytes(b"".join(pack_read(50, 60, key, 1, 1, 0, Source.CACHE) for key in (1, 2, 3)))
    (tmp_path / "control-9.log").write_bytes(pack_read(30, 40, 2, 7, 7, 0, Source.DATABASE))
    rows = [(key, 1, 1, 1, 0, 0, 90) for key in (1, 2, 3)]
    versions = schema.versions_of(history(*rows, (2, 7, 7, 7, 0, 41, 91)), commits((41, 10, Event.SENT)))
    findings = checked(tmp_path, versions)
    assert (findings.reads, dict(findings.counts)) == (3, {Kind.STALE: 1})


def test_the_hottest_keys_are_drawn_most():
    """Zipf, over all keys."""
    drawn = zipf(100, 5000, 1.0)
    assert drawn.count(0) > drawn.count(50)
    assert set(drawn) <= set(range(100))


def figures(strategy="ours", stale=0):
    findings = Findings(1000, 900)
    read = Violation(Kind.STALE, 1, (5, 6), (1, 1), Source.CACHE, 2_000_000_000, "evidence")
    findings.note([read] * stale)
    return Figures(
        strategy=strategy,
        seconds=60,
        findings=findings,
        commits=10,
        versions=12,
        unknown=1,
        outages=2,
        errors=3,
        faults={"writer killed": 4},
        uncached={"return": [1.0, 3.0], "crash": []},
        still_uncached=[],
        writers_met={"committing": 1},
        crashes={},
    )


def test_runs_add_up_by_way_of_their_files(tmp_path):
    """Several runs are one long one."""
    (tmp_path / "runs.json").write_text(to_json([figures(), figures(stale=2)]))
    whole = added(from_json(tmp_path / "runs.json"))
    assert (whole.seconds, whole.findings.reads, whole.violations) == (120, 2000, 2)
    assert (whole.faults, whole.uncached["return"]) == ({"writer killed": 8}, [1.0, 3.0, 1.0, 3.0])
    assert (whole.per_million, whole.longest_seconds, len(whole.findings.examples)) == (1000.0, 2.0, 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"findings": Findings(10, 9)}, "10 reads in 2 s are too few"),
        ({"findings": Findings(1000, 9)}, "9 of 1,000 reads from the cache are too few"),
        ({"commits": 5}, "5 commits in 2 s are too few"),
        ({"faults": {"writer killed": 4, "memcached full": 0}}, "memcached full: the fault never struck"),
        ({"still_uncached": [61_000.0]}, "a key was not cached again within 60 s"),
        ({"uncached": {"crash": [61_000.0]}}, "a key was not cached again within 60 s"),
    ],
)
def test_a_run_in_which_nothing_happened_proves_nothing(change, said):
    """It fails, however clean it is."""
    whole = replace(figures(), seconds=2.0)
    assert shortcomings(whole) == []
    assert shortcomings(replace(whole, **change)) == [said]


def test_percentiles_of_nothing_are_nothing():
    """A run without a fault has none to tell."""
    assert percentiles([]) == {}
    assert percentiles([1.0, 2.0, 9.0]) == {"p50": 2.0, "max": 9.0, "samples": 3}  # too few to tell a p99
    assert "p99" in percentiles([1.0] * 100)


def test_the_table_tells_violations_and_faults():
    """What is published can be read off."""
    console = Console(width=140)
    with console.capture() as shown:
        show(figures(stale=1), console)
    for word in ("1,000", "writer killed", "violations: stale", "evidence"):
        assert word in shown.get()


def test_the_comparisons_chart_is_an_svg(tmp_path):
    """The documentation's chart comes from the rig itself."""
    pytest.importorskip("matplotlib")
    compared = [
        Compared("ours", figures(), figures()),
        Compared("aside-sets", figures("aside-sets"), figures("aside-sets", 3)),
    ]
    comparison.draw(tmp_path / "chart.svg", compared)
    assert "<svg" in (tmp_path / "chart.svg").read_text()
    assert comparison.paired([compared[0].calm, compared[0].fire])[0].strategy == "ours"
