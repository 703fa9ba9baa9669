"""Group commit: puts that arrive while a transaction is under way share the next one."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import nullcontext
from contextvars import Context
from functools import partial
from typing import Final

from checkpointer.database import Database
from checkpointer.errors import DatabaseUnavailableError
from checkpointer.execution import Connection
from checkpointer.puts import Epochs, put
from checkpointer.records import Put
from checkpointer.store import Store

MAX_BATCH: Final = 256
"""Puts in one transaction at most."""

MAX_BATCH_BYTES: Final = 16 << 20
"""Bytes of chunks after which a batch takes no further put."""

Waiting = tuple[Put, "asyncio.Future[None]"]

_NOT_TRACED: Final = nullcontext()


class Writer:
    """Commits puts in batches, over all threads.

    An idle writer starts at once, without a timer. A put that fails, fails alone: its batch is run
    again in halves. Where others may hold a single thread, what cannot be stored now is tried
    again thread by thread, beside the batches that follow. Cancelling a caller takes its put back
    unless an attempt to store it is under way, which is left to finish.
    """

    def __init__(self, database: Database, store: Store) -> None:
        self._database = database
        self._store = store
        self._telemetry = database.telemetry
        self._waiting: deque[Waiting] = deque()
        self._task: asyncio.Task[None] | None = None
        self._apart: dict[asyncio.Task[None], str] = {}

    async def put(self, one: Put) -> None:
        """Store a checkpoint or writes. Returns when the transaction has committed.

        Raises:
            DatabaseError: The database refused or failed. Nothing of it was stored, unless it could
                not be reached: then that is not known.
        """
        future = asyncio.get_running_loop().create_future()
        if self._telemetry is not None:
            self._telemetry.await_commit(one, future)
        if self._apart and one.namespace.thread_id in self._apart.values():
            self._put_apart([(one, future)])
        else:
            self._put_together((one, future))
        await future

    def _put_together(self, waiting: Waiting) -> None:
        self._waiting.append(waiting)
        if self._task is None:
            # In a context of its own: it works for all callers, not for the one that came first.
            self._task = asyncio.create_task(
                self._run(), name="checkpointer writer", context=Context()
            )
            self._task.add_done_callback(self._never_begun)

    def _put_apart(self, batch: Sequence[Waiting]) -> None:
        """Commit each thread's part by itself, for as long as the database's patience lasts."""
        parts = defaultdict[str, list[Waiting]](list)
        for one, future in batch:
            parts[one.namespace.thread_id].append((one, future))
        for thread_id, part in parts.items():
            task = asyncio.create_task(
                self._commit(part), name="checkpointer writer of a thread", context=Context()
            )
            self._apart[task] = thread_id
            task.add_done_callback(partial(self._ended_apart, part))

    def _ended_apart(self, part: Sequence[Waiting], task: "asyncio.Task[None]") -> None:
        del self._apart[task]
        for _, future in part:  # there are any left only where the task itself was cancelled
            future.cancel()

    async def drain(self) -> None:
        """Wait until every put that was started has ended."""
        while tasks := [*filter(None, [self._task]), *self._apart]:
            await asyncio.wait(tasks)

    async def _run(self) -> None:
        batch: list[Waiting] = []
        try:
            while batch := self._take():
                await self._commit(batch)
        finally:
            self._end(batch)

    def _never_begun(self, task: "asyncio.Task[None]") -> None:
        """One that is cancelled before its first step runs nothing, not even a `finally`."""
        if self._task is task:
            self._end([])

    def _end(self, batch: Sequence[Waiting]) -> None:
        self._task = None
        # There are any left only where the task itself was cancelled, as a closing loop does.
        for _, future in (*batch, *self._waiting):
            future.cancel()
        self._waiting.clear()

    def _take(self) -> list[Waiting]:
        batch: list[Waiting] = []
        size = 0
        while self._waiting and len(batch) < MAX_BATCH and size < MAX_BATCH_BYTES:
            one, future = self._waiting.popleft()
            if not future.done():
                batch.append((one, future))
                size += sum(map(len, one.chunks.values()))
        return batch

    async def _commit(self, batch: Sequence[Waiting]) -> None:
        puts: list[Put] = []

        def work(connection: Connection) -> Epochs:
            # Each attempt leaves out what nobody waits for any more: after an outage, it would
            # come later than what its caller has done since.
            puts[:] = [one for one, future in batch if not future.done()]
            return put(connection, self._store, puts) if puts else {}

        several = len({one.namespace.thread_id for one, _ in batch}) > 1
        apart = several and self._database.dialect.locks_rows
        try:
            with self._telemetry.commit(batch) if self._telemetry is not None else _NOT_TRACED:
                epochs = await (
                    self._database.put_once(work) if apart else self._database.put(work)
                )
        except DatabaseUnavailableError as exc:
            if apart:
                self._put_apart(batch)
            else:  # the others would wait as long as this one did
                _fail(batch, exc)
            return
        except Exception as exc:  # noqa: BLE001 - whatever it is, it belongs to the callers
            if len(batch) > 1:
                middle = len(batch) // 2
                await self._commit(batch[:middle])
                await self._commit(batch[middle:])
            else:
                _fail(batch, exc)
            return
        self._store.learn(puts, epochs)
        for _, future in batch:
            if not future.done():
                future.set_result(None)


def _fail(batch: Sequence[Waiting], exc: Exception) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(exc)
