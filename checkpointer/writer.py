"""Group commit: puts that arrive while a transaction is under way share the next one."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from contextvars import Context
from dataclasses import dataclass
from typing import Final

from checkpointer.database import Database
from checkpointer.errors import DatabaseUnavailableError
from checkpointer.execution import Connection
from checkpointer.memory import Known
from checkpointer.puts import Stored, batch_of, put
from checkpointer.records import Put, RefusedError
from checkpointer.store import Store

MAX_BATCH: Final = 256
"""The most puts in one transaction."""

MAX_BATCH_BYTES: Final = 16 << 20
"""Bytes of segments after which a batch takes no further put."""

SLOW: Final = 0.02
"""Seconds for which puts wait for a batch. After that, another batch begins beside it."""

MAX_LANES: Final = 8
"""The most batches that may be under way at once, if a database takes several transactions. Batches
that store one thread by itself do not count."""

MAX_HELD: Final = 4
"""The most threads held by others that are waited for at once, with a connection each. Further ones
wait for their turn."""

Waiting = tuple[Put, "asyncio.Future[None]"]

_NOT_TRACED: Final = nullcontext()


@dataclass(slots=True)
class _Lane:
    """A batch under way.

    Attributes:
        began: When it began.
        batch: Its puts.
        apart: Whether it stores one thread by itself, for as long as that takes.
        is_held: Whether it stores one thread because others hold that thread.
    """

    began: float
    batch: Sequence[Waiting] = ()
    apart: bool = False
    is_held: bool = False


class Writer:
    """Commits puts in batches, over all threads.

    An idle writer starts at once. A put that fails, fails alone: its batch is run again in halves.
    On a database that locks rows, a batch of several threads passes over those that others hold.
    Each of these waits in a batch of its own. A thread is in one batch at a time. If a caller is
    cancelled, its put is not stored, unless an attempt to store it is under way: that one finishes.
    """

    def __init__(self, database: Database, store: Store) -> None:
        self._database = database
        self._store = store
        self._telemetry = database.telemetry
        self._waiting: deque[Waiting] = deque()
        self._lanes: dict[asyncio.Task[None], _Lane] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._turns_of_held = asyncio.Semaphore(MAX_HELD)

    async def put(self, one: Put) -> None:
        """Store a checkpoint or writes. Returns when the transaction has committed.

        Raises:
            RefusedError: What it relies on is not what the database holds.
            DatabaseError: The database refused or failed. Nothing of the put was stored. But if the
                database could not be reached, it is not known whether the put was stored.
        """
        future = asyncio.get_running_loop().create_future()
        if self._telemetry is not None:
            self._telemetry.await_commit(one, future)
        self._waiting.append((one, future))
        self._start()
        await future

    async def drain(self) -> None:
        """Wait until every put that was started has ended."""
        while self._lanes:
            await asyncio.wait([*self._lanes])

    def _start(self) -> None:
        """Begin a batch, unless a batch is under way that is to be waited for."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._waiting:
            return
        loop = asyncio.get_running_loop()
        lanes = [lane for lane in self._lanes.values() if not lane.apart]
        if lanes:
            if not self._database.dialect.locks_rows or len(lanes) >= MAX_LANES:
                return
            ready = max(lane.began for lane in lanes) + SLOW
            if loop.time() < ready:
                self._timer = loop.call_at(ready, self._start)
                return
        if self._any_free():  # puts to busy threads start when the batch of their thread ends
            self._begin()

    def _busy(self) -> set[str]:
        """The threads that are in a batch."""
        return {
            one.namespace.thread_id
            for lane in self._lanes.values()
            for one, future in lane.batch
            if not future.done()
        }

    def _any_free(self) -> bool:
        """Whether a put waits whose thread is in no batch."""
        busy = self._busy() if self._lanes else ()
        return any(
            not future.done() and one.namespace.thread_id not in busy
            for one, future in self._waiting
        )

    def _begin(self, batch: Sequence[Waiting] = (), *, is_held: bool = False) -> None:
        lane = _Lane(asyncio.get_running_loop().time(), batch, bool(batch), is_held)
        # In a context of its own: it works for all callers, not for the one that came first.
        task = asyncio.create_task(self._run(lane), name="checkpointer writer", context=Context())
        self._lanes[task] = lane
        task.add_done_callback(self._ended)

    async def _run(self, lane: _Lane) -> None:
        if lane.apart:
            async with self._turns_of_held if lane.is_held else nullcontext():
                await self._commit(lane.batch, waits=True)
            return
        others_wait = len(self._lanes) > 1
        lane.batch = self._take()  # after one turn of the loop: every put that was made at once
        if lane.batch:
            # A batch of a single thread waits for its row, with the simpler statement. If another
            # batch is under way, it does not: waiting takes a connection.
            several = len({one.namespace.thread_id for one, _ in lane.batch}) > 1
            await self._commit(lane.batch, waits=not (several or others_wait))

    def _take(self) -> list[Waiting]:
        """The next puts, without those of threads that are in a batch already."""
        busy = self._busy()
        batch: list[Waiting] = []
        left: list[Waiting] = []
        size = 0
        while self._waiting and len(batch) < MAX_BATCH and size < MAX_BATCH_BYTES:
            one, future = self._waiting.popleft()
            if future.done():
                continue
            if one.namespace.thread_id in busy:
                left.append((one, future))
            else:
                batch.append((one, future))
                size += sum(len(segment.data) for segment in one.segments)
        self._waiting.extendleft(reversed(left))
        return batch

    def _ended(self, task: "asyncio.Task[None]") -> None:
        lane = self._lanes.pop(task)
        if task.cancelled():  # as a closing loop does, perhaps before its first step
            for _, future in (*lane.batch, *self._waiting):
                future.cancel()
            self._waiting.clear()
            return
        if (exc := task.exception()) is not None:
            _fail(lane.batch, exc)
        self._start()

    async def _commit(self, batch: Sequence[Waiting], *, waits: bool = False) -> None:
        """Commit a batch, without the threads that others hold unless it `waits` for them.

        Those are committed by themselves, beside the batches that follow.
        """
        relied_on = self._relied_on(batch)
        fitting = [waiting for waiting in batch if _fits(waiting, relied_on)]
        if not fitting:
            return
        apart = self._database.dialect.locks_rows and not waits
        try:
            with self._telemetry.commit(batch) if self._telemetry is not None else _NOT_TRACED:
                stored = await self._attempt(fitting, relied_on, apart=apart)
        except DatabaseUnavailableError as exc:
            if not apart:  # halves of the batch would wait as long as it did
                _fail(fitting, exc)
                return
            self._commit_apart(fitting, is_held=False)
            return
        except Exception as exc:  # noqa: BLE001 - whatever it is, it belongs to the callers
            if len(fitting) > 1:
                middle = len(fitting) // 2
                await self._commit(fitting[:middle], waits=waits)
                await self._commit(fitting[middle:], waits=waits)
            else:
                _fail(fitting, exc)
            return
        self._settle(fitting, relied_on, stored)
        self._commit_apart([one for one in fitting if not one[1].done()], is_held=True)

    async def _attempt(
        self, batch: Sequence[Waiting], relied_on: dict[str, Known | None], *, apart: bool
    ) -> Stored:
        """Store a batch, and remember what was stored."""
        puts = batch_of([one for one, _ in batch], _states(relied_on), passes_over=apart)
        for name, known in relied_on.items():
            if known is not None:
                known.coming = puts.following.get(name)
        left: list[Put] = []

        def work(connection: Connection) -> Stored:
            # Each attempt leaves out what nobody waits for any more: after an outage, it would
            # come later than what its caller has done since.
            left[:] = [one for one, future in batch if not future.done()]
            return put(connection, self._store, puts.with_puts(left)) if left else Stored({}, set())

        run = self._database.put_once if apart else self._database.put
        stored = await run(work)
        self._store.learn(left, stored.states, relied_on)
        return stored

    def _settle(
        self, batch: Sequence[Waiting], relied_on: dict[str, Known | None], stored: Stored
    ) -> None:
        """Tell the callers whose threads were stored or refused; the others were passed over."""
        for one, future in batch:
            thread_id = one.namespace.thread_id
            if thread_id in stored.held_by_others or future.done():
                continue
            if thread_id in stored.states:
                future.set_result(None)
                continue
            if (known := relied_on.get(thread_id)) is not None:
                self._store.memory.forget(thread_id, known)
            future.set_exception(RefusedError())

    def _commit_apart(self, batch: Iterable[Waiting], *, is_held: bool) -> None:
        """Commit each thread by itself, for as long as the database's patience lasts."""
        parts = defaultdict[str, list[Waiting]](list)
        for one, future in batch:
            parts[one.namespace.thread_id].append((one, future))
        for part in parts.values():
            self._begin(part, is_held=is_held)

    def _relied_on(self, batch: Iterable[Waiting]) -> dict[str, Known | None]:
        """What is known of each thread, where a put relies on it."""
        found: dict[str, Known | None] = {}
        for one, _ in batch:
            thread_id = one.namespace.thread_id
            found.setdefault(thread_id, None)
            if one.relies_on is not None:
                found[thread_id] = self._store.memory.get(thread_id)
        return found


def _states(known: dict[str, Known | None]) -> dict[str, int | None]:
    return {name: one.state for name, one in known.items() if one is not None}


def _fits(waiting: Waiting, relied_on: dict[str, Known | None]) -> bool:
    """Whether a put relies on what is known now; if not, it is refused at once."""
    one, future = waiting
    if one.relies_on is None or one.relies_on is relied_on[one.namespace.thread_id]:
        return True
    _fail([(one, future)], RefusedError())
    return False


def _fail(batch: Iterable[Waiting], exc: BaseException) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(exc)
