"""dogpile.cache regions on our stores."""

from __future__ import annotations

import pytest
from dogpile.cache import make_region, register_backend
from dogpile.cache.api import NO_VALUE
from dogpile.cache.proxy import ProxyBackend

from sa_writethrough.coherence import Hit
from sa_writethrough.dogpile import MemcachedBackend, MemoryBackend, store_of
from sa_writethrough.exceptions import CacheUnavailableError, ConfigurationError
from sa_writethrough.stores.base import Store
from sa_writethrough.testing.conformance import Entry
from tests.stores.test_memory import Clock

for name in ("memory", "memcached"):
    # What the entry points do for an installed package.
    register_backend(f"sa_writethrough.{name}", "sa_writethrough.dogpile", f"{name.capitalize()}Backend")


@pytest.fixture(params=["memory", "memcached"])
def region(request):
    """A region on either store."""
    url = "memory://" if request.param == "memory" else request.getfixturevalue("memcached").url
    region = make_region().configure(f"sa_writethrough.{request.param}", arguments={"url": url})
    yield region
    store_of(region).close()


def test_values_come_back(region):
    """A region's values are set, got and deleted, one by one and many at once."""
    assert region.get("a") is NO_VALUE
    region.set("a", {"x": 1})
    assert region.get("a") == {"x": 1}
    region.set_multi({"b": 2, "c": 3})
    assert region.get_multi(["a", "b", "nothing", "c"]) == [{"x": 1}, 2, NO_VALUE, 3]
    region.delete("a")
    region.delete("a")
    region.delete_multi(["b", "nothing"])
    assert region.get_multi(["a", "b", "c"]) == [NO_VALUE, NO_VALUE, 3]
    assert region.get_multi([]) == []


def test_cache_on_arguments(region):
    """The decorator calls its function once."""
    calls = []

    @region.cache_on_arguments()
    def double(n):
        calls.append(n)
        return 2 * n

    assert [double(4), double(4), double(5)] == [8, 8, 10]
    assert calls == [4, 5]


@pytest.mark.parametrize("key", ["k" * 1000, "with blanks", "ünïcode", "line\r\nbreak", "\ud800"])
def test_any_key_will_do(region, key):
    """Keys that memcached would not take are hashed."""
    region.set(key, "value")
    assert region.get(key) == "value"
    assert region.get(key + "x") is NO_VALUE


def test_region_and_entities_share_a_store(region):
    """A region's key never collides with an entity's, though both are spelt the same."""
    store = store_of(region)
    entry = Entry(store, "x")
    entry.fill(entry.lease(), b"row")
    region.set(entry.key, "mine")
    assert entry.read() == Hit(b"row")
    assert region.get(entry.key) == "mine"
    region.delete(entry.key)
    assert entry.read() == Hit(b"row")


def test_outage(memcached):
    """While the node is down values are missing, what is set is dropped, and to delete is an error."""
    memcached.stop()
    region = make_region().configure("sa_writethrough.memcached", arguments={"url": memcached.url})
    assert region.get("k") is NO_VALUE
    assert region.get_or_create("k", lambda: 5) == 5
    with pytest.raises(CacheUnavailableError, match="'k' may not have been deleted"):
        region.delete("k")


def test_ttl_reaches_the_store():
    """Values are stored for `ttl` seconds."""
    backend, clock = MemoryBackend({"ttl": 5.0}), Clock()
    backend.store._clock = clock
    backend.set_serialized("k", b"bytes")
    clock.advance(4.0)
    assert backend.get_serialized("k") == b"bytes"
    clock.advance(2.0)
    assert backend.get_serialized("k") is NO_VALUE


class Proxied(ProxyBackend):
    pass


def test_store_of_unwraps_proxies():
    """The store is found behind whatever wraps the backend."""
    region = make_region().configure("sa_writethrough.memory", wrap=[Proxied, Proxied])
    assert isinstance(store_of(region), Store)


def test_store_of_a_region_that_cannot_do_it():
    """A region without our backend is refused, with the remedy."""
    with pytest.raises(ConfigurationError, match="not configured yet"):
        store_of(make_region())
    with pytest.raises(ConfigurationError, match=r"MemoryBackend.*sa_writethrough\.memcached"):
        store_of(make_region().configure("dogpile.cache.memory", wrap=[Proxied]))


@pytest.mark.parametrize(
    ("backend", "arguments", "complaint"),
    [
        (MemcachedBackend, {}, "'url' must begin with memcached://"),
        (MemcachedBackend, {"url": "memory://"}, "memcached:// or memcached\\+unix://"),
        (MemoryBackend, {"url": "memcached://a"}, "'url' must begin with memory://"),
        (MemoryBackend, {"size": 5}, "size unknown; valid are ttl, url"),
    ],
)
def test_arguments_are_checked(backend, arguments, complaint):
    """What an argument must be is said."""
    with pytest.raises(ConfigurationError, match=complaint):
        backend(arguments)
