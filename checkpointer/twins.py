"""The sync half of a saver: each method waits for its async twin on the saver's event loop."""

from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)

from checkpointer.moving import TransferReport
from checkpointer.problems import Verification
from checkpointer.reports import PruneReport, RetentionPolicy, Stats, ThreadPage

P = ParamSpec("P")
T = TypeVar("T")


class SyncTwins(BaseCheckpointSaver[str]):
    """The sync methods. Called from the saver's own event loop, each raises `SyncCallError`."""

    @abstractmethod
    def _call(
        self, function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run an async method on the saver's event loop and wait for what it returns."""

    @abstractmethod
    def _iterate(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        """The items of an async generator that runs on the saver's event loop."""

    @abstractmethod
    async def setup(self) -> None:
        """Bring the database's schema to the revision that this version needs."""

    @abstractmethod
    def close(self) -> None:
        """Let calls under way finish, then close the connections."""

    @abstractmethod
    def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - LangGraph's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncGenerator[CheckpointTuple, None]:
        """Checkpoints by descending id."""

    @abstractmethod
    async def averify(
        self,
        thread_id: str | None = None,
        *,
        repair: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> Verification:
        """Tell what is wrong with what is stored."""

    @abstractmethod
    async def alist_threads(  # noqa: PLR0913 - one condition each
        self,
        *,
        limit: int = 100,
        after: str | None = None,
        order: str = "-updated_at",
        updated_before: datetime | None = None,
        updated_after: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> ThreadPage:
        """A page of threads."""

    @abstractmethod
    async def astats(self, thread_id: str | None = None, *, largest: int = 10) -> Stats:
        """Rows and bytes, by table and by thread."""

    @abstractmethod
    async def aprune(  # type: ignore[override]  # the base class's returns nothing
        self,
        thread_ids: Sequence[str],
        *,
        strategy: str = "keep_latest",
        keep_last: int | None = None,
        dry_run: bool = False,
    ) -> PruneReport:
        """Delete checkpoints that are no longer needed."""

    @abstractmethod
    async def aretain(
        self,
        policy: RetentionPolicy,
        *,
        dry_run: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> PruneReport:
        """Delete over all threads what a policy lets go."""

    @abstractmethod
    async def acopy_thread(
        self, source_thread_id: str, target_thread_id: str, *, checkpoint_id: str | None = None
    ) -> None:
        """Copy the checkpoints and writes of a thread."""

    @abstractmethod
    async def aimport_from(
        self,
        source: BaseCheckpointSaver[Any],
        *,
        thread_ids: Sequence[str] | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> TransferReport:
        """Import threads from any saver."""

    def __enter__(self) -> Self:
        self._call(self._start)
        return self

    async def _start(self) -> None:
        """Do nothing, on the saver's event loop: from here on, there is one."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def setup_sync(self) -> None:
        """The sync twin of `setup`."""
        self._call(self.setup)

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The sync twin of `aget_tuple`."""
        return self._call(self.aget_tuple, config)

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - LangGraph's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """The sync twin of `alist`."""
        found = self.alist(config, filter=filter, before=before, limit=limit)
        return self._iterate(found)

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """The sync twin of `aput`."""
        return self._call(self.aput, config, checkpoint, metadata, new_versions)

    def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """The sync twin of `aput_writes`."""
        self._call(self.aput_writes, config, writes, task_id, task_path)

    def delete_thread(self, thread_id: str) -> None:
        """The sync twin of `adelete_thread`."""
        self._call(self.adelete_thread, thread_id)

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """The sync twin of `adelete_for_runs`."""
        self._call(self.adelete_for_runs, run_ids)

    def copy_thread(
        self, source_thread_id: str, target_thread_id: str, *, checkpoint_id: str | None = None
    ) -> None:
        """The sync twin of `acopy_thread`."""
        copy = self.acopy_thread
        self._call(copy, source_thread_id, target_thread_id, checkpoint_id=checkpoint_id)

    def prune(  # type: ignore[override]  # the base class's returns nothing
        self,
        thread_ids: Sequence[str],
        *,
        strategy: str = "keep_latest",
        keep_last: int | None = None,
        dry_run: bool = False,
    ) -> PruneReport:
        """The sync twin of `aprune`."""
        prune = self.aprune
        return self._call(
            prune, thread_ids, strategy=strategy, keep_last=keep_last, dry_run=dry_run
        )

    def retain(
        self,
        policy: RetentionPolicy,
        *,
        dry_run: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> PruneReport:
        """The sync twin of `aretain`. `progress` is called on the saver's event loop."""
        return self._call(self.aretain, policy, dry_run=dry_run, progress=progress)

    def list_threads(  # noqa: PLR0913 - one condition each
        self,
        *,
        limit: int = 100,
        after: str | None = None,
        order: str = "-updated_at",
        updated_before: datetime | None = None,
        updated_after: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> ThreadPage:
        """The sync twin of `alist_threads`."""
        return self._call(
            self.alist_threads,
            limit=limit,
            after=after,
            order=order,
            updated_before=updated_before,
            updated_after=updated_after,
            metadata=metadata,
        )

    def stats(self, thread_id: str | None = None, *, largest: int = 10) -> Stats:
        """The sync twin of `astats`."""
        return self._call(self.astats, thread_id, largest=largest)

    def verify(
        self,
        thread_id: str | None = None,
        *,
        repair: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> Verification:
        """The sync twin of `averify`. `progress` is called on the saver's event loop."""
        return self._call(self.averify, thread_id, repair=repair, progress=progress)

    def import_from(
        self,
        source: BaseCheckpointSaver[Any],
        *,
        thread_ids: Sequence[str] | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> TransferReport:
        """The sync twin of `aimport_from`. `progress` is called on the saver's event loop."""
        return self._call(self.aimport_from, source, thread_ids=thread_ids, progress=progress)

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """The sync twin of `aget_delta_channel_history`."""
        return self._call(self.aget_delta_channel_history, config=config, channels=channels)
