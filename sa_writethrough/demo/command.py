"""The command line of the demonstration: options in, an exit code and at most one sentence of complaint out."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from sa_writethrough.cli import version_line
from sa_writethrough.demo.running import run
from sa_writethrough.demo.settings import DemoError, Settings

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - how typer calls back
    if wanted:
        typer.echo(version_line())
        raise typer.Exit


@app.callback()
def sa_writethrough(
    *,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """A write-through cache for the SQLAlchemy ORM that always agrees with the database."""


@app.command()
def demo(
    database: Annotated[
        str | None,
        typer.Option(
            help="SQLAlchemy's URL of a PostgreSQL or SQLite database.", show_default="a temporary SQLite file"
        ),
    ] = None,
    store: Annotated[
        str, typer.Option(help="memory://, memcached://host:port,... or memcached+unix:///path.")
    ] = "memory://",
    seconds: Annotated[float, typer.Option(help="How long to read and update.")] = 5.0,
    threads: Annotated[int, typer.Option(help="From how many threads.")] = 4,
    cities: Annotated[
        int | None,
        typer.Option(help="How many of the largest cities to load.", show_default="all"),
    ] = None,
) -> None:
    """Load GeoNames, read and update it from several threads, and check every cached read against the database.

    In --database it makes tables sa_writethrough_demo_* of its own and drops them. Exit code 1: stale reads were found.
    """
    try:
        kept = run(Settings(database, store, seconds, threads, cities), Console(highlight=False))
    except DemoError as error:
        typer.echo(f"sa-writethrough demo: {error}", err=True)
        raise typer.Exit(2) from None
    if not kept:
        raise typer.Exit(1)
