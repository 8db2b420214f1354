"""memcached's meta protocol: commands to bytes, bytes to replies. No socket, no time, no notion of a lease's owner.

Source: memcached's doc/protocol.txt, "Meta Commands" (1.6.10 or newer for the reply codes; `E` since 1.6.27).

What an item is, its client flags tell (`Kind`); a stub that `mg ... N` made has the flags 0. The first eight bytes of a
row's item are the stamp of the epoch that it was announced or leased in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import ceil

from sa_writethrough.coherence import Hit

__all__ = [
    "MAX_RELATIVE_TTL",
    "STAMP_BYTES",
    "Kind",
    "LOOKING",
    "MalformedReplyError",
    "OpenEpoch",
    "Reply",
    "ReplyReader",
    "delete",
    "expiry",
    "gets",
    "hit",
    "leasing",
    "looks",
    "stamp_of",
    "store",
    "tombstone",
    "touch_epoch",
]

STAMP_BYTES = 8
_END = b"\r\n"
"""Of a line, and of a value."""
_VALUE_LINE = _END + b"VA "
_ROW_LINE = rb"VA (\d+) f1 c\d+\r\n"
"""The line before a row."""
_row_at = re.compile(_ROW_LINE).match
MAX_RELATIVE_TTL = 60 * 60 * 24 * 30
"""Seconds. memcached takes a larger number for a date; an entry may always go earlier than it was asked to."""


class Kind(IntEnum):
    """What an item is, as its client flags say."""

    LEASE = 0
    ROW = 1
    TOMBSTONE = 2
    BYTES = 3
    """`Put`, or filled without an epoch: no stamp."""


class MalformedReplyError(Exception):
    """The server sent what the protocol does not allow: the connection cannot be used any more."""


# --- commands -------------------------------------------------------------------------------------------------------


def expiry(ttl: float | None) -> int:
    """Return *ttl* in the whole seconds that memcached counts in; 0 is never."""
    return 0 if ttl is None else min(max(ceil(ttl), 1), MAX_RELATIVE_TTL)


def touch_epoch(epoch: str, fresh: int | None) -> bytes:
    """Ask for the stamp of *epoch*, which becomes a fresh one (*fresh* itself, where the server can) if it is gone."""
    return b"mg %b f c N0%b\r\n" % (epoch.encode(), _explicit(fresh))


def gets(keys: Sequence[str], lease_ttl: int, fresh: int | None) -> bytes:
    """Ask for each of *keys*, and for a lease of *lease_ttl* seconds with the id *fresh* on those that are absent."""
    return _asking(keys, leasing(lease_ttl) if fresh is None else f" v f c N{lease_ttl} E{fresh}\r\n")


def looks(keys: Sequence[str]) -> bytes:
    """Ask for each of *keys*, at least one, and change nothing."""
    return _asking(keys, LOOKING)


LOOKING = " v f c\r\n"
"""What stands behind the key where nothing is changed."""


def leasing(lease_ttl: int) -> str:
    """Return what stands behind the key where a lease is asked for, whose id is the server's."""
    return f" v f c N{lease_ttl}\r\n"


def _asking(keys: Sequence[str], flags: str) -> bytes:
    # One join and one encoding, not one for each key.
    return f"mg {f'{flags}mg '.join(keys)}{flags}".encode()


def tombstone(key: str, ttl: float | None, fresh: int | None) -> bytes:
    """Replace *key*, whatever is there, and ask for the new item's id."""
    return b"ms %b 0 T%d F2 c%b\r\n\r\n" % (key.encode(), expiry(ttl), _explicit(fresh))


def lease(key: str, lease_ttl: int, own: int, fresh: int | None) -> bytes:
    """Replace the item of *key* whose id is still *own* by a lease, and ask for its id."""
    return b"ms %b 0 T%d F0 C%d c%b\r\n\r\n" % (key.encode(), lease_ttl, own, _explicit(fresh))


def store(
    key: str,
    payload: bytes,
    kind: Kind,
    ttl: float | None,
    *,
    own: int | None = None,
    fresh: int | None = None,
) -> bytes:
    """Replace *key*: whatever is there, or only the item whose id is *own*. The usual answer is a bare `HD`."""
    condition = b"" if own is None else b" C%d" % own
    return b"ms %b %d T%d F%d%b%b\r\n%b\r\n" % (
        key.encode(),
        len(payload),
        expiry(ttl),
        kind,
        condition,
        _explicit(fresh),
        payload,
    )


