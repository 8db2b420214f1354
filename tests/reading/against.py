"""What can be observed of a session after something was done to an instance: for comparing two that were loaded differently."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from tests.reading.conftest import World

INSTANCE_EVENTS = ("load", "refresh", "refresh_flush", "expire", "pickle", "unpickle")
SESSION_EVENTS = (
    "after_attach",
    "after_begin",
    "after_commit",
    "after_flush",
    "after_rollback",
    "after_soft_rollback",
    "after_transaction_create",
    "after_transaction_end",
    "before_attach",
    "before_commit",
    "before_flush",
    "deleted_to_detached",
    "detached_to_persistent",
    "loaded_as_persistent",
    "pending_to_persistent",
    "persistent_to_deleted",
    "persistent_to_detached",
    "persistent_to_transient",
    "transient_to_pending",
)
MAPPER_EVENTS = ("before_insert", "after_insert", "before_update", "after_update", "before_delete", "after_delete")


@contextlib.contextmanager
def listening(session: orm.Session, base: Any) -> Iterator[list[str]]:
    """Collect the names of the events of the session and of the instances of *base*, in order."""
    heard: list[str] = []
    places = [(session, name, {}) for name in SESSION_EVENTS]
    places += [(base, name, {"propagate": True, "raw": True}) for name in INSTANCE_EVENTS]
    places += [(mapper, name, {}) for mapper in base.registry.mappers for name in MAPPER_EVENTS]
    listeners = []
    for target, name, options in places:
        label = name if target is session or target is base else f"{name} of {target.class_.__name__}"

        def listener(*_arguments: Any, _label: str = label, **_more: Any) -> None:
            heard.append(_label)

        sa.event.listen(target, name, listener, **options)
        listeners.append((target, name, listener))
    try:
        yield heard
    finally:
        for each in listeners:
            sa.event.remove(*each)


def observe(instance: Any, session: orm.Session) -> dict[str, Any]:
    """Return all that can be seen of an instance and its session; nothing is loaded for it."""
    state = sa.inspect(instance)
    return {
        "class": type(instance).__name__,
        "key": state.key,
        "identity": state.identity,
        "token": state.identity_token,
        "is": [n for n in ("transient", "pending", "persistent", "deleted", "detached") if getattr(state, n)],
        "in session": orm.object_session(instance) is session,
        "modified": state.modified,
        "expired": (state.expired, sorted(state.expired_attributes)),
        "unloaded": sorted(state.unloaded),
        "values": {name: _told(value) for name, value in sorted(state.dict.items()) if name != "_sa_instance_state"},
        "own": sorted(set(vars(instance)) - {"_sa_instance_state"}),
        "history": {
            attribute.key: repr([[_told(one) for one in part or ()] for part in attribute.history])
            for attribute in state.attrs
            if attribute.key not in state.mapper.composites  # which are loaded for it
        },
        "session": [sorted(map(_told, group)) for group in (session.new, session.dirty, session.deleted)],
        "identity map": sorted(map(repr, session.identity_map)),
        "in transaction": session.in_transaction(),
    }


def _told(value: Any) -> str:
    """Return text that is the same for equal values of equal types."""
    if isinstance(value, list):
        return repr([_told(one) for one in value])
    if hasattr(value, "_sa_instance_state"):
        return f"{type(value).__name__}{sa.inspect(value).identity}"
    return f"{type(value).__name__} {value!r}"


def done(
    world: World,
    load: Callable[[orm.Session], Any],
    do: Callable[[orm.Session, Any], Any],
    **options: Any,
) -> dict[str, Any]:
    """Load an instance, do something, and return what was seen: of the load, of the SQL and events after it, of the end."""
    with world.session(**options) as session:
        with listening(session, world.base) as loading:
            instance = load(session)
        loaded = observe(instance, session)
        raised = returned = None
        with listening(session, world.base) as heard, world.counting() as sql:
            try:
                returned = do(session, instance)
            except Exception as error:  # noqa: BLE001 - which one is compared
                raised = type(error), re.sub(r"0x\w+", "", str(error))
        return {
            "loaded": loaded,
            "load events": [name for name in loading if name in {"load", "loaded_as_persistent"}],
            # A hit begins no transaction in the database: what is done next does.
            "events": [name for name in heard if name != "after_begin"],
            "sql": sql,
            "raised": raised,
            "returned": observe(returned, session) if hasattr(returned, "_sa_instance_state") else _told(returned),
            "after": observe(instance, session),
        }
