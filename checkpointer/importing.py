"""`import_official`: threads from the tables of an official saver into a store."""

from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import aclosing
from functools import partial
from typing import Final, TypeVar

import sqlalchemy as sa
from langgraph.checkpoint.serde.base import SerializerProtocol
from sqlalchemy.ext.asyncio import AsyncEngine

from checkpointer.adopting import Adoption, opened
from checkpointer.database import Database
from checkpointer.encoder import NewWrite
from checkpointer.engine import create_plain_engine, is_absent, resolve_url, shown
from checkpointer.errors import ConfigurationError
from checkpointer.identifiers import identifiers
from checkpointer.intake import Intake, Progress, Target, move_all, nothing
from checkpointer.layouts import find_layout
from checkpointer.maintenance import parts_of
from checkpointer.moving import CheckpointKey, OvertakenError, TransferReport
from checkpointer.official import Carried, Layout, OfficialCheckpoint, OfficialWrite
from checkpointer.saver import AsyncSQLAlchemySaver
from checkpointer.store import batched

T = TypeVar("T")

PAGE: Final = 128
"""Threads listed at once, and checkpoints whose sizes are asked for."""

PAGE_BYTES: Final = 16 << 20
"""Bytes of values that are read at once, or those of one checkpoint."""


async def import_official(
    source: str | sa.URL | AsyncEngine,
    target: AsyncSQLAlchemySaver,
    *,
    schema: str | None = None,
    thread_ids: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> TransferReport:
    """Import threads from the tables of an official saver, which are only read.

    These are langgraph-checkpoint-postgres's and -sqlite's, of any of their layouts, in any
    database, the target's own as well. Every checkpoint, write and task path is imported; values
    go on as they were dumped, and are not loaded. Where those cannot be taken apart without, as
    with encrypted ones of SQLite, the target's serde loads and dumps them. It dumps what the
    tables hold as JSON.

    Each thread is imported in one transaction, as with `copy_store`, and gone on with by calling
    again. A checkpoint that the target has under the same id stays as it is there; so does a
    write, unless it may be replaced (errors, interrupts, answers to them). A thread is as old as
    its oldest checkpoint says.

    Args:
        source: The URL of the database, or an engine, which is not disposed.
        target: Where to write.
        schema: Where the tables stand on PostgreSQL, if not in the usual place.
        thread_ids: These threads alone.
        progress: Called with how many threads are done, and how many there are in all.

    Returns:
        What was imported. Checkpoints and writes that were there already do not count.

    Raises:
        TransferError: Some threads could not be imported: rows that cannot be read, for example,
            or such as are named and not there. All others were.
        ConfigurationError: The source has no official tables, or cannot be named so.
        DatabaseError: A database refused or failed. Call again to go on.
    """
    engine = source if isinstance(source, AsyncEngine) else create_plain_engine(_existing(source))
    database = Database(engine, owned=engine is not source)
    try:
        return await _import(database, target, schema, thread_ids, progress)
    finally:
        await database.dispose()


def _existing(source: str | sa.URL) -> sa.URL:
    """The URL of a database that a look at does not make.

    Raises:
        ConfigurationError: It is no URL, or names a file that is not there.
    """
    url = resolve_url(source)
    if is_absent(url):
        raise ConfigurationError(
            f"found no file at {shown(url)}, expected the database of an official saver"
        )
    return url


async def _import(
    database: Database,
    target: AsyncSQLAlchemySaver,
    schema: str | None,
    thread_ids: Sequence[str] | None,
    progress: Progress | None,
) -> TransferReport:
    backend, id_of = parts_of(target)
    engine, dialect = database.engine, database.dialect
    find = partial(find_layout, dialect=dialect, schema=schema, where=shown(engine.url))
    # At once or not at all: whoever gives a wrong URL should not wait.
    layout = await Database(engine, owned=False, patience=0).inspect(find)
    names = None
    if thread_ids is not None:
        names = dict.fromkeys(identifiers("thread_id", thread_ids, dialect))
    with backend.call("import_official"):
        into, named = Target(backend, id_of), names is not None
        official = OfficialSource(database, layout, into, target.serde, named=named)
        total = len(names or ())
        if names is None and progress is not None:
            total = await database.read(layout.count_threads)
        async with aclosing(official.threads(names)) as wanted:
            return await move_all(wanted, official.move, lanes=1, total=total, progress=progress)


class OfficialSource:
    """Imports threads from official tables.

    Args:
        database: Where they stand.
        layout: How.
        target: Where to write.
        serde: Dumps what the tables hold as plain JSON.
        named: Whether a thread that is not there is a mistake.
    """

    def __init__(
        self,
        database: Database,
        layout: Layout,
        target: Target,
        serde: SerializerProtocol,
        *,
        named: bool,
    ) -> None:
        self._database, self._layout, self._target = database, layout, target
        self._serde, self._named = serde, named

    async def threads(self, names: Iterable[str] | None) -> AsyncGenerator[str, None]:
        """The ids of the threads to import."""
        if names is not None:
            for name in names:
                yield name
            return
        after: str | None = None
        while page := await self._threads_after(after):
            for name in page:
                yield name
            after = page[-1]

    async def _threads_after(self, after: str | None) -> list[str]:
        return await self._database.read(
            partial(self._layout.threads_after, thread_id=after, limit=PAGE)
        )

    async def move(self, thread_id: str) -> TransferReport:
        """Import what the target lacks of a thread.

        Raises:
            OvertakenError: The thread was changed meanwhile, here or there.
            DamagedDataError: A row cannot be read.
            InvalidInputError: It is not there, or the target cannot hold an identifier of it.
            SerializationError: The target's serde refused a value.
        """
        [thread_id] = identifiers("thread_id", [thread_id], self._target.dialect)
        read = partial(self._layout.contents, thread_id=thread_id)
        theirs = await self._database.read_snapshot(read)
        if not theirs.checkpoints and not theirs.writes:
            return nothing(named=self._named)
        ours = await self._target.outline(thread_id)
        with Intake(self._target, thread_id, ours) as intake:
            adoption = Adoption(self._target, self._serde, thread_id, intake, ours)
            lacking = {key for key in theirs.checkpoints if adoption.lacks(*key)}
            async for found in self._checkpoints(thread_id, lacking):
                await self._take(adoption, found)
            missing = theirs.writes - ours.writes.keys()
            # Special ones may be others by now under the same keys.
            of = {key[:2] for key in theirs.writes if key in missing or key[3] < 0}
            sizes = partial(self._layout.write_sizes, thread_id=thread_id)
            async for some in self._pages(sorted(of), sizes):
                await self._take_writes(adoption, thread_id, some, theirs.writes)
            return await intake.commit() if adoption.anything else TransferReport(skipped=1)

    async def _take(self, adoption: Adoption, found: OfficialCheckpoint) -> None:
        document = found.document
        if isinstance(document, Carried):
            document = opened(document, self._serde)
        else:
            inline = document.get("channel_values") or {}
            document = document | {"channel_values": inline | dict(found.values)}
        where = found.checkpoint_ns, found.checkpoint_id
        await adoption.take_checkpoint(where, found.parent, document, found.metadata)

    async def _take_writes(
        self,
        adoption: Adoption,
        thread_id: str,
        some: Collection[CheckpointKey],
        wanted: Collection[tuple[str, str, str, int]],
    ) -> None:
        """Take writes of some checkpoints, but for those that came later than all else was read.

        Raises:
            OvertakenError: One of them is gone.
        """
        read = partial(self._layout.writes, thread_id=thread_id, some=some)
        by_checkpoint: dict[CheckpointKey, list[OfficialWrite]] = {one: [] for one in some}
        left = {key for key in wanted if key[:2] in by_checkpoint}
        for one in await self._database.read(read):
            key = one.checkpoint_ns, one.checkpoint_id
            if (whole := (*key, one.task_id, one.idx)) in left:
                left.discard(whole)
                by_checkpoint[key].append(one)
        if left:
            raise OvertakenError
        for key, writes in by_checkpoint.items():
            await adoption.take_writes(
                *key,
                [NewWrite(w.task_id, w.task_path, w.idx, w.channel, w.value) for w in writes],
            )

    async def _checkpoints(
        self, thread_id: str, lacking: Collection[CheckpointKey]
    ) -> AsyncIterator[OfficialCheckpoint]:
        """These checkpoints, each namespace's newest first, a bounded number of bytes at a time.

        Raises:
            OvertakenError: One of them is gone.
        """
        sizes = partial(self._layout.sizes, thread_id=thread_id)
        async for page in self._pages(sorted(lacking, reverse=True), sizes):
            read = partial(self._layout.checkpoints, thread_id=thread_id, some=page)
            found = await self._database.read_snapshot(read)
            by_key = {(one.checkpoint_ns, one.checkpoint_id): one for one in found}
            if len(by_key) < len(page):
                raise OvertakenError
            for key in page:
                yield by_key[key]

    async def _pages(
        self, wanted: Iterable[CheckpointKey], sizes_of: Callable[..., dict[CheckpointKey, int]]
    ) -> AsyncIterator[list[CheckpointKey]]:
        """Checkpoints, as many at a time as may be read at once."""
        for some in batched(wanted, PAGE):
            sizes = await self._database.read(partial(sizes_of, some=some))
            for page in _fitting(some, sizes):
                yield page


def _fitting(
    some: Iterable[CheckpointKey], sizes: dict[CheckpointKey, int]
) -> Iterator[list[CheckpointKey]]:
    """Checkpoints in pages of so many bytes."""
    page: list[CheckpointKey] = []
    size = 0
    for key in some:
        size += sizes.get(key, 0)
        if page and size > PAGE_BYTES:
            yield page
            page, size = [], sizes.get(key, 0)
        page.append(key)
    if page:
        yield page