def delete(key: str, own: int) -> bytes:
    """Drop *key* if its item's id is still *own*."""
    return b"md %b C%d\r\n" % (key.encode(), own)


def _explicit(cas: int | None) -> bytes:
    return b"" if cas is None else b" E%d" % cas


def stamp_of(cas: int) -> bytes:
    """Return the stamp of the epoch whose item has the id *cas*."""
    return cas.to_bytes(STAMP_BYTES, "big")


# --- replies --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Reply:
    """One command's answer; of what was not asked for or not answered, zero."""

    code: bytes
    """`HD` done, `VA` done with a value, `EN` or `NF` absent, `NS` or `EX` refused, `!` an error, told in *error*."""
    value: bytes = b""
    kind: int = 0
    cas: int = 0
    won: bool = False
    """The lease is this reader's."""
    error: str = ""


class OpenEpoch:
    """How everything usual looks while an epoch is open under the id *cas*. Made once, of use for every hit.

    asking: what a command for the epoch and one key begins with. line: the answer to its first half. stamp: what a row
    begins with.
    """

    __slots__ = ("_row", "asking", "line", "stamp")

    def __init__(self, epoch: str, cas: int) -> None:
        self.asking = touch_epoch(epoch, None) + b"mg "
        self.line = b"HD f0 c%d Z\r\n" % cas
        self.stamp = stamp_of(cas)
        self._row: re.Pattern[bytes] | None = None

    @property
    def row(self) -> re.Pattern[bytes]:
        """What matches where one reply ends and a row of this epoch follows, as far as its stamp."""
        if self._row is None:  # it takes as long to make as a few hits
            self._row = re.compile(_END + _ROW_LINE + re.escape(self.stamp))
        return self._row


def hit(answer: bytes, epoch: OpenEpoch) -> bytes | None:
    """Return the row in *answer*, if it is the usual answer: the epoch's line and then one row of its stamp, no more.

    The hot path, apart from `ReplyReader` because it is three times as fast. None says nothing at all.
    """
    if not answer.startswith(epoch.line):
        return None
    line = _row_at(answer, len(epoch.line))
    if line is None:
        return None
    start = line.end()
    stop = start + int(line[1])
    if len(answer) != stop + 2 or not answer.startswith(epoch.stamp, start):
        return None
    return answer[start + STAMP_BYTES : stop]


