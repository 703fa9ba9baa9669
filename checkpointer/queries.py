"""Arguments to statements, built once for each kind of database. Executes nothing.

Every statement names `thread_id`, but for those that search over all threads: by `run_id`, the list
without a thread, and the threads themselves.
"""

from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import bindparam

from checkpointer.arrays import AnySelect
from checkpointer.dialect import Dialect
from checkpointer.dialects import dialect_named
from checkpointer.predicates import KEY, any_key, same
from checkpointer.tables import checkpoints, segments, threads, writes
from checkpointer.upserts import copying, lengthening, replacing, touching

CHECKPOINT_KEY = (
    checkpoints.c.checkpoint_id,
    checkpoints.c.thread_id,
    checkpoints.c.checkpoint_ns,
)
"""The order of lists, descending: newest first over all threads and namespaces."""


class Queries:
    """The statements for one kind of database; parameters bear their columns' names."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self._build_puts()
        self._build_gets()
        self._build_plans()
        self._build_deletes()
        self._build_copies()
        self._build_verifications()

    def _build_puts(self) -> None:
        insert = self.dialect.insert
        self.touch_thread = touching(insert(threads))
        self.set_thread = touching(insert(threads), "state")
        named = self.dialect.is_any_of(threads.c.thread_id, "thread_ids")
        self.states = sa.select(threads.c.thread_id, threads.c.state).where(named)
        # No later than now: a clock may have been set back.
        lately = threads.c.updated_at.between(
            bindparam("touched_after", type_=threads.c.updated_at.type),
            bindparam("now", type_=threads.c.updated_at.type),
        )
        self.states_and_touch = self.states.add_columns(lately.label("touched"))
        self.put_segment = insert(segments).on_conflict_do_nothing()
        self.copy_segment = lengthening(insert(segments))
        self.put_checkpoint = replacing(insert(checkpoints))
        self.put_write = insert(writes).on_conflict_do_nothing()
        self.put_special_write = replacing(insert(writes))

    def _build_gets(self) -> None:
        c, w = checkpoints.c, writes.c
        row: AnySelect = sa.select(
            c.thread_id,
            c.checkpoint_ns,
            c.checkpoint_id,
            c.parent_checkpoint_id,
            c.manifest,
            threads.c.state,
        ).outerjoin_from(checkpoints, threads, threads.c.thread_id == c.thread_id)
        in_namespace = same(checkpoints, "thread_id", "checkpoint_ns")
        self._row = row
        self.latest_checkpoint = row.where(in_namespace).order_by(c.checkpoint_id.desc()).limit(1)
        self.checkpoint_and_writes = _and_writes(row.where(same(checkpoints, *KEY)))
        self.latest_and_writes = _and_writes(self.latest_checkpoint)
        self.writes_of_many = sa.select(writes).where(*any_key(self.dialect, writes))
        self.channel_writes_of_many = self.writes_of_many.where(
            self.dialect.is_any_of(w.channel, "channels")
        )
        self.sliced_writes_of_many = self.writes_of_many.where(w.sliced)
        self.stream = sa.select(*segments.c).where(same(segments, "thread_id", "stream_id"))
        self.basis = (
            sa.select(threads.c.state, c.checkpoint_ns, c.checkpoint_id, c.manifest)
            .select_from(
                threads.outerjoin(
                    checkpoints,
                    sa.and_(
                        c.thread_id == threads.c.thread_id,
                        self.dialect.is_any_of(c.checkpoint_ns, "namespaces"),
                        self.dialect.is_any_of(c.checkpoint_id, "checkpoint_ids"),
                    ),
                )
            )
            .where(same(threads, "thread_id"))
        )
        self.ancestors = self._ancestors()

    def _ancestors(self) -> AnySelect:
        """A checkpoint and its ancestors, nearest first, `limit` of them at most."""
        c = checkpoints.c
        columns = (*_columns(checkpoints, *KEY), c.parent_checkpoint_id, c.manifest)
        start = (
            sa.select(*columns, sa.null().label("state"), sa.literal(1).label("distance"))
            .where(same(checkpoints, *KEY))
            .cte("ancestors", recursive=True)
        )
        line = start.union_all(
            sa.select(*columns, sa.null(), start.c.distance + 1).where(
                same(checkpoints, "thread_id", "checkpoint_ns"),
                c.checkpoint_id == start.c.parent_checkpoint_id,
                start.c.distance < bindparam("limit", type_=sa.Integer),
            )
        )
        return sa.select(line).order_by(line.c.distance)

    def _build_plans(self) -> None:
        any_of = self.dialect.is_any_of
        in_thread = same(checkpoints, "thread_id")
        # Everything that deletes holds the thread's row, as every put does, so neither sees half
        # of the other.
        self.lock_thread = (
            sa.select(threads.c.state).where(same(threads, "thread_id")).with_for_update()
        )
        self.manifests = sa.select(
            checkpoints.c.checkpoint_ns,
            checkpoints.c.checkpoint_id,
            checkpoints.c.parent_checkpoint_id,
            PROJECTION,
            checkpoints.c.manifest,
        ).where(in_thread)
        self.sliced_writes = sa.select(writes).where(same(writes, "thread_id"), writes.c.sliced)
        self.segment_keys = sa.select(
            segments.c.stream_id,
            segments.c.start,
            segments.c.stop,
            sa.func.length(segments.c.data, type_=sa.Integer).label("bytes"),
        ).where(same(segments, "thread_id"))
        self.threads_of_runs = (
            sa.select(checkpoints.c.thread_id)
            .where(any_of(checkpoints.c.run_id, "run_ids"))
            .distinct()
            .order_by(checkpoints.c.thread_id)
        )
        self.checkpoints_of_runs = sa.select(
            checkpoints.c.checkpoint_ns, checkpoints.c.checkpoint_id
        ).where(in_thread, any_of(checkpoints.c.run_id, "run_ids"))
        self.any_rows = sa.select(
            sa.exists(sa.select(sa.literal(1)).where(in_thread)).label("any_checkpoints"),
            sa.exists(sa.select(sa.literal(1)).where(same(writes, "thread_id"))).label(
                "any_writes"
            ),
            sa.exists(sa.select(sa.literal(1)).where(same(segments, "thread_id"))).label(
                "any_segments"
            ),
        )

    def _build_deletes(self) -> None:
        any_of = self.dialect.is_any_of
        self.set_state = (
            sa.update(threads)
            .where(threads.c.thread_id == bindparam("of_thread"))
            .values(state=bindparam("new_state"))
        )
        # Only one that was made just now has that state.
        self.delete_new_thread = sa.delete(threads).where(
            threads.c.thread_id == bindparam("of_thread"),
            threads.c.state == bindparam("new_state"),
        )
        self.delete_checkpoints = self._delete_some(checkpoints, checkpoints.c.checkpoint_id)
        self.delete_writes = self._delete_some(writes, writes.c.checkpoint_id)
        self.delete_segment = sa.delete(segments).where(
            same(segments, "thread_id", "stream_id", "start")
        )
        self.orphan_checkpoints = (
            sa.update(checkpoints)
            .where(
                checkpoints.c.thread_id == bindparam("of_thread"),
                checkpoints.c.checkpoint_ns == bindparam("of_namespace"),
                any_of(checkpoints.c.parent_checkpoint_id, "checkpoint_ids"),
            )
            .values(parent_checkpoint_id=None)
        )
        self.delete_thread = [
            sa.delete(table).where(same(table, "thread_id"))
            for table in (writes, checkpoints, segments, threads)
        ]
        if self.dialect.has_arrays:  # all in one round trip
            *others, last = self.delete_thread
            self.delete_thread = [last.add_cte(*(one.cte() for one in others))]
        self.delete_namespace = [
            sa.delete(table).where(same(table, "thread_id", "checkpoint_ns"))
            for table in (writes, checkpoints)
        ]

    def _build_copies(self) -> None:
        self.copy_thread = [
            lengthening(copying(self.dialect, segments)),
            replacing(copying(self.dialect, checkpoints)),
            replacing(copying(self.dialect, writes)),
        ]

    def _build_verifications(self) -> None:
        self.thread_count = sa.select(sa.func.count().label("threads")).select_from(threads)
        self.thread_summary = sa.select(
            sa.exists(sa.select(sa.literal(1)).where(same(threads, "thread_id"))).label("has_row")
        )
        self.checkpoint_keys, self.write_keys = (
            sa.select(*_columns(table, *KEY)).where(same(table, "thread_id")).distinct()
            for table in (checkpoints, writes)
        )
        self.manifests_of_many = sa.select(
            *_columns(checkpoints, *KEY), PROJECTION, checkpoints.c.manifest
        ).where(*any_key(self.dialect, checkpoints))

    @cache  # noqa: B019 - one instance a dialect lives as long as the process (see `queries_for`)
    def page(  # noqa: PLR0913 - one flag a condition
        self,
        *,
        thread: bool,
        namespace: bool,
        checkpoint: bool,
        before: bool,
        metadata: bool,
        cursor: bool,
    ) -> AnySelect:
        """A page of checkpoints, newest first, with those conditions.

        The parameters bear their columns' names, or `before`, `filter`, `limit`, and for the
        cursor `after_` and the column's name.
        """
        c = checkpoints.c
        # Within one thread, all rows are sorted: walking the index on checkpoint_id until enough
        # of the thread's rows turn up would pass over every newer row of every other thread.
        newest = sa.cast(c.checkpoint_id.concat(""), sa.Text) if thread and not namespace else None
        order = [newest if newest is not None else c.checkpoint_id, c.thread_id, c.checkpoint_ns]
        statement = self._row.order_by(*(column.desc() for column in order))
        statement = statement.limit(bindparam("limit", type_=sa.Integer))
        if thread:
            statement = statement.where(same(checkpoints, "thread_id"))
        if namespace:
            statement = statement.where(same(checkpoints, "checkpoint_ns"))
        if checkpoint:
            statement = statement.where(same(checkpoints, "checkpoint_id"))
        if before:
            statement = statement.where(c.checkpoint_id < bindparam("before"))
        if metadata:
            statement = statement.where(self.dialect.json_contains(c.metadata, "filter"))
        if cursor:
            statement = statement.where(sa.tuple_(*CHECKPOINT_KEY) < _cursor(*CHECKPOINT_KEY))
        return statement

    @cache  # noqa: B019 - as above
    def threads_after(self, *, cursor: bool) -> AnySelect:
        """A page of the ids of all threads that have a row in any table, in order.

        The parameters are `limit`, and with a cursor `after_thread_id`.
        """
        return threads_of((threads, checkpoints, writes, segments), cursor=cursor)

    def _delete_some(self, table: sa.Table, column: sa.Column[str]) -> sa.Delete:
        return sa.delete(table).where(
            same(table, "thread_id", "checkpoint_ns"),
            self.dialect.is_any_of(column, "checkpoint_ids"),
        )


# As text, so that one that is damaged does not keep its row from being read.
PROJECTION: Final = sa.cast(checkpoints.c.metadata, sa.Text).label("metadata")


def _cursor(*key: sa.Column[Any]) -> sa.Tuple:
    """The key of a page's last row."""
    return sa.tuple_(*(bindparam(f"after_{column.name}", type_=column.type) for column in key))


