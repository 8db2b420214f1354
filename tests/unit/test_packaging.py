"""What an installation offers, and that what the README tells a new user to type is what CI types."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.metadata import entry_points, version
from importlib.resources import files
from pathlib import Path

import pytest
from dogpile.cache import make_region
from sqlalchemy import exc

import sa_writethrough

ROOT = Path(__file__).parents[2]


def commands(markdown: str) -> list[str]:
    """Return the lines of the shell blocks."""
    return [line for block in re.findall(r"```sh\n(.*?)```", markdown, re.DOTALL) for line in block.splitlines()]


def test_ci_runs_the_second_command_of_the_readme():
    """A user who types what the README says does what CI does."""
    assert commands((ROOT / "README.md").read_text())[1] in (ROOT / ".ci" / "run").read_text()


def test_nox_runs_every_room_with_the_newest_sqlalchemy():
    """One part measured and the other not: no room of pytest's own list is in neither."""
    listed = re.search(r"^testpaths = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    measured = re.findall(r"^(?:UN)?MEASURED = \[(.*)\]$", (ROOT / "noxfile.py").read_text(), re.MULTILINE)
    rooms, run = ([name.strip() for name in names.split(",")] for names in (listed[1], ",".join(measured)))
    assert rooms
    assert set(rooms) <= set(run)


def test_the_quickstart_begins_with_the_first_command_of_the_readme():
    """README and documentation name one way to begin."""
    readme, quickstart = (commands((ROOT / name).read_text())[0] for name in ("README.md", "docs/quickstart.md"))
    assert readme == quickstart


def test_readme_and_guarantees_promise_the_same_words():
    """The promise stands word for word wherever it is made."""
    promises = {
        re.search(r"^> A read served.*?unknown\.$", (ROOT / name).read_text(), re.MULTILINE | re.DOTALL)[0]
        for name in ("README.md", "docs/index.md", "docs/guarantees.md")
    }
    assert len(promises) == 1


def test_the_console_script_is_installed():
    """`sa-writethrough` is what the README calls."""
    (script,) = entry_points(group="console_scripts", name="sa-writethrough")
    assert callable(script.load())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("sa_writethrough.memory", {}),
        ("sa_writethrough.memcached", {"url": "memcached://127.0.0.1:1"}),
    ],
)
def test_dogpile_finds_the_backend(name, arguments):
    """A region is configured by name, without importing the package first."""
    region = make_region().configure(name, arguments=arguments)
    region.actual_backend.store.close()


def test_synchronous_sessions_need_no_greenlet():
    """SQLAlchemy 2.1 does not bring it, and its asyncio extension cannot be imported without."""
    program = (
        "import sys; sys.modules['greenlet'] = None\n"
        "import sa_writethrough as wt\n"
        "from sqlalchemy.orm import sessionmaker\n"
        "wt.register(sessionmaker()).unregister()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_the_package_is_typed():
    """Type checkers read our annotations."""
    assert files("sa_writethrough").joinpath("py.typed").is_file()


def test_the_version_is_that_of_the_changelog():
    """The changelog has a section for the installed version, or collects the next one's."""
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{version('sa-writethrough')}]" in changelog or "## [Unreleased]" in changelog


def test_every_error_is_one_of_sqlalchemy():
    """What an application catches as SQLAlchemyError catches ours."""
    errors = [getattr(sa_writethrough, name) for name in sa_writethrough.__all__ if name.endswith("Error")]
    assert errors
    assert all(issubclass(error, exc.SQLAlchemyError) for error in errors)


def test_every_test_says_in_a_sentence_what_it_claims():
    """Each test function has a docstring that ends like a sentence."""
    silent = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith("test_")
        and not (ast.get_docstring(node) or "").rstrip().endswith((".", "?", "!"))
    ]
    assert not silent
