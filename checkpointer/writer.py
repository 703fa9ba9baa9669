"""Group commit: puts that arrive while a transaction is under way share the next one."""

import asyncio
from collections import deque
from collections.abc import Sequence
from contextvars import Context
from functools import partial
from typing import Final

from checkpointer.database import Database
from checkpointer.errors import DatabaseUnavailableError
from checkpointer.puts import put
from checkpointer.records import Put
from checkpointer.store import Store

MAX_BATCH: Final = 256
"""Puts in one transaction at most."""

MAX_BATCH_BYTES: Final = 16 << 20
"""Bytes of chunks after which a batch takes no further put."""

Waiting = tuple[Put, "asyncio.Future[None]"]


class Writer:
    """Commits puts in batches, over all threads.

    An idle writer starts at once, without a timer. A put that fails, fails alone: its batch is run
    again, one by one. Cancelling a caller takes its put back if it has not been started, and leaves
    it to finish otherwise.
    """

    def __init__(self, database: Database, store: Store) -> None:
        self._database = database
        self._store = store
        self._waiting: deque[Waiting] = deque()
        self._task: asyncio.Task[None] | None = None

    async def put(self, one: Put) -> None:
        """Store a checkpoint or writes. Returns when the transaction has committed.

        Raises:
            DatabaseError: The database refused or failed; nothing of it was stored.
        """
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((one, future))
        if self._task is None:
            # In a context of its own: it works for all callers, not for the one that came first.
            self._task = asyncio.create_task(
                self._run(), name="checkpointer writer", context=Context()
            )
            self._task.add_done_callback(self._never_begun)
        await future

    async def drain(self) -> None:
        """Wait until every put that was started has ended."""
        while self._task is not None:
            await asyncio.wait([self._task])

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
        puts = [one for one, _ in batch]
        try:
            epochs = await self._database.put(partial(put, store=self._store, batch=puts))
        except DatabaseUnavailableError as exc:
            # The others would wait as long as this one did.
            _fail(batch, exc)
            return
        except Exception as exc:  # noqa: BLE001 - whatever it is, it belongs to the callers
            if len(batch) > 1:
                for one in batch:
                    await self._commit([one])
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
