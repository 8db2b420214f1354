"""`nox` alone does all that a change must pass: servers, lint, types, docs, measurements, proofs, tests, coverage.

One thing at a time:

    nox -s tests                  the tests alone, with SQLAlchemy 2.0 and 2.1
    nox -s tests -- tests/unit    the same with pytest's own arguments
    nox -s tests_all              the tests with every Python from 3.10 to 3.13 that is here
    nox -s benchmark -- --full    the benchmark with its own arguments
    nox -s chaos -- --minutes 60  processes under fire, every read checked, with arguments of its own
    nox -s explore -- --depth deep  every interleaving with more faults; `-- --help` says the rest
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import nox

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
SQLALCHEMY = ["2.0", "2.1"]
HERE = SQLALCHEMY if sys.version_info >= (3, 11) else SQLALCHEMY[:1]  # SQLAlchemy 2.1 needs Python 3.11
PACKAGES = {"memcached": "memcached", "postgres": "postgresql", "mariadbd": "mariadb-server"}
CI = os.environ.get("CI", "").lower() == "true"

# The tiers whose every branch is tested: the protocol, its values and its stores.
FULLY_COVERED = [
    "sa_writethrough/exceptions.py",
    "sa_writethrough/events.py",
    "sa_writethrough/policy.py",
    "sa_writethrough/coherence.py",
    "sa_writethrough/keys.py",
    "sa_writethrough/codec.py",
    "sa_writethrough/stores/*",
    "sa_writethrough/cache.py",
]

# What covers them. The other tests run without: to measure costs half as much again as to run.
MEASURED = ["tests/unit", "tests/stores", "tests/asynchronous", "tests/reading/test_herd.py"]
UNMEASURED = ["tests/integration", "tests/ops", "tests/orm", "tests/reading", "--ignore=tests/reading/test_herd.py"]

# They prove the protocol with tables of their own, each in a process of its own, where SQLAlchemy is the newest.
PROOFS = ["exploration", "mutants", "properties", "memberships", "chaos"]

# Without the verified fill, and with COMMITs longer than a tombstone lives: the rig must see what comes of it.
BROKEN = [
    *("--without-verified-fill", "--expect-stale", "100", "--minutes", "0.25", "--keys", "100"),
    *("--faults", "slow COMMIT", "writer killed", "--period", "2", "--slow", "0.15"),
]
# The database alone, with every fault: whatever the checker finds there is the checker's own fault.
CONTROL = ["--control", "--minutes", "0.5", "--period", "4"]

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["servers", "lint", "types", "docs", "benchmark", "explore", "chaos", "tests", "coverage"]
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = False  # nox skips the session and says so


def missing_packages(*programs: str) -> list[str]:
    """Return the Debian packages of *programs*, or of all servers, that are not on this machine."""
    debian = sorted(str(path) for path in Path("/usr/lib/postgresql").glob("*/bin"))
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", *debian])
    wanted = programs or PACKAGES
    return [PACKAGES[program] for program in wanted if shutil.which(program, path=path) is None]


def advice(packages: list[str]) -> str:
    """Say what to do about missing *packages*."""
    return f"missing: {', '.join(packages)}; on Debian or Ubuntu: sudo apt-get install {' '.join(packages)}"


@nox.session(python=False)
def servers(session: nox.Session) -> None:
    """Install Debian's memcached, postgresql and mariadb-server where they are missing and this user may."""
    packages = missing_packages()
    if not packages:
        session.log("memcached, PostgreSQL and MariaDB are here")
        return
    install(session, packages)
    if packages := missing_packages():
        if CI:
            session.error(advice(packages))
        session.warn(f"{advice(packages)}. The tests that need them are skipped.")


def install(session: nox.Session, packages: list[str]) -> None:
    """Install *packages* as root, or by a sudo that asks no password; do nothing elsewhere."""
    become_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if shutil.which("apt-get") is None or (become_root and shutil.which("sudo") is None):
        return
    apt_get = [*become_root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]
    refused = range(1, 256)  # `servers` looks at what is there afterwards
    session.run(*apt_get, "update", external=True, success_codes=[0, *refused])
    session.run(*apt_get, "install", "--yes", *packages, external=True, success_codes=[0, *refused])


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format, and that the tiers import downwards only."""
    session.install("-e", ".[lint]")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Check the package, and tests/typing as a user's program, with mypy in strict mode."""
    session.install("-e", ".[lint,test,postgresql]")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into docs/_build/html; a warning is an error."""
    session.install("-e", ".[docs]")
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html")


@nox.session
def benchmark(session: nox.Session) -> None:
    """Compare the library with what it replaces; without arguments in a few minutes."""
    if packages := missing_packages("memcached", "postgres"):
        session.skip(advice(packages))
    session.install("-e", ".[benchmark]")
    session.run("python", "-m", "benchmarks", *(session.posargs or ["--short"]))


@nox.session
def chaos(session: nox.Session) -> None:
    """Put the library under fire for a minute and check every read; first a broken one, and the database alone."""
    if packages := missing_packages("memcached", "postgres"):
        session.skip(advice(packages))
    session.install("-e", ".[chaos]")
    if not session.posargs:
        session.run("python", "-m", "tests.chaos", *BROKEN)
        session.run("python", "-m", "tests.chaos", *CONTROL)
    session.run("python", "-m", "tests.chaos", *session.posargs)


@nox.session
@nox.parametrize("sqlalchemy", HERE)
def tests(session: nox.Session, sqlalchemy: str) -> None:
    """Run the tests with the Python at hand; with the newest SQLAlchemy a part is measured for `coverage`."""
    if session.posargs or sqlalchemy != HERE[-1]:
        run_pytest(session, sqlalchemy)
        return
    run_pytest(session, sqlalchemy, "--cov", "--cov-report=", *MEASURED)
    run_pytest(session, sqlalchemy, *UNMEASURED)
    for proof in PROOFS:
        session.run("python", "-m", "pytest", f"tests/{proof}")


@nox.session(python=PYTHONS)
@nox.parametrize("sqlalchemy", SQLALCHEMY)
def tests_all(session: nox.Session, sqlalchemy: str) -> None:
    """Run the tests with every supported Python that is here."""
    if session.python == "3.10" and sqlalchemy == "2.1":
        session.skip("SQLAlchemy 2.1 needs Python 3.11")
    run_pytest(session, sqlalchemy)


def run_pytest(session: nox.Session, sqlalchemy: str, *arguments: str) -> None:
    """Run pytest with *arguments*, and the user's, against one minor version of SQLAlchemy."""
    more = ["sqlmodel"] if sqlalchemy == "2.0" else []  # it is not for 2.1 yet
    session.install("-e", ".[test]", f"sqlalchemy=={sqlalchemy}.*", *more)
    session.run("python", "-m", "pytest", *arguments, *session.posargs)


@nox.session
def explore(session: nox.Session) -> None:
    """Run the real code through every interleaving of small scenarios; without arguments in a few minutes."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "tests.exploration", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Require every branch of tiers 0 to 3 in what `tests` measured."""
    if not Path(".coverage").exists():
        session.error("nothing is measured yet: run nox -s tests")
    session.install("coverage[toml]")
    session.run("coverage", "report", f"--include={','.join(FULLY_COVERED)}", "--fail-under=100")
