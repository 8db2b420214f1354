"""A TCP proxy that a test puts between a store and its server, to delay, swallow and cut."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from enum import Enum

from typing_extensions import Self


class Replies(Enum):
    """What becomes of what the server says."""

    PASS = "pass"
    HOLD = "hold"
    SWALLOW = "swallow"


class Proxy:
    """Listens on a port of its own and passes everything on; `replies` may be set at any time. One thread."""

    def __init__(self, host: str, port: int) -> None:
        self.replies = Replies.PASS
        self.accepted = 0
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host, self.port = self._listener.getsockname()
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._peers: dict[socket.socket, socket.socket] = {}
        self._servers: set[socket.socket] = set()
        self._running = True
        self._thread = threading.Thread(target=self._run, name="proxy")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._running = False
        self._wake.send(b".")
        self._thread.join()
        for sock in (*self._peers, self._listener, self._wake, self._woken):
            sock.close()
        self._selector.close()

    def set(self, replies: Replies) -> None:
        """Change what becomes of replies, those that are held included."""
        self.replies = replies
        self._wake.send(b".")

    def _run(self) -> None:
        while self._running:
            # Held replies stay in the socket: they are not waited for, or the loop would spin.
            for sock in self._servers:
                events = 0 if self.replies is Replies.HOLD else selectors.EVENT_READ
                with contextlib.suppress(KeyError):
                    self._selector.unregister(sock)
                if events:
                    self._selector.register(sock, events)
            for key, _ in self._selector.select():
                sock = key.fileobj
                if sock is self._listener:
                    self._accept()
                elif sock is self._woken:
                    self._woken.recv(4096)
                elif isinstance(sock, socket.socket) and sock in self._peers:
                    self._pass_on(sock)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        self.accepted += 1
        try:
            server = socket.create_connection(self._target, timeout=5)
        except OSError:
            client.close()
            return
        self._peers[client], self._peers[server] = server, client
        self._servers.add(server)
        self._selector.register(client, selectors.EVENT_READ)

    def _pass_on(self, sock: socket.socket) -> None:
        received = b""
        with contextlib.suppress(OSError):
            received = sock.recv(65536)
        if not received:
            self._cut(sock)
        elif sock not in self._servers or self.replies is Replies.PASS:
            try:
                self._peers[sock].sendall(received)
            except OSError:
                self._cut(sock)

    def _cut(self, sock: socket.socket) -> None:
        for end in (sock, self._peers[sock]):
            self._servers.discard(end)
            del self._peers[end]
            with contextlib.suppress(KeyError):
                self._selector.unregister(end)
            end.close()
