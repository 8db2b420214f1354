# ruff: noqa: T201 - its output is what it is for
"""`python -m tests.exploration`: explore, show what a mutant breaks, replay a schedule.

python -m tests.exploration                          every scenario, within the bounds that CI has
python -m tests.exploration --depth deep             the same with more faults; or a number: so many more of each
python -m tests.exploration 2w2r --losses 3          one scenario, with other bounds
python -m tests.exploration --mutant "blind fill"    what goes wrong without this rule, step by step
python -m tests.exploration --mutant all             the length of every mutant's counterexample
python -m tests.exploration --replay TOKEN           a schedule once more; every violation prints its token
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Sequence

from tests.exploration.scenarios import SCENARIOS, Scenario
from tests.exploration.states import Budget
from tests.exploration.tasks import LINE, Task, done, exit_code, replayed, summary, total
from tests.mutants.mutations import MUTANTS

DEPTHS = ("short", "full", "deep")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; return 0 if all was as it should be."""
    options = _parser().parse_args(arguments)
    if options.list:
        _print_list()
        return 0
    if options.replay is not None:
        lines, wrong = replayed(options.replay)
        print("\n".join(lines))
        print(f"At its end {wrong}." if wrong is not None else "Nothing is violated at its end.")
        return int(wrong is not None)
    if options.mutant is not None:
        return _show_mutants(list(MUTANTS) if options.mutant == "all" else [options.mutant], options)
    tasks = [Task(name, _budget(SCENARIOS[name], options), seconds=options.seconds) for name in _names(options)]
    return _explore(tasks, options.jobs, options.seconds)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.exploration", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="names, as --list has them; without: all")
    parser.add_argument("--depth", default="full", help=f"{', '.join(DEPTHS)}, or how many faults more than deep")
    for name in Budget._fields:
        parser.add_argument(f"--{name}", type=int, help="at most so many, whatever the depth says")
    parser.add_argument(
        "--seconds",
        type=float,
        help="end a scenario that takes longer, and say INCOMPLETE; only then is that no failure",
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--mutant", metavar="NAME", help="take one rule out; all: one line for each")
    parser.add_argument("--replay", metavar="TOKEN")
    parser.add_argument("--list", action="store_true", help="name scenarios and mutants")
    return parser


def _names(options: argparse.Namespace) -> list[str]:
    unknown = set(options.scenarios) - set(SCENARIOS)
    if unknown:
        sys.exit(f"no such scenario: {', '.join(sorted(unknown))}; --list names them")
    return options.scenarios or list(SCENARIOS)


def _budget(scenario: Scenario, options: argparse.Namespace) -> Budget:
    if options.depth in DEPTHS:
        budget = Budget(*getattr(scenario, options.depth))
    else:
        budget = Budget(*(faults + int(options.depth) for faults in scenario.deep))
    given = {name: value for name in Budget._fields if (value := getattr(options, name)) is not None}
    return budget._replace(**given)


def _print_list() -> None:
    for name, scenario in SCENARIOS.items():
        print(f"{name}\n    {scenario.about}")
    for name, mutant in MUTANTS.items():
        print(f"--mutant {name!r}\n    without the rule: {mutant.rule}")


# --- exploring --------------------------------------------------------------------------------------------------------


def _explore(tasks: Sequence[Task], jobs: int, seconds: float | None) -> int:
    print(
        LINE.format("scenario", "bounds", "states", "transitions", "depth", "runs", "reads", "hits", "again", "s", "")
    )
    results = []
    # A process for each: what one scenario kept in memory is gone with it.
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=1) as pool:
        for result, lines in pool.imap_unordered(done, tasks, chunksize=1):
            print(summary(result), flush=True)
            print("\n".join(lines), end="\n" if lines else "")
            results.append(result)
    print(*total(results), sep="\n")
    return exit_code(results, seconds)


# --- mutants and schedules --------------------------------------------------------------------------------------------


def _show_mutants(names: Sequence[str], options: argparse.Namespace) -> int:
    unknown = set(names) - set(MUTANTS)
    if unknown:
        sys.exit(f"no such mutant: {', '.join(sorted(unknown))}; --list names them")
    found = 0
    for name in names:
        mutant = MUTANTS[name]
        result, lines = done(Task(name, mutant.budget, mutant=True, seconds=options.seconds))
        found += result.violation is not None
        if len(names) > 1:
            print(f"{name:<38}{len(result.schedule):>3} steps  without the rule: {mutant.rule}")
        else:
            print(f"Without the rule: {mutant.rule}.", summary(result), *lines or ["Nothing is violated."], sep="\n")
    return int(found < len(names))


if __name__ == "__main__":
    sys.exit(main())
