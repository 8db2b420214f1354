"""A user's program, checked by mypy and never run: what each public name accepts and returns."""

from __future__ import annotations

from dogpile.cache import make_region
from sqlalchemy import create_engine, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Mapper, Session, mapped_column, scoped_session, sessionmaker
from typing_extensions import assert_type

import sa_writethrough as wt


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "user"
    __writethrough__ = wt.CachePolicy(ttl=3600, on_write=wt.OnWrite.INVALIDATE, exclude=frozenset({"photo"}))
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Country(Base):
    __tablename__ = "country"
    __writethrough__ = True
    code: Mapped[str] = mapped_column(primary_key=True)


def wanted(mapper: Mapper[object]) -> bool:
    return mapper.local_table is not None


async def registers_asynchronous_factories() -> None:
    engine = create_async_engine("postgresql+asyncpg://")
    factory = async_sessionmaker(engine)
    cache = wt.register(factory, "memcached://127.0.0.1:11211")
    assert_type(cache, wt.AsyncWriteThroughCache)
    assert_type(wt.register(AsyncSession), wt.AsyncWriteThroughCache)
    async with factory() as session:
        assert_type(await cache.get(session, User, 1), User | None)
        assert_type(await cache.get_many(session, User, [1, 2]), list[User | None])
    assert_type(await cache.contains(User, 1, engine), bool)
    await cache.evict(User, 1)
    await cache.evict_all(User)
    assert_type(cache.stats().hits, int)
    cache.subscribe(print)()
    await cache.drain()
    assert_type(cache.sync_cache, wt.WriteThroughCache)
    await cache.unregister()


def registers_every_factory() -> None:
    engine = create_engine("sqlite://")
    factory = sessionmaker(engine)
    region = make_region().configure("sa_writethrough.memory")
    assert_type(wt.register(factory), wt.WriteThroughCache)
    wt.register(scoped_session(factory), "memcached://127.0.0.1:11211")
    wt.register(Session, region)
    wt.register(factory, wt.open_store("memory://"), models=[User, Country])
    wt.register(factory, models=wanted, policy=wt.CachePolicy(reads=wt.Reads.ALWAYS))


def reads_from_the_cache(session: Session, cache: wt.WriteThroughCache) -> None:
    assert_type(session.get(User, 1, options=[wt.from_cache()]), User | None)
    assert_type(session.get(User, 1, options=[wt.from_cache(wt.CacheMode.REFRESH)]), User | None)
    assert_type(session.get(User, 1, options=[wt.bypass_cache()]), User | None)
    query = select(User).where(User.id.in_([1, 2])).options(wt.from_cache(mode=wt.CacheMode.GET))
    for user in session.scalars(query):
        assert_type(user, User)
    assert_type(cache.get(session, User, 1), User | None)
    assert_type(cache.get_many(session, User, [1, 2]), list[User | None])


def operates_the_cache(cache: wt.WriteThroughCache) -> None:
    assert_type(cache.contains(User, 1), bool)
    cache.evict(User, 1)
    cache.evict_all(User)
    cache.evict_all()
    cache.drain()
    print(cache.stats())
    cache.unregister()


def chooses_policies() -> None:
    wt.CachePolicy(
        ttl=None,
        on_write=wt.OnWrite.PUBLISH,
        reads=wt.Reads.OPTION,
        snapshot_reads=wt.SnapshotReads.SERVE,
        read_back=wt.ReadBack.ALWAYS,
        on_outage=wt.OnOutage.COMMIT,
        namespace="shop",
    )
    wt.CachePolicy(ttl="an hour")  # type: ignore[arg-type]  # seconds


def catches_errors(session: Session) -> None:
    try:
        session.commit()
    except (wt.CacheUnavailableError, wt.ConcurrentWriteError, wt.ConfigurationError, wt.CodecError) as error:
        base: wt.WriteThroughError = error
        raise RuntimeError("later") from base
