"""Which threads there are, what they take, and what of them is kept."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from heapq import nlargest
from typing import Any, Final

import sqlalchemy as sa
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.types import INTERRUPT, TASKS

from checkpointer import inventory, retention, verification
from checkpointer.arguments import (
    before,
    check_flag,
    cursor,
    cursor_of,
    page_size,
    sorted_by,
    times,
)
from checkpointer.backend import Backend
from checkpointer.decoder import node_of, time_in
from checkpointer.errors import DamagedDataError, DatabaseUnavailableError, InvalidInputError
from checkpointer.identifiers import identifier, identifiers
from checkpointer.inventory import SizesByTable, Wanted
from checkpointer.manifest import Value
from checkpointer.planning import Rule
from checkpointer.projection import project_filter
from checkpointer.quoting import quoted
from checkpointer.reports import (
    PruneReport,
    Retained,
    RetentionPolicy,
    Stats,
    TableStats,
    ThreadInfo,
    ThreadPage,
    ThreadPrune,
    check_keep_last,
)
from checkpointer.serde import LosslessSerializer
from checkpointer.surveying import Meaning
from checkpointer.tables import checkpoints, writes
from checkpointer.twins import SyncTwins

TABLES: Final = ("threads", "checkpoints", "writes", "segments")
STRATEGIES: Final = ("keep_latest", "delete", "delete_all")


class Housekeeping(SyncTwins):
    """The part of the saver that lists threads, counts what is stored, and prunes.

    Args:
        backend: The running parts, shared by clones of this saver.
        serde: How values become bytes; without one, LangGraph's own, made lossless.
    """

    def __init__(self, backend: Backend, *, serde: SerializerProtocol | None = None) -> None:
        super().__init__(serde=serde or LosslessSerializer())
        self._backend = backend

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
        """A page of threads, with what each takes. No value is read: the database counts.

        A thread that is put to between two pages moves in the order of `updated_at`: it may come
        twice, or not at all. Only pages by `thread_id` walk an index; the others sort the rows of
        all threads.

        Args:
            limit: At most so many, from 1 to 10,000.
            after: The `after` of the page before, in the same order.
            order: `thread_id`, `created_at` or `updated_at`; with a `-` before it, descending.
            updated_before: Only threads last put to before that time, which must be aware.
            updated_after: Only threads last put to after it.
            metadata: Only threads that have a checkpoint whose metadata contains this, by the rules
                of PostgreSQL's `@>`.
        """
        wanted = Wanted(
            limit=page_size(limit),
            **sorted_by(order),
            after=cursor(after, order, self._backend.database.dialect),
            bounds=times(updated_before=updated_before, updated_after=updated_after),
            metadata=(project_filter(metadata) or None) if metadata is not None else None,
        )
        work = partial(inventory.page_of_threads, store=self._backend.store, wanted=wanted)
        found, more = await self._backend.read_snapshot(work)
        return ThreadPage(tuple(found), cursor_of(found[-1], order) if more else None)

    async def astats(self, thread_id: str | None = None, *, largest: int = 10) -> Stats:
        """Rows and bytes, by table and by thread, and what storing them once has saved.

        Reads all manifests and writes, in pages, and counts the rest; what is put or deleted
        meanwhile may be counted or not.

        Args:
            thread_id: This thread alone.
            largest: How many of the largest threads to name.
        """
        if isinstance(largest, bool) or not isinstance(largest, int) or largest < 0:
            raise InvalidInputError(
                f"found largest {quoted(largest)}, expected an int of 0 or more"
            )
        if thread_id is not None:
            thread_id = self._identifier("thread_id", thread_id)
        tables = {name: TableStats() for name in TABLES}
        top: list[ThreadInfo] = []
        with self._backend.call():
            page = await self._sizes(thread_id, None)
            while page:
                top = nlargest(largest, [*top, *(info for info, _ in page)], key=_stored_bytes)
                for _, sizes in page:
                    for name, size in {"threads": TableStats(rows=1), **sizes}.items():
                        tables[name] = _sum(tables[name], size)
                # Of one thread, there is one page.
                page = await self._sizes(None, page[-1][0]) if thread_id is None else []
            logical = sum(
                [await self._logical_bytes(thread_id, table) for table in (checkpoints, writes)]
            )
        stored = sum(size.bytes for size in tables.values())
        return Stats(tables["threads"].rows, tables, logical, stored, tuple(top))

    async def _sizes(
        self, thread_id: str | None, last: ThreadInfo | None
    ) -> list[tuple[ThreadInfo, SizesByTable]]:
        """One thread, or the page of them that follows another one, with their sizes."""
        store = self._backend.store
        if thread_id is not None:
            one = partial(inventory.one_thread, store=store, thread_id=thread_id)
            return await self._backend.read_snapshot(one)
        wanted = Wanted(limit=inventory.PAGE, after=(last.thread_id,) if last else None)
        work = partial(inventory.page_of_sizes, store=store, wanted=wanted)
        return await self._backend.read_snapshot(work)

    async def _logical_bytes(self, thread_id: str | None, table: sa.Table) -> int:
        total, after = 0, None
        while True:
            read = partial(inventory.page_of_values, table=table, thread_id=thread_id)
            found, after = await self._backend.read(partial(read, after=after))
            total += found
            if after is None:
                return total

    async def aprune(  # type: ignore[override]  # the base class's returns nothing
        self,
        thread_ids: Sequence[str],
        *,
        strategy: str = "keep_latest",
        keep_last: int | None = None,
        dry_run: bool = False,
    ) -> PruneReport:
        """Delete checkpoints that are no longer needed, one transaction a thread.

        What stays reads back as before, but that it has no parent where that one goes. An ancestor
        that stays for the sake of others may itself no longer be whole.

        Args:
            thread_ids: The threads.
            strategy: `"keep_latest"` keeps the latest checkpoint of each namespace, and the
                ancestors that a `DeltaChannel` of it is rebuilt from; it drops the namespaces of
                subgraph calls that have finished. `"delete"` deletes the threads, and so
                does `"delete_all"`, as LangGraph's Agent Server has it.
            keep_last: Keep the latest so many of each namespace instead, with what these are read
                from; and of subgraphs with a memory what runs need that start from one of them.
                Forks whose ends are not among them go, also where they wait for an answer.
            dry_run: Change nothing, and tell what would go.

        Returns:
            What has gone, or would.

        Raises:
            DamagedDataError: It is unknown what is needed. Threads before this one are done.
        """
        names = dict.fromkeys(self._identifiers("thread_id", thread_ids))
        if strategy not in STRATEGIES:
            raise InvalidInputError(
                f"found the prune strategy {quoted(strategy)}, expected one of "
                f"{', '.join(STRATEGIES)}"
            )
        check_keep_last(keep_last)
        check_flag("dry_run", dry_run)
        deletes = strategy != "keep_latest"
        if deletes and keep_last is not None:
            raise InvalidInputError(
                f"found keep_last with the prune strategy {quoted(strategy)}, expected one of both"
            )
        store = self._backend.store
        if deletes:
            work = partial(retention.drop, store=store)
        else:
            rule = Rule(keep_last=keep_last or 1, replayable=keep_last is not None)
            work = partial(retention.prune, store=store, rule=rule, meaning=self._meaning())
        with self._backend.call():
            found = [
                await self._apply(partial(work, thread_id=thread_id), dry_run=dry_run)
                for thread_id in names
            ]
        return PruneReport(dry_run, len(names), tuple(one for one in found if one))

    async def aretain(
        self,
        policy: RetentionPolicy,
        *,
        dry_run: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> PruneReport:
        """Delete over all threads what a policy lets go, one short transaction a thread.

        Each thread is planned after its row is held, and whether it is idle is asked once more
        then. Others are read and put to meanwhile. May be stopped and called again at any time.
        Threads that lose nothing are told by the number of their checkpoints, without a look at
        these.

        Args:
            policy: What may go.
            dry_run: Change nothing, and tell what would go.
            progress: Called with how many threads are done, and how many there are in all.

        Returns:
            What has gone, or would; and the threads that are left as they are, because they are
            damaged or others held them for longer than the saver waits.

        Raises:
            DatabaseUnavailableError: The database cannot be reached; on SQLite, also where others
                hold its file. Threads before are done.
        """
        if not isinstance(policy, RetentionPolicy):
            raise InvalidInputError(
                f"found {quoted(policy)} as the policy, expected a RetentionPolicy"
            )
        check_flag("dry_run", dry_run)
        limits = self._limits(policy)
        left_alone = frozenset(self._identifiers("thread_id", policy.protected_threads))
        found = Retained()
        done, total, last = 0, 0, None
        with self._backend.call():
            if progress is not None:
                count = partial(verification.count_threads, store=self._backend.store)
                total = await self._backend.read(count)
            while page := await self._page_to_retain(last, limits):
                for last, may_lose in page:
                    if may_lose and last not in left_alone:
                        await self._retain(last, limits, found, dry_run=dry_run)
                    done += 1
                    if progress is not None:
                        progress(done, max(done, total))
        return found.report(done, dry_run=dry_run)

    def _limits(self, policy: RetentionPolicy) -> retention.Limits:
        now = datetime.now(UTC)
        protected = frozenset(self._identifiers("checkpoint_id", policy.protected_checkpoints))
        rule = None
        if policy.max_age is not None or policy.keep_last is not None:
            rule = Rule(
                keep_last=policy.keep_last or 1,
                made_after=None if policy.max_age is None else before(now, policy.max_age),
                protected=protected,
                waiting=True,
                replayable=True,
            )
        idle_before = None if policy.idle_for is None else before(now, policy.idle_for)
        return retention.Limits(idle_before, rule, protected)

    async def _page_to_retain(
        self, last: str | None, limits: retention.Limits
    ) -> list[tuple[str, bool]]:
        """The threads that follow another one, and whether each may lose something."""
        work = partial(retention.page, store=self._backend.store, after=last, limits=limits)
        return await self._backend.read_snapshot(work)

    async def _retain(
        self, thread_id: str, limits: retention.Limits, into: Retained, *, dry_run: bool
    ) -> None:
        work = partial(retention.retain, store=self._backend.store, thread_id=thread_id)
        work = partial(work, limits=limits, meaning=self._meaning())
        try:
            found = await self._apply(work, dry_run=dry_run)
            into.gone += [found] if found else []
        except DamagedDataError as exc:
            into.damaged[thread_id] = str(exc)
        except DatabaseUnavailableError as exc:
            await self._check_others_can_be_had(thread_id, exc)
            into.skipped[thread_id] = str(exc)

    async def _check_others_can_be_had(
        self, thread_id: str, error: DatabaseUnavailableError
    ) -> None:
        """Raise if a thread could not be had for a reason that holds for all of them.

        Whoever holds a row, lets the row be read.
        """
        if not self._backend.database.dialect.locks_rows:
            raise error
        queries = self._backend.store.queries
        given = {"thread_ids": [thread_id]}
        await self._backend.read(lambda connection: connection.fetch(queries.states, given))

    async def _apply(
        self, work: Callable[..., ThreadPrune | None], *, dry_run: bool
    ) -> ThreadPrune | None:
        """Run what deletes in a transaction of its own; a dry run on a snapshot."""
        run = self._backend.read_snapshot if dry_run else self._backend.write
        return await run(partial(work, dry_run=dry_run))

    def _meaning(self) -> Meaning:
        return Meaning(node_of, self._time_of, sends=TASKS, interrupts=INTERRUPT)

    def _time_of(self, value: Value) -> datetime | None:
        """When a checkpoint was made, by its own dict, if that stands in the manifest."""
        if isinstance(value.content, bytes):
            with suppress(Exception):  # no damage: another serde may have stored it
                return time_in(self.serde.loads_typed((value.type, value.content)))
        return None

    def _identifier(self, kind: str, value: object) -> str:
        return identifier(kind, value, self._backend.database.dialect)

    def _identifiers(self, kind: str, values: Iterable[object]) -> Sequence[str]:
        return identifiers(kind, values, self._backend.database.dialect)


def _stored_bytes(info: ThreadInfo) -> int:
    return info.stored_bytes


def _sum(one: TableStats, other: TableStats) -> TableStats:
    return TableStats(one.rows + other.rows, one.bytes + other.bytes)