class ReplyReader:
    """Cuts what comes from a server into replies: `feed` it bytes, then take `replies`."""

    __slots__ = ("_at", "_buffer", "_pieces", "_wanted")

    def __init__(self) -> None:
        self._buffer = b""
        self._at = 0
        self._pieces: list[bytes] = []
        self._wanted = 0

    @property
    def wanted_bytes(self) -> int:
        """How many bytes at least are missing from the reply that is being read, as far as is known."""
        return self._wanted

    @property
    def is_empty(self) -> bool:
        """Whether all that was fed has been taken."""
        return self._at == len(self._buffer) and not self._pieces

    def feed(self, received: bytes) -> None:
        """Take what was received. Empty bytes, the end of the stream, are the caller's business."""
        if len(received) < self._wanted:
            # Put together once, when all is there: a large value comes in many pieces.
            self._pieces.append(received)
            self._wanted -= len(received)
            return
        if self._at < len(self._buffer):
            received = b"".join((self._buffer[self._at :], *self._pieces, received))
            self._pieces.clear()
        self._buffer = received
        self._at = self._wanted = 0

    def replies(self, most: int) -> list[Reply]:
        """Return the whole replies that are there, but not more than *most*. Raises `MalformedReplyError`."""
        found: list[Reply] = []
        if self._pieces:
            return found
        buffer, at, length = self._buffer, self._at, len(self._buffer)
        try:
            for _ in range(most):
                end = buffer.find(b"\r\n", at)
                if end < 0:
                    break
                words = buffer[at:end].split(b" ")
                if words[0] != b"VA":
                    found.append(_parse(words, b""))
                    at = end + 2
                    continue
                start = end + 2
                stop = start + int(words[1])
                if stop + 2 > length:
                    self._wanted = stop + 2 - length
                    break
                if stop < start or not buffer.startswith(b"\r\n", stop):
                    raise MalformedReplyError("a value is not as long as its reply says")
                found.append(_parse(words, buffer[start:stop]))
                at = stop + 2
        except (ValueError, IndexError):
            raise MalformedReplyError(f"not a meta reply: {buffer[at : at + 80]!r}") from None
        self._at = at
        return found

    def hit(self, epoch: OpenEpoch) -> bytes | None:
        """Return the row that comes first, if the epoch's line and then one row of its stamp are there, and take it.

        As the function `hit`, for one of many answers.
        """
        buffer, at = self._buffer, self._at
        if self._pieces or not buffer.startswith(epoch.line, at):
            return None
        line = _row_at(buffer, at + len(epoch.line))
        if line is None:
            return None
        start = line.end()
        stop = start + int(line[1])
        # What does not end as it should is for `replies` to complain of.
        if not buffer.startswith(_END, stop) or not buffer.startswith(epoch.stamp, start):
            return None
        self._at = stop + len(_END)
        return buffer[start + STAMP_BYTES : stop]

    def rows(self, most: int, epoch: OpenEpoch) -> list[Reply | Hit]:
        """Like `replies`, but rows of this *epoch*, which nearly all of a reader's replies are, come as hits.

        The hot path of reading many keys: a reply by itself would take longer than all the rest.
        """
        found: list[Reply | Hit] = []
        if most > 1 and not self._pieces:
            found += self._nothing_but_rows(most, epoch)
        while len(found) < most:
            self._usual_rows(found, most, epoch)
            if len(found) == most:
                break
            # Something else, or not all of it is there.
            other = self.replies(1)
            if not other:
                break
            found += other
        return found

    def _nothing_but_rows(self, most: int, epoch: OpenEpoch) -> list[bytes]:
        """Return all rows but the last, where there is nothing but rows of this *epoch*: a cut for all of them.

        Each must be as long as its reply says, and end where the next one begins; else none is returned.
        """
        buffer = _END + self._buffer[self._at :]
        before, *cut = epoch.row.split(buffer, most)
        sizes, rows = cut[:-2:2], cut[1:-2:2]
        if before or [STAMP_BYTES + len(row) for row in rows] != [*map(int, sizes)]:
            return []
        if rows:
            self._buffer = buffer
            self._at = buffer.rindex(_VALUE_LINE, 0, -len(cut[-1]) - STAMP_BYTES) + len(_END)
        return rows

    def _usual_rows(self, found: list[Reply | Hit], most: int, epoch: OpenEpoch) -> None:
        if self._pieces:
            return
        if self._at < len(_END):
            self._buffer, self._at = _END + self._buffer[self._at :], len(_END)
        buffer, row_after, append = self._buffer, epoch.row.match, found.append
        # From the end of one reply to the end of the next: one match tells that both are as they should be.
        end, last = self._at - len(_END), len(buffer) - len(_END)
        for _ in range(most - len(found)):
            line = row_after(buffer, end)
            if line is None:
                break
            start = line.end()
            stop = start - STAMP_BYTES + int(line[1])
            if start > stop or stop > last:
                break
            append(buffer[start:stop])
            end = stop
        if found and not buffer.startswith(_END, end):
            raise MalformedReplyError("a value is not as long as its reply says")
        self._at = end + len(_END)


def _parse(words: Sequence[bytes], value: bytes) -> Reply:
    """Return the reply that a line and the value that follows it stand for."""
    code = words[0]
    if code in {b"ERROR", b"CLIENT_ERROR", b"SERVER_ERROR"}:
        return Reply(b"!", error=b" ".join(words).decode("latin-1"))
    if code not in {b"VA", b"HD", b"EN", b"NF", b"NS", b"EX"}:
        raise ValueError(code)
    reply = Reply(code, value)
    for word in words[2 if code == b"VA" else 1 :]:
        flag, token = word[:1], word[1:]
        if flag == b"f":
            reply.kind = int(token)
        elif flag == b"c":
            reply.cas = int(token)
        elif flag == b"W":
            reply.won = True
    return reply
