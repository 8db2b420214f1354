"""The same machine over a store that loses, delays and forgets, and with others who do things between any two steps."""

# ruff: noqa: A002 - the arguments' names are words of the scripts that Hypothesis prints

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import precondition
from sqlalchemy.orm import Session

import sa_writethrough as wt
from sa_writethrough.coherence import Announce, AnnounceEpoch, Evict, Fill, Publish, Retract
from sa_writethrough.testing import Call, Hold, LoseReply, LoseRequest, Read
from sa_writethrough.testing.faulty import Moment
from tests.properties import statements
from tests.properties.machine import Transactions, columns, models, numbers, roots, sessions, values
from tests.properties.models import KINDS, NUMBERS, ROOTS
from tests.properties.sessions import step
from tests.properties.worlds import Place

OPERATIONS: dict[str, Any] = {
    "read": Read,
    "announce": Announce,
    "announce epoch": AnnounceEpoch,
    "publish": Publish,
    "fill": Fill,
    "retract": Retract,
    "evict": Evict,
}
MOMENTS = {f"{moment.value} {name}": (moment, of) for name, of in OPERATIONS.items() for moment in Moment}
MANY = 20
"""More than one commit publishes or retracts."""


class FaultyTransactions(Transactions):
    """Rows 1 and 2 of each model are there, named 'first', and cached. A commit may fail, for want of the cache."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.outage = ExitStack()

    def teardown(self) -> None:
        self.outage.close()
        super().teardown()

    def _may_be(self, error: Exception) -> None:
        if not isinstance(error, wt.CacheUnavailableError):
            super()._may_be(error)

    # --- what the store does ---

    @step(of=st.sampled_from(sorted(OPERATIONS)), what=st.sampled_from(("request", "reply")))
    def lose(self, of: str, what: str) -> None:
        """Lose the next request of a kind, or its reply."""
        self.world.faults.script.append((LoseRequest if what == "request" else LoseReply)(OPERATIONS[of]))

    @step(of=st.sampled_from(("publish", "fill", "retract", "evict")))
    def delay(self, of: str) -> None:
        """Keep the next request of a kind back until `deliver`."""
        self.world.faults.script.append(Hold(OPERATIONS[of]))

    @step()
    def deliver(self) -> None:
        self.world.faults.deliver()

    @step(model=roots, id=numbers)
    def lose_entry(self, model: str, id: int) -> None:
        """Lose whatever is there: value, lease or tombstone."""
        self.world.faults.forget(self.world.keys(model)[KINDS[model].identity(id)])

    @step()
    def lose_tombstones(self) -> None:
        self.world.faults.forget_tombstones()

    @step()
    def wait(self) -> None:
        """Let every tombstone and lease of the in-process store expire."""
        self.world.clock.now += 60.0

    @step()
    def break_down(self) -> None:
        """Lose everything until `come_back`."""
        self.outage.close()
        self.outage.enter_context(self.world.faults.outage())

    @precondition(lambda self: self.world.faults._down)
    @step()
    def come_back(self) -> None:
        self.outage.close()

    @step(session=sessions, paused=st.booleans())
    def commit_and_die(self, session: str, paused: bool) -> None:
        """Commit, as a process that is killed before it publishes.

        With *paused* it stops before its COMMIT for longer than its tombstones live, while others read everything.
        """
        self._die(session, paused)

    @step(session=sessions, paused=st.booleans(), column=columns, id=numbers, value=values)
    def change_and_die(self, session: str, paused: bool, column: str, id: int, value: str) -> None:
        """Change a row, and do what `commit_and_die` does."""
        self._set(session, column, id, value)
        self._die(session, paused)

    def _die(self, session: str, paused: bool) -> None:
        script = self.world.faults.script
        dying: list[Any] = [LoseRequest(of) for of in (Publish, Retract, Evict) for _ in range(MANY)]
        if paused:
            dying += [Call(of, self._outlast, Moment.AFTER) for of in (Announce, AnnounceEpoch)]
        script += dying
        self._commit(session)
        script[:] = [fault for fault in script if not any(fault is mine for mine in dying)]

    def _outlast(self) -> None:
        self.world.faults.forget_tombstones()
        for root in ROOTS:
            self._by_somebody(lambda own, root=root: self._look(own, root))

    # --- what others do meanwhile ---

    @step(
        when=st.sampled_from(sorted(MOMENTS)),
        does=st.sampled_from(("read", "change", "delete", "insert", "evict", "lose entry")),
        model=models,
        id=numbers,
    )
    def meanwhile(self, when: str, does: str, model: str, id: int) -> None:
        """Have somebody else do something just before or after the next operation of a kind."""
        moment, of = MOMENTS[when]
        self.world.faults.script.append(Call(of, lambda: self._somebody(does, model, id), moment))

    @step(when=st.sampled_from(sorted(MOMENTS)), via=st.sampled_from(statements.VIA), column=columns, value=values)
    def meanwhile_update(self, when: str, via: str, column: str, value: str) -> None:
        """Have somebody else write rows that cannot be named."""
        moment, of = MOMENTS[when]

        def act() -> None:
            self._by_somebody(lambda own: statements.update(own, via, column, "all", 1, value))

        self.world.faults.script.append(Call(of, act, moment))

    def _somebody(self, does: str, model: str, number: int) -> None:
        kind = KINDS[model]
        root = kind.mapper.base_mapper.class_.__name__
        if does == "lose entry":
            self.world.faults.forget(self.world.keys(root)[kind.identity(number)])
        elif does == "evict":
            self._evict(model, number)
        elif does == "read":
            self._by_somebody(lambda own: self._look(own, model))
        elif does == "insert":
            self._by_somebody(lambda own: own.add(kind.make(number, "meanwhile")))
        elif does in {"change", "delete"}:
            self._by_somebody(lambda own: self._change(own, does, model, number))

    def _change(self, own: Session, does: str, model: str, number: int) -> None:
        instance = self._get(own, model, number)
        if instance is not None and does == "delete":
            own.delete(instance)
        elif instance is not None:
            setattr(instance, KINDS[model].texts[-1], "meanwhile")

    def _look(self, own: Session, model: str) -> None:
        """Read through the cache what another transaction may be writing just now."""
        kind = KINDS[model]
        identities = [kind.identity(number) for number in NUMBERS]
        found = self.world.cache.get_many(own, kind.cls, identities)
        for identity, instance in zip(identities, found, strict=True):
            self._is_row(f"somebody read {model} {identity}", own, kind, identity, instance)

    def _by_somebody(self, action: Callable[[Session], Any]) -> None:
        try:
            with self.world.sessions() as own:
                action(own)
                own.commit()
        except sa.exc.SQLAlchemyError as error:
            self._may_be(error)
        committed = self.world.committed()
        self.meanwhile_committed += [self.committed, committed]
        self.committed = committed
