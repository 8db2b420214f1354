"""CachePolicy: what it takes, what it refuses, and in which words."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from sa_writethrough.exceptions import ConfigurationError
from sa_writethrough.policy import (
    CacheMode,
    CachePolicy,
    OnMiss,
    OnOutage,
    OnUnknownSQL,
    OnWrite,
    ReadBack,
    Reads,
    SnapshotReads,
)

CHOICES = {
    "on_write": OnWrite,
    "reads": Reads,
    "snapshot_reads": SnapshotReads,
    "read_back": ReadBack,
    "on_outage": OnOutage,
    "on_miss": OnMiss,
    "on_unknown_sql": OnUnknownSQL,
}


def test_the_defaults_are_the_safe_choices() -> None:
    """Publish, serve on request, bypass in snapshots, read back when needed, abort in an outage, no time limit."""
    policy = CachePolicy()
    assert policy == CachePolicy(
        ttl=None,
        on_write=OnWrite.PUBLISH,
        reads=Reads.OPTION,
        snapshot_reads=SnapshotReads.BYPASS,
        read_back=ReadBack.WHEN_NEEDED,
        on_outage=OnOutage.ABORT,
        namespace="",
        exclude=frozenset(),
        tombstone_ttl=5.0,
    )


def test_a_policy_is_an_immutable_hashable_value() -> None:
    """Equal policies are one; a change makes a new one."""
    policy = CachePolicy(ttl=5, exclude=["photo"])
    assert hash(policy) == hash(CachePolicy(ttl=5, exclude={"photo"}))
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.ttl = 6  # type: ignore[misc]  # that is what is tested
    assert dataclasses.replace(policy, ttl=6).ttl == 6
    assert not hasattr(policy, "__dict__")


@pytest.mark.parametrize(("name", "kind"), CHOICES.items())
def test_a_choice_is_a_member_or_its_value(name: str, kind: Any) -> None:
    """Each member is taken, and its value as a string."""
    for member in kind:
        assert getattr(CachePolicy(**{name: member}), name) is member
        assert getattr(CachePolicy(**{name: member.value}), name) is member


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("wrong", ["nonsense", None, 1, True, CacheMode.GET])
def test_a_wrong_choice_is_refused(name: str, wrong: Any) -> None:
    """What is none of the members is refused, and the members are named."""
    with pytest.raises(ConfigurationError) as error:
        CachePolicy(**{name: wrong})
    assert name in str(error.value)
    for member in CHOICES[name]:
        assert f"{CHOICES[name].__name__}.{member.name}" in str(error.value)


@pytest.mark.parametrize("name", ["ttl", "tombstone_ttl"])
@pytest.mark.parametrize("value", [0.001, 1, 3600, 1.5, 10**9])
def test_a_number_of_seconds_is_positive(name: str, value: float) -> None:
    """Any positive finite number is a number of seconds."""
    assert getattr(CachePolicy(**{name: value}), name) == value


@pytest.mark.parametrize("name", ["ttl", "tombstone_ttl"])
@pytest.mark.parametrize("wrong", [0, -1, float("inf"), float("nan"), "5", True, [5], -0.0])
def test_a_wrong_number_of_seconds_is_refused(name: str, wrong: Any) -> None:
    """Zero, negative, infinite, NaN and what is no number at all are refused by name."""
    with pytest.raises(ConfigurationError, match=rf"CachePolicy\({name}=.*positive number of seconds"):
        CachePolicy(**{name: wrong})


def test_only_the_entries_may_live_for_ever() -> None:
    """`ttl=None` means no time limit; a tombstone needs one."""
    assert CachePolicy(ttl=None).ttl is None
    with pytest.raises(ConfigurationError, match="tombstone_ttl=None"):
        CachePolicy(tombstone_ttl=None)  # type: ignore[arg-type]  # that is what is tested


@pytest.mark.parametrize("given", [["a", "b"], ("a", "b"), {"a", "b"}, frozenset({"a", "b"}), iter(["a", "b"])])
def test_exclude_takes_any_iterable_of_names(given: Any) -> None:
    """The names become a frozen set."""
    assert CachePolicy(exclude=given).exclude == frozenset({"a", "b"})


@pytest.mark.parametrize("wrong", ["photo", 5, None])
def test_a_wrong_exclude_is_refused(wrong: Any) -> None:
    """A single string is a likely slip, and is refused with an example."""
    with pytest.raises(ConfigurationError, match=r"exclude=\['photo'\]"):
        CachePolicy(exclude=wrong)


@pytest.mark.parametrize("namespace", ["", "app", "App-1_x.y", "x" * 64])
def test_a_namespace_is_a_plain_word(namespace: str) -> None:
    """Letters, digits and a few signs."""
    assert CachePolicy(namespace=namespace).namespace == namespace


@pytest.mark.parametrize("wrong", ["a b", "a:b", "ä", "a\n", "a/b", "²", "x" * 65])
def test_a_wrong_namespace_is_refused(wrong: str) -> None:
    """What could not stand in a key is refused."""
    with pytest.raises(ConfigurationError, match="namespace"):
        CachePolicy(namespace=wrong)


@pytest.mark.parametrize("wrong", [None, 5, b"app"])
def test_a_namespace_that_is_no_text_is_refused(wrong: Any) -> None:
    """None and bytes are configuration errors, not AttributeErrors."""
    with pytest.raises(ConfigurationError, match="namespace"):
        CachePolicy(namespace=wrong)


def test_the_modes_are_hibernates() -> None:
    """The members of CacheMode have the field's names."""
    assert [mode.name for mode in CacheMode] == ["NORMAL", "GET", "PUT", "REFRESH", "IGNORE"]


