"""The loading of objects that are nested within each other, without overrunning the stack.

Each nested object is a MessagePack of its own, and ormsgpack uses up to 1024 frames of the stack
for each. So a stored value of 30 KB could overrun the stack, which ends the process.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from functools import partial
from itertools import chain
from typing import Any, Final, TypeAlias, TypeVar

import ormsgpack

SHALLOW: Final = 2048
"""Bytes up to which nothing is counted: no more levels than these stand in them."""

LEVELS_A_THREAD: Final = 8
"""After this many levels, loading continues in another thread, which has a stack of its own. The
levels of one thread take at most 4 of its 8 MB."""

MAX_LEVELS: Final = 512
"""Maximum number of levels that are loaded. Python's recursion limit stops a dump at about 400."""

MAX_ON_ONE_STACK: Final = 400, 1024 * LEVELS_A_THREAD
"""Maximum of levels, and of lists and dicts in all of them, for a loader that stays in a thread."""

Hook: TypeAlias = Callable[[int, bytes], Any]
T = TypeVar("T")

_unpackb: Final = ormsgpack.unpackb
_level: Final[ContextVar[int]] = ContextVar("checkpointer_level", default=0)
_stopped: Final[ContextVar[bool]] = ContextVar("checkpointer_stopped", default=False)


def unpackb(packed: bytes, *, ext_hook: Hook, option: int) -> Any:
    """Unpack the bytes inside an object, as `ormsgpack.unpackb` does.

    Beyond `MAX_LEVELS`, return `None`; `raise_if_stopped` then raises. An error here would be lost:
    LangGraph's hook replaces a value that fails to load with another.
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


def load_on_one_stack(packed: bytes, load: Callable[[], T]) -> T:
    """Load bytes with a loader that stays in one thread for nested objects.

    Raises:
        ValueError: The bytes are no MessagePack, or are nested so deeply that the loader might
            overrun its stack.
    """
    levels, deepest = _measure(packed)
    if levels <= LEVELS_A_THREAD:
        return load()
    if levels > MAX_ON_ONE_STACK[0] or levels * deepest > MAX_ON_ONE_STACK[1]:
        raise ValueError(
            f"found objects nested in {levels} levels of up to {deepest} lists and dicts, expected "
            f"at most {MAX_ON_ONE_STACK[0]} levels, and {MAX_ON_ONE_STACK[1]} of these in them"
        )
    try:
        loaded: T = _in_a_thread(partial(load))  # which has Python's whole limit of recursion, too
        return loaded
    finally:
        raise_if_stopped()


def _measure(packed: bytes) -> tuple[int, int]:
    """Return the levels of objects and, if they take a thread, the most containers in one."""
    level = levels = deepest = 0

    def look(parts: Any) -> None:
        nonlocal deepest
        if levels > LEVELS_A_THREAD:
            deepest = max(deepest, _depth(parts))

    def hook(_code: int, data: bytes) -> None:
        nonlocal level, levels
        level += 1
        levels = max(levels, level)
        look(unpackb(data, ext_hook=hook, option=ormsgpack.OPT_NON_STR_KEYS))
        level -= 1

    try:
        look(_unpackb(packed, ext_hook=hook, option=ormsgpack.OPT_NON_STR_KEYS))
    finally:
        raise_if_stopped()
    return levels, deepest


def _depth(value: Any) -> int:
    """Return how deeply lists and dicts are nested within each other, keys included."""
    depth, layer = 1, [value]
    while layer := [part for one in layer for part in _parts(one)]:
        depth += 1
    return depth


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return chain(value, value.values())
    return value if isinstance(value, list | tuple) else ()


def raise_if_stopped() -> None:
    """Raise if a nested object was left out since the last call.

    Raises:
        ValueError: Objects are nested in more than `MAX_LEVELS` levels.
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
        try:
            return future.result()
        finally:
            if context.get(_stopped):
                _stop()


def _stop() -> None:
    _stopped.set(True)
