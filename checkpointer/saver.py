"""LangGraph's `BaseCheckpointSaver` over a `Backend`: the async contract."""

import random
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing
from copy import copy
from functools import partial
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    PendingWrite,
)
from langgraph.checkpoint.serde.types import TASKS
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from checkpointer import history
from checkpointer.backend import off_loop
from checkpointer.borrowed import borrow
from checkpointer.configs import (
    Key,
    check_limit,
    conditions_of,
    config_for,
    full_metadata,
    key_of,
)
from checkpointer.decoder import Decoder
from checkpointer.encoder import Encoder
from checkpointer.engine import shown
from checkpointer.errors import InvalidInputError
from checkpointer.identifiers import channel_names
from checkpointer.listing import checkpoints
from checkpointer.maintenance import Maintenance
from checkpointer.quoting import quoted
from checkpointer.records import StoredCheckpoint

P = ParamSpec("P")
T = TypeVar("T")


class AsyncSQLAlchemySaver(Maintenance):
    """Stores LangGraph's checkpoints in a SQL database. Made by `create_saver`.

    Every async method has a sync twin, for calls from other threads than the event loop's and for
    programs without one. All of them raise the errors of `checkpointer.errors`:
    `InvalidInputError`, `SerializationError`, `DamagedDataError`, `SchemaError`, `UsageError` and
    `DatabaseError`. A put has committed when it returns; one that raises has stored nothing,
    unless it raises `DatabaseUnavailableError`: then that is not known, and it may be called again.

    Args:
        backend: The running parts, shared by clones of this saver.
        serde: How values become bytes; without one, LangGraph's own, made lossless.
    """

    def __repr__(self) -> str:
        schema = self._backend.database.schema
        where = "" if schema is None else f", schema {quoted(schema)}"
        return f"<{type(self).__name__} on {shown(self.engine.url)}{where}>"

    @property
    def engine(self) -> AsyncEngine:
        """The engine that the saver works on."""
        return self._backend.database.engine

    async def setup(self) -> None:
        """Bring the database's schema to the revision that this version needs.

        The same as `checkpointer upgrade` and `alembic upgrade head`. SQLite files are upgraded on
        first use without it.
        """
        await self._backend.setup()

    async def aclose(self) -> None:
        """Let calls under way finish, then close the connections, unless the engine was passed in.

        Later calls raise `SaverClosedError`.
        """
        await self._backend.aclose()

    def using(self, connection: AsyncConnection | AsyncSession) -> Self:
        """The same saver inside an application's own transaction.

        All that it does is part of the transaction that is open on the connection: the caller
        commits it or rolls it back, together with the caller's own rows. It reads what the
        transaction has written already. Where there is no transaction yet, its first call begins
        one, as SQLAlchemy does.

        - It works on the saver's schema, and on the connection's database: of the same kind as the
          saver's, and with the tables. It upgrades nothing, and `setup` is refused.
        - Calls run one after the other, those of other savers on the connection included, are
          never tried again, and are undone by a savepoint if they raise. What then happens to the
          transaction is the caller's affair. A call that was cancelled or cut off by the `timeout`
          may have ended the connection.
        - Nothing else may use the connection while a call is under way, as by a graph's node: a
          statement of yours between a call's savepoint and its failure is undone with the call.
        - Within a savepoint, SQLite's engine must begin transactions itself, as SQLAlchemy's recipe
          has it: without a BEGIN before it, the end of a savepoint commits. Else what writes
          there raises `UsageError`.
        - Until the transaction ends, other savers' calls on the threads that it has changed wait
          for it; on SQLite, all that write. So inside the transaction, use this saver alone.
          Transactions that change several threads may deadlock: the database then fails one of
          them, with `DatabaseBusyError`, to be rolled back and run again.
        - Nothing is remembered of what is put here, because it may be rolled back. So each put of a
          long value first reads what is stored already, which it does not store again.
        - `aclose` and `close` close nothing. Sync methods keep the rules of the saver's event loop.

        Args:
            connection: An open connection, or a session of the ORM. It may belong to another engine
                than the saver's, and must be on the same event loop. One in AUTOCOMMIT is refused.

        Raises:
            ConfigurationError: It is sync, none of these, or of another kind of database.
            UsageError: It is closed, or there is no running event loop.
        """
        clone = copy(self)
        clone._backend = borrow(self._backend, connection)  # noqa: SLF001 - one of us
        return clone

    def _call(
        self, function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        return self._backend.bridge.call(function, *args, **kwargs)

    def _iterate(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        return self._backend.bridge.iterate(items)

    def close(self) -> None:
        """The sync twin of `aclose`."""
        with self._backend.closing:
            if not self._backend.closed:
                self._call(self.aclose)
                self._backend.stop()

    async def __aenter__(self) -> Self:
        self._backend.check_open()
        self._backend.bridge.bind()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that `config` names, the namespace's latest without a `checkpoint_id`.

        Args:
            config: With `thread_id`; `checkpoint_ns` is the root one if left out.

        Returns:
            The checkpoint with its pending writes in the order in which a run applies them, or
            `None` if there is none.
        """
        key, store = key_of(config, self._backend.database.dialect), self._backend.store
        last = store.last(key.namespace)
        get = partial(store.get, namespace=key.namespace, checkpoint_id=key.checkpoint_id)
        stored = await self._backend.read(partial(get, sends_channel=TASKS))
        if stored is None:
            return None
        found = await off_loop(partial(self._tuple, stored), stored.size)
        # A look at an older checkpoint, or one that took its time, must not displace what a run
        # under way goes on from.
        if (key.checkpoint_id is None or last is None) and store.last(key.namespace) is last:
            store.learn_read(stored, found.checkpoint.get("channel_versions", {}))
        return found

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - LangGraph's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncGenerator[CheckpointTuple, None]:
        """Checkpoints by descending id, which means newest first.

        Pages are read as the caller goes on, and no connection is held in between: the saver may be
        used inside the loop, and breaking out of it leaks nothing.

        Args:
            config: The thread, and with `checkpoint_ns` or `checkpoint_id` one namespace or
                checkpoint of it; `None` for all threads.
            filter: A JSON object that the metadata must contain, by the rules of PostgreSQL's `@>`.
            before: Only checkpoints whose id is less than that of this config.
            limit: At most so many.

        Yields:
            One checkpoint after the other.
        """
        check_limit(limit)
        dialect = self._backend.database.dialect
        conditions = conditions_of(config, filter, before, dialect)
        async with aclosing(checkpoints(self._backend, conditions, limit, TASKS)) as found:
            async for stored in found:
                yield await off_loop(partial(self._tuple, stored), stored.size)

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint; one with the same id is replaced.

        Args:
            config: With `thread_id`; its `checkpoint_id`, if any, names the parent.
            checkpoint: All of its channel values are stored; one whose version is the parent's,
                as the parent has it.
            metadata: Stored whole; simple values of the config are added to it.
            new_versions: The channels that have changed. No value is lost if one is left out.

        Returns:
            The config that names the stored checkpoint.
        """
        key = key_of(config, self._backend.database.dialect)
        metadata_ = full_metadata(config, metadata)
        parent = self._backend.store.parent(key.namespace, key.checkpoint_id)
        new = self._encoder(key).checkpoint(checkpoint, metadata_, new_versions, parent)
        await self._backend.put(new)
        return config_for(key.namespace, new.checkpoint_id)

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Store a task's writes with a checkpoint, which need not be stored yet.

        Writes to special channels (errors, interrupts) take the place of the task's earlier ones;
        others keep the first.

        Args:
            config: With `thread_id` and `checkpoint_id`.
            writes: Pairs of channel and value.
            task_id: The task.
            task_path: Its path, by which writes are ordered when a run applies them.
        """
        key = key_of(config, self._backend.database.dialect)
        if key.checkpoint_id is None:
            raise InvalidInputError(
                "found a config without a checkpoint_id, expected the one of the checkpoint that "
                "the writes belong to; pass the config that aput returned"
            )
        if new := self._encoder(key).writes(writes, task_id, task_path):
            await self._backend.put(new)

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """What the ancestors of a checkpoint contributed to some channels.

        Args:
            config: The checkpoint, the namespace's latest without a `checkpoint_id`.
            channels: Names of channels.

        Returns:
            For each channel the writes on the way to the checkpoint, oldest first, and as `seed`
            the value that the nearest ancestor holds, if one does.
        """
        dialect = self._backend.database.dialect
        names = channel_names(channels, dialect)
        if not names:
            return {}
        key = key_of(config, dialect)
        found = await self._backend.read_snapshot(
            partial(
                history.walk,
                store=self._backend.store,
                namespace=key.namespace,
                checkpoint_id=key.checkpoint_id,
                channels=names,
            )
        )
        return {name: self._channel_history(found, name) for name in names}

    def _channel_history(self, found: history.History, channel: str) -> DeltaChannelHistory:
        line = found.ancestors[: found.seeds.get(channel, len(found.ancestors)) + 1]
        writes: list[PendingWrite] = []
        for one in reversed(line):
            decoder = Decoder(self.serde, one)
            decoder.manifest()
            writes += decoder.writes(w for w in one.writes if w.channel == channel)
        if channel not in found.seeds:
            return {"writes": writes}
        decoder = Decoder(self.serde, line[-1])
        return {"writes": writes, "seed": decoder.channel(decoder.manifest(), channel)}

    def get_next_version(self, current: str | None, channel: None) -> str:
        """The next version of a channel, in the official savers' format, which sorts as text."""
        del channel
        try:
            number = int(str(current).split(".")[0]) + 1 if current is not None else 1
            return f"{number:032}.{random.random():016}"  # noqa: S311 - tells two forks apart
        except ValueError as exc:
            raise InvalidInputError(
                f"found the channel version {quoted(current)}, expected one that begins with a "
                f"number, as this method makes them"
            ) from exc

    def _encoder(self, key: Key) -> Encoder:
        return Encoder(self.serde, self._backend.database.dialect, key)

    def _tuple(self, stored: StoredCheckpoint) -> CheckpointTuple:
        return Decoder(self.serde, stored).tuple_(self.get_next_version(None, None))
