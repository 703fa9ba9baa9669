"""What is done to whole threads: deleting, copying, pruning."""

from collections.abc import Sequence
from functools import partial
from typing import Final

from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.types import TASKS

from checkpointer import threads
from checkpointer.backend import Backend
from checkpointer.configs import identifier
from checkpointer.decoder import node_of
from checkpointer.errors import InvalidInputError
from checkpointer.serde import LosslessSerializer
from checkpointer.twins import SyncTwins

STRATEGIES: Final = ("keep_latest", "delete")


class Maintenance(SyncTwins):
    """The half of the saver that knows threads, and not what their checkpoints hold.

    Args:
        backend: The running parts, shared by clones of this saver.
        serde: How values become bytes; without one, LangGraph's own, made lossless.
    """

    def __init__(self, backend: Backend, *, serde: SerializerProtocol | None = None) -> None:
        super().__init__(serde=serde or LosslessSerializer())
        self._backend = backend

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete everything of a thread; nothing happens if there is none."""
        thread_id = self._identifier("thread_id", thread_id)
        await self._backend.write(
            partial(threads.delete_thread, store=self._backend.store, thread_id=thread_id)
        )

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints, with their writes, whose metadata has one of these `run_id`s.

        One transaction a thread. A `DeltaChannel` whose history ran through them is read from what
        is left.
        """
        run_ids = self._identifiers("run_id", run_ids)
        store = self._backend.store
        found = await self._backend.read(
            partial(threads.threads_of_runs, store=store, run_ids=run_ids)
        )
        for thread_id in found:
            await self._backend.write(
                partial(threads.delete_runs, store=store, thread_id=thread_id, run_ids=run_ids)
            )

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy all checkpoints and writes of a thread, inside the database.

        Checkpoints and writes of the target with the same keys are replaced; its others stay.
        """
        source = self._identifier("thread_id", source_thread_id)
        target = self._identifier("thread_id", target_thread_id)
        store = self._backend.store
        await self._backend.write(
            partial(threads.copy_thread, store=store, source=source, target=target)
        )

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Delete checkpoints that are no longer needed, one transaction a thread.

        Args:
            thread_ids: The threads.
            strategy: `"keep_latest"` keeps the latest checkpoint of each namespace, and the
                ancestors that a `DeltaChannel` of it is rebuilt from; it drops the namespaces of
                subgraph calls that have finished. `"delete"` deletes the threads.
        """
        thread_ids = self._identifiers("thread_id", thread_ids)
        store = self._backend.store
        if strategy not in STRATEGIES:
            raise InvalidInputError(
                f"found the prune strategy {strategy!r}, expected one of {', '.join(STRATEGIES)}"
            )
        for thread_id in thread_ids:
            if strategy == "delete":
                work = partial(threads.delete_thread, store=store, thread_id=thread_id)
            else:
                work = partial(
                    threads.keep_latest,
                    store=store,
                    thread_id=thread_id,
                    node_of=node_of,
                    sends_channel=TASKS,
                )
            await self._backend.write(work)

    def _identifier(self, kind: str, value: object) -> str:
        return identifier(kind, value, self._backend.database.dialect)

    def _identifiers(self, kind: str, values: Sequence[object]) -> Sequence[str]:
        if isinstance(values, str):
            raise InvalidInputError(
                f"found the single {kind} {values!r}, expected a sequence; pass [{values!r}]"
            )
        return [self._identifier(kind, value) for value in values]
