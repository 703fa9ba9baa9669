"""`copy_store`: threads from one store into another, whatever the databases."""

from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from checkpointer import moving, verification
from checkpointer.arrays import AnySelect, keys_wanted, segments_at_once
from checkpointer.backend import Backend
from checkpointer.engine import shown
from checkpointer.errors import ConfigurationError, DamagedDataError
from checkpointer.holdings import BYTES, KEYS, Held, named
from checkpointer.identifiers import identifiers
from checkpointer.intake import Intake, Progress, Target, move_all, nothing
from checkpointer.maintenance import parts_of
from checkpointer.manifest import decode_projection
from checkpointer.moving import (
    Key,
    Outline,
    OvertakenError,
    Print,
    Row,
    TransferReport,
    checkpoint_key,
    fingerprint,
    move_queries,
    write_key,
)
from checkpointer.predicates import keys
from checkpointer.quoting import quoted
from checkpointer.records import too_new
from checkpointer.saver import AsyncSQLAlchemySaver
from checkpointer.sealing import FormatError, TooNewError
from checkpointer.slices import Coverage, Segment, Slice

PAGE: Final = 256
"""Rows read at once, or all of one checkpoint: a few MB at most, as a rule."""

LANES: Final = 4
"""Threads on their way at once where a database takes several transactions at a time."""

_OPTIONS: Final = {"ssl", "sslmode", "timeout", "connect_timeout", "command_timeout", "cache"}
"""What a URL's query may say that does not tell one database from another."""

_MEND: Final = "run checkpointer verify on it, restore its rows from a backup, or delete the thread"


