"""Sync calls over an event loop: the caller's own, or one in a background thread."""

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from inspect import CORO_CREATED, getcoroutinestate
from typing import Any, Final, ParamSpec, TypeVar, cast
from weakref import finalize

from checkpointer.errors import EventLoopError, SyncCallError

P = ParamSpec("P")
T = TypeVar("T")

LOOK_SECONDS: Final = 0.5
"""How often a sync call looks whether the event loop that it waits for still runs."""


class Bridge:
    """The one event loop that a saver's work runs on.

    It is bound by the first async call, to the loop that runs; or by the first sync call, to a loop
    of its own in a background thread.

    Args:
        check_open: Raises an error if the saver was closed.
        claim: Raises an error if what the saver works on belongs to another event loop.
        dispose: Closes what the saver works on, at the end of a loop of its own. It must not know
            the saver, which would stay alive with the loop.
    """

    def __init__(
        self,
        check_open: Callable[[], None],
        claim: Callable[[asyncio.AbstractEventLoop], None],
        dispose: Callable[[], Awaitable[None]],
    ) -> None:
        self._check_open = check_open
        self._claim = claim
        self._dispose = dispose
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._end: Callable[[], object] = lambda: None
        self._lock = threading.Lock()

    def bind(self) -> None:
        """Bind to the running loop, or check that it is the one bound to.

        Raises:
            EventLoopError: It is another one, or the process was forked since.
        """
        running = asyncio.get_running_loop()
        if self._loop is running and self._pid == os.getpid():
            return
        if self._loop is None:
            with self._lock:
                if self._loop is None:
                    self._claim(running)
                    self._pid, self._loop = os.getpid(), running
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
        if not self._runs(loop):
            raise EventLoopError(
                "found a sync call while the saver's event loop does not run, expected it to run "
                "in another thread; use `with create_saver(...)` for sync calls"
            )
        return self._wait(function(*args, **kwargs), loop)

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
        if thread is not None:
            self._end()
            thread.join()

    def _wait(self, work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> T:
        try:
            future = asyncio.run_coroutine_threadsafe(work, loop)
        except RuntimeError as exc:  # closed since it was looked at
            work.close()
            raise _ended() from exc
        try:
            while True:
                try:
                    return future.result(LOOK_SECONDS)
                except TimeoutError:
                    if future.done():  # raised by the work; or it ended just now
                        return future.result()
                    # What a loop was given while it ended, it neither runs nor cancels.
                    if not self._runs(loop):
                        raise _ended() from None
        except CancelledError as exc:
            raise _ended() from exc
        finally:
            if not future.done():  # the loop has ended, or Ctrl-C the call
                _drop(work, future, loop)

    def _runs(self, loop: asyncio.AbstractEventLoop) -> bool:
        thread = self._thread
        return loop.is_running() if thread is None else thread.is_alive()

    def _bound_or_started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            with self._lock:
                if self._loop is None:
                    self._start()
        self._check_alive()
        return cast("asyncio.AbstractEventLoop", self._loop)

    def _start(self) -> None:
        loop = asyncio.new_event_loop()
        try:
            self._claim(loop)
            stopped = asyncio.Event()
            thread = threading.Thread(
                target=_run,
                args=[loop, stopped, self._dispose],
                name="checkpointer loop",
                daemon=True,
            )
            thread.start()
        except BaseException:
            loop.close()
            raise
        # The thread knows nothing of the saver: it ends with one that nobody has closed.
        end = finalize(self, loop.call_soon_threadsafe, stopped.set)
        end.atexit = False
        self._end = end
        # The loop last: who finds one looks for no lock.
        self._pid, self._thread, self._loop = os.getpid(), thread, loop

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


def _drop(work: Coroutine[Any, Any, T], future: Future[T], loop: asyncio.AbstractEventLoop) -> None:
    """End work that nobody waits for any more."""
    if not loop.is_closed():
        future.cancel()
    elif getcoroutinestate(work) == CORO_CREATED:
        work.close()  # it would complain that nobody has awaited it


def _run(
    loop: asyncio.AbstractEventLoop,
    stopped: asyncio.Event,
    dispose: Callable[[], Awaitable[None]],
) -> None:
    async def serve() -> None:
        await stopped.wait()
        await dispose()

    # A runner cancels what is left when it ends, so that no caller waits forever.
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(serve())


def _ended() -> EventLoopError:
    return EventLoopError(
        "found that the saver's event loop ended during a sync call, expected it to run until all "
        "calls have returned; close the saver after its last call"
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
