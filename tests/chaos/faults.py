"""The classes of faults. Each one strikes at random, on its own, whatever the others are doing meanwhile.

Two faults of one server take turns; faults of different servers, and of the processes, overlap as they come.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import IntEnum
from time import monotonic_ns

from tests.chaos.client import IN_COMMIT, Role, State
from tests.chaos.fleet import Fleet
from tests.chaos.proxy import Mode
from tests.chaos.world import World

__all__ = ["CLASSES", "OF_THE_CACHE", "SLOW_COMMIT", "Cause", "Fault", "Faults"]

PAUSE_SECONDS = (1.2, 2.4)
"""Longer than a tombstone or a lease lives."""
HOT_KEYS = 60
SYNC = "nobody"
WRITER_STATES = [State.WRITING, *sorted(IN_COMMIT)]
"""Each is as likely to be struck as the others, however long writers stay there."""


class Cause(IntEnum):
    """After what a key is probed."""

    RETURN = 0
    CRASH = 1


class Faults:
    """Lets every class of faults strike, about once in *period* seconds each."""

    def __init__(self, world: World, fleet: Fleet, names: Collection[str], period: float, keys: int) -> None:
        self.world, self.fleet, self.keys = world, fleet, keys
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.writers_met: Counter[State] = Counter()
        """Where in its transaction a writer was that was killed or paused."""
        self.version = 2
        """Of the model that is being rolled out."""
        self._stop = threading.Event()
        self._locks = {name: threading.Lock() for name in (*world.nodes, "postgres")}
        self._threads = [
            threading.Thread(target=self._strike, args=(fault, period * fault.periods), name=fault.name)
            for fault in CLASSES
            if fault.name in names
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """End, with every fault taken back that can be."""
        self._stop.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def wait(self, shortest: float, longest: float | None = None) -> bool:
        """Wait; return whether the end has come."""
        return self._stop.wait(random.uniform(shortest, longest or shortest))

    def probe_return(self, node: str) -> None:
        """Have it measured how long the hot keys of *node*, which is back, stay uncached."""
        keys = random.sample(range(min(HOT_KEYS, self.keys)), 10)
        self.fleet.probe((Cause.RETURN, self.world.caches.addresses[node], keys, monotonic_ns()))

    def _strike(self, fault: Fault, period: float) -> None:
        chance = random.Random()
        while not self._stop.wait(chance.uniform(0.3, 1.7) * period):
            target = chance.choice(list(self.world.nodes)) if fault.target == "node" else fault.target
            try:
                if target:
                    with self._locks[target]:
                        self.counts[fault.name] += fault.strike(self, target, chance)
                else:
                    self.counts[fault.name] += fault.strike(self, target, chance)
            except Exception as error:  # noqa: BLE001 - the run goes on, and is not clean
                self.errors[f"fault {fault.name!r} failed: {error!r}"] += 1


# --- processes: each returns how many faults that was ---


def kill_reader(faults: Faults, _target: str, chance: random.Random) -> int:
    return int(faults.fleet.pick(Role.READER, chance).signal(signal.SIGKILL))


def kill_writer(faults: Faults, _target: str, chance: random.Random) -> int:
    seat = faults.fleet.pick(Role.WRITER, chance, state=chance.choice(WRITER_STATES))
    # It stands still first, so that where it died is known before another process takes its seat.
    if not seat.signal(signal.SIGSTOP):
        return 0
    state, keys, since = faults.fleet.state(seat), faults.fleet.keys(seat), monotonic_ns()
    seat.signal(signal.SIGKILL)
    faults.writers_met[state] += 1
    if state in IN_COMMIT:
        faults.fleet.probe((Cause.CRASH, None, keys, since))
    return 1


def pause(role: Role) -> Callable[[Faults, str, random.Random], int]:
    def strike(faults: Faults, _target: str, chance: random.Random) -> int:
        seat = faults.fleet.pick(role, chance, state=chance.choice(WRITER_STATES) if role is Role.WRITER else None)
        if not seat.signal(signal.SIGSTOP):
            return 0
        if role is Role.WRITER:
            faults.writers_met[faults.fleet.state(seat)] += 1
        faults.wait(*PAUSE_SECONDS)
        seat.signal(signal.SIGCONT)
        return 1

    return strike


def deploy(faults: Faults, _target: str, chance: random.Random) -> int:
    """Roll one process after the other to the other version of the model, and then the other way."""
    rolled = 0
    for seat in chance.sample(faults.fleet.seats, len(faults.fleet.seats)):
        if seat.role in {Role.READER, Role.WRITER}:
            seat.version = faults.version
            rolled += seat.signal(signal.SIGTERM)
            if faults.wait(0.2, 1.0):
                break
    faults.version = 3 - faults.version
    return rolled


# --- memcached ---


def kill_node(faults: Faults, node: str, _chance: random.Random) -> int:
    faults.world.nodes[node].kill()
    faults.wait(0.3, 1.5)
    faults.world.nodes[node].start()
    faults.probe_return(node)
    return 1


def restart_node(faults: Faults, node: str, _chance: random.Random) -> int:
    faults.world.nodes[node].renew()
    return 1


def pause_node(faults: Faults, node: str, _chance: random.Random) -> int:
    faults.world.nodes[node].pause()
    faults.wait(*PAUSE_SECONDS)
    faults.world.nodes[node].resume()
    faults.probe_return(node)
    return 1


def flush_node(faults: Faults, node: str, _chance: random.Random) -> int:
    faults.world.nodes[node].flush()
    return 1


def press_node(faults: Faults, node: str, _chance: random.Random) -> int:
    return int(faults.world.press(node))


def node_gone(faults: Faults, node: str, _chance: random.Random) -> int:
    """A node that nobody reaches, and that comes back with all that it knew."""
    faults.world.caches.order(node, Mode.REFUSE)
    faults.wait(1.0, 3.0)
    faults.world.caches.order(node, Mode.PASS)
    faults.probe_return(node)
    return 1


# --- the network ---


def cut(where: str) -> Callable[[Faults, str, random.Random], int]:
    def strike(faults: Faults, target: str, _chance: random.Random) -> int:
        proxies = getattr(faults.world, where)
        before = proxies.counts[Mode.CUT]
        return int(proxies.order(target, Mode.CUT)[Mode.CUT] > before)

    return strike


def window(where: str, mode: Mode, shortest: float, longest: float) -> Callable[[Faults, str, random.Random], int]:
    """Let *mode* last for a while; it counts if it met anything."""

    def strike(faults: Faults, target: str, _chance: random.Random) -> int:
        proxies = getattr(faults.world, where)
        before = proxies.order(target, mode)[mode]
        faults.wait(shortest, longest)
        return int(proxies.order(target, Mode.PASS)[mode] > before)

    return strike


# --- PostgreSQL ---


def end_session(faults: Faults, _target: str, chance: random.Random) -> int:
    return int(faults.world.terminate("true", chance.randint(1, 2)) > 0)


def pause_session(faults: Faults, _target: str, _chance: random.Random) -> int:
    """Let the server's process of a session stand still, with whatever locks it holds."""
    pid = faults.world.random_session()
    if pid is None:
        return 0
    try:
        os.kill(pid, signal.SIGSTOP)
    except ProcessLookupError:
        return 0
    try:
        faults.wait(*PAUSE_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    return 1


def hang_commits(faults: Faults, _target: str, chance: random.Random) -> int:
    """Have COMMITs wait for a replica; end some of them there: they are durable then, and nobody was told."""
    waiting = 0
    faults.world.wait_for_replica(SYNC)
    try:
        faults.wait(0.5, 2.0)
        waiting = faults.world.waiting_for_replica()
        if chance.random() < 0.5:
            faults.world.terminate("wait_event = 'SyncRep'", 2)
    finally:
        faults.world.wait_for_replica("")
    return int(waiting > 0)


@dataclass(frozen=True, slots=True)
class Fault:
    """A class of faults. *target*: what it needs for itself. *periods*: how much rarer than the others it is."""

    name: str
    target: str
    strike: Callable[[Faults, str, random.Random], int]
    periods: float = 1.0


SLOW_COMMIT = "slow COMMIT"
CLASSES = [
    Fault("reader killed", "", kill_reader),
    Fault("writer killed", "", kill_writer),
    Fault("reader paused", "", pause(Role.READER)),
    Fault("writer paused", "", pause(Role.WRITER)),
    Fault("process deployed", "", deploy, 2.0),
    Fault("memcached killed", "node", kill_node),
    Fault("memcached restarted", "node", restart_node),
    Fault("memcached paused", "node", pause_node),
    Fault("memcached flushed", "node", flush_node),
    Fault("memcached full", "node", press_node),
    Fault("node gone and back", "node", node_gone),
    Fault("cache connections cut", "node", cut("caches")),
    Fault("cache delayed", "node", window("caches", Mode.DELAY, 0.5, 1.5)),
    Fault("cache replies swallowed", "node", window("caches", Mode.SWALLOW, 0.3, 1.0)),
    Fault("database connections cut", "postgres", cut("database")),
    Fault("COMMIT lost", "postgres", window("database", Mode.COMMIT_LOST, 0.3, 0.6)),
    Fault("COMMIT's answer lost", "postgres", window("database", Mode.COMMIT_SWALLOWED, 0.3, 0.6)),
    Fault("COMMIT late", "postgres", window("database", Mode.COMMIT_LATE, 0.3, 0.6)),
    Fault("database delayed", "postgres", window("database", Mode.DELAY, 0.2, 0.6)),
    Fault("database session ended", "postgres", end_session),
    Fault("database session paused", "postgres", pause_session),
    Fault("COMMIT hangs in replication", "postgres", hang_commits),
]
"""And `SLOW_COMMIT`, which the writers ask for themselves."""
OF_THE_CACHE = frozenset(fault.name for fault in CLASSES if fault.target == "node")
"""Who uses no cache never meets these."""
