"""memcached under memory pressure: items of the library's own sizes are planted, and must have gone.

memcached evicts within classes of similar size. A row's item and a tombstone (a key of 25 bytes; a few dozen bytes of
value, or none) lie in the two smallest ones, so the filler's keys are short and its smallest values empty.
"""

from __future__ import annotations

import random
import socket

__all__ = ["press"]

FILLER_BYTES = (0, 10, 30, 50, 80, 120, 170, 230, 320)
FILLERS = 20_000
"""Of each size: a page of the smallest class holds 5,461 items, and a node of one megabyte a few pages."""
BIG_BYTES, BIGS = 200_000, 8
ROW_BYTES = (0, 20, 30, 40)
"""Values of a tombstone and of rows."""
ROWS = 100


def press(connection: socket.socket) -> float:
    """Fill a node with other items, small and big; return the share of planted items of each size that went, at least.

    What was planted had been read, like the rows that count.
    """
    mark = b"%08x" % random.getrandbits(32)
    planted = {size: [b"rowlike:%b:%03d:%04d" % (mark, size, n) for n in range(ROWS)] for size in ROW_BYTES}
    connection.sendall(b"".join(_set(key, size) for size, keys in planted.items() for key in keys))
    _left(connection, [key for keys in planted.values() for key in keys])
    for size in FILLER_BYTES:
        connection.sendall(b"".join(_set(b"%b:%d:%d" % (mark, size, n), size) for n in range(FILLERS)))
    connection.sendall(b"".join(_set(b"%b:%d" % (mark, n), BIG_BYTES) for n in range(BIGS)))
    return min(1 - _left(connection, keys) / ROWS for keys in planted.values())


def _set(key: bytes, size: int) -> bytes:
    return b"set %b 0 0 %d noreply\r\n%b\r\n" % (key, size, b"x" * size)


def _left(connection: socket.socket, keys: list[bytes]) -> int:
    """Read *keys* and return how many are there; whatever was sent before has been done by then."""
    connection.sendall(b"".join(b"mg %b\r\n" % key for key in keys) + b"mn\r\n")
    answer = b""
    while not answer.endswith(b"MN\r\n"):
        some = connection.recv(65536)
        if not some:
            raise ConnectionError("memcached closed the connection")
        answer += some
    return answer.count(b"HD")
