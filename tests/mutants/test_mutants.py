"""A proof that cannot fail proves nothing: without any one rule the exploration finds a stale entry, and says how."""

from __future__ import annotations

import pytest

from tests.exploration.search import explore
from tests.exploration.tasks import Task, done, replayed
from tests.exploration.world import World
from tests.mutants.mutations import MUTANTS


@pytest.mark.parametrize("name", MUTANTS)
def test_without_the_rule_something_stale_is_found(name):
    """The shortest counterexample is found and told."""
    result, lines = done(Task(name, MUTANTS[name].budget, mutant=True))
    assert result.violation is not None
    print(len(result.schedule), "steps:", *lines, sep="\n")  # noqa: T201 - the schedule, for whoever runs pytest -s


@pytest.mark.parametrize("name", MUTANTS)
def test_with_the_rule_nothing_is_found(name):
    """The same scenario with the library as it is holds in every state."""
    with World(MUTANTS[name].scenario, MUTANTS[name].budget) as world:
        result = explore(world)
    assert result.complete
    assert result.violation is None


@pytest.mark.parametrize("name", MUTANTS)
def test_a_counterexample_can_be_replayed(name):
    """The token that a violation prints leads to the same end."""
    result, lines = done(Task(name, MUTANTS[name].budget, mutant=True))
    _, wrong = replayed(lines[-1].split("'")[1])
    assert wrong == result.violation
