"""The short form of the exploration; `nox -s explore` has the long one."""

from __future__ import annotations

import pytest

from tests.exploration.__main__ import main
from tests.exploration.scenarios import SCENARIOS
from tests.exploration.search import explore
from tests.exploration.states import Budget
from tests.exploration.tasks import summary
from tests.exploration.world import World


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_order_of_steps_leads_to_a_stale_read(name):
    """Every interleaving within the short bounds keeps the promise, and the cache does serve reads."""
    with World(SCENARIOS[name], Budget(*SCENARIOS[name].short)) as world:
        result = explore(world)
    print(summary(result))  # noqa: T201 - the counts, for whoever runs pytest -s
    assert result.violation is None
    assert result.complete
    assert result.hits > 0
    assert result.rechecked > 0


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
