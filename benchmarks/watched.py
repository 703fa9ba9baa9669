"""A saver whose calls are timed, and whose acknowledgements go into a ledger."""

from collections import Counter
from collections.abc import (
    AsyncIterator,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import exp, log
from time import perf_counter
from typing import Any, Final

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)
from ledger import Ledger
from savers import Saver

_STEP: Final = log(1.02)
"""Latencies that differ by less than 2 % are counted together."""


@dataclass(slots=True)
class Latencies:
    """How long the calls of one operation took, in a memory that does not grow with them.

    Attributes:
        calls: How many ended, whether well or not.
        errors: How many raised.
        longest: Seconds.
    """

    calls: int = 0
    errors: int = 0
    longest: float = 0.0
    _counts: Counter[int] = field(default_factory=Counter)

    def note(self, seconds: float) -> None:
        """Count one call."""
        self.calls += 1
        self.longest = max(self.longest, seconds)
        self._counts[round(log(max(seconds, 1e-6)) / _STEP)] += 1

    def percentile(self, share: float) -> float:
        """Seconds that so large a share of the calls took at most, to 2 %; 0 without calls."""
        wanted, seen = share * self.calls, 0
        for step, count in sorted(self._counts.items()):
            seen += count
            if seen >= wanted:
                return min(exp(step * _STEP), self.longest)
        return 0.0


@dataclass(slots=True)
class Stopwatch:
    """The latencies of all operations, by name."""

    operations: dict[str, Latencies] = field(default_factory=dict)

    @contextmanager
    def time(self, operation: str) -> Iterator[None]:
        """Time one call; one that raises is counted as an error too."""
        latencies = self.operations.setdefault(operation, Latencies())
        begun = perf_counter()
        try:
            yield
        except Exception:
            latencies.errors += 1
            raise
        finally:
            latencies.note(perf_counter() - begun)

    @property
    def calls(self) -> int:
        """How many calls there were of all operations together."""
        return sum(one.calls for one in self.operations.values())


class WatchedSaver(BaseCheckpointSaver[str]):
    """Hands every async call on to another saver.

    Args:
        saver: That saver.
        stopwatch: Times its calls.
        ledger: Told what it has acknowledged.
    """

    def __init__(self, saver: Saver, stopwatch: Stopwatch, ledger: Ledger) -> None:
        super().__init__(serde=saver.serde)
        self.saver = saver
        self.stopwatch = stopwatch
        self.time = stopwatch.time
        self.ledger = ledger

    def with_allowlist(self, extra_allowlist: Collection[tuple[str, ...]]) -> "WatchedSaver":
        """The same over the other saver's clone."""
        clone = self.saver.with_allowlist(extra_allowlist)
        return WatchedSaver(clone, self.stopwatch, self.ledger)

    def get_next_version(self, current: str | None, channel: None) -> str:
        """The other saver's."""
        version: str = self.saver.get_next_version(current, channel)
        return version

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Timed."""
        with self.time("aget_tuple"):
            return await self.saver.aget_tuple(config)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - LangGraph's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Timed as a whole: what the caller does in between does not count."""
        with self.time("alist"):
            listing = self.saver.alist(config, filter=filter, before=before, limit=limit)
            found = [one async for one in listing]
        for one in found:
            yield one

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Timed, and noted as it was when it was passed in."""
        acknowledge = self.ledger.putting(config, checkpoint)
        with self.time("aput"):
            stored = await self.saver.aput(config, checkpoint, metadata, new_versions)
        acknowledge()
        return stored

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Timed, and noted as they were when they were passed in."""
        acknowledge = self.ledger.writing(config, writes, task_id)
        with self.time("aput_writes"):
            await self.saver.aput_writes(config, writes, task_id, task_path)
        acknowledge()

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Timed."""
        with self.time("aget_delta_channel_history"):
            return await self.saver.aget_delta_channel_history(config=config, channels=channels)

    async def adelete_thread(self, thread_id: str) -> None:
        """Timed."""
        with self.time("adelete_thread"):
            await self.saver.adelete_thread(thread_id)

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Timed."""
        with self.time("adelete_for_runs"):
            await self.saver.adelete_for_runs(run_ids)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Timed."""
        with self.time("acopy_thread"):
            await self.saver.acopy_thread(source_thread_id, target_thread_id)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Timed; deleting apart, which is something else."""
        with self.time("aprune" if strategy == "keep_latest" else f"aprune, {strategy}"):
            await self.saver.aprune(thread_ids, strategy=strategy)
