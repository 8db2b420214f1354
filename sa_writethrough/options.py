"""The query options. An option only says what is wanted; `loading` decides what is done."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import QueryableAttribute, RelationshipDirection, RelationshipProperty

from sa_writethrough._loader_options import KeyedOption
from sa_writethrough.exceptions import ConfigurationError
from sa_writethrough.policy import CacheMode

__all__ = ["bypass_cache", "from_cache"]


class from_cache(KeyedOption):  # noqa: N801 - options are lowercase in SQLAlchemy
    """Serve a lookup by identity from the cache; or, given relationships, their lazy loads.

    `from_cache()` is for `session.get(..., options=[from_cache()])` and for a `select()` of one cached entity by its
    whole primary key (`==`, or `in_` for many), or by a whole unique key that its policy names. Any other statement
    goes to the database as if the option were not there.

    `from_cache(Order.customer)` and `from_cache(Order.customer, Customer.country)` are for any statement that loads
    orders, as SQLAlchemy's loader options are: the statement is not touched, and the many-to-one attribute at the end
    of that path is served from the cache when it is loaded on access. Give one option for each attribute.

    Raises `ConfigurationError` for what is neither a `CacheMode` nor a path of many-to-one relationships.
    """

    inherit_cache = True
    propagate_to_loaders = False

    def __init__(self, *what: Any, mode: CacheMode = CacheMode.NORMAL) -> None:
        if what and isinstance(what[0], CacheMode):
            mode, what = what[0], what[1:]
        if not isinstance(mode, CacheMode):
            raise _refusal(mode, "as the mode")
        self.mode = mode
        self.path: tuple[RelationshipProperty[Any], ...] = tuple(_relationship(attribute) for attribute in what)
        """The relationships that it is for; none: it is for the statement itself."""
        for one, next_one in zip(self.path, self.path[1:], strict=False):
            if not (one.mapper.isa(next_one.parent) or next_one.parent.isa(one.mapper)):
                raise ConfigurationError(f"from_cache(...): {next_one} does not begin where {one} ends.")
        self.propagate_to_loaders = bool(self.path)
        super().__init__((self.path, mode))


class bypass_cache(from_cache):  # noqa: N801 - options are lowercase in SQLAlchemy
    """Read the database although the model's policy says `Reads.ALWAYS`; the opposite of `from_cache()`.

    Given relationships, their lazy loads read the database.
    """

    inherit_cache = True

    def __init__(self, *path: Any) -> None:
        super().__init__(*path, mode=CacheMode.IGNORE)


def _relationship(attribute: Any) -> RelationshipProperty[Any]:
    found = attribute.property if isinstance(attribute, QueryableAttribute) else None
    if not isinstance(found, RelationshipProperty):
        raise _refusal(attribute, "or many-to-one relationships such as Order.customer")
    if found.direction is not RelationshipDirection.MANYTOONE:
        raise ConfigurationError(
            f"from_cache({found}): only many-to-one relationships are looked up by identity. Name a one-to-many one in "
            "its owner's CachePolicy(collections=[...])."
        )
    return found


def _refusal(given: Any, what: str) -> ConfigurationError:
    modes = ", ".join(f"CacheMode.{mode.name}" for mode in CacheMode)
    return ConfigurationError(f"from_cache({given!r}): give a CacheMode, one of {modes}, {what}.")
