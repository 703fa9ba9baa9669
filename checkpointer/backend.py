"""The running parts of one saver, which its clones share: loop, schema check, work, end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from threading import Lock
from typing import TypeVar

from checkpointer import schema
from checkpointer.bridge import Bridge
from checkpointer.cache import ChunkCache, LastCheckpoints
from checkpointer.dialects import Work
from checkpointer.engine import Database
from checkpointer.errors import DatabaseUnavailableError, SaverClosedError
from checkpointer.queries import queries_for
from checkpointer.records import Put
from checkpointer.store import Store
from checkpointer.writer import Writer

T = TypeVar("T")


class Backend:
    """Runs a saver's work on its database, on its event loop, with a checked schema, until closed.

    Args:
        database: Where checkpoints are stored.
        cache_bytes: Bound of the chunk cache.
    """

    def __init__(self, database: Database, *, cache_bytes: int) -> None:
        self.database = database
        self.bridge = Bridge(self.check_open)
        self.store = Store(
            queries_for(database.dialect.name), ChunkCache(cache_bytes), LastCheckpoints()
        )
        self._writer = Writer(database, self.store)
        self._schema_checked = False
        self._schema_lock = asyncio.Lock()
        self.closed = False
        self.closing = Lock()
        self._under_way = 0
        self._idle = asyncio.Event()

    async def read(self, work: Work[T]) -> T:
        """Run work that only reads."""
        async with self._operation():
            return await self.database.read(work)

    async def read_snapshot(self, work: Work[T]) -> T:
        """Run work that only reads, all of whose statements see the same."""
        async with self._operation():
            return await self.database.read_snapshot(work)

    async def write(self, work: Work[T]) -> T:
        """Run work in a transaction of its own."""
        async with self._operation():
            return await self.database.write(work)

    async def put(self, put: Put) -> None:
        """Store a checkpoint or writes, together with what else is put at the same time."""
        async with self._operation():
            await self._writer.put(put)

    async def setup(self) -> None:
        """Bring the schema to the revision that this version needs."""
        async with self._operation(check_schema=False):
            await schema.upgrade(self.database)
            self._schema_checked = True

    async def aclose(self) -> None:
        """Let what is under way finish, then close the engine if it is ours."""
        self.bridge.bind()
        self.closed = True
        while self._under_way:
            self._idle.clear()
            await self._idle.wait()
        await self._writer.drain()
        await self.database.dispose()

    def check_open(self) -> None:
        """Refuse calls after the end.

        Raises:
            SaverClosedError: The saver was closed.
        """
        if self.closed:
            raise SaverClosedError(
                "found a call to a saver that was closed, expected one that is open; make another "
                "with create_saver(...), and keep the graph's use inside its `with` block"
            )

    @asynccontextmanager
    async def _operation(self, *, check_schema: bool = True) -> AsyncIterator[None]:
        self.check_open()
        self.bridge.bind()
        self._under_way += 1
        try:
            if check_schema and not self._schema_checked:
                await self._check_schema()
            yield
        except DatabaseUnavailableError:
            # What comes back may have lost its last commits: a replica, or a backup.
            self.store.last.clear()
            raise
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    async def _check_schema(self) -> None:
        async with self._schema_lock:
            if not self._schema_checked:
                await schema.ensure(self.database)
                self._schema_checked = True
