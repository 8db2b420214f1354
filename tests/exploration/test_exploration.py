"""The short form of the exploration; `nox -s explore` has the long one."""

from __future__ import annotations

import pytest

from tests.exploration.__main__ import main
from tests.exploration.scenarios import SCENARIOS
from tests.exploration.search import Result
from tests.exploration.states import Budget
from tests.exploration.tasks import Task, done, exit_code, summary, total
from tests.mutants.mutations import MUTANTS


def _that_holds(task: Task) -> Result:
    """Return a complete exploration; fail with the schedule, step by step, and the line that replays it."""
    result, lines = done(task)
    print(summary(result))  # noqa: T201 - the counts, for whoever runs pytest -s
    if result.violation is not None:
        pytest.fail("\n".join([summary(result), *lines]), pytrace=False)
    assert result.complete
    return result


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_order_of_steps_leads_to_a_stale_read(name):
    """Every interleaving within the short bounds keeps the promise, and the cache does serve reads."""
    result = _that_holds(Task(name, Budget(*SCENARIOS[name].short)))
    assert result.hits > 0
    assert result.rechecked > 0


def test_a_failure_tells_the_schedule_and_how_to_replay_it():
    """What pytest prints of a violation is each step in words, and the command that shows it again."""
    name = "no announcement"
    with pytest.raises(pytest.fail.Exception) as failure:
        _that_holds(Task(name, MUTANTS[name].budget, mutant=True))
    told = str(failure.value)
    assert "\n  1 " in told
    assert "COMMIT" in told
    assert f"python -m tests.exploration --replay 'mutant:{name}:" in told


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_ci_explores_has_every_kind_of_fault(name):
    """A loss, a kill, an answer that does not come and a lost connection, all possible within one run."""
    assert min(SCENARIOS[name].full) >= 1
    assert all(deep >= full for deep, full in zip(SCENARIOS[name].deep, SCENARIOS[name].full, strict=True))


def test_an_exploration_that_was_not_finished_is_a_failure_unless_it_was_asked_for():
    """It is marked in its line and at the end; only whoever set a limit gets 0."""
    results = [Result("whole", Budget()), Result("half", Budget(), complete=False)]
    assert "INCOMPLETE" in summary(results[1])
    assert list(total(results))[-1].startswith("INCOMPLETE: 1 of 2")
    assert exit_code(results, None) == 1
    assert exit_code(results, 1.0) == 0
    assert exit_code(results[:1], None) == 0


def test_the_command_line_marks_what_its_limit_cut_short(capfd):
    """A limit that was set is no failure, and no proof either."""
    assert main(["own writes", "--seconds", "0", "--jobs", "1"]) == 0
    assert "INCOMPLETE: 1 of 1" in capfd.readouterr().out


def test_the_command_line_explores_and_prints_its_counts(capfd):
    """One line for each scenario, with its bounds, states and verdict."""
    assert main(["own writes", "--depth", "short", "--jobs", "1"]) == 0
    printed = capfd.readouterr().out
    assert "own writes" in printed
    assert "holds" in printed
    assert "0 violations" in printed


def test_the_command_line_shows_a_counterexample(capsys):
    """Of a mutant the steps are told, and how to see them again."""
    assert main(["--mutant", "no announcement"]) == 0
    assert "--replay 'mutant:no announcement" in capsys.readouterr().out
