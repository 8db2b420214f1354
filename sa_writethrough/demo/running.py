"""The demonstration from beginning to end: open, load, put under load, measure, report, remove."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

import sa_writethrough as wt
from sa_writethrough.demo.databases import Database, opened, refusal, tables
from sa_writethrough.demo.latency import Latencies, measure
from sa_writethrough.demo.mix import Choice, Mix, Tally
from sa_writethrough.demo.places import MODELS, PREFIX, City, Country, Place, geonames
from sa_writethrough.demo.reading import Reader, StatementCounter
from sa_writethrough.demo.report import print_findings, print_snippet, print_table
from sa_writethrough.demo.settings import DemoError, Settings, first_line, without_password

__all__ = ["run"]

_BATCH = 1000
_LATENCY_SECONDS = 2.0


def run(settings: Settings, console: Console) -> bool:
    """Run the demonstration and return whether every read kept the promise.

    Raises `DemoError` where it cannot run. What it made in the database is removed, whatever happens.
    """
    store = _open_store(settings.store)
    with opened(settings.database, settings.threads) as database:
        try:
            with tables(database):
                tally, latencies = _run_on(settings, console, database, store)
        except wt.CacheUnavailableError as error:  # while loading; the load lives on without a store
            raise DemoError(f"--store: {first_line(error.__cause__ or error)}") from None
        except DBAPIError as error:
            raise DemoError(f"--database: {database.title} failed: {refusal(error)}.") from None
    findings = [*tally.findings, *latencies.findings]
    print_table(console, tally, latencies)
    print_findings(console, findings)
    console.print()
    print_snippet(console, without_password(settings.store))
    return not findings


def _open_store(url: str) -> wt.Store:
    try:
        return wt.open_store(url)
    except wt.ConfigurationError as error:
        raise DemoError(f"--store: {first_line(error).removeprefix('store URL: ')}.") from None


def _run_on(settings: Settings, console: Console, database: Database, store: wt.Store) -> tuple[Tally, Latencies]:
    console.print(f"Database  {database.title}", markup=False, soft_wrap=True)
    console.print(f"Store     {without_password(settings.store)}\n", markup=False, soft_wrap=True)
    places = geonames(settings.cities)
    sessions = sessionmaker(database.engine)
    with _registered(sessions, store) as cache:
        _load(console, sessions, places)
        counter = StatementCounter(database.engine)
        tally = _mix(console, settings, Mix(cache, sessions, database, counter, places))
        with database.witness.connect() as witness:
            reader = Reader(cache, sessions, witness, counter)
            chosen = Choice(places, random.Random())  # noqa: S311 - chooses places, guards no secret
            latencies = measure(reader, chosen, min(_LATENCY_SECONDS, settings.seconds))
    return tally, latencies


@contextmanager
def _registered(sessions: sessionmaker[Session], store: wt.Store) -> Iterator[wt.WriteThroughCache]:
    """Register, with nothing left of an earlier run, and leave nothing readable behind."""
    policy = wt.CachePolicy(namespace=PREFIX.strip("_"))
    cache = wt.register(sessions, store, models=MODELS, policy=policy)
    try:
        try:
            cache.evict_all()
        except wt.CacheUnavailableError as error:
            raise DemoError(f"--store: {first_line(error.__cause__ or error)}") from None
        yield cache
        with suppress(wt.CacheUnavailableError):  # it went away during the run, and the table says so
            cache.evict_all()
    finally:
        cache.unregister()


# --- the phases ---


def _load(console: Console, sessions: sessionmaker[Session], places: Sequence[Place]) -> None:
    """Insert every row through the registered factory: each commit puts its rows into the cache."""
    of_model = {model: [place for place in places if place.model is model] for model in MODELS}
    started = time.monotonic()
    done = 0
    with _progress(console, "Loading GeoNames", len(places)) as bar:
        # Countries before their cities, in commits of their own: the models have no relationship() that says so.
        for rows in of_model.values():
            for start in range(0, len(rows), _BATCH):
                batch = rows[start : start + _BATCH]
                with sessions.begin() as session:
                    session.add_all([place.row() for place in batch])
                done += len(batch)
                bar(done)
    console.print(
        f"Loaded {len(of_model[Country]):,} countries and {len(of_model[City]):,} cities of GeoNames "
        f"in {time.monotonic() - started:.1f} s."
    )


def _mix(console: Console, settings: Settings, mix: Mix) -> Tally:
    with _progress(console, "Reading and updating", settings.seconds) as bar:
        tally = mix.run(settings.seconds, settings.threads, bar)
    threads = "1 thread" if settings.threads == 1 else f"{settings.threads} threads"
    console.print(f"Read (95 %) and updated (5 %) them, Zipf-distributed, from {threads} for {settings.seconds:g} s.\n")
    return tally


class _Bar:
    """Moves one task's bar to where the work is."""

    def __init__(self, progress: Progress, label: str, total: float) -> None:
        self._progress = progress
        self._task = progress.add_task(label, total=total)

    def __call__(self, done: float) -> None:
        self._progress.update(self._task, completed=done)


@contextmanager
def _progress(console: Console, label: str, total: float) -> Iterator[_Bar]:
    """Show a bar while the block runs; where there is no terminal, nothing: the line after it says what was done."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield _Bar(progress, label, total)
