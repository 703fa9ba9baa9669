"""Moves of threads into a store: each in one transaction, with its bytes ahead if these are many.

Whatever is moved from wherever goes this way. A move that is cut off may leave the thread's row,
and segments that nothing names yet; the next one goes on from there.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Final, Self, TypeAlias

from checkpointer import moving
from checkpointer.backend import Backend
from checkpointer.errors import (
    CheckpointerError,
    DamagedDataError,
    DatabaseBusyError,
    DatabaseError,
    InvalidInputError,
    SchemaTooNewError,
    SerializationError,
    SourceError,
    TransferError,
    UnknownThreadError,
)
from checkpointer.faults import means_damage
from checkpointer.moving import (
    Arrival,
    Dates,
    Outline,
    OvertakenError,
    Row,
    Spool,
    States,
    TransferReport,
)
from checkpointer.quoting import quoted
from checkpointer.slices import Segment
from checkpointer.store import new_state
from checkpointer.tables import checkpoints, writes
from checkpointer.verification import IdOf

AHEAD: Final = 8 << 20
"""Bytes of segments that are sent together, ahead of their thread's rows if there are more."""

ATTEMPTS: Final = 10
"""How often a thread's move is begun anew because others change it meanwhile."""

SHOWN: Final = 10
"""Failures whose reasons an error's message tells."""

_OF_ONE_THREAD: Final = (
    DamagedDataError,
    InvalidInputError,
    SchemaTooNewError,
    SerializationError,
    SourceError,
)
"""What keeps a thread from being moved, and no other."""

Move: TypeAlias = Callable[[str], Awaitable[TransferReport]]
"""Moves one thread; tells what was moved."""

Progress: TypeAlias = Callable[[int, int], object]
"""Told how many threads are done, and how many there are in all."""


class Target:
    """A store that threads are moved into.

    Args:
        backend: The running parts of its saver.
        id_of: Tells a checkpoint's id from its bytes.
    """

    def __init__(self, backend: Backend, id_of: IdOf) -> None:
        self.backend = backend
        self.dialect = backend.database.dialect
        self.id_of = id_of

    async def outline(self, thread_id: str) -> Outline:
        """What it holds of a thread."""
        work = partial(moving.read_outline, store=self.backend.store, thread_id=thread_id)
        return await self.backend.read_snapshot(work)


class Intake:
    """One thread on its way into a store. Before `commit`, at most its row is to be found.

    Args:
        target: The store.
        thread_id: The thread.
        held: What the store holds of it.
        dates: When the thread was made and last changed, as far as that is known.
    """

    def __init__(
        self, target: Target, thread_id: str, held: Outline, dates: Dates | None = None
    ) -> None:
        self._target, self._thread_id, self._dates = target, thread_id, dates
        self._state = held.state
        self._spool = Spool()
        self._segments: list[Segment] = []
        self._waiting = 0
        self._report = TransferReport(threads=1)

    def __enter__(self) -> Self:
        self._spool.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._spool.__exit__(exc_type, exc, traceback)

    @property
    def dates(self) -> Dates:
        """When the thread was made and last changed; now, where nothing has said so."""
        now = datetime.now(UTC)
        return self._dates or Dates(now, now)

    def note_date(self, at: datetime) -> None:
        """Take a moment at which the thread was there."""
        known = self._dates or Dates(at, at)
        self._dates = Dates(min(known.created_at, at), max(known.updated_at, at))

    @property
    def is_empty(self) -> bool:
        """Whether nothing was taken."""
        return not self._waiting and self._report == TransferReport(threads=1)

    async def add_segments(self, segments: Iterable[Segment]) -> None:
        """Take segments that the store lacks.

        Raises:
            OvertakenError: Segments of the thread were stored or deleted meanwhile.
        """
        for one in segments:
            self._segments.append(one)
            self._waiting += len(one.data)
        if self._waiting >= AHEAD:
            await self._send_ahead()

    async def _send_ahead(self) -> None:
        backend, thread_id = self._target.backend, self._thread_id
        if self._state is None:
            make = partial(moving.make_row, thread_id=thread_id, dates=self.dates)
            self._state = await backend.write(partial(make, store=backend.store))
        states = States(self._state, new_state())
        put = partial(moving.put_segments, thread_id=thread_id, states=states)
        await backend.write(partial(put, store=backend.store, segments=self._segments))
        self._state = states.after
        self._report += TransferReport(bytes=self._waiting)
        self._segments, self._waiting = [], 0

    def add_checkpoints(self, rows: Sequence[Row]) -> None:
        """Take rows of checkpoints; those of the store with the same keys are replaced.

        Raises:
            InvalidInputError: The store's database cannot hold an identifier.
        """
        names = ("checkpoint_ns", "checkpoint_id", "parent_checkpoint_id", "run_id")
        self._check_texts(rows, names)
        self._spool.add(checkpoints, rows)
        size = moving.size_of(rows, "manifest")
        self._report += TransferReport(checkpoints=len(rows), bytes=size)

    def add_writes(self, rows: Sequence[Row]) -> None:
        """The same for rows of writes."""
        names = ("checkpoint_ns", "checkpoint_id", "task_id", "task_path", "channel")
        self._check_texts(rows, names)
        self._spool.add(writes, rows)
        size = moving.size_of(rows, "data")
        self._report += TransferReport(writes=len(rows), bytes=size)

    def _check_texts(self, rows: Iterable[Row], names: Sequence[str]) -> None:
        for row in rows:
            for name in names:
                text = row[name]
                # Nearly all are plain ASCII, which any database can hold.
                if text is None or (text.isascii() and "\0" not in text):
                    continue
                try:
                    self._target.dialect.check_identifier(name, text)
                except InvalidInputError as exc:
                    place = f"checkpoint {quoted(row['checkpoint_id'])}"
                    raise InvalidInputError(f"{place}: {exc}") from exc

    async def commit(self) -> TransferReport:
        """Store the rows, and what is left of the segments; verify the thread; what was moved.

        Raises:
            OvertakenError: Segments of the thread were stored or deleted meanwhile.
            DamagedDataError: The thread would not be whole.
            SchemaTooNewError: Only a newer version of this package can tell whether it would be.
        """
        target, states = self._target, States(self._state, new_state())
        arrival = Arrival(self._thread_id, self.dates, states, self._segments, self._spool)
        put = partial(moving.put_rows, arrival=arrival, id_of=target.id_of)
        await target.backend.write(partial(put, store=target.backend.store))
        return self._report + TransferReport(bytes=self._waiting)


