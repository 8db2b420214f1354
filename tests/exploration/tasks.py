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

__all__ = ["INCOMPLETE", "LINE", "Task", "done", "exit_code", "replayed", "summary", "total"]

LINE = "{:<28}{:>10}{:>11}{:>12}{:>7}{:>6}{:>11}{:>8}{:>7}{:>7}  {}"

INCOMPLETE = "INCOMPLETE"


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
    verdict = "holds" if result.complete else f"{INCOMPLETE}: holds as far as seen"
    if result.violation is not None:
        verdict = "VIOLATED"
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


def total(results: Sequence[Result]) -> Iterator[str]:
    """Yield the last lines about explorations: the sums, what the bounds are of, and which are not complete."""
    yield (
        f"{sum(r.states for r in results):,} states, {sum(r.transitions for r in results):,} transitions, "
        f"{sum(r.violation is not None for r in results)} violations. Bounds, all within one run: entries or epochs "
        "lost, processes killed, answers not waited for, database connections cut. again: stops that were run twice, "
        "and were the same."
    )
    short = [result.name for result in results if not result.complete]
    if short:
        yield f"{INCOMPLETE}: {len(short)} of {len(results)} ended before all was seen, and prove nothing: {', '.join(short)}"


def exit_code(results: Sequence[Result], limit: float | None) -> int:
    """Return 1 if anything is violated, or was not explored to its end although nobody set a *limit* in seconds."""
    violated = any(result.violation is not None for result in results)
    return int(violated or (limit is None and not all(result.complete for result in results)))


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