@pytest.mark.parametrize("jitter", [-0.1, 1.1, "half", None])
def test_jitter_is_a_share(jitter: Any) -> None:
    """Of the ttl, from none to all of it."""
    with pytest.raises(ConfigurationError, match="from 0 to 1"):
        CachePolicy(ttl=5, ttl_jitter=jitter)


def test_lifetimes_are_spread() -> None:
    """Without jitter all live for the ttl; with it, for no less than the share that is left, and not all as long."""
    assert CachePolicy().lifetime() is None
    assert CachePolicy(ttl_jitter=0.5).lifetime() is None
    assert CachePolicy(ttl=10).lifetime() == 10
    found = {CachePolicy(ttl=10, ttl_jitter=0.5).lifetime() for _ in range(100)}
    assert len(found) > 50
    assert all(5 <= seconds <= 10 for seconds in found if seconds is not None)


@pytest.mark.parametrize("keys", ["email", 5, ["email"], [()], [("email", 1)], [["email"], "name"]])
def test_unique_keys_are_a_list_of_tuples(keys: Any) -> None:
    """Names alone may be meant as one key or as many."""
    with pytest.raises(ConfigurationError, match="list of tuples"):
        CachePolicy(unique_keys=keys)


def test_unique_keys_of_any_form_are_one_value() -> None:
    """Lists and tuples are the same."""
    assert CachePolicy(unique_keys=[["a"], ("b", "c")]) == CachePolicy(unique_keys=(("a",), ("b", "c")))


@pytest.mark.parametrize("secret", ["text" * 9, b"too short"])
def test_a_secret_is_long_and_of_bytes(secret: Any) -> None:
    """What to give is said, and the secret is not repeated."""
    with pytest.raises(ConfigurationError, match="16 random bytes") as refused:
        CachePolicy(secret=secret)
    assert str(secret) not in str(refused.value)


def test_a_secret_of_sixteen_bytes_is_taken() -> None:
    """The shortest one."""
    assert CachePolicy(secret=b"x" * 16).secret == b"x" * 16
