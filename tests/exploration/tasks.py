"""One exploration as a task: of a scenario or of a mutant's, done here or in a worker; its report as text."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.exploration.narrate import told
from tests.exploration.scenarios import SCENARIOS
from tests.exploration.search import Result, explore, replay
from tests.exploration.states import Budget
from tests.exploration.world import World
from tests.mutants.mutations import MUTANTS

__all__ = ["LINE", "Task", "done", "replayed", "summary"]

LINE = "{:<28}{:>10}{:>11}{:>12}{:>7}{:>6}{:>11}{:>8}{:>7}{:>7}  {}"


@dataclass(frozen=True, slots=True)
class Task:
    """One exploration, as a worker gets it."""

    name: str
    budget: Budget
    mutant: bool = False
    seconds: float | None = None


def done(task: Task) -> tuple[Result, list[str]]:
    """Explore; return what came of it, and of a violation the schedule in words."""
    with _world(task) as world:
        result = explore(world, seconds=task.seconds)
        lines = list(_violation(world, task, result)) if result.violation is not None else []
    return result, lines


@contextlib.contextmanager
def _world(task: Task) -> Iterator[World]:
    without = MUTANTS[task.name].entered() if task.mutant else contextlib.nullcontext()
    scenario = MUTANTS[task.name].scenario if task.mutant else SCENARIOS[task.name]
    with without, World(scenario, task.budget) as world:
        yield world


def summary(result: Result) -> str:
    """Return one line about an exploration."""
    verdict = "VIOLATED" if result.violation is not None else "holds" if result.complete else "holds as far as seen"
    return LINE.format(
        result.name,
        ",".join(map(str, result.budget)),
        f"{result.states:,}",
        f"{result.transitions:,}",
        result.depth,
        result.runs,
        f"{result.reads:,}",
        f"{result.hits:,}",
        result.rechecked,
        f"{result.seconds:.1f}",
        verdict,
    )


def _violation(world: World, task: Task, result: Result) -> Iterator[str]:
    yield f"After {len(result.schedule)} steps {result.violation}."
    yield from told(world, result.schedule)
    yield f"To see it again: python -m tests.exploration --replay '{_token(task, [s.choice for s in result.schedule])}'"


def _token(task: Task, choices: Sequence[int]) -> str:
    kind = "mutant" if task.mutant else "scenario"
    return f"{kind}:{task.name}:{','.join(map(str, task.budget))}:{'.'.join(map(str, choices))}"


def replayed(token: str) -> tuple[list[str], str | None]:
    """Return a schedule in words, and what is wrong at its end."""
    kind, name, budget, choices = token.split(":")
    task = Task(name, Budget(*map(int, budget.split(","))), kind == "mutant")
    with _world(task) as world:
        steps, wrong = replay(world, [int(choice) for choice in choices.split(".") if choice])
        return list(told(world, steps)), wrong
