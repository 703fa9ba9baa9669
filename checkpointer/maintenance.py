"""What is done to whole threads: deleting, copying, verifying."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver

from checkpointer import copying, threads, verification
from checkpointer.anysaver import AnySource
from checkpointer.backend import Backend
from checkpointer.decoder import root_of
from checkpointer.errors import DamagedDataError, DatabaseError
from checkpointer.faults import means_damage
from checkpointer.housekeeping import Housekeeping
from checkpointer.identifiers import text_of
from checkpointer.intake import Progress, Target
from checkpointer.moving import TransferReport
from checkpointer.problems import Problem, ProblemKind, Verification
from checkpointer.reports import PruneReport, Retained, RetentionPolicy
from checkpointer.verification import IdOf


class Maintenance(Housekeeping):
    """The half of the saver that knows threads, and not what their checkpoints hold."""

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
        with self._backend.call():
            found = await self._backend.read(
                partial(threads.threads_of_runs, store=store, run_ids=run_ids)
            )
            for thread_id in found:
                await self._backend.write(
                    partial(threads.delete_runs, store=store, thread_id=thread_id, run_ids=run_ids)
                )

    async def acopy_thread(
        self, source_thread_id: str, target_thread_id: str, *, checkpoint_id: str | None = None
    ) -> None:
        """Copy the checkpoints and writes of a thread, inside the database.

        Checkpoints and writes of the target with the same keys are replaced; its others stay.

        Args:
            source_thread_id: The thread to copy from.
            target_thread_id: The thread to copy into.
            checkpoint_id: One of the root namespace: copy the thread as it stood there, with all
                writes to that checkpoint. That is the checkpoint and its ancestors; of subgraph
                calls, those that started from one of them; of subgraphs with a memory, what was
                made before it on whichever fork, and what started from it. Without one, all.

        Raises:
            InvalidInputError: The source has no such checkpoint.
        """
        source = self._identifier("thread_id", source_thread_id)
        target = self._identifier("thread_id", target_thread_id)
        store = self._backend.store
        if checkpoint_id is None:
            work = partial(copying.copy_thread, store=store, source=source, target=target)
        else:
            name = self._identifier("checkpoint_id", checkpoint_id)
            copy = partial(copying.copy_up_to, store=store, source=source, target=target)
            work = partial(copy, checkpoint_id=name, root_of=root_of)
        await self._backend.write(work)

    async def averify(
        self,
        thread_id: str | None = None,
        *,
        repair: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> Verification:
        """Read everything that is stored, check all stored bytes again, and tell what is wrong.

        Each thread is read from one snapshot, past the cache. Values are put together on paper
        only, and not loaded by the serde; but for each checkpoint's own dict, which tells whether
        it stands under its own id, unless the serde refuses it. Nothing is changed without
        `repair`.

        Args:
            thread_id: This thread alone.
            repair: Remove the bytes that nothing names, one transaction a thread; none where
                damage leaves it unknown which these are. Nothing else is mended.
            progress: Called with how many threads are done, and how many there are in all.

        Returns:
            What was found before any repair.
        """
        named = None if thread_id is None else [self._identifier("thread_id", thread_id)]
        store, found, done, total = self._backend.store, Verification(), 0, 1
        with self._backend.call():
            if named is None and progress is not None:
                total = await self._backend.read(partial(verification.count_threads, store=store))
            page = await self._threads_after(None) if named is None else named
            while page:
                for name in page:
                    found += await self._verify_thread(name, repair=repair)
                    done += 1
                    if progress is not None:
                        progress(done, max(done, total))
                page = await self._threads_after(page[-1]) if named is None else []
        return found

    async def aimport_from(
        self,
        source: BaseCheckpointSaver[Any],
        *,
        thread_ids: Sequence[str] | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> TransferReport:
        """Import threads from any saver, through its public methods alone.

        Each thread is imported in one transaction, and gone on with by calling again: a checkpoint
        that is there under the same id stays as it is here, and so does a write, unless it may be
        replaced (errors, interrupts, answers to them). The source's serde loads every value, and
        this saver's dumps it. For official savers, `import_official` needs neither, and keeps the
        tasks' paths, which no saver tells; the order of writes is kept all the same. Writes whose
        checkpoint is not there are not listed by any saver, and stay behind.

        Args:
            source: The saver. One that has sync methods only is called in a thread of its own.
            thread_ids: These threads alone. Without them, everything that the source holds is
                listed once, to find its threads.
            progress: Called with how many threads are done, and how many there are in all.

        Returns:
            What was imported. Checkpoints and writes that were there already do not count.

        Raises:
            TransferError: Some threads could not be imported. All others were.
            SourceError: The source could not list its threads: name those that it can read.
        """
        names = None if thread_ids is None else self._identifiers("thread_id", thread_ids)
        with self._backend.call():
            target = Target(self._backend, self._id_of)
            other = AnySource(source, target, self.serde, named=names is not None)
            return await other.move_all(names, progress)

    async def _threads_after(self, thread_id: str | None) -> list[str]:
        store = self._backend.store
        work = partial(verification.threads_after, store=store, thread_id=thread_id)
        return await self._backend.read(work)

    async def _verify_thread(self, thread_id: str, *, repair: bool) -> Verification:
        store = self._backend.store
        verify = partial(verification.verify_thread, store=store, thread_id=thread_id)
        try:
            found = await self._backend.read_snapshot(partial(verify, id_of=self._id_of))
        except (DatabaseError, DamagedDataError) as exc:
            if isinstance(exc, DatabaseError) and not means_damage(exc):
                raise
            problem = Problem(ProblemKind.UNREADABLE_THREAD, thread_id, detail=str(exc))
            return Verification(threads=1, problems=(problem,))
        if not repair or not verification.has_garbage(found):
            return found
        try:
            removed = await self._backend.write(
                partial(threads.sweep_thread, store=store, thread_id=thread_id)
            )
        except DamagedDataError as exc:  # since it was verified
            problem = Problem(ProblemKind.UNDECIDED_SEGMENTS, thread_id, detail=str(exc))
            return found + Verification(problems=(problem,))
        return replace(found, removed=removed)

    def _id_of(self, type_: str, data: bytes) -> str | None:
        """The id that a checkpoint's own dict tells, if the serde can load it."""
        with suppress(Exception):  # no damage: another serde may have stored it
            return text_of("checkpoint_id", self.serde.loads_typed((type_, data))["id"])
        return None


def retainer(
    saver: Maintenance, policy: RetentionPolicy
) -> Callable[[Sequence[str], Progress | None], Awaitable[PruneReport]]:
    """What does to some threads what `aretain` does, now or later: ages are counted from this call.

    So of a plan that is made after it, no more is old when it is carried out.
    """
    limits = saver._limits(policy)  # noqa: SLF001

    async def retain(thread_ids: Sequence[str], progress: Progress | None = None) -> PruneReport:
        found = Retained()
        for done, thread_id in enumerate(thread_ids, 1):
            await saver._retain(thread_id, limits, found, dry_run=False)  # noqa: SLF001
            if progress is not None:
                progress(done, len(thread_ids))
        return found.report(len(thread_ids), dry_run=False)

    return retain


def parts_of(saver: Maintenance) -> tuple[Backend, IdOf]:
    """The running parts of a saver, and what tells a checkpoint's id from its bytes."""
    return saver._backend, saver._id_of  # noqa: SLF001
