"""What the demonstration is asked to do, and how it says that it cannot. Knows nothing of databases or of stores."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

__all__ = ["DemoError", "Settings", "first_line", "without_password"]

_PASSWORD = re.compile(r"(?<=:)[^:@/]*(?=@)")


class DemoError(Exception):
    """The demonstration cannot run. Its text is one sentence for whoever started it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One run.

    database: SQLAlchemy's URL; None is a temporary SQLite file. cities: how many of the largest; None is all.
    Raises `DemoError` for a number that is not positive.
    """

    database: str | None = None
    store: str = "memory://"
    seconds: float = 5.0
    threads: int = 4
    cities: int | None = None

    def __post_init__(self) -> None:
        for name in ("seconds", "threads", "cities"):
            number = getattr(self, name)
            if number is not None and not (number > 0 and math.isfinite(number)):
                raise DemoError(f"--{name} {number:g} is not a positive number.")


def first_line(error: BaseException) -> str:
    """Return the first line of what *error* says, without a full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".")


def without_password(url: str) -> str:
    """Return *url* as it may be shown."""
    return _PASSWORD.sub("***", url)
