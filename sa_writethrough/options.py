"""The query options. An option only says what is wanted; `loading` decides what is done."""

from __future__ import annotations

from typing import cast

from sqlalchemy.orm.interfaces import UserDefinedOption

from sa_writethrough.exceptions import ConfigurationError
from sa_writethrough.policy import CacheMode

__all__ = ["bypass_cache", "from_cache"]


class from_cache(UserDefinedOption):  # noqa: N801 - options are lowercase in SQLAlchemy
    """Serve a lookup by identity from the cache.

    For `session.get(..., options=[from_cache()])` and for a `select()` of one cached entity by its whole primary key
    (`==`, or `in_` for many). Any other statement goes to the database as if the option were not there.

    Raises `ConfigurationError` for anything that is not a `CacheMode`.
    """

    propagate_to_loaders = False

    def __init__(self, mode: CacheMode = CacheMode.NORMAL) -> None:
        if not isinstance(mode, CacheMode):
            raise ConfigurationError(
                f"from_cache({mode!r}): give a CacheMode, one of {', '.join(f'CacheMode.{m.name}' for m in CacheMode)}."
            )
        self.payload = mode

    @property
    def mode(self) -> CacheMode:
        """The mode that was asked for."""
        return cast("CacheMode", self.payload)


class bypass_cache(from_cache):  # noqa: N801 - options are lowercase in SQLAlchemy
    """Read the database although the model's policy says `Reads.ALWAYS`; the opposite of `from_cache()`."""

    def __init__(self) -> None:
        super().__init__(CacheMode.IGNORE)
