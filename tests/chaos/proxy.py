"""A TCP proxy between the application's processes and their servers: it cuts, delays, and swallows what was answered.

One process and one thread for several ports. A request that it holds back is delivered even if the client has long
given up: that is how a message arrives late. A server that ends takes its clients' connections with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import heapq
import itertools
import random
import selectors
import signal
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from enum import Enum
from multiprocessing.connection import Connection

from tests.chaos.client import DIE_WITH_PARENT

__all__ = ["Mode", "run_proxy"]

HOST = "127.0.0.1"
CHUNK_BYTES = 256 * 1024
COMMIT = b"COMMIT\0"
"""As psycopg sends it, in a message of its own."""
LATE_SECONDS = (1.1, 2.2)
"""Longer than a tombstone lives."""
RETRY_SECONDS = 0.005


class Mode(Enum):
    """What becomes of the traffic of one port."""

    PASS = "pass"
    REFUSE = "refuse"
    """The node is gone: no connection lives, none is made. Its memory stays as it is."""
    CUT = "cut"
    """Half of the connections end now, wherever they are; then as PASS."""
    DELAY = "delay"
    """Everything is held back for a while, some of it for longer than a client waits."""
    SWALLOW = "swallow"
    """Requests are delivered, what is answered is lost; such a connection ends."""
    COMMIT_LOST = "commit lost"
    """The next COMMIT is not delivered, and its connection ends."""
    COMMIT_SWALLOWED = "commit swallowed"
    """The next COMMIT is delivered, and its connection ends before the answer comes through."""
    COMMIT_LATE = "commit late"
    """The next COMMIT's connection ends for the client at once; the server gets it later."""


COMMIT_MODES = frozenset({Mode.COMMIT_LOST, Mode.COMMIT_SWALLOWED, Mode.COMMIT_LATE})


class Port:
    """Where clients connect, where that leads, and what happens on the way."""

    def __init__(self, name: str, target: tuple[str, int]) -> None:
        self.name, self.target, self.mode = name, target, Mode.PASS
        self.listener = socket.create_server((HOST, 0), backlog=256)
        self.links: set[Link] = set()


class Link:
    """One client's connection and the one that was made for it. *client* is None once the client is gone."""

    __slots__ = ("client", "deaf", "outbox", "port", "server")

    def __init__(self, port: Port, client: socket.socket, server: socket.socket) -> None:
        self.port = port
        self.client: socket.socket | None = client
        self.server = server
        self.deaf = False
        """Whether something that the server said was swallowed."""
        self.outbox: dict[bool, deque[tuple[float, bytes]]] = {True: deque(), False: deque()}
        """By whether it goes to the server: what waits, and until when."""


