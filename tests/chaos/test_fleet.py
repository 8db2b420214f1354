"""Faults strike writers where they are wanted."""

from __future__ import annotations

import random
import signal

import pytest

from tests.chaos import fleet as fleet_module
from tests.chaos.client import Board, Figure, Role, State
from tests.chaos.fleet import Fleet


@pytest.fixture
def fleet(tmp_path, monkeypatch):
    """Three writers that nobody started, and their board."""
    monkeypatch.setattr(fleet_module, "PICK_SECONDS", 0.05)
    board = Board(tmp_path / "board", 3)
    return Fleet(board, [Role.WRITER] * 3, lambda _seat, _number: None), board


def test_a_writer_is_struck_where_it_is_to_be(fleet):
    """Whoever is in the state that was asked for; anybody, where nobody comes to be in it."""
    crew, board = fleet
    board.row(1)[Figure.STATE] = State.ANNOUNCED
    chosen = {crew.pick(Role.WRITER, random.Random(n), state=State.ANNOUNCED).slot for n in range(10)}
    assert chosen == {1}
    assert crew.state(crew.seats[1]) is State.ANNOUNCED
    anybody = {crew.pick(Role.WRITER, random.Random(n), state=State.COMMITTED).slot for n in range(10)}
    assert len(anybody) > 1


def test_the_board_tells_the_keys_of_a_transaction(fleet):
    """As many as it has: all of them are uncached if it dies."""
    crew, board = fleet
    row = board.row(2)
    for column, key in enumerate((7, 8), len(Figure)):
        row[column] = key
    row[Figure.KEYS] = 2
    assert crew.keys(crew.seats[2]) == [7, 8]
    assert crew.keys(crew.seats[0]) == []


def test_nobody_is_struck_in_an_empty_seat(fleet):
    """A process that is only just being started is no fault that was survived."""
    crew, _ = fleet
    assert not crew.seats[0].signal(signal.SIGSTOP)
