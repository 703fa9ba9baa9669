"""One thread that moves into a store: what both sides hold, and the rows as they are.

Functions here are units of work on a given connection. A thread's segments may be committed ahead
of its other rows, which come in one transaction: until then nobody sees more of it than its row.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import Any, Final, Self, TypeAlias, TypeVar

import ormsgpack
import sqlalchemy as sa

from checkpointer.execution import Connection
from checkpointer.holdings import Held
from checkpointer.predicates import any_key, same
from checkpointer.queries import PROJECTION, Queries
from checkpointer.sealing import SEAL_SIZE
from checkpointer.slices import Segment, is_place
from checkpointer.store import Store, new_state
from checkpointer.tables import checkpoints, threads, writes
from checkpointer.threads import insert_segments
from checkpointer.verification import IdOf, check_whole, verify_thread

CheckpointKey: TypeAlias = tuple[str, str]
"""Namespace and id of a checkpoint."""

WriteKey: TypeAlias = tuple[str, str, str, int]
"""The same of a write's checkpoint, its task and its `idx`."""

Key = TypeVar("Key", CheckpointKey, WriteKey)

Print: TypeAlias = tuple[Any, ...]

Row: TypeAlias = Mapping[str, Any]

SPOOL_BYTES: Final = 16 << 20
"""Bytes of rows that wait in memory; more of one thread's wait in a temporary file."""

_CHECKPOINT: Final = ("checkpoint_ns", "checkpoint_id")
_WRITE: Final = (*_CHECKPOINT, "task_id", "idx")


class OvertakenError(Exception):
    """What a move builds on has changed meanwhile. Nothing was committed; begin anew."""


@dataclass(frozen=True, slots=True)
class TransferReport:
    """What was moved.

    Attributes:
        threads: How many threads got something.
        skipped: How many had it all already.
        checkpoints: How many checkpoints were stored.
        writes: How many pending writes were stored.
        bytes: The bytes of these, and of the segments that were sent.
    """

    threads: int = 0
    skipped: int = 0
    checkpoints: int = 0
    writes: int = 0
    bytes: int = 0

    def __add__(self, other: "TransferReport") -> "TransferReport":
        return TransferReport(
            self.threads + other.threads,
            self.skipped + other.skipped,
            self.checkpoints + other.checkpoints,
            self.writes + other.writes,
            self.bytes + other.bytes,
        )