def _columns(table: sa.Table, *names: str) -> list[sa.Column[Any]]:
    return [table.c[name] for name in names]


def _and_writes(checkpoint: AnySelect) -> sa.CompoundSelect[*tuple[Any, ...]]:
    """One checkpoint, and after it each of its writes, beside NULLs instead of the manifest."""
    one = checkpoint.cte("one")
    of_write = [column for column in writes.c if column.name not in KEY]
    of_checkpoint = [column for column in one.c if column.name not in KEY]
    shared = [one.c[name] for name in KEY]
    return sa.union_all(
        sa.select(*one.c, *(sa.cast(sa.null(), c.type).label(c.name) for c in of_write)),
        sa.select(
            *shared,
            *(sa.cast(sa.null(), c.type).label(c.name) for c in of_checkpoint),
            *of_write,
        ).join(one, sa.and_(*(writes.c[name] == one.c[name] for name in KEY))),
    )


def threads_of(tables: Iterable[sa.FromClause], *, cursor: bool) -> AnySelect:
    """A page of the ids of all threads that have a row in one of these tables, in order.

    The parameters are `limit`, and with a cursor `after_thread_id`.
    """
    limit = bindparam("limit", type_=sa.Integer)

    def of(number: int, table: sa.FromClause) -> AnySelect:
        # From one id to the next in the index, past all rows that they have: no planner finds
        # this way by itself.
        thread_id = table.c.thread_id
        least = sa.select(sa.func.min(thread_id).label("thread_id"))
        after = bindparam("after_thread_id", type_=thread_id.type)
        first = least.where(thread_id > after) if cursor else least
        found = first.add_columns(sa.literal(1).label("place")).cte(f"of_{number}", recursive=True)
        following = least.where(thread_id > found.c.thread_id).scalar_subquery()
        found = found.union_all(
            sa.select(following, found.c.place + 1).where(
                found.c.place < limit, found.c.thread_id.is_not(None)
            )
        )
        return sa.select(found.c.thread_id).where(found.c.thread_id.is_not(None))

    any_of_them = sa.union(*(of(*one) for one in enumerate(tables))).subquery()
    return sa.select(any_of_them).order_by(any_of_them.c.thread_id).limit(limit)


@lru_cache
def queries_for(dialect_name: str) -> Queries:
    """The statements for that kind of database."""
    return Queries(dialect_named(dialect_name))
