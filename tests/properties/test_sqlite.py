from functools import partial
import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from sa_writethrough.stores.memory import MemoryStore
from tests.properties.machine import Transactions
from tests.properties.worlds import Place

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")

def test_sqlite(tmp_path):
    place = Place(f"sqlite:///{tmp_path/'x.db'}", lambda clock: MemoryStore(clock=clock))
    run_state_machine_as_test(lambda: Transactions(place), settings=settings(max_examples=50, stateful_step_count=30, deadline=None))
    place.close()
