"""What a unit remembers, compared with a list of dictionaries, one per open savepoint."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sa_writethrough.unit import Touch, Unit

KEYS = st.sampled_from("abc")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("touch"), KEYS),
        st.tuples(st.just("epoch"), KEYS),
        st.tuples(st.just("learn"), KEYS),
        st.tuples(st.just("savepoint"), st.just("")),
        st.tuples(st.just("release"), st.integers(0, 3).map(str)),
        st.tuples(st.just("rollback"), st.integers(0, 3).map(str)),
    ),
    max_size=30,
)


def _touch(number: int) -> Touch:
    return Touch("model", "epoch", (number,), held=True)


@given(STEPS)
def test_frames_are_a_stack_of_dictionaries(steps: list[tuple[str, str]]) -> None:
    """Later touches win, release merges, rollback drops the level and those above it, and the savepoint stays."""
    unit = Unit()
    rows: list[dict[str, tuple[int, bytes | None]]] = [{}]
    epochs: list[set[str]] = [set()]
    for number, (verb, what) in enumerate(steps):
        level = int(what) + 1 if what.isdigit() else 0
        merged = {key: value for frame in rows for key, value in frame.items()}
        if verb == "touch":
            unit.touch(what, _touch(number))
            rows[-1][what] = (number, None)
        elif verb == "epoch":
            unit.touch_epoch(what, "model")
            epochs[-1].add(what)
        elif verb == "learn" and what in merged:
            unit.learn(what, unit.rows()[what], b"%d" % number)
            rows[-1][what] = (merged[what][0], b"%d" % number)
        elif verb == "savepoint":
            unit.savepoint(str(len(rows) - 1))
            rows.append({})
            epochs.append(set())
        elif verb == "release" and level < len(rows):
            unit.release(what)
            for frame in rows[level:]:
                rows[level - 1].update(frame)
            epochs[level - 1].update(*epochs[level:])
            del rows[level:], epochs[level:]
        elif verb == "rollback" and level < len(rows):
            unit.rollback_to(what)
            rows[level:], epochs[level:] = [{}], [set()]
    merged = {key: value for frame in rows for key, value in frame.items()}
    assert {key: (t.identity[0], t.payload) for key, t in unit.rows().items()} == merged
    assert set(unit.epochs()) == {key for level_ in epochs for key in level_}
    assert unit.is_empty is not bool(merged or any(epochs))


def test_a_rollback_to_an_unknown_savepoint_trusts_nothing() -> None:
    """Savepoints that were made behind our back: rows stay touched, without lock or value."""
    unit = Unit()
    unit.touch("a", Touch("model", "epoch", (1,), held=True, payload=b"x"))
    unit.rollback_to("unknown")
    assert unit.rows()["a"] == Touch("model", "epoch", (1,), held=False, payload=None)


def test_a_release_of_an_unknown_savepoint_changes_nothing() -> None:
    """Nothing was opened under that name."""
    unit = Unit()
    unit.touch("a", _touch(1))
    unit.release("unknown")
    assert unit.rows() == {"a": _touch(1)}


def test_rows_that_were_inserted_unseen_are_touched_but_not_announced() -> None:
    """They have no entries, but their transaction must not fill them; clear() forgets them."""
    unit = Unit()
    unit.insert_unseen("epoch")
    assert unit.touches("any", "epoch")
    assert not unit.touches("any", "another")
    assert unit.is_empty
    assert list(unit) == []
    unit.clear()
    assert not unit.touches("any", "epoch")


def test_a_unit_names_rows_and_epochs() -> None:
    """Both are what is announced."""
    unit = Unit()
    unit.touch("a", _touch(1))
    unit.savepoint("s")
    unit.touch_epoch("e", "model")
    assert list(unit) == ["a", "e"]
    assert unit.touches("a", "other")
    assert unit.touches("b", "e")
