"""What every machine is made of: sessions, what their steps have in common, and the promise that each step must keep."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from sqlalchemy.orm import Session

import sa_writethrough as wt
from tests.properties import statements
from tests.properties.models import KINDS, NUMBERS, ROOTS, Kind
from tests.properties.worlds import HALF, Place, Rows, World, describe_instance

NAMES = ("s1", "s2", "s3", "s4")
ENDS = ("go on", "go on", "read", "commit", "commit", "savepoint", "rollback")


def one_of(attribute: str) -> st.SearchStrategy[Any]:
    """Draw one of the things that the machine has chosen from at the beginning of the example."""
    return st.runner().flatmap(lambda machine: st.sampled_from(getattr(machine, attribute)))


def step(**arguments: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Any]:
    """Make a rule, after which the cache must agree with the database.

    Not by an invariant: Hypothesis prints those between any two steps of the script.
    """

    def wrap(function: Callable[..., None]) -> Any:
        @functools.wraps(function)
        def act_and_agree(self: Sessions, **values: Any) -> None:
            function(self, **values)
            self._agree()

        return rule(**arguments)(act_and_agree)

    return wrap


def write(**arguments: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Any]:
    """Make a step of one session, after which it may end its transaction or set a savepoint."""

    def wrap(function: Callable[..., None]) -> Any:
        @functools.wraps(function)
        def act_and_end(self: Sessions, session: str, then: str, **values: Any) -> None:
            function(self, session, **values)
            if then == "commit":
                self._agree()
                self._commit(session)
            elif then == "rollback":
                self._agree()
                self._roll_back(session)
            elif then == "savepoint":
                self._agree()
                self._save(session)
            elif then == "read":
                self._agree()
                self._read_rows(session, _model_of(values), "cache.get_many", "NORMAL")

        return step(session=one_of("names"), then=st.sampled_from(ENDS), **arguments)(act_and_end)

    return wrap


def _model_of(arguments: dict[str, Any]) -> str:
    """Return the model that a step is about."""
    return model_in(arguments.get("model") or arguments.get("column") or arguments.get("relation") or "Product")


def model_in(name: str) -> str:
    """Return the model that is named in 'User.note'."""
    return name.partition(".")[0]


@dataclass
class Actor:
    """One session, as an application has it: with its open savepoints and the instances that it holds on to."""

    session: Session
    options: dict[str, Any] = field(default_factory=dict)
    savepoints: list[Any] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)
    outer: Any = None
    """The transaction of somebody else that the session has joined, with its connection."""

    def forget(self) -> None:
        self.savepoints.clear()
        self.kept.clear()


class Sessions(RuleBasedStateMachine):
    """Some sessions, and what must hold after each step. Knows no rules."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.world = World(place)
        self.failures: list[str] = []
        self.may_commit = False
        self.committed = self.world.committed()
        self.meanwhile_committed: list[dict[str, Rows]] = []
        """What others made of the database during this step, with what it was before that."""
        self.actors: dict[str, Actor] = {}
        self.begin(len(NAMES), list(KINDS))

    def begin(self, sessions: int, models: Sequence[str]) -> None:
        """Choose how many sessions there are, and which models they are about."""
        models = self.world.place.models or models
        self.names = NAMES[:sessions]
        self.models = sorted(models)
        self.roots = [root for root in ROOTS if root in models]
        self.columns = [column for column in statements.COLUMNS if model_in(column) in models]
        self.to_one = [one for one in statements.TO_ONE if model_in(one) in models]
        self.to_many = [many for many in statements.TO_MANY if model_in(many) in models]
        self.rekeyed = [model for model in statements.REKEYED if model in models]
        self.actors = {name: Actor(self.world.sessions()) for name in self.names}

    def teardown(self) -> None:
        try:
            for actor in self.actors.values():
                self._end(actor, "close")
                actor.session.close()
            self._agree()
        finally:
            self.actors.clear()
            self.world.close()

    # --- the promise ---

    def _agree(self) -> None:
        assert not self.failures, "\n".join(self.failures)
        self.world.cache.drain()
        committed = self.world.committed()
        if not self.may_commit:
            assert committed == self.committed, "something was committed that nobody asked for"
        self.may_commit, self.committed = False, committed
        self.meanwhile_committed.clear()
        for root in ROOTS:
            for identity, entry in self.world.entries(root).items():
                row = committed[root].get(identity)
                assert entry == row, f"{root} {identity}: the cache has {entry}, the database {row}"

    def _do(self, session: str, action: Callable[[Session], Any]) -> Any:
        """Do what may fail as it may without a cache: locks held by others, constraints, sessions that need rollback."""
        try:
            return action(self.actors[session].session)
        except sa.exc.PendingRollbackError:  # it failed before, and was told so for as long as it takes
            self._roll_back(session)
        except sa.exc.SQLAlchemyError as error:
            self._may_be(error)
        return None

    def _may_be(self, error: Exception) -> None:
        if isinstance(error, wt.WriteThroughError):
            raise error

    def _by_another(self, action: Callable[[Session], Any]) -> None:
        """Have a session of somebody else do something, and commit it."""
        try:
            with self.world.sessions() as another:
                action(another)
                another.commit()
        except sa.exc.SQLAlchemyError as error:
            self._may_be(error)
        else:
            self.may_commit = True

    def _commit(self, session: str) -> None:
        self._ends(session, lambda own: own.commit())
        self.actors[session].savepoints.clear()

    def _roll_back(self, session: str) -> None:
        self._do(session, lambda own: own.rollback())
        self.actors[session].savepoints.clear()

    def _save(self, session: str) -> None:
        savepoint = self._do(session, lambda own: own.begin_nested())
        if savepoint is not None:
            self.actors[session].savepoints.append(savepoint)

    def _ends(self, session: str, action: Callable[[Session], Any]) -> None:
        """Do what may commit. If it raises, nothing was committed."""
        try:
            action(self.actors[session].session)
        except sa.exc.SQLAlchemyError as error:
            self._may_be(error)
            # As an application must: until then SQLite may keep every reader out.
            self._roll_back(session)
            self._leave_outer(session)
            if self.world.committed() != self.committed:
                self.failures.append(f"it was committed, and raised {error!r}")
        else:
            self.may_commit = True

    def _leave_outer(self, session: str) -> None:
        """End the transaction that the session has joined by closing its connection, and the session with it."""
        if self.actors[session].outer is not None:
            self._do(session, lambda own: own.close())
            self._end(self.actors[session], "close")
            self.actors[session] = Actor(self.world.sessions())

    @staticmethod
    def _end(actor: Actor, how: str) -> None:
        """End the transaction that a session has joined."""
        if actor.outer is None:
            return
        connection, transaction = actor.outer
        actor.outer = None
        try:
            if how != "close" and transaction.is_active:
                getattr(transaction, how)()
        finally:
            connection.close()

    # --- reads ---

    def _read(
        self,
        session: str,
        kind: Kind,
        identities: Sequence[tuple[Any, ...]],
        read: Callable[[Session], list[Any]],
        *,
        selects: bool = False,
    ) -> None:
        """Read, and compare with what may be read.

        An instance that the session holds is the answer; but where *selects*, a SELECT may not find its row any more.
        """
        actor = self.actors[session]
        own = actor.session
        before = [self._before(own, kind, identity) for identity in identities]
        known = {id(instance) for instance in own}
        pending = bool(own.new or own.dirty or own.deleted)
        found = self._do(session, read)
        if found is None:
            return
        for identity, (held, state), instance in zip(identities, before, found, strict=True):
            what = f"{session} read {kind.cls.__name__} {identity}"
            if held is None and id(instance) not in known:
                self._is_row(what, own, kind, identity, instance)
            elif pending:  # the read has flushed that, and what it left of the instances is SQLAlchemy's business
                assert instance is None or id(instance) in known, f"{what}: not its own instance"
            elif state is None:  # expired
                # Of half a row SQLAlchemy takes the expired instance for deleted, and makes another one.
                its_own = instance is None or instance is held or HALF in self._rows(own, kind, identity)
                assert its_own, f"{what}: not its own instance"
                self._is_row(what, own, kind, identity, instance)
            elif selects and instance is None:
                self._is_row(what, own, kind, identity, None)
            elif isinstance(held, kind.cls):
                assert instance is held, f"{what}: not its own instance"
                kept = {name: text for name, text in describe_instance(held).items() if name in state}
                assert kept == state, f"{what}: its own instance was overwritten"

    @staticmethod
    def _before(session: Session, kind: Kind, identity: tuple[Any, ...]) -> tuple[Any, Any]:
        held = session.identity_map.get(kind.mapper.identity_key_from_primary_key(identity))
        if held is None:
            return None, None
        state = sa.inspect(held)
        return held, None if state.expired else describe_instance(held)

    def _is_row(self, what: str, session: Session, kind: Kind, identity: tuple[Any, ...], instance: Any) -> None:
        """Assert that a newly loaded or refreshed instance is the row at some moment during the read, or that there was none."""
        rows = self._rows(session, kind, identity)
        if HALF in rows:
            return
        rows = [None if row is None or not issubclass(KINDS[row["class"]].cls, kind.cls) else row for row in rows]
        described = None if instance is None else describe_instance(instance)
        if not any(self._describes(described, row, kind) for row in rows):
            # Kept for the end of the step: in the midst of a commit the library may let no exception through.
            self.failures.append(f"{what}: {described}, the database has {' or '.join(map(str, rows))}")

    def _rows(self, session: Session, kind: Kind, identity: tuple[Any, ...]) -> list[Any]:
        """Return what the row is for the session now, and what it was at other moments of this step."""
        root = kind.mapper.base_mapper.class_.__name__
        moments = [self.world.seen_by(session, root), *(moment[root] for moment in self.meanwhile_committed)]
        return [moment.get(identity) for moment in moments]

    @staticmethod
    def _describes(described: Any, row: Any, kind: Kind) -> bool:
        if described is None or row is None:
            return described is row is None
        if row["class"] != kind.cls.__name__:  # SQLAlchemy loads a subclass's columns when they are asked for
            row = {name: text for name, text in row.items() if name in described}
        return bool(described == row)

    def _read_rows(self, session: str, model: str, way: str, mode: str) -> None:
        kind = KINDS[model]
        identities = [kind.identity(number) for number in NUMBERS]
        self._read(
            session,
            kind,
            identities,
            lambda s: statements.read_many(self.world.cache, s, way, mode, kind, NUMBERS),
            selects=way == "select",
        )
