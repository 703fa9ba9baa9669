"""The running parts of one saver, which its clones share: loop, schema check, work, end."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from threading import Lock
from typing import Final, TypeVar, TypeVarTuple

from sqlalchemy.ext.asyncio import AsyncEngine

from checkpointer import schema
from checkpointer.basis import Basis, New
from checkpointer.bridge import Bridge
from checkpointer.database import Database
from checkpointer.dialect import Work
from checkpointer.errors import DatabaseUnavailableError, SaverClosedError
from checkpointer.memory import Contents, Memory
from checkpointer.owners import claim_pool
from checkpointer.puts import put_held
from checkpointer.queries import queries_for
from checkpointer.records import PutCheckpoint, RefusedError
from checkpointer.store import Store
from checkpointer.writer import Writer

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

_caller: Final = ContextVar[object]("checkpointer_caller", default=None)
"""Whose call of several transactions is under way here; connections made meanwhile keep it."""

OFF_LOOP: Final = 2 << 20
"""Bytes of values from which on work on them leaves the event loop. Loading so many messages takes
about 15 ms, and the way to another thread 0.1 ms."""


async def off_loop(work: Callable[[], T], size: int) -> T:
    """Run work on `size` bytes, in another thread if these are many."""
    return await asyncio.to_thread(work) if size >= OFF_LOOP else work()


TRIES: Final = 2
"""How often a put is encoded on what it has just read, before it holds its thread's row."""


class Backend(ABC):
    """Runs a saver's work on its database, on its event loop, with a checked schema, until closed.

    Args:
        database: Where checkpoints are stored.
        store: The statements and memories.
        bridge: The event loop; without one, it is bound by the first call.
    """

    def __init__(self, database: Database, store: Store, bridge: Bridge | None = None) -> None:
        self.database = database
        self.store = store
        claim = partial(claim_pool, database.engine.sync_engine)
        self.bridge = bridge or Bridge(self.check_open, claim, database.dispose)
        self._schema_checked = False
        self._schema_lock = asyncio.Lock()
        self._schema_error: DatabaseUnavailableError | None = None
        self._identity = object()
        self.closed = False
        self.closing = Lock()
        self._under_way = 0
        self._idle = asyncio.Event()

    @contextmanager
    def call(self, name: str | None = None) -> Iterator[None]:
        """Make several transactions one call: the end waits for all of them, and refuses none.

        Args:
            name: What telemetry calls it; a method of the saver's has told that itself.
        """
        self.check_open()
        self.bridge.bind()
        telemetry = self.database.telemetry
        told = telemetry.operation(name) if telemetry is not None and name else nullcontext()
        token = _caller.set(self._identity)
        try:
            with self._counted(), told:
                yield
        finally:
            _caller.reset(token)

    async def read(self, work: Work[T]) -> T:
        """Run work that only reads."""
        return await self._operate(self.database.read, work)

    async def read_snapshot(self, work: Work[T]) -> T:
        """Run work that only reads, all of whose statements see the same."""
        return await self._operate(self.database.read_snapshot, work)

    async def write(self, work: Work[T]) -> T:
        """Run work in a transaction of its own."""
        return await self._operate(self.database.write, work)

    async def put(self, new: New) -> None:
        """Store a checkpoint or writes, together with what else is put at the same time."""
        await self._operate(self._put, new)

    @abstractmethod
    async def setup(self) -> None:
        """Bring the schema to the revision that this version needs."""

    @abstractmethod
    async def aclose(self) -> None:
        """Let what is under way finish, then close what is ours."""

    @abstractmethod
    def stop(self) -> None:
        """After `aclose`: end the background thread, if there is one of ours."""

    @abstractmethod
    async def _put(self, new: New) -> None:
        """Store a checkpoint or writes."""

    @abstractmethod
    async def _ensure_schema(self) -> None:
        """Hold the schema against the revision that this version needs, before the first work."""

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

    async def _drain(self) -> None:
        """Wait until no call is under way."""
        while self._under_way:
            self._idle.clear()
            await self._idle.wait()

    async def _operate(
        self,
        function: Callable[[*Arguments], Awaitable[T]],
        *args: *Arguments,
        check_schema: bool = True,
    ) -> T:
        if _caller.get() is not self._identity:
            self.check_open()
        self.bridge.bind()
        with self._counted():
            if check_schema and not self._schema_checked:
                await self._check_schema()
            return await function(*args)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    async def _check_schema(self) -> None:
        waited = self._schema_lock.locked()
        async with self._schema_lock:
            if self._schema_checked:
                return
            if waited and self._schema_error is not None:
                raise self._schema_error  # those who waited need not wait once more, one by one
            self._schema_error = None
            try:
                await self._ensure_schema()
            except DatabaseUnavailableError as exc:
                self._schema_error = exc
                raise
            self._schema_checked = True


class EngineBackend(Backend):
    """A backend on an engine: each unit of work is a transaction of its own.

    Args:
        database: Where checkpoints are stored.
        cache_bytes: Bound of the bytes that are remembered.
    """

    def __init__(self, database: Database, *, cache_bytes: int) -> None:
        telemetry = database.telemetry
        looked_up = telemetry.looked_up if telemetry is not None else None
        queries = queries_for(database.dialect.name)
        super().__init__(database, Store(queries, Contents(cache_bytes, looked_up), Memory()))
        self._writer = Writer(database, self.store)

    async def setup(self) -> None:
        """Bring the schema to the revision that this version needs."""
        await self._operate(schema.upgrade, self.database, check_schema=False)
        self._schema_checked = True

    async def aclose(self) -> None:
        """Let what is under way finish, then close the engine if it is ours."""
        self.bridge.bind()
        self.closed = True
        await self._drain()
        await self._writer.drain()
        await self.database.dispose()

    def stop(self) -> None:
        """After `aclose`: end the background thread, if there is one."""
        self.bridge.stop()

    async def _put(self, new: New) -> None:
        basis: Basis | None = self.store.remembered(new)
        for _ in range(TRIES):
            if basis is None:
                read = partial(self.store.read_basis, new=new)
                basis = await self.database.read(read)
            one = await off_loop(partial(new.encode, basis), new.size + basis.size)
            try:
                await self._writer.put(one)
            except RefusedError:
                basis = None
                # An earlier attempt may have committed, and its answer was lost.
                if isinstance(one, PutCheckpoint) and await self.database.read(
                    partial(self.store.holds, put=one)
                ):
                    return
            else:
                return
        # Others put to the thread without a pause: hold its row, then read what to build on.
        work = partial(put_held, store=self.store, new=new)
        held, states = await self.database.write(work)
        self.store.learn([held], states, {})

    async def _ensure_schema(self) -> None:
        await schema.ensure(self.database)

    def knows_schema_of(self, engine: AsyncEngine) -> bool:
        """Whether the schema that an engine of the same pool leads to was checked already."""
        return (
            self._schema_checked
            and engine.sync_engine.pool is self.database.engine.sync_engine.pool
        )
