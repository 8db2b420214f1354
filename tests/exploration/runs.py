"""Real code in greenlets: one run of one program, which stops wherever it needs the world.

A run asks the world by `ask`, and tells it by `tell` what needs no answer. It knows nothing of who answers. A program
is deterministic: the same answers lead to the same questions, since it has no clock, no randomness, and a connection
pool of its own in every run.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from greenlet import getcurrent, greenlet
from sqlalchemy.pool import Pool

from sa_writethrough.coherence import Change, Intent, Token
from tests.exploration.database import Statement

# --- what a run asks for --------------------------------------------------------------------------------------------


class Sql(NamedTuple):
    """Execute a statement; the answer is a `database.Answer`."""

    statement: Statement
    repeatable: bool


class Await(NamedTuple):
    """Wait for the outcomes of messages that were sent; the answer is a tuple of them."""

    numbers: tuple[int, ...]


class Read(NamedTuple):
    """Read keys; each is a message of its own. The answer is a tuple of readings."""

    numbers: tuple[int, ...]
    keys: tuple[str, ...]
    epoch: str
    intent: Intent


class Done(NamedTuple):
    """The program has come to its end."""

    result: Hashable


Question: TypeAlias = Sql | Await | Read | Done

# --- what a run tells -----------------------------------------------------------------------------------------------


class Sent(NamedTuple):
    """A change is on its way. *awaited*: the run will ask for its outcome."""

    number: int
    change: Change
    awaited: bool


class Begun(NamedTuple):
    """The application has called a read of these rows."""

    rows: tuple[int, ...]


class Ended(NamedTuple):
    """A read has returned these columns, by row.

    hits: the rows that the cache answered for. checked: those that the promise speaks of; of a session in REPEATABLE
    READ the hits alone, in READ COMMITTED all.
    """

    values: tuple[tuple[int, tuple[tuple[str, Any], ...] | None], ...]
    hits: frozenset[int]
    checked: frozenset[int]


Told: TypeAlias = Sent | Begun | Ended


@dataclass(frozen=True, slots=True)
class ExploredToken(Token):
    """The token of one message: of whom (None: the run itself), its number, and the epoch's at that time."""

    owner: int | None
    number: int
    generation: int | None


# --- the run --------------------------------------------------------------------------------------------------------


class Stop(NamedTuple):
    """Where a run stands: what it told since the last answer, and what it asks."""

    told: tuple[Told, ...]
    question: Question


class Run(greenlet):
    """One run of a program, from its start."""

    def __init__(self, program: Callable[[], Hashable]) -> None:
        super().__init__(program)
        self.told: list[Told] = []
        self.numbers = 0
        self.idle: list[Any] = []
        self.hits: set[int] = set()
        """The rows that the store answered for since a read began."""
        self.over = False
        """Nobody answers any more; what the program still does on its way out reaches nothing."""

    def start(self) -> Stop:
        """Run to the first question."""
        return self._stop(self.switch())

    def answer(self, answer: Any) -> Stop:
        """Run on to the next question."""
        return self._stop(self.switch(answer))

    def _stop(self, came: Any) -> Stop:
        told, self.told = tuple(self.told), []
        return Stop(told, Done(came) if self.dead else came)

    def abandon(self) -> None:
        """Let go of a run in the middle."""
        self.over = True
        if not self.dead:
            self.throw()
        self.idle.clear()


def current() -> Run:
    """Return the run that is running."""
    run = getcurrent()
    assert isinstance(run, Run)
    return run


def ask(question: Question) -> Any:
    """Return the world's answer."""
    run = current()
    assert not run.over
    return run.parent.switch(question)


def tell(told: Told) -> None:
    """Tell the world."""
    current().told.append(told)


def number() -> int:
    """Return the number of this run's next message."""
    run = current()
    run.numbers += 1
    return run.numbers


class RunPool(Pool):
    """The connections of each run are its own, and it gets back those that it returned."""

    def _do_get(self) -> Any:
        idle = current().idle
        return idle.pop() if idle else self._create_connection()

    def _do_return_conn(self, record: Any) -> None:
        current().idle.append(record)

    def recreate(self) -> RunPool:
        return RunPool(self._creator, recycle=self._recycle, _dispatch=self.dispatch, dialect=self._dialect)

    def dispose(self) -> None:
        pass

    def status(self) -> str:
        return "of each run"


# --- the tree -------------------------------------------------------------------------------------------------------


class Tree:
    """All that a program does: a node for every sequence of answers, made when it is first met by running the code."""

    def __init__(self, program: Callable[[], Hashable], most_suspended: int = 64) -> None:
        self._program = program
        self._most_suspended = most_suspended
        self.stops: list[Stop] = []
        self._parents: list[tuple[int, Any] | None] = []
        self._children: list[dict[Any, int]] = []
        self._suspended: dict[int, Run] = {}
        self.runs = 0
        run = self._started()
        self._add(run.start(), None, run)

    def after(self, node: int, answer: Any) -> int:
        """Return the node that follows *node* on *answer*."""
        children = self._children[node]
        child = children.get(answer)
        if child is None:
            run = self._suspended.pop(node, None) or self._replayed(self.history(node))
            child = children[answer] = self._add(run.answer(answer), (node, answer), run)
        return child

    def history(self, node: int) -> list[Any]:
        """Return the answers that lead to *node*."""
        answers = []
        while (step := self._parents[node]) is not None:
            node = step[0]
            answers.append(step[1])
        return answers[::-1]

    def check(self, node: int) -> None:
        """Run to *node* from the start once more, and compare each stop with the tabled one."""
        at, run = 0, self._started()
        stop = run.start()
        for answer in self.history(node):
            assert stop == self.stops[at], f"not deterministic: {stop} and {self.stops[at]}"
            at, stop = self._children[at][answer], run.answer(answer)
        assert at == node, "not the node that was asked for"
        assert stop == self.stops[node], f"not deterministic: {stop} and {self.stops[node]}"
        run.abandon()

    def close(self) -> None:
        """Let go of every run."""
        while self._suspended:
            self._suspended.popitem()[1].abandon()
        gc.collect()

    def _started(self) -> Run:
        self.runs += 1
        return Run(self._program)

    def _replayed(self, answers: list[Any]) -> Run:
        run = self._started()
        run.start()
        for answer in answers:
            run.answer(answer)
        return run

    def _add(self, stop: Stop, parent: tuple[int, Any] | None, run: Run) -> int:
        self.stops.append(stop)
        self._parents.append(parent)
        self._children.append({})
        node = len(self.stops) - 1
        if not isinstance(stop.question, Done):
            self._suspended[node] = run
            if len(self._suspended) > self._most_suspended:
                self._suspended.pop(next(iter(self._suspended))).abandon()
        return node
