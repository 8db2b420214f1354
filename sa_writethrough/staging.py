"""What is done with a unit at the end of its transaction: announce, publish, retract, abandon.

Reads back, inside the transaction, the rows whose stored values are not known. Knows nothing of events.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from sqlalchemy.engine import Connection

from sa_writethrough import _sqla
from sa_writethrough.cache import Claim, Publication
from sa_writethrough.core import Core
from sa_writethrough.engines import is_snapshot
from sa_writethrough.entities import Family
from sa_writethrough.exceptions import CacheUnavailableError, CodecError
from sa_writethrough.policy import OnWrite
from sa_writethrough.rows import chunks
from sa_writethrough.unit import Phase, Touch, Unit

__all__ = ["abandon", "announce", "announce_late", "publish", "retract"]


def announce(core: Core, connection: Connection | None, unit: Unit) -> None:
    """Announce everything that *unit* touched. All of its SQL is done and it holds its locks.

    Without a *connection* that can still execute, what is not known is published as absent.

    The tombstones are on their way while rows are read back. Raises `CacheUnavailableError`, or what the database says
    to the reading back; then nothing is left announced and the caller rolls back.
    """
    if unit.doubted:
        unit.forget_values()  # what is a COMMIT here may be a ROLLBACK there: absent is right after both
    announcement = core.cache.announce(_claims(unit))
    try:
        if connection is not None:
            _read_back(core, connection, unit)
    except BaseException as error:
        if not isinstance(error, Exception):
            _sqla.let_go_of_cursors(error)  # a task was cancelled
        with contextlib.suppress(CacheUnavailableError):  # counted, and not what the caller must hear of
            core.cache.retract(announcement.wait())
        raise
    unit.tokens = announcement.wait()
    unit.phase = Phase.ANNOUNCED


def announce_late(core: Core, unit: Unit) -> None:
    """Announce what was touched since `announce`: another listener of the commit writes, too.

    Its SQL comes only now, so the lock is not held yet. That is enough for a row that will be published as absent: a
    writer before us may lose its publication, a writer after us still announces after our COMMIT.
    """
    late = [claim for claim in _claims(unit) if claim.key not in unit.tokens]
    unit.tokens |= core.cache.announce(late).wait()


def publish(core: Core, unit: Unit) -> None:
    """Publish what *unit* committed. Never raises."""
    try:
        rows, epochs, tokens = unit.rows(), unit.epochs(), unit.tokens
        publications = [_publication(key, tokens[key], touch) for key, touch in rows.items() if key in tokens]
        core.cache.publish(publications, {key: tokens[key] for key in epochs if key in tokens})
        if not tokens.keys() >= rows.keys() | epochs.keys():  # OnOutage.COMMIT: what can be done is to try to drop them
            core.cache.drop([key for key in rows if key not in tokens], [key for key in epochs if key not in tokens])
    except Exception as error:  # noqa: BLE001 - the row is committed: the tombstone expires instead
        core.cache.report(error)
    unit.clear()


def retract(core: Core, unit: Unit) -> None:
    """Take the unit's tombstones back: the database acknowledged its ROLLBACK. Never raises."""
    core.cache.retract(unit.tokens)
    unit.clear()


def abandon(core: Core, unit: Unit) -> None:
    """Leave the unit's tombstones to expire: what became of its transaction is unknown. Never raises."""
    core.cache.abandon([claim for claim in _claims(unit) if claim.key in unit.tokens])
    unit.clear()


def _claims(unit: Unit) -> list[Claim]:
    claims = [_claim(key, touch.epoch, touch.model) for key, touch in unit.rows().items()]
    return claims + [_claim(key, None, family) for key, family in unit.epochs().items()]


def _claim(key: str, epoch: str | None, family: Family) -> Claim:
    return Claim(key, epoch, family.policy.tombstone_ttl, family.policy.on_outage)


def _publication(key: str, token: Any, touch: Touch) -> Publication:
    if touch.gone or not touch.held:
        return Publication(key, token, None, None)
    return Publication(key, token, touch.payload, touch.model.policy.lifetime())


def _read_back(core: Core, connection: Connection, unit: Unit) -> None:
    """Learn the stored values of held rows, with one SELECT per family."""
    unknown: dict[Family, list[tuple[str, Touch]]] = {}
    for key, touch in unit.rows().items():
        if touch.held and not touch.gone and touch.payload is None and _publishes(touch.model):
            unknown.setdefault(touch.model, []).append((key, touch))
    for family, touches in unknown.items():
        if _sees_parts_of_several_moments(core, connection, unit, family):
            continue
        payloads = _select(core, connection, family, [touch.identity for _, touch in touches])
        for key, touch in touches:
            payload = payloads.get(touch.identity)
            if payload is not None:
                unit.learn(key, touch, payload)


def _sees_parts_of_several_moments(core: Core, connection: Connection, unit: Unit, family: Family) -> bool:
    """Tell whether a row may be read whose part in another table is of an older moment than the lock on this one.

    A lock on one part leaves the others to other writers. A transaction that sees one moment does not see theirs; one
    that reads what is not committed sees them too early.
    """
    if core.shapes(family, connection.dialect).whole:
        return False
    return unit.snapshot or is_snapshot(core.engines.learn(connection), connection.engine, connection, wrote=True)


def _publishes(family: Family) -> bool:
    return family.policy.on_write is OnWrite.PUBLISH


def _select(
    core: Core, connection: Connection, family: Family, identities: Sequence[tuple[Any, ...]]
) -> dict[tuple[Any, ...], bytes]:
    shapes = core.shapes(family, connection.dialect)
    payloads = {}
    for some in chunks(identities):
        for raw in connection.execute(*shapes.by_identities(some)):
            selection = shapes.read(raw)
            if selection.layout is not None:
                try:
                    payloads[shapes.identity_of(raw)] = selection.layout.codec.encode(selection.row)
                except CodecError as error:  # published as absent, and served from the database
                    core.cache.report(error)
    return payloads
