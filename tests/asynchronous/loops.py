"""Event loops for tests: one for each test, one in a thread for synchronous suites, and cancellation at a chosen await."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from sqlalchemy.util import greenlet_spawn


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make a test of a coroutine function: each runs in a loop of its own, which is closed after it."""

    @functools.wraps(test)
    def run(*arguments: Any, **keywords: Any) -> None:
        asyncio.run(test(*arguments, **keywords))

    return run


class Cancelled:
    """Awaits *coroutine*, and cancels the task in *times* awaits from the *n*th, counted from zero.

    `awaits` tells how many there were.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], n: int, times: int) -> None:
        self._coroutine = coroutine
        self._where = range(n, n + times)
        self.awaits = 0

    def __await__(self) -> Any:
        steps = self._coroutine.__await__()
        try:
            awaited = steps.send(None)
            while True:
                if self.awaits in self._where:
                    asyncio.current_task().cancel()  # takes effect where the task waits for `awaited`
                self.awaits += 1
                try:
                    sent = yield awaited
                except BaseException as error:  # noqa: BLE001 - it goes on to the coroutine
                    awaited = steps.throw(error)
                else:
                    awaited = steps.send(sent)
        except StopIteration as stop:
            return stop.value


async def cancelled_at(n: int, coroutine: Coroutine[Any, Any, Any], times: int = 1) -> bool:
    """Run *coroutine* in a task that is cancelled in *times* awaits from its *n*th; tell whether it got that far."""
    cancelled = Cancelled(coroutine, n, times)

    async def run() -> None:
        await cancelled

    await asyncio.wait([asyncio.create_task(run())])
    return cancelled.awaits > n


class LoopThread:
    """A loop that runs in a thread of its own, and a store of it that other threads may call."""

    keeps_tombstones = False

    def __init__(self, store: Any) -> None:
        self._store = store
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call *function* in a greenlet beside a task of the loop."""
        return asyncio.run_coroutine_threadsafe(greenlet_spawn(function, *arguments), self._loop).result()

    def read(self, *arguments: Any) -> Any:
        return self.call(self._store.read, *arguments)

    def submit(self, changes: Any) -> Any:
        return _Reply(self, self.call(self._store.submit, changes))

    def post(self, changes: Any) -> None:
        self.call(self._store.post, changes)

    def close(self) -> None:
        self.call(self._store.close)

    def stop(self) -> None:
        """Close the store, and end the loop."""
        self.close()
        asyncio.run_coroutine_threadsafe(self._loop.shutdown_asyncgens(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _Reply:
    def __init__(self, thread: LoopThread, reply: Any) -> None:
        self._thread = thread
        self._reply = reply

    def wait(self) -> Any:
        return self._thread.call(self._reply.wait)
