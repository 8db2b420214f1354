"""The proxy does to a connection what the rig's figures say that it did."""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.chaos import proxy as proxy_module
from tests.chaos.proxy import COMMIT, Mode, Proxy


class Line:
    """A client's connection through a proxy, and the server's end of it."""

    def __init__(self, listener: socket.socket, control, proxy: Proxy) -> None:
        host, port = proxy.addresses["it"].split(":")
        self._control = control
        self.client = socket.create_connection((host, int(port)), timeout=5)
        self.server, _ = listener.accept()
        self.server.settimeout(5)

    def order(self, mode: Mode) -> dict[Mode, int]:
        """Set what becomes of the traffic."""
        self._control.send(("it", mode))
        return self._control.recv()

    def close(self) -> None:
        self.client.close()
        self.server.close()


@pytest.fixture
def line(monkeypatch) -> Iterator[Line]:
    """A line; a late COMMIT is late by a twentieth of a second."""
    monkeypatch.setattr(proxy_module, "LATE_SECONDS", (0.05, 0.05))
    ours, theirs = multiprocessing.Pipe()
    with socket.create_server(("127.0.0.1", 0)) as listener, ours, theirs:
        proxy = Proxy({"it": listener.getsockname()}, theirs)
        thread = threading.Thread(target=proxy.run)
        thread.start()
        made = Line(listener, ours, proxy)
        yield made
        made.close()
        ours.send(None)
        thread.join()
        proxy.close()


def ended(sock: socket.socket) -> bool:
    """Wait for what comes, and tell whether it is the end."""
    with contextlib.suppress(ConnectionResetError):
        return sock.recv(100) == b""
    return True


def test_it_passes_on_both_ways(line):
    """Without a fault nobody notices it."""
    line.client.sendall(b"ask")
    assert line.server.recv(100) == b"ask"
    line.server.sendall(b"answer")
    assert line.client.recv(100) == b"answer"


def test_a_server_that_ends_takes_the_clients_connection_with_it(line):
    """A restart of memcached must not be hidden from those who count on it."""
    line.server.close()
    assert ended(line.client)


def test_a_node_that_is_gone_has_no_connections(line):
    """Neither old ones nor new ones, until it is back."""
    line.order(Mode.REFUSE)
    assert ended(line.client)


def test_a_swallowed_answer_never_comes(line):
    """The request is delivered; the connection ends without an answer to it."""
    line.order(Mode.SWALLOW)
    line.client.sendall(b"ask")
    assert line.server.recv(100) == b"ask"
    line.server.sendall(b"answer")
    while Mode.SWALLOW not in line.order(Mode.SWALLOW):
        pass
    line.order(Mode.PASS)
    assert ended(line.client)


def test_a_lost_commit_is_not_delivered(line):
    """The server sees the end of the connection instead."""
    line.order(Mode.COMMIT_LOST)
    line.client.sendall(b"Q\0\0\0\x0b" + COMMIT)
    assert ended(line.server)
    assert ended(line.client)


def test_a_late_commit_is_delivered_after_the_client_is_gone(line):
    """The client knows nothing, and the server commits all the same."""
    line.order(Mode.COMMIT_LATE)
    line.client.sendall(COMMIT)
    assert ended(line.client)
    assert line.server.recv(100) == COMMIT


def test_a_commits_answer_is_lost(line):
    """The server has committed; the client's connection ends."""
    line.order(Mode.COMMIT_SWALLOWED)
    line.client.sendall(COMMIT)
    assert line.server.recv(100) == COMMIT
    line.server.sendall(b"answer")
    assert ended(line.client)


def test_only_one_commit_meets_the_fault(line):
    """What is armed once strikes once."""
    line.order(Mode.COMMIT_SWALLOWED)
    line.client.sendall(COMMIT)
    assert ended(line.client)
    assert line.order(Mode.PASS) == {Mode.COMMIT_SWALLOWED: 1}
