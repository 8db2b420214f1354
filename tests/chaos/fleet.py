"""The application's processes: started, killed, replaced, rolled from one version of the model to the next."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from tests.chaos.client import Board, Figure, Role, Spec, State
from tests.chaos.load import Request, run_client

__all__ = ["Fleet", "Seat"]

LOOK_SECONDS = 0.02
END_SECONDS = 20.0
PICK_SECONDS = 2.0
EXPECTED_EXITS = frozenset({0, -signal.SIGKILL, -signal.SIGTERM})
"""By SIGTERM dies only who was told to end before it could listen, and has done nothing yet."""
processes = multiprocessing.get_context("forkserver")


@dataclass
class Seat:
    """A place that one process after the other takes."""

    slot: int
    role: Role
    version: int
    process: Any = None

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal to whoever sits here; return whether there was somebody."""
        if self.process is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)
            return True
        return False


class Fleet:
    """Keeps every seat taken until it is told to end."""

    def __init__(self, board: Board, roles: list[Role], make_spec: Callable[[Seat, int], Spec]) -> None:
        self.seats = [Seat(slot, role, 1) for slot, role in enumerate(roles)]
        self.crashes: Counter[str] = Counter()
        """Processes that ended as nobody wanted them to."""
        self._board, self._make_spec = board, make_spec
        self._numbers = itertools.count(1)
        self._ending = threading.Event()
        self._requests: Connection | None = None
        self._thread = threading.Thread(target=self._keep, name="fleet")

    def start(self) -> None:
        """Start every process."""
        for seat in self.seats:
            self._take(seat)
        self._thread.start()

    def pick(self, role: Role, chance: random.Random, *, state: State | None = None) -> Seat:
        """Return a seat of *role*; if a *state* is given one that is in it, if that comes about before long."""
        seats = [seat for seat in self.seats if seat.role is role]
        deadline = time.monotonic() + PICK_SECONDS
        while state is not None and time.monotonic() < deadline and not self._ending.is_set():
            if there := [seat for seat in seats if self.state(seat) is state]:
                return chance.choice(there)
            time.sleep(0.001)
        return chance.choice(seats)

    def state(self, seat: Seat) -> State:
        """Return where the writer of *seat* is."""
        return State(self._board.rows[seat.slot, Figure.STATE])

    def keys(self, seat: Seat) -> list[int]:
        """Return the keys of the transaction that the writer of *seat* is in."""
        return self._board.keys(seat.slot)

    def probe(self, request: Request) -> None:
        """Have keys probed."""
        if self._requests is not None:
            with contextlib.suppress(OSError):
                self._requests.send(request)

    def end(self) -> None:
        """Let every process finish what it is at, and end."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()
        for seat in self.seats:
            seat.signal(signal.SIGCONT)
            seat.signal(signal.SIGTERM)
        deadline = time.monotonic() + END_SECONDS
        for seat in self.seats:
            if seat.process is not None:
                seat.process.join(max(0.1, deadline - time.monotonic()))
                if seat.process.is_alive():
                    seat.process.kill()
                    seat.process.join()
                self._note_exit(seat)

    def _keep(self) -> None:
        while not self._ending.wait(LOOK_SECONDS):
            for seat in self.seats:
                if not seat.process.is_alive():
                    self._note_exit(seat)
                    self._take(seat)

    def _take(self, seat: Seat) -> None:
        requests = None
        if seat.role is Role.PROBE:
            requests, self._requests = processes.Pipe(duplex=False)
        spec = self._make_spec(seat, next(self._numbers))
        process = processes.Process(target=run_client, args=(spec, requests), name=f"chaos {seat.role.value}")
        process.start()
        seat.process = process
        if requests is not None:
            requests.close()

    def _note_exit(self, seat: Seat) -> None:
        if seat.process.exitcode not in EXPECTED_EXITS:
            self.crashes[f"{seat.role.value} ended with {seat.process.exitcode}"] += 1