@dataclass(frozen=True, slots=True)
class Outline:
    """What one thread holds, at one moment.

    Attributes:
        state: That of its row, `None` where it has none.
        created_at: When its row was made.
        updated_at: When something was last put into it.
        segments: Where its segments stand, in no order.
        checkpoints: What tells each checkpoint from another under its key: its parent, its run and
            its manifest's seal.
        writes: The same for the pending writes: path, channel and seal.
    """

    state: int | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    segments: Sequence[Held] = ()
    checkpoints: Mapping[CheckpointKey, Print] = field(default_factory=dict)
    writes: Mapping[WriteKey, Print] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing that a reader could find."""
        return not self.checkpoints and not self.writes

    def dates(self, now: datetime) -> "Dates":
        """When it was made and last changed; now, where nothing says so."""
        return Dates(self.created_at or now, self.updated_at or now)


@dataclass(frozen=True, slots=True)
class Dates:
    """When a thread was made and last changed."""

    created_at: datetime
    updated_at: datetime


class MoveQueries:
    """The statements of moves, for one kind of database."""

    def __init__(self, queries: Queries) -> None:
        c, w, t = checkpoints.c, writes.c, threads.c
        self.thread = sa.select(t.state, t.created_at, t.updated_at).where(
            same(threads, "thread_id")
        )
        self.checkpoint_outline = sa.select(
            *(c[name] for name in _CHECKPOINT), c.parent_checkpoint_id, c.run_id, _seal(c.manifest)
        ).where(same(checkpoints, "thread_id"))
        self.write_outline = sa.select(
            *(w[name] for name in _WRITE), w.task_path, w.channel, _seal(w.data)
        ).where(same(writes, "thread_id"))
        # Text is what any database takes back.
        columns = [PROJECTION if column is c.metadata else column for column in c]
        self.checkpoints_of_many = sa.select(*columns).where(*any_key(queries.dialect, checkpoints))
        insert = queries.dialect.insert(threads)
        given = insert.excluded
        self.hold_thread = insert.on_conflict_do_update(
            index_elements=["thread_id"],
            set_={
                "created_at": sa.case(
                    (given.created_at < t.created_at, given.created_at), else_=t.created_at
                ),
                "updated_at": sa.case(
                    (given.updated_at > t.updated_at, given.updated_at), else_=t.updated_at
                ),
            },
        )


def _seal(column: sa.Column[bytes]) -> sa.Label[Any]:
    """The checksum before sealed bytes: whoever compares it need not read them."""
    return sa.func.substr(column, 1, SEAL_SIZE).label("seal")


@lru_cache
def move_queries(queries: Queries) -> MoveQueries:
    """The statements of moves beside those for the same kind of database."""
    return MoveQueries(queries)


def read_outline(connection: Connection, store: Store, thread_id: str) -> Outline:
    """What a thread holds, from one snapshot, without the values."""
    queries = move_queries(store.queries)
    given = {"thread_id": thread_id}
    rows = [row._asdict() for row in connection.fetch(queries.thread, given)]
    checkpoints = connection.fetch(queries.checkpoint_outline, given)
    writes = connection.fetch(queries.write_outline, given)
    segments = connection.fetch(store.queries.segment_keys, given)
    return Outline(
        **(rows[0] if rows else {}),
        segments=[Held(*row) for row in segments if is_place(*row[:3])],
        checkpoints={row[:2]: _print(row[2:]) for row in map(tuple, checkpoints)},
        writes={row[:4]: _print(row[4:]) for row in map(tuple, writes)},
    )


def _print(parts: Print) -> Print:
    # Of no bytes at all, the first eight are NULL on SQLite.
    return *parts[:-1], parts[-1] or b""


def fingerprint(row: Row) -> Print:
    """What an outline holds of a row of checkpoints or of writes."""
    if "manifest" in row:
        return row["parent_checkpoint_id"], row["run_id"], row["manifest"][:SEAL_SIZE]
    return row["task_path"], row["channel"], row["data"][:SEAL_SIZE]


def checkpoint_key(row: Row) -> CheckpointKey:
    """Where a row of checkpoints stands in its thread."""
    return row["checkpoint_ns"], row["checkpoint_id"]


def write_key(row: Row) -> WriteKey:
    """Where a row of writes stands in its thread."""
    return row["checkpoint_ns"], row["checkpoint_id"], row["task_id"], row["idx"]


class Spool:
    """Rows that wait for their thread's transaction, which may have to be run more than once.

    The metadata's projection of a checkpoint is JSON text here.
    """

    def __init__(self) -> None:
        # Closed by `__exit__`: it lives as long as the thread's move.
        self._file = SpooledTemporaryFile(max_size=SPOOL_BYTES)  # noqa: SIM115
        self._lengths: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, table: sa.Table, rows: Collection[Row]) -> None:
        """Keep some rows of a table."""
        names = table.c.keys()
        page = ormsgpack.packb([table.name, [[row[name] for name in names] for row in rows]])
        self._lengths.append(len(page))
        self._file.write(page)

    def __iter__(self) -> Iterator[tuple[sa.Table, list[dict[str, Any]]]]:
        self._file.seek(0)
        for length in self._lengths:
            name, rows = ormsgpack.unpackb(self._file.read(length))
            table = threads.metadata.tables[name]
            yield table, [dict(zip(table.c.keys(), row, strict=True)) for row in rows]


def make_row(connection: Connection, store: Store, thread_id: str, dates: Dates) -> int:
    """Make a thread's row, and hold it to the end of the transaction; its state."""
    queries = move_queries(store.queries)
    row = {"thread_id": thread_id, "state": new_state()}
    times = {"created_at": dates.created_at, "updated_at": dates.updated_at}
    connection.execute(queries.hold_thread, row | times)
    [held] = connection.fetch(store.queries.states, {"thread_ids": [thread_id]})
    return int(held.state)


