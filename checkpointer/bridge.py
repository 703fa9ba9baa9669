"""Sync calls over an event loop: the caller's own, or one in a background thread."""

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError
from typing import Any, ParamSpec, TypeVar, cast

from checkpointer.errors import EventLoopError, SyncCallError

P = ParamSpec("P")
T = TypeVar("T")


class Bridge:
    """The one event loop that a saver's work runs on.

    It is bound by the first async call, to the loop that runs; or by the first sync call, to a loop
    of its own in a background thread.

    Args:
        check_open: Raises an error if the saver was closed.
    """

    def __init__(self, check_open: Callable[[], None]) -> None:
        self._check_open = check_open
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._stopped = asyncio.Event()
        self._lock = threading.Lock()

    def bind(self) -> None:
        """Bind to the running loop, or check that it is the one bound to.

        Raises:
            EventLoopError: It is another one, or the process was forked since.
        """
        running = asyncio.get_running_loop()
        if self._loop is running and self._pid == os.getpid():
            return
        with self._lock:
            if self._loop is None:
                self._loop, self._pid = running, os.getpid()
                return
        self._check_alive()
        raise EventLoopError(
            "found a call from another event loop than the saver's own, expected one loop for all "
            "calls, because its database connections belong to that loop; make one saver per "
            "event loop, and open it with `async with create_saver(...)` in async code"
        )

    def call(
        self,
        function: Callable[P, Coroutine[Any, Any, T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run an async function on the saver's loop and wait for what it returns.

        Raises:
            SyncCallError: That loop is the one that runs here, which would wait for itself.
            EventLoopError: That loop is closed, or the process was forked since.
        """
        self._check_open()
        loop = self._bound_or_started()
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is loop:
            raise SyncCallError(_in_own_loop(function.__name__))
        if self._thread is None and not loop.is_running():
            raise EventLoopError(
                "found a sync call while the saver's event loop does not run, expected it to run "
                "in another thread; use `with create_saver(...)` for sync calls"
            )
        try:
            return asyncio.run_coroutine_threadsafe(function(*args, **kwargs), loop).result()
        except CancelledError as exc:
            raise EventLoopError(
                "found that the saver's event loop ended during a sync call, expected it to run "
                "until all calls have returned; close the saver after its last call"
            ) from exc

    def iterate(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        """The items of an async generator; it is closed when the caller stops early."""
        ended = object()

        async def alist() -> T | object:
            return await anext(items, ended)

        while (item := self.call(alist)) is not ended:
            try:
                yield cast("T", item)
            except GeneratorExit:
                # It holds nothing between two items; a closing loop closes it by itself.
                if self._loop is not None and self._loop.is_running():
                    asyncio.run_coroutine_threadsafe(_close(items), self._loop)
                raise

    def stop(self) -> None:
        """End the background thread, if there is one."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._stopped.set)
            thread.join()

    def _bound_or_started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop, self._pid = asyncio.new_event_loop(), os.getpid()
                self._thread = threading.Thread(
                    target=self._run, args=[self._loop], name="checkpointer loop", daemon=True
                )
                self._thread.start()
        self._check_alive()
        return self._loop

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        # A runner cancels what is left when it ends, so that no caller waits forever.
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(self._stopped.wait())

    def _check_alive(self) -> None:
        if self._pid != os.getpid():
            raise EventLoopError(
                f"found a saver that process {self._pid} has used in its fork {os.getpid()}, "
                f"expected one saver per process; call create_saver(...) after the fork"
            )
        if self._loop is not None and self._loop.is_closed():
            raise EventLoopError(
                "found a saver whose event loop is closed, expected one loop for all calls; make "
                "one saver per event loop, with `async with create_saver(...)` inside asyncio.run"
            )


def _in_own_loop(function: str) -> str:
    name = function.removeprefix("a")
    instead = f"`await saver.{function}(...)`"
    if name.startswith("_"):
        name, instead = "with saver", "`async with saver`"
    elif name == function:
        name = f"{function}_sync"
    return (
        f"found the sync call {name} from the saver's own event loop, which would wait for itself, "
        f"expected one from another thread; use {instead}, and `await graph.ainvoke(...)` in place "
        f"of `graph.invoke(...)`"
    )


async def _close(items: AsyncGenerator[Any, None]) -> None:
    await items.aclose()
