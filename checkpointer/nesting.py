"""Objects within objects, as deep as they are stored: loaded without overrunning the stack.

Each object within an object is a MessagePack of its own, for which ormsgpack takes up to 1024
frames of the stack. A stored value of 30 KB can so end the process, where the stack ends.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any, Final, TypeAlias

import ormsgpack

SHALLOW: Final = 2048
"""Bytes up to which nothing is counted: no more levels than these stand in them."""

LEVELS_A_THREAD: Final = 8
"""After so many levels, the next go on in another thread, which has a stack of its own. They take
4 of its 8 MB at most."""

MAX_LEVELS: Final = 512
"""Levels that are loaded; with Python's own limit of recursion, none are dumped beyond 400."""

Hook: TypeAlias = Callable[[int, bytes], Any]

_unpackb: Final = ormsgpack.unpackb
_level: Final[ContextVar[int]] = ContextVar("checkpointer_level", default=0)
_stopped: Final[ContextVar[bool]] = ContextVar("checkpointer_stopped", default=False)


def unpackb(packed: bytes, *, ext_hook: Hook, option: int) -> Any:
    """`ormsgpack.unpackb` for what stands within an object.

    Beyond `MAX_LEVELS` it answers `None`, and `raise_if_stopped` says so: LangGraph's hook takes
    another value in place of one that fails to load.
    """
    if len(packed) <= SHALLOW:
        return _unpackb(packed, ext_hook=ext_hook, option=option)
    level = _level.get() + 1
    if level > MAX_LEVELS:
        return _stop()
    token = _level.set(level)
    try:
        if level % LEVELS_A_THREAD:
            return _unpackb(packed, ext_hook=ext_hook, option=option)
        return _in_a_thread(partial(_unpackb, packed, ext_hook=ext_hook, option=option))
    finally:
        _level.reset(token)


def raise_if_stopped() -> None:
    """Raise if something was left out since this was called the last time.

    Raises:
        ValueError: It was.
    """
    if _stopped.get():
        _stopped.set(False)
        raise ValueError(f"found objects nested in more than {MAX_LEVELS} levels, expected fewer")


def _in_a_thread(work: partial[Any]) -> Any:
    context = copy_context()
    with ThreadPoolExecutor(1) as threads:
        try:
            future = threads.submit(context.run, work)
        except RuntimeError:  # the system has no more of them
            return _stop()
        found = future.result()
    if context.get(_stopped):
        _stop()
    return found


def _stop() -> None:
    _stopped.set(True)
