"""One connection and the runs on it, over a socket pair whose other end the test holds."""

from __future__ import annotations

import os
import socket

import pytest

from sa_writethrough.exceptions import CacheUnavailableError
from sa_writethrough.stores._connection import Connection
from sa_writethrough.stores._pipeline import PART_BYTES, WINDOW_BYTES, WINDOW_PARTS, Run


@pytest.fixture
def pair():
    """A connection, and the server's end of it."""
    ours, theirs = socket.socketpair()
    yield Connection(ours, os.getpid(), None, lambda _, error: CacheUnavailableError(repr(error))), theirs
    ours.close()
    theirs.close()


def ask(commands, result="done"):
    """A plan of one round."""
    yield commands
    return [result]


def explode():
    """A plan that is interrupted when its reply comes."""
    yield [b"mn"]
    raise KeyboardInterrupt


def test_runs_share_a_connection_in_order(pair):
    """The replies of an earlier run are read and handed over by whoever reads first."""
    connection, server = pair
    first, second = Run(ask([b"mg a\r\n"], "first"), connection), Run(ask([b"mg b\r\n"], "second"), connection)
    connection.enqueue(first)
    connection.flush()
    connection.enqueue(second)
    server.sendall(b"EN\r\nEN\r\n")
    connection.finish(second)
    assert (first.results, second.results) == (["first"], ["second"])
    assert server.recv(100) == b"mg a\r\nmg b\r\n"
    assert not connection.owes


def test_a_run_that_is_done_is_seen_through(pair):
    """Nobody waits for it again, and one that takes neither leases nor tombstones has nothing to give back."""
    connection, server = pair
    run = Run(ask([b"mg a\r\n"]), connection)
    connection.enqueue(run)
    server.sendall(b"EN\r\n")
    for _ in range(2):
        connection.see_through(run)
        assert run.done
    assert run.taken() == []


def test_no_more_is_unanswered_than_the_window(pair):
    """However much there is to send, the window alone is sent before an answer comes."""
    connection, server = pair
    command = b"mg " + b"k" * 59 + b"\r\n"
    run = Run(ask([command] * 3000), connection)
    connection.enqueue(run)
    connection.flush()
    assert server.recv(1_000_000) == command * (WINDOW_BYTES // len(command))
    assert not run.done


def test_next_part_of_a_run_is_sent_when_the_first_is_answered(pair):
    """The window moves on by whole parts: not by a command per reply, and not only when all of it is answered."""
    connection, server = pair
    command = b"mg " + b"k" * 59 + b"\r\n"
    in_part = PART_BYTES // len(command)
    run = Run(ask([command] * in_part * 3), connection)
    connection.enqueue(run)
    connection.flush()
    assert server.recv(1_000_000) == command * in_part * 2
    server.sendall(b"EN\r\n" * in_part)
    connection.push()
    assert server.recv(1_000_000) == command * in_part
    assert not run.done


def test_no_more_runs_are_unanswered_than_the_window(pair):
    """Of many small runs, each of which may be sent by itself, the window's number is sent before an answer comes."""
    connection, server = pair
    runs = [Run(ask([b"mn\r\n"]), connection) for _ in range(300)]
    for run in runs:
        connection.enqueue(run)
        connection.flush()
    assert server.recv(10_000) == b"mn\r\n" * WINDOW_PARTS
    server.sendall(b"HD\r\n" * WINDOW_PARTS)
    connection.finish(runs[WINDOW_PARTS - 1])
    assert [run.results for run in runs] == [["done"]] * WINDOW_PARTS + [None] * (300 - WINDOW_PARTS)
    assert len(server.recv(10_000)) == 4 * WINDOW_PARTS


def test_large_commands_go_alone(pair):
    """A command larger than the window is sent when nothing else is unanswered."""
    connection, server = pair
    run = Run(ask([b"a" * 20_000, b"b" * 40_000]), connection)
    connection.enqueue(run)
    connection.flush()
    assert len(server.recv(100_000)) == 20_000
    server.sendall(b"HD\r\n")
    connection.push()
    assert len(server.recv(100_000)) == 40_000


def test_reply_that_nobody_asked_for_closes_the_connection(pair):
    """A server that speaks out of turn cannot be trusted with what comes next."""
    connection, server = pair
    run = Run(ask([b"mn\r\n"]), connection)
    connection.enqueue(run)
    server.sendall(b"HD\r\nHD\r\n")
    connection.finish(run)
    assert run.results == ["done"]
    assert not connection.alive


def test_failure_reaches_every_run(pair):
    """Runs that were sent, that wait to be sent, and that were handed over get the error that closed the connection."""
    connection, server = pair
    runs = [Run(ask([b"a" * PART_BYTES] * 3), connection) for _ in range(3)]
    connection.enqueue(runs[0])
    connection.enqueue(runs[1])
    connection.flush()
    connection.outbox.append(runs[2])
    server.close()
    connection.finish(runs[0])
    assert all(isinstance(run.error, CacheUnavailableError) for run in runs)
    late = Run(ask([b"mn\r\n"]), connection)
    connection.hand([late])
    assert late.error is runs[0].error


def test_failure_reaches_what_was_handed_over(pair):
    """A run in the outbox of a connection that is given up gets the error."""
    connection, _ = pair
    run = Run(ask([b"mn\r\n"]), connection)
    connection.outbox.append(run)
    connection.fail(OSError("given up"))
    assert str(run.error) == "given up"


def test_interrupt_closes_the_connection(pair):
    """Ctrl-C while replies are taken leaves no half-read connection, and goes on its way."""
    connection, server = pair
    interrupted, waiting = Run(explode(), connection), Run(ask([b"mn\r\n"]), connection)
    connection.enqueue(interrupted)
    connection.enqueue(waiting)
    server.sendall(b"HD\r\n")
    with pytest.raises(KeyboardInterrupt):
        connection.finish(waiting)
    assert not connection.alive
    assert "KeyboardInterrupt" in str(waiting.error)


def test_stale_is_what_the_server_closed(pair):
    """A connection that the server has closed is stale; one that is open, or owes replies, is not."""
    connection, server = pair
    assert not connection.is_stale
    run = Run(ask([b"mn\r\n"]), connection)
    connection.enqueue(run)
    assert not connection.is_stale
    server.sendall(b"HD\r\n")
    connection.finish(run)
    server.close()
    assert connection.is_stale
    connection.sock.close()
    assert connection.is_stale
