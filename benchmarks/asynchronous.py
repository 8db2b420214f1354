"""Compare a hit of asynchronous sessions with `AsyncSession.get` on asyncpg, and count what many tasks get in a second.

    python -m benchmarks.asynchronous

Everything runs on one core, the servers too. Both sides are measured in turn; each figure is the median of its rounds.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

import sa_writethrough as wt
from benchmarks.models import Account, Base, Status
from benchmarks.stage import ROWS
from tests.servers import MemcachedServer, PostgresServer

ROUNDS = 15
TURNS = 100
TASKS = 32
Get = Callable[[AsyncSession, int], Awaitable[object]]


async def main(database: str, store: str) -> None:
    engine = create_async_engine(database)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    factory = async_sessionmaker(engine)
    cache = wt.register(factory, store, models=[Account])
    async with factory.begin() as session:
        session.add_all(account(n) for n in range(1, ROWS + 1))
    await cache.drain()

    async def hit(session: AsyncSession, n: int) -> object:
        return await cache.get(session, Account, n)

    async def select(session: AsyncSession, n: int) -> object:
        return await session.get(Account, n)

    for name, timed in (("with its session", closed), ("session open", opened)):
        hits, selects = await in_turn(timed, factory, hit, select)
        print(f"{name}: hit {hits:.0f} us, AsyncSession.get {selects:.0f} us, ratio {hits / selects:.3f}")
    for name, timed in (("with their sessions", closed), ("sessions open", opened)):
        best = max([await per_second(timed, factory, hit) for _ in range(5)])
        print(f"{TASKS} tasks, {name}: {best:,.0f} hits a second")
    assert cache.stats().misses == 0
    await cache.unregister()
    await engine.dispose()


def account(n: int) -> Account:
    moment = dt.datetime(2024, 3, 1, 9, 30, tzinfo=dt.timezone.utc) + n * dt.timedelta(seconds=61.234567)
    return Account(
        id=n,
        name=f"Customer {n}",
        note="Prefers to be called after five; invoice goes to the branch office.",
        verified=n % 3 > 0,
        created_at=moment,
        updated_at=moment,
        balance=Decimal(n * 100) / 700,
        reference=UUID(int=n),
        status=Status.ACTIVE,
        settings={"theme": "dark", "page_size": 50, "tags": ["a", "b"]},
        score=n**0.5,
        nickname=f"nick{n}",
    )


async def closed(factory: async_sessionmaker[AsyncSession], get: Get, start: int) -> None:
    for turn in range(TURNS):
        async with factory() as session:
            await get(session, (start + turn) % ROWS + 1)


async def opened(factory: async_sessionmaker[AsyncSession], get: Get, start: int) -> None:
    async with factory() as session:
        for turn in range(TURNS):
            await get(session, (start + turn) % ROWS + 1)


async def in_turn(
    timed: Callable[..., Awaitable[None]], factory: async_sessionmaker[AsyncSession], *sides: Get
) -> list[float]:
    """Return the microseconds that one call of each side takes."""
    found: list[list[float]] = [[] for _ in sides]
    for number in range(ROUNDS + 1):
        for side, times in zip(sides, found, strict=True):
            began = time.perf_counter()
            await timed(factory, side, number * TURNS)
            times.append((time.perf_counter() - began) / TURNS * 1e6)
    return [statistics.median(times[1:]) for times in found]


async def per_second(
    timed: Callable[..., Awaitable[None]], factory: async_sessionmaker[AsyncSession], get: Get
) -> float:
    """Return how many calls many tasks get done in a second."""
    began = time.perf_counter()
    await asyncio.gather(*[timed(factory, get, task * 31) for task in range(TASKS)])
    return TASKS * TURNS / (time.perf_counter() - began)


if __name__ == "__main__":
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with MemcachedServer() as memcached, PostgresServer(fsync=True) as postgres:
        asyncio.run(main(postgres.create_database().replace("+psycopg", "+asyncpg"), memcached.url))