async def copy_store(
    source: AsyncSQLAlchemySaver,
    target: AsyncSQLAlchemySaver,
    *,
    thread_ids: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> TransferReport:
    """Copy threads from one store into another, on any two databases.

    The rows are moved as they are, and no value is loaded. Each thread is copied as it was at one
    moment, in one transaction; long ones have their bytes sent ahead, which nobody sees. Each is
    verified before it is committed. So a copy that was killed is gone on with by calling again:
    what is there and equal already is skipped.

    Checkpoints and writes of the target with the same keys are replaced; its others stay. A
    thread is as old as the older of both, and was changed when the later one was.

    Args:
        source: Where to read. Others may write there meanwhile.
        target: Where to write.
        thread_ids: These threads alone.
        progress: Called with how many threads are done, and how many there are in all.

    Returns:
        What was copied. Checkpoints and writes that were there already do not count.

    Raises:
        TransferError: Some threads could not be copied: damaged ones, for example, or such as are
            named and not there. All others were.
        ConfigurationError: Source and target are the same.
        DatabaseError: A database refused or failed. Call again to go on.
    """
    (reading, _), (writing, id_of) = parts_of(source), parts_of(target)
    _check_apart(reading, writing)
    names = None
    if thread_ids is not None:
        names = dict.fromkeys(identifiers("thread_id", thread_ids, reading.database.dialect))
    with reading.call(), writing.call("copy_store"):
        copying = _Copying(reading, Target(writing, id_of), named=names is not None)
        total = len(names or ())
        if names is None and progress is not None:
            count = partial(verification.count_threads, store=reading.store)
            total = await reading.read(count)
        lanes = LANES if writing.database.dialect.locks_rows else 1
        async with aclosing(_threads(reading, names)) as wanted:
            return await move_all(wanted, copying.move, lanes=lanes, total=total, progress=progress)


def _check_apart(source: Backend, target: Backend) -> None:
    """Refuse a store that would be copied into itself.

    Raises:
        ConfigurationError: Both are the same.
    """
    one, other = source.database.engine, target.database.engine
    same_database = one.pool is other.pool or _file(one.url) == _file(other.url)
    if same_database and _schema(one) == _schema(other):
        raise ConfigurationError(
            f"found {shown(one.url)} as source and as target, expected two stores; to copy a "
            f"thread within one, use acopy_thread"
        )


def _schema(engine: AsyncEngine) -> object:
    """The schema that an engine's statements are sent to, if it is not the usual one."""
    return (engine.get_execution_options().get("schema_translate_map") or {}).get(None)


def _file(url: sa.URL) -> object:
    """What is equal where URLs name the same database, whoever connects; memory is nowhere."""
    database = url.database or ""
    if url.host is None and database in {"", ":memory:"}:
        return object()
    query = {name: value for name, value in url.query.items() if name not in _OPTIONS}
    return url.get_backend_name(), url.host, url.port, Path(database).resolve(), query


async def _threads(source: Backend, names: Iterable[str] | None) -> AsyncGenerator[str, None]:
    """The ids of the threads to copy, in order."""
    if names is not None:
        for name in names:
            yield name
        return
    after = None
    while True:
        listed = partial(verification.threads_after, store=source.store, thread_id=after)
        page = await source.read(listed)
        if not page:
            return
        for name in page:
            yield name
        after = page[-1]


class _Copying:
    """Copies threads, one at a time or several.

    Args:
        source: Where to read.
        target: Where to write.
        named: Whether a thread that is not there is a mistake.
    """

    def __init__(self, source: Backend, target: Target, *, named: bool) -> None:
        self._source, self._target, self._named = source, target, named
        self._queries = source.store.queries

    async def move(self, thread_id: str) -> TransferReport:
        """Copy what the target lacks of a thread.

        Raises:
            OvertakenError: The thread was changed meanwhile, here or there.
            DamagedDataError: It is not whole, or would not be.
            InvalidInputError: It is not there, or the target cannot hold an identifier of it.
        """
        given = partial(moving.read_outline, store=self._source.store, thread_id=thread_id)
        theirs = await self._source.read_snapshot(given)
        if theirs.is_empty:
            return nothing(named=self._named)
        self._target.dialect.check_identifier("thread_id", thread_id)
        ours = await self._target.outline(thread_id)
        checkpoints = _differing(theirs.checkpoints, ours.checkpoints)
        writes = _differing(theirs.writes, ours.writes)
        with Intake(self._target, thread_id, ours, theirs.dates(datetime.now(UTC))) as intake:
            # Rows that are equal tell nothing of bytes that the target has lost.
            for page in _pages(_lacking(theirs, ours)):
                await intake.add_segments(await self._segments(thread_id, page))
            if not checkpoints and not writes and intake.is_empty:
                return TransferReport(skipped=1)
            statement = move_queries(self._queries).checkpoints_of_many
            async for rows in self._rows(thread_id, statement, checkpoints, checkpoint_key):
                intake.add_checkpoints([_readable(row) for row in rows])
            statement = self._queries.writes_of_many
            async for rows in self._rows(thread_id, statement, writes, write_key):
                intake.add_writes(rows)
            return await intake.commit()

    async def _segments(self, thread_id: str, page: Sequence[Held]) -> list[Segment]:
        """Segments of the source, as they are stored.

        Raises:
            OvertakenError: One of them is another by now, or is gone.
            DamagedDataError: One is not what it was.
        """
        dialect = self._queries.dialect
        given = keys_wanted(dialect, thread_id, (one[:2] for one in page))
        rows = await _fetch(self._source, segments_at_once(dialect), given)
        found = [Segment(row.stream_id, row.start, row.stop, row.data) for row in rows]
        if {(one.stream, *one.interval) for one in found} != {one[:3] for one in page}:
            raise OvertakenError
        return [_whole(one) for one in found]

    async def _rows(
        self,
        thread_id: str,
        statement: AnySelect,
        wanted: Mapping[Key, Print],
        key_of: Callable[[Row], Key],
    ) -> AsyncIterator[list[Row]]:
        """The rows with these keys, in the order of these, a page at a time.

        Raises:
            OvertakenError: One of them is another by now, or is gone.
        """
        for page in moving.pages(wanted, PAGE):
            triples = keys((thread_id, key[0], key[1]) for key in page)
            found = await _fetch(self._source, statement, triples)
            by_key = {key_of(row): row for row in (one._asdict() for one in found)}
            if any(key not in by_key or fingerprint(by_key[key]) != wanted[key] for key in page):
                raise OvertakenError
            yield [by_key[key] for key in page]


async def _fetch(backend: Backend, statement: AnySelect, given: Mapping[str, Any]) -> Sequence[Any]:
    return await backend.read(lambda connection: connection.fetch(statement, given))


def _differing(theirs: Mapping[Key, Print], ours: Mapping[Key, Print]) -> dict[Key, Print]:
    """What the target has not, or has otherwise."""
    return {key: one for key, one in theirs.items() if key not in ours or ours[key] != one}


def _lacking(theirs: Outline, ours: Outline) -> list[Held]:
    """The segments that the target does not have all bytes of, in order."""
    held = Coverage()
    if ours.state is not None:  # where there is no row, nothing says that they stay
        held.add(Slice(*one[:3]) for one in ours.segments)
    return sorted(
        one for one in theirs.segments if held.within(*one[:3]) != [(one.start, one.stop)]
    )


def _pages(wanted: Iterable[Held]) -> Iterator[list[Held]]:
    """As many segments at a time as may be read at once."""
    page: list[Held] = []
    size = 0
    for one in wanted:
        if page and (len(page) == KEYS or size + one.weight > BYTES):
            yield page
            page, size = [], 0
        page.append(one)
        size += one.weight
    if page:
        yield page


def _whole(segment: Segment) -> Segment:
    """A segment that holds what it says.

    Raises:
        DamagedDataError: It does not.
        SchemaTooNewError: Only a newer version of this package can tell.
    """
    name = named(segment.stream, *segment.interval)
    try:
        segment.unpack()
    except TooNewError as exc:
        raise too_new(f"{name}: {exc}") from exc
    except FormatError as exc:
        raise DamagedDataError(f"{name} of the source: {exc}; {_MEND}") from exc
    return segment


def _readable(row: Row) -> Row:
    """A checkpoint's row, whose projection of the metadata is what it has to be.

    Raises:
        DamagedDataError: It is not.
    """
    try:
        decode_projection(row["metadata"])
    except FormatError as exc:
        raise DamagedDataError(
            f"checkpoint {quoted(row['checkpoint_id'])} of the source: {exc}; {_MEND}"
        ) from exc
    return row