@dataclass(frozen=True, slots=True)
class States:
    """What the row of a thread shows before and after a transaction of its move.

    Attributes:
        before: What was found, with the segments that the move builds on; `None` for nothing.
        after: Another one, the same at each attempt: who finds it there has committed before.
    """

    before: int | None
    after: int


def put_segments(
    connection: Connection,
    store: Store,
    thread_id: str,
    states: States,
    segments: Iterable[Segment],
) -> None:
    """Store segments of a thread ahead of the rows that name them.

    Raises:
        OvertakenError: Segments of the thread were stored or deleted meanwhile.
    """
    _check_state(connection, store, thread_id, states)
    insert_segments(connection, store, thread_id, segments)
    _set_state(connection, store, thread_id, states)


@dataclass(frozen=True, slots=True)
class Arrival:
    """What the last transaction of a thread's move stores.

    Attributes:
        thread_id: The thread.
        dates: When it was made and last changed.
        states: Those of its row.
        segments: The last segments.
        rows: All other rows.
    """

    thread_id: str
    dates: Dates
    states: States
    segments: Sequence[Segment]
    rows: Spool


def put_rows(connection: Connection, store: Store, arrival: Arrival, id_of: IdOf) -> None:
    """Store a thread's rows, in place of those with the same keys; others stay.

    All of the thread is verified before the transaction may be committed.

    Raises:
        OvertakenError: Segments of the thread were stored or deleted meanwhile.
        DamagedDataError: The thread would not be whole.
        SchemaTooNewError: Only a newer version of this package can tell whether it would be.
    """
    thread_id, states = arrival.thread_id, arrival.states
    if states.before is not None:
        _check_state(connection, store, thread_id, states)
    make_row(connection, store, thread_id, arrival.dates)
    insert_segments(connection, store, thread_id, arrival.segments)
    for table, rows in arrival.rows:
        if table is checkpoints:
            given = [row | {"metadata": json.loads(row["metadata"])} for row in rows]
            connection.execute(store.queries.put_checkpoint, *given)
        else:
            connection.execute(store.queries.put_special_write, *rows)
    # Nor may a put take values of the thread's checkpoints from memory: they may be others now.
    _set_state(connection, store, thread_id, states)
    check_whole(thread_id, verify_thread(connection, store, thread_id, id_of))


def _check_state(connection: Connection, store: Store, thread_id: str, states: States) -> None:
    held = connection.fetch(store.queries.lock_thread, {"thread_id": thread_id})
    if not held or held[0].state not in {states.before, states.after}:
        raise OvertakenError


def _set_state(connection: Connection, store: Store, thread_id: str, states: States) -> None:
    # Where none was expected, one of its own for each attempt: others may have learned under it.
    after = states.after if states.before is not None else new_state()
    renewed = {"of_thread": thread_id, "new_state": after}
    connection.execute(store.queries.set_state, renewed)


def pages(keys: Iterable[Key], most: int) -> Iterator[list[Key]]:
    """Keys in their order, so many at a time, or more where these are of one checkpoint."""
    page: list[Key] = []
    for key in sorted(keys):
        if len(page) >= most and page[-1][:2] != key[:2]:
            yield page
            page = []
        page.append(key)
    if page:
        yield page


def size_of(rows: Sequence[Row], column: str) -> int:
    """The bytes in one column of some rows."""
    return sum(len(row[column]) for row in rows)
