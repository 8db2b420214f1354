"""Store URLs: from text to a store. Every complaint names the part of the URL that is wrong; none shows a password.

memory://?max_bytes=..&max_entries=..&lease_ttl=..
memcached://[user:password@]host[:port][,host[:port]...]?timeout=..&connect_timeout=..&retry_after=..&lease_ttl=..
          &pool_size=..&max_item_bytes=..&tls=1&tls_ca=/path/to/ca.pem
memcached+unix:///path/to/memcached.sock?...
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from sa_writethrough.exceptions import ConfigurationError
from sa_writethrough.stores._connecting import Address, ConnectOptions, Credentials
from sa_writethrough.stores._node import NodeOptions
from sa_writethrough.stores.base import Store
from sa_writethrough.stores.memcached import MemcachedStore
from sa_writethrough.stores.memcached_async import AsyncMemcachedStore
from sa_writethrough.stores.memory import MemoryStore

__all__ = ["open_async_store", "open_store"]

_Memcached: TypeAlias = "type[MemcachedStore | AsyncMemcachedStore]"

_DEFAULT_PORT = 11211
_HIGHEST_PORT = 65535


def open_store(url: str) -> Store:
    """Return the store that *url* names. Nothing is connected yet. Raises `ConfigurationError`."""
    return _opened(url, MemcachedStore)


def open_async_store(url: str) -> Store:
    """Return the store that *url* names, for asynchronous sessions. Raises as `open_store`."""
    return _opened(url, AsyncMemcachedStore)


def _opened(url: str, memcached: _Memcached) -> Store:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigurationError(f"store URL: {error}") from None
    opener = _OPENERS.get(parts.scheme)
    if opener is None:
        raise ConfigurationError(f"store URL: unknown scheme {parts.scheme!r}; valid are {', '.join(_OPENERS)}")
    return opener(parts, memcached)


def _open_memory(parts: SplitResult, _memcached: _Memcached) -> Store:
    if parts.netloc or parts.path:
        raise ConfigurationError("store URL: memory:// has neither a host nor a path; options go after '?'")
    return MemoryStore(**_parameters(parts, _MEMORY))


def _open_memcached(parts: SplitResult, memcached: _Memcached) -> Store:
    login, _, places = parts.netloc.rpartition("@")
    if parts.path.strip("/"):
        raise ConfigurationError(f"store URL: memcached:// takes no path, not {parts.path!r}")
    return _open_nodes(parts, memcached, login, [_host_and_port(place) for place in places.split(",")])


def _open_memcached_unix(parts: SplitResult, memcached: _Memcached) -> Store:
    login, _, host = parts.netloc.rpartition("@")
    if host or not parts.path.strip("/"):
        raise ConfigurationError("store URL: memcached+unix:// needs the socket's absolute path, after three slashes")
    return _open_nodes(parts, memcached, login, [(unquote(parts.path), None)])


def _open_nodes(parts: SplitResult, memcached: _Memcached, login: str, places: list[tuple[str, int | None]]) -> Store:
    given = _parameters(parts, _MEMCACHED)
    username, _, password = login.partition(":")
    connecting = ConnectOptions(
        credentials=Credentials(unquote(username), unquote(password)) if login else None,
        tls=_tls(given.pop("tls_ca", None)) if given.pop("tls", None) else None,
        **_taken(given, "timeout", "connect_timeout"),
    )
    if "tls_ca" in given:
        raise ConfigurationError("store URL: tls_ca means nothing without tls=1")
    options = NodeOptions(connecting, **_taken(given, "pool_size", "retry_after"))
    return memcached([Address(host, port) for host, port in places], options, **given)


def _tls(authority: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=authority)
    except OSError as error:
        raise ConfigurationError(f"store URL: tls_ca={authority!r} cannot be read: {error}") from None


def _host_and_port(place: str) -> tuple[str, int]:
    """Take `host`, `host:port`, `[::1]` or `[::1]:port` apart."""
    host, colon, port = place.rpartition(":") if not place.endswith("]") else (place, "", "")
    if not colon:
        host, port = place, str(_DEFAULT_PORT)
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    if not host or ("[" in host) or ("]" in host) or (":" in host and not bracketed):
        raise ConfigurationError(f"store URL: {place!r} is no host: write host, host:port or [::1]:port")
    if not (port.isascii() and port.isdigit() and 0 < int(port) <= _HIGHEST_PORT):
        raise ConfigurationError(
            f"store URL: {port!r} in {place!r} is no port: it is a number from 1 to {_HIGHEST_PORT}"
        )
    return host, int(port)


# --- parameters -----------------------------------------------------------------------------------------------------


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise ValueError
    return seconds


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError
    return count


def _switch(text: str) -> bool:
    return {"0": False, "1": True}[text]


@dataclass(frozen=True, slots=True)
class _Parameter:
    """How a parameter is read, and what it must be."""

    read: Callable[[str], object]
    what: str


_SECONDS = _Parameter(_seconds, "a number of seconds greater than zero")
_COUNT = _Parameter(_count, "a whole number greater than zero")
_MEMORY: Mapping[str, _Parameter] = {"max_bytes": _COUNT, "max_entries": _COUNT, "lease_ttl": _SECONDS}
_MEMCACHED: Mapping[str, _Parameter] = {
    "timeout": _SECONDS,
    "connect_timeout": _SECONDS,
    "retry_after": _SECONDS,
    "lease_ttl": _SECONDS,
    "pool_size": _COUNT,
    "max_item_bytes": _COUNT,
    "tls": _Parameter(_switch, "0 or 1"),
    "tls_ca": _Parameter(str, "a path"),
}
_OPENERS: Mapping[str, Callable[[SplitResult, _Memcached], Store]] = {
    "memory": _open_memory,
    "memcached": _open_memcached,
    "memcached+unix": _open_memcached_unix,
}


def _parameters(parts: SplitResult, known: Mapping[str, _Parameter]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        if name not in known:
            raise ConfigurationError(f"store URL: unknown parameter {name!r}; valid are {', '.join(known)}")
        if name in given:
            raise ConfigurationError(f"store URL: {name} is given twice")
        try:
            given[name] = known[name].read(text)
        except (ValueError, KeyError):
            raise ConfigurationError(f"store URL: {name}={text!r} is not {known[name].what}") from None
    return given


def _taken(given: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: given.pop(name) for name in names if name in given}
