"""Entries that are signed."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

import sa_writethrough as wt
from sa_writethrough.stores.memory import MemoryStore


def _registered(store: MemoryStore, url: str, secret: bytes | None) -> tuple[Any, Any, wt.WriteThroughCache]:
    class Base(DeclarativeBase):
        pass

    class Account(Base):
        __tablename__ = "account"
        __writethrough__ = wt.CachePolicy(secret=secret)
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    engine = create_engine(url)
    Base.metadata.create_all(engine)
    sessions = sessionmaker(engine)
    return Account, sessions, wt.register(sessions, store)


@pytest.mark.parametrize(("written", "read"), [(b"a" * 16, b"b" * 16), (None, b"b" * 16), (b"a" * 16, None)])
def test_an_entry_that_was_not_signed_with_the_readers_secret_is_not_read(
    sqlite_url: str, written: bytes | None, read: bytes | None
) -> None:
    """Whoever lacks the secret can neither forge a row nor have his own taken for one."""
    store = MemoryStore()
    account, sessions, cache = _registered(store, sqlite_url, written)
    with sessions() as session:
        session.add(account(id=1, name="theirs"))
        session.commit()
    with sessions() as session:
        assert cache.get(session, account, 1).name == "theirs"
    hits = cache.stats().hits
    other, others, others_cache = _registered(store, sqlite_url, read)
    with others.kw["bind"].begin() as connection:
        connection.exec_driver_sql("UPDATE account SET name = 'ours'")
    with others() as session:
        assert others_cache.get(session, other, 1).name == "ours"
    assert hits == 1
    for registration, maker in ((cache, sessions), (others_cache, others)):
        registration.unregister()
        maker.kw["bind"].dispose()


@pytest.mark.parametrize("secret", [b"short", "text of sixteen bytes or more", 16])
def test_a_secret_that_is_none_is_refused(secret: Any) -> None:
    """Fewer than 16 bytes, or no bytes at all: a clear error that does not print it."""
    with pytest.raises(wt.ConfigurationError, match="at least 16 random bytes") as error:
        wt.CachePolicy(secret=secret)
    assert str(secret) not in str(error.value) or secret == 16
    assert "secret" not in repr(wt.CachePolicy(secret=b"x" * 16))
