"""Threads from any saver of LangGraph, through its public methods alone, into a store."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from itertools import groupby
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import WRITES_IDX_MAP, BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.serde.base import SerializerProtocol

from checkpointer.adopting import Adoption
from checkpointer.encoder import NewWrite
from checkpointer.errors import (
    CheckpointerError,
    DamagedDataError,
    SerializationError,
    SourceError,
)
from checkpointer.intake import Intake, Progress, Target, move_all, nothing
from checkpointer.moving import TransferReport
from checkpointer.quoting import quoted


class AnySource:
    """Imports threads from any saver, through its public methods alone.

    Args:
        source: The saver.
        target: Where to write.
        serde: Dumps the values.
        named: Whether a thread that is not there is a mistake.
    """

    def __init__(
        self,
        source: BaseCheckpointSaver[Any],
        target: Target,
        serde: SerializerProtocol,
        *,
        named: bool,
    ) -> None:
        self._source, self._target = source, target
        self._serde, self._named = serde, named

    async def move_all(
        self, names: Iterable[str] | None, progress: Progress | None
    ) -> TransferReport:
        """Import threads, one after the other.

        Args:
            names: Which, or all.
            progress: Told of each that is done.

        Raises:
            TransferError: Some could not be imported, after all others were.
            SourceError: The source could not list its threads.
        """
        wanted = await self._threads() if names is None else dict.fromkeys(names)

        async def one_by_one() -> AsyncGenerator[str, None]:
            for name in wanted:
                yield name

        return await move_all(
            one_by_one(), self.move, lanes=1, total=len(wanted), progress=progress
        )

    async def _threads(self) -> dict[str, None]:
        """The ids of all threads. All are found before any is read: a saver may hold a lock.

        Raises:
            SourceError: The source cannot list them all.
        """
        found: dict[str, None] = {}
        try:
            async with aclosing(_listed(self._source, None)) as tuples:
                async for one in tuples:
                    found[_part(one.config, "thread_id")] = None
        except (DamagedDataError, SerializationError, SourceError) as exc:
            raise SourceError(
                f"found that the source cannot list its threads, after {len(found)} of them: "
                f"{exc}; to import those that it can read, name them: thread_ids=[...]"
            ) from exc
        return found

    async def move(self, thread_id: str) -> TransferReport:
        """Import what the target lacks of a thread.

        Raises:
            OvertakenError: The target's thread was changed meanwhile.
            InvalidInputError: It is not there, or the target cannot hold an identifier of it.
            SerializationError: The target's serde refused a value.
            SourceError: The source could not read it.
        """
        ours = await self._target.outline(thread_id)
        config: RunnableConfig = {"configurable": {"thread_id": thread_id}}
        without_writes: list[RunnableConfig] = []
        empty = True
        with Intake(self._target, thread_id, ours) as intake:
            adoption = Adoption(self._target, self._serde, thread_id, intake, ours)
            async with aclosing(_listed(self._source, config)) as tuples:
                async for found in tuples:
                    empty = False
                    await self._take(adoption, found)
                    if found.pending_writes is None:
                        without_writes.append(found.config)
            for one in without_writes:  # a list may leave them out, and only then
                again = await _got(self._source, one)
                if again is not None and again.pending_writes:
                    await self._take(adoption, again)
            if empty:
                return nothing(named=self._named)
            return await intake.commit() if adoption.anything else TransferReport(skipped=1)

    async def _take(self, adoption: Adoption, found: CheckpointTuple) -> None:
        where = _part(found.config, "checkpoint_ns"), _part(found.config, "checkpoint_id")
        parent = _part(found.parent_config or {}, "checkpoint_id")
        if adoption.lacks(*where):
            metadata: Any = found.metadata
            await adoption.take_checkpoint(where, parent or None, found.checkpoint, metadata)
        await adoption.take_writes(*where, _numbered(found.pending_writes or ()))


def _numbered(writes: Iterable[tuple[str, str, Any]]) -> list[NewWrite]:
    """Writes with the positions that they must have had, to come back in the same order.

    No saver tells them, nor the tasks' paths, by which tasks are ordered before their ids.
    """
    groups = [(task, [*some]) for task, some in groupby(writes, key=lambda write: write[0])]
    tasks = [task for task, _ in groups]
    in_order = tasks == sorted(set(tasks))
    found = []
    counts = dict.fromkeys(tasks, 0)
    for number, (task, some) in enumerate(groups):
        path = "" if in_order else f"{number:08}"
        for _, channel, value in some:
            idx = WRITES_IDX_MAP.get(channel, counts[task])
            counts[task] += idx >= 0
            found.append(NewWrite(task, path, idx, channel, value))
    return found


def _part(config: RunnableConfig, name: str) -> str:
    return str(config.get("configurable", {}).get(name, ""))


@contextmanager
def _asked() -> Iterator[None]:
    """Name what a source raises, whatever that is.

    Raises:
        SourceError: It is not one of our own errors.
    """
    try:
        yield
    except CheckpointerError:
        raise
    except Exception as exc:
        raise SourceError(
            f"found that the source raises {type(exc).__name__} ({quoted(str(exc))}), expected "
            f"checkpoints; see that it can list and read them itself"
        ) from exc


async def _listed(
    source: BaseCheckpointSaver[Any], config: RunnableConfig | None
) -> AsyncGenerator[CheckpointTuple, None]:
    """What a saver lists.

    Raises:
        SourceError: It failed.
    """
    with _asked():
        async with aclosing(_tuples(source, config)) as tuples:
            async for found in tuples:
                yield found


async def _tuples(
    source: BaseCheckpointSaver[Any], config: RunnableConfig | None
) -> AsyncGenerator[CheckpointTuple, None]:
    """The same; one without async methods does so in a thread of its own."""
    begun = False
    try:
        async for found in source.alist(config):
            begun = True
            yield found
    except NotImplementedError:
        if begun:
            raise
    else:
        return
    with ThreadPoolExecutor(1, "checkpointer import") as executor:
        loop = asyncio.get_running_loop()
        tuples = source.list(config)
        while (one := await loop.run_in_executor(executor, next, tuples, None)) is not None:
            yield one


async def _got(source: BaseCheckpointSaver[Any], config: RunnableConfig) -> CheckpointTuple | None:
    with _asked():
        try:
            return await source.aget_tuple(config)
        except NotImplementedError:
            return await asyncio.to_thread(source.get_tuple, config)
