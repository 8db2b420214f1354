"""Store URLs."""

from __future__ import annotations

import ssl

import pytest

from sa_writethrough.exceptions import ConfigurationError
from sa_writethrough.stores import open_store
from sa_writethrough.stores.memcached import MAX_ITEM_BYTES, MemcachedStore
from sa_writethrough.stores.memory import MemoryStore


def nodes(url):
    """The names of the nodes that a URL stands for."""
    return [node.name for node in open_store(url)._nodes]


def test_memory():
    """The in-process store and its bounds."""
    assert isinstance(open_store("memory://"), MemoryStore)
    store = open_store("memory://?max_bytes=1000&max_entries=10&lease_ttl=2.5")
    assert (store.max_bytes, store.max_entries, store.lease_ttl) == (1000, 10, 2.5)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("memcached://cache", ["cache:11211"]),
        ("memcached://cache/", ["cache:11211"]),
        ("memcached://one:1,two,three:3", ["one:1", "two:11211", "three:3"]),
        ("memcached://[::1],[::2]:7,127.0.0.1", ["[::1]:11211", "[::2]:7", "127.0.0.1:11211"]),
        ("memcached://user:p%40ss@cache:5", ["cache:5"]),
        ("memcached+unix:///run/memcached.sock", ["/run/memcached.sock"]),
        ("memcached+unix:///run/a%20b", ["/run/a b"]),
    ],
)
def test_nodes(url, expected):
    """One node or several, IPv6 in brackets, the usual port by default, a UNIX socket's path."""
    assert isinstance(open_store(url), MemcachedStore)
    assert nodes(url) == expected


def test_options():
    """Every parameter reaches what it is for; what is not given has its default."""
    store = open_store(
        "memcached://user:p%40ss@cache?timeout=1.5&connect_timeout=.5&retry_after=3&lease_ttl=2.5&pool_size=9"
        "&max_item_bytes=777&tls=1"
    )
    options = store._nodes[0]._options
    assert (options.connecting.timeout, options.connecting.connect_timeout) == (1.5, 0.5)
    assert (options.retry_after, options.pool_size) == (3.0, 9)
    assert (store._lease_ttl, store._max_bytes) == (3, 777)
    assert isinstance(options.connecting.tls, ssl.SSLContext)
    assert (options.connecting.credentials.username, options.connecting.credentials.password) == ("user", "p@ss")
    plain = open_store("memcached://cache?tls=0")
    options = plain._nodes[0]._options
    assert (options.connecting.timeout, options.connecting.connect_timeout, options.retry_after) == (0.5, 0.25, 1.0)
    assert (plain._lease_ttl, plain._max_bytes) == (10, MAX_ITEM_BYTES)
    assert options.connecting.tls is None
    assert options.connecting.credentials is None


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("redis://cache", "scheme 'redis'; valid are memory, memcached, memcached\\+unix"),
        ("cache:11211", "unknown scheme"),
        ("memory://cache", "neither a host nor a path"),
        ("memory://?size=1", "'size'; valid are max_bytes, max_entries, lease_ttl"),
        ("memory://?max_bytes=0", "max_bytes='0' is not a whole number greater than zero"),
        ("memory://?max_bytes=many", "max_bytes='many'"),
        ("memory://?max_bytes=1&max_bytes=2", "max_bytes is given twice"),
        ("memcached://", "'' is no host"),
        ("memcached://a,", "'' is no host"),
        ("memcached://a:b", "'b' in 'a:b' is no port"),
        ("memcached://a:70000", "1 to 65535"),
        ("memcached://::1", "'::1' is no host"),
        ("memcached://a/db", "no path, not '/db'"),
        ("memcached://a,a", "name every node once"),
        ("memcached://[::1", "Invalid IPv6 URL"),
        ("memcached://a?timeout=0", "timeout='0' is not a number of seconds greater than zero"),
        ("memcached://a?timeout=inf", "timeout='inf'"),
        ("memcached://a?timeout=", "timeout=''"),
        ("memcached://a?max_bytes=1", "'max_bytes'; valid are timeout, connect_timeout"),
        ("memcached://a?tls=yes", "tls='yes' is not 0 or 1"),
        ("memcached://a?tls_ca=/x", "tls_ca means nothing without tls=1"),
        ("memcached://a?tls=1&tls_ca=/no/such", "tls_ca='/no/such' cannot be read"),
        ("memcached+unix://host/path", "three slashes"),
        ("memcached+unix://", "three slashes"),
    ],
)
def test_complaints_name_the_part(url, complaint):
    """What is wrong is named, with what would be right."""
    with pytest.raises(ConfigurationError, match=complaint):
        open_store(url)


@pytest.mark.parametrize("wrong", ["a:x", "a?what=1", "a?timeout=x", "a/path", "a,a", ""])
def test_complaints_show_no_password(wrong):
    """Whatever is wrong, the password is not part of the message."""
    with pytest.raises(ConfigurationError) as caught:
        open_store(f"memcached://user:hush@{wrong}")
    assert "hush" not in str(caught.value)


def test_repr_shows_nodes_and_no_password():
    """A store can be printed."""
    assert repr(open_store("memcached://user:hush@a:1,b")) == "MemcachedStore(a:1, b:11211)"
