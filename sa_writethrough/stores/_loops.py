"""The bridge between the library's code, which is written once, and asyncio: which loop runs, and how to wait on it.

Under SQLAlchemy's asyncio extension that code runs in a greenlet beside a task. What waits there switches to the task,
which awaits: no thread is blocked, and a cancellation of the task is raised where the code waits. Where no greenlet is,
nothing may wait (`MissingGreenlet`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

from sqlalchemy.util import await_only, greenlet_spawn
from sqlalchemy.util.concurrency import in_greenlet as beside_task

from sa_writethrough.exceptions import CacheUnavailableError

__all__ = ["await_only", "in_greenlet", "pause", "running_loop"]


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the loop that runs in this thread. Raises `CacheUnavailableError` where none does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise CacheUnavailableError(
            "no event loop is running here, and the store's connections belong to one: use the session inside a task"
        ) from None


def pause(seconds: float) -> None:
    """Wait: the task, where this runs beside one, and the thread otherwise."""
    if beside_task():
        await_only(asyncio.sleep(seconds))
    else:
        time.sleep(seconds)


def in_greenlet(function: Any, *arguments: Any) -> Coroutine[Any, Any, Any]:
    """Return a coroutine that calls *function*, which may wait, beside the task that awaits it."""
    return greenlet_spawn(function, *arguments)
