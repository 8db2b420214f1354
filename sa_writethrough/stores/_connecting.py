"""How a connection is made: addresses, TLS, credentials, time limits, the server's version. Knows pymemcache.

pymemcache connects (UNIX sockets, TLS, keepalive) and asks for the version; from then on the socket is ours: waiting in
the kernel (SO_RCVTIMEO) instead of in `poll` saves two system calls per round trip.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import sys
from dataclasses import dataclass, field
from ssl import SSLContext

from pymemcache.client.base import Client, KeepaliveOpts
from pymemcache.exceptions import MemcacheError

__all__ = ["Address", "ConnectOptions", "Credentials", "connect", "has_explicit_cas"]

_EXPLICIT_CAS = (1, 6, 27)
"""Since this version the `E` flag sets an item's id."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a node is: a host and a port, or the path of a UNIX socket."""

    host: str
    port: int | None = 11211
    """None: *host* is a path."""

    def __str__(self) -> str:
        if self.port is None:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Credentials:
    """For memcached's ASCII authentication (`-Y`)."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ConnectOptions:
    """How every connection of a store is made. Time limits are in seconds."""

    connect_timeout: float = 0.25
    timeout: float = 0.5
    credentials: Credentials | None = None
    tls: SSLContext | None = None


def connect(address: Address, options: ConnectOptions) -> tuple[socket.socket, bytes]:
    """Return a connected socket that obeys the time limits, and the server's version. Raises OSError."""
    failure: OSError = OSError(f"no address is known for {address.host!r}")
    for server in _servers(address, options):
        try:
            return _connect(server, options)
        except OSError as error:  # noqa: PERF203 - the next address is tried
            failure = error
        except MemcacheError as error:
            failure = OSError(f"{type(error).__name__}: {error}")
    raise failure


def has_explicit_cas(version: bytes) -> bool:
    """Return whether a server of *version* lets clients choose an item's id."""
    numbers = re.match(rb"(\d+)\.(\d+)\.(\d+)", version)
    return numbers is not None and tuple(map(int, numbers.groups())) >= _EXPLICIT_CAS


def _servers(address: Address, options: ConnectOptions) -> list[str | tuple[str, int]]:
    if address.port is None:
        return [address.host]
    if options.tls is not None:
        # The certificate is checked against the name, so the name it must be.
        return [(address.host, address.port)]
    # pymemcache tries the first address alone, and "localhost" is ::1 first where memcached often is not.
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys((str(sockaddr[0]), address.port) for *_, sockaddr in found))


def _connect(server: str | tuple[str, int], options: ConnectOptions) -> tuple[socket.socket, bytes]:
    tcp = isinstance(server, tuple)
    client = Client(
        server,
        connect_timeout=options.connect_timeout,
        timeout=options.timeout,
        no_delay=True,
        socket_keepalive=KeepaliveOpts(idle=60, intvl=10) if tcp and sys.platform == "linux" else None,
        tls_context=options.tls if tcp else None,
    )
    try:
        if options.credentials is not None:
            _authenticate(client, options.credentials)
        version = client.version()
        sock = client.sock
        _limit(sock, options)
    except BaseException:
        client.close()
        raise
    client.sock = None
    return sock, version


def _authenticate(client: Client, credentials: Credentials) -> None:
    login = f"{credentials.username} {credentials.password}".encode()
    try:
        client.raw_command(b"set auth 0 0 %d\r\n%b" % (len(login), login))
    except MemcacheError:
        # Not the server's words: they might repeat ours.
        raise PermissionError(f"user {credentials.username!r} was refused: check the URL's user and password") from None


def _limit(sock: socket.socket, options: ConnectOptions) -> None:
    if options.tls is not None or os.name != "posix":
        # ssl retries a read that the kernel gave up, so it never sees the kernel's limit.
        sock.settimeout(options.timeout)
        return
    sock.settimeout(None)
    limit = struct.pack("ll", int(options.timeout), int(options.timeout % 1 * 1_000_000))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