def nothing(*, named: bool) -> TransferReport:
    """What is reported of a thread that is not there.

    Raises:
        UnknownThreadError: The caller has named it.
    """
    if named:
        raise UnknownThreadError("found no such thread, expected one that is stored")
    return TransferReport()


async def move_all(
    thread_ids: AsyncIterator[str], move: Move, *, lanes: int, total: int, progress: Progress | None
) -> TransferReport:
    """Move threads, so many at once.

    Args:
        thread_ids: Which.
        move: Moves one.
        lanes: How many at once.
        total: How many there are, about.
        progress: Told of each that is done.

    Raises:
        TransferError: Some could not be moved, after all others were.
        DatabaseError: A database refused or failed.
    """
    run = _Run(thread_ids, move, total, progress)
    first: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(lanes):
                group.create_task(run.lane())
    except BaseExceptionGroup as exc:
        first = exc.exceptions[0]
    if first is not None:
        raise first
    if run.failures:
        raise TransferError(
            f"found {len(run.failures)} threads that cannot be moved, expected none; the others "
            f"were moved: {_summed(run.failures)}",
            failures=run.failures,
            report=run.report,
        )
    return run.report


class _Run:
    """What the lanes of one move share."""

    def __init__(
        self, thread_ids: AsyncIterator[str], move: Move, total: int, progress: Progress | None
    ) -> None:
        self._thread_ids, self._move = thread_ids, move
        self._turn = asyncio.Lock()
        self._done, self._total, self._progress = 0, total, progress
        self.report = TransferReport()
        self.failures: dict[str, CheckpointerError] = {}

    async def lane(self) -> None:
        """Move one thread after the other, until there is none left."""
        while (thread_id := await self._next()) is not None:
            try:
                moved = await self._until_still(thread_id)
            except _OF_ONE_THREAD as exc:
                self.failures[thread_id] = exc
            except DatabaseError as exc:
                if not means_damage(exc):
                    raise
                self.failures[thread_id] = exc
            except OvertakenError:
                self.failures[thread_id] = DatabaseBusyError(
                    f"found that others deleted or replaced what was being moved, {ATTEMPTS} times "
                    f"in a row, expected a thread that stands still for a moment; call again"
                )
            else:
                self.report += moved
            self._done += 1
            if self._progress is not None:
                self._progress(self._done, max(self._done, self._total))

    async def _until_still(self, thread_id: str) -> TransferReport:
        """Move a thread, anew where others change it meanwhile."""
        for _ in range(ATTEMPTS - 1):
            try:
                return await self._move(thread_id)
            except OvertakenError:
                continue
        return await self._move(thread_id)

    async def _next(self) -> str | None:
        async with self._turn:  # an async generator answers one at a time
            return await anext(self._thread_ids, None)


def _summed(failures: Mapping[str, CheckpointerError]) -> str:
    lines = [f"{quoted(thread_id)}: {exc}" for thread_id, exc in failures.items()]
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "; ".join([*lines[:SHOWN], *more])