class Proxy:
    """The loop."""

    def __init__(self, targets: Mapping[str, tuple[str, int]], control: Connection) -> None:
        self._ports = {name: Port(name, target) for name, target in targets.items()}
        self._control = control
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ, None)
        for port in self._ports.values():
            self._selector.register(port.listener, selectors.EVENT_READ, port)
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._chance = random.Random()
        self.counts: Counter[Mode] = Counter()

    @property
    def addresses(self) -> dict[str, str]:
        """host:port of every port."""
        return {name: f"{HOST}:{port.listener.getsockname()[1]}" for name, port in self._ports.items()}

    def run(self) -> None:
        """Pass on until the control says stop, or is gone."""
        while True:
            wait = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
            for key, _ in self._selector.select(wait):
                if key.data is None:
                    if not self._obey():
                        return
                elif isinstance(key.data, Port):
                    self._accept(key.data)
                else:
                    self._receive(*key.data)
            while self._timers and self._timers[0][0] <= time.monotonic():
                heapq.heappop(self._timers)[2]()

    def close(self) -> None:
        """Close every socket."""
        for port in self._ports.values():
            for link in tuple(port.links):
                self._cut(link)
            port.listener.close()
        self._selector.close()

    # --- orders ---

    def _obey(self) -> bool:
        try:
            order = self._control.recv()
        except EOFError:
            return False
        if order is None:
            return False
        name, mode = order
        port = self._ports[name]
        before, port.mode = port.mode, Mode.PASS if mode is Mode.CUT else mode
        if mode is Mode.REFUSE:
            self._cut_some(port, 1.0)
        elif mode is Mode.CUT:
            self._cut_some(port, 0.5)
        elif before is Mode.SWALLOW:
            for link in [link for link in port.links if link.deaf]:
                self._cut(link)
        self._control.send(dict(self.counts))
        return True

    def _cut_some(self, port: Port, share: float) -> None:
        for link in tuple(port.links):
            if self._chance.random() < share:
                self._cut(link)
                self.counts[Mode.CUT] += 1

    # --- traffic ---

    def _accept(self, port: Port) -> None:
        client, _ = port.listener.accept()
        if port.mode is Mode.REFUSE:
            client.close()
            return
        try:
            server = socket.create_connection(port.target, timeout=1)
        except OSError:
            client.close()
            return
        link = Link(port, client, server)
        port.links.add(link)
        for sock, from_client in ((client, True), (server, False)):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ, (link, from_client))

    def _receive(self, link: Link, from_client: bool) -> None:
        sock = link.client if from_client else link.server
        if sock is None or link not in link.port.links:
            return
        received = b""
        try:
            received = sock.recv(CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            pass
        if received:
            self._treat(link, from_client, received)
        elif from_client and link.outbox[True]:
            self._forget_client(link)
        else:
            self._cut(link)

    def _treat(self, link: Link, from_client: bool, received: bytes) -> None:
        mode = link.port.mode
        if mode in COMMIT_MODES and from_client and COMMIT in received:
            link.port.mode = Mode.PASS
            self.counts[mode] += 1
            self._commit(link, mode, received)
        elif mode is Mode.DELAY:
            self.counts[mode] += 1
            self._post(link, from_client, received, self._chance.choice((0.01, 0.05, 0.2, 1.2)))
        elif mode is Mode.SWALLOW and not from_client:
            self.counts[mode] += 1
            link.deaf = True
        elif not link.deaf or from_client:
            self._post(link, from_client, received, 0.0)

    def _commit(self, link: Link, mode: Mode, received: bytes) -> None:
        if mode is Mode.COMMIT_LOST:
            self._cut(link)
        elif mode is Mode.COMMIT_SWALLOWED:
            self._post(link, True, received, 0.0)
            link.deaf = True
            self._later(self._chance.uniform(0.05, 1.5), lambda: self._cut(link))
        else:
            self._post(link, True, received, self._chance.uniform(*LATE_SECONDS))
            self._forget_client(link)

    def _post(self, link: Link, to_server: bool, chunk: bytes, delay: float) -> None:
        """Send *chunk* after *delay*, and after what waits already."""
        outbox = link.outbox[to_server]
        now = time.monotonic()
        if not outbox and not delay:
            chunk = self._send(link, to_server, chunk)
        if chunk:
            due = max(now + (delay or RETRY_SECONDS), outbox[-1][0] if outbox else 0.0)
            outbox.append((due, chunk))
            self._later(due - now, lambda: self._pump(link, to_server))

    def _send(self, link: Link, to_server: bool, chunk: bytes) -> bytes:
        """Return what did not go out."""
        sock = link.server if to_server else link.client
        if sock is None or link not in link.port.links:
            return b""
        try:
            return chunk[sock.send(chunk) :]
        except BlockingIOError:
            return chunk
        except OSError:
            self._cut(link)
            return b""

    def _pump(self, link: Link, to_server: bool) -> None:
        outbox, now = link.outbox[to_server], time.monotonic()
        while outbox and outbox[0][0] <= now:
            rest = self._send(link, to_server, outbox.popleft()[1])
            if rest:
                outbox.appendleft((now, rest))
                self._later(RETRY_SECONDS, lambda: self._pump(link, to_server))
                return
        if not outbox and link.client is None and link in link.port.links:
            # The server has it now; its answer is nobody's. Let it finish what it was asked before it is hung up on.
            self._later(5.0, lambda: self._cut(link))

    def _later(self, delay: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + delay, next(self._numbers), action))

    # --- ends ---

    def _forget_client(self, link: Link) -> None:
        """Close the client's connection; what is on its way to the server will get there."""
        client, link.client = link.client, None
        if client is not None:
            self._selector.unregister(client)
            client.close()
        link.deaf = True

    def _cut(self, link: Link) -> None:
        if link not in link.port.links:
            return
        link.port.links.discard(link)
        self._forget_client(link)
        self._selector.unregister(link.server)
        link.server.close()
        link.outbox[True].clear()
        link.outbox[False].clear()


def run_proxy(targets: Mapping[str, tuple[str, int]], control: Connection) -> None:
    """Be a proxy process: tell the addresses, then obey."""
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    proxy = Proxy(targets, control)
    control.send(proxy.addresses)
    with contextlib.suppress(BrokenPipeError):
        proxy.run()
    proxy.close()
