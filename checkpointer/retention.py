"""Pruning threads: read, plan, count what goes, and delete it unless only the plan is wanted.

Each function is one unit of work on one thread. One that deletes holds the thread's row from its
first statement and plans after that, so what it counted is what it deletes (docs/format.md,
"Delete"). A dry run reads the same from a snapshot.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Final

import sqlalchemy as sa
from sqlalchemy import bindparam

from checkpointer.arrays import AnySelect
from checkpointer.dialect import Dialect
from checkpointer.execution import Connection
from checkpointer.inventory import sizes_of
from checkpointer.planning import Key, Plan, Rule, made_at, plan
from checkpointer.predicates import same
from checkpointer.reports import ThreadPrune
from checkpointer.store import Store, batched
from checkpointer.surveying import Meaning, survey, write_sizes
from checkpointer.tables import checkpoints, threads
from checkpointer.threads import (
    delete_checkpoints,
    delete_garbage,
    garbage_of,
    layouts_of_writes,
    lock,
)

PAGE: Final = 128
"""Threads that are looked at together, before those that may lose something are planned."""


MAX_COUNT: Final = 1 << 62
"""More checkpoints than any namespace has, and still a number to every database."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What `retain` lets go of a thread.

    Attributes:
        idle_before: The thread as a whole, if it was last put to before.
        rule: Which of its checkpoints are wanted; `None` for all.
        protected: The ids of checkpoints whose threads never go as a whole.
    """

    idle_before: datetime | None
    rule: Rule | None
    protected: frozenset[str]


def prune(  # noqa: PLR0913 - what, how and whether
    connection: Connection,
    store: Store,
    thread_id: str,
    rule: Rule,
    meaning: Meaning,
    *,
    dry_run: bool,
) -> ThreadPrune | None:
    """Delete the checkpoints of a thread that `plan` does not keep, and what nothing names then.

    Returns:
        What goes; `None` for nothing.

    Raises:
        DamagedDataError: It is unknown what is needed. Nothing may be committed.
    """
    if not (dry_run or lock(connection, store, thread_id)):
        return None
    found = survey(connection, store, thread_id, rule, meaning)
    planned = plan(found.nodes, rule)
    doomed = {(ns, one) for ns, ids in planned.checkpoints.items() for one in ids}

    def stays(key: Key) -> bool:
        return key not in doomed and key[0] not in planned.namespaces

    kept = [one for key, layouts in found.layouts.items() if stays(key) for one in layouts]
    kept += layouts_of_writes(connection, store, thread_id, stays)
    garbage = garbage_of(connection, store, thread_id, kept)
    sizes = write_sizes(connection, thread_id)
    written = [size for key, size in sizes.items() if not stays(key)]
    if not dry_run:
        _delete(connection, store, thread_id, planned)
    segments, size = delete_garbage(connection, store, thread_id, garbage, dry_run=dry_run)
    if not (doomed or written or segments):
        return None
    freed = [*(found.bytes[key] for key in doomed), *(size for _, size in written)]
    return ThreadPrune(
        thread_id,
        deleted=False,
        checkpoints=planned.checkpoints,
        writes=sum(count for count, _ in written),
        segments=segments,
        bytes=sum(freed) + size,
    )


def _delete(connection: Connection, store: Store, thread_id: str, planned: Plan) -> None:
    for namespace in sorted(planned.namespaces):
        for statement in store.queries.delete_namespace:
            key = {"thread_id": thread_id, "checkpoint_ns": namespace}
            connection.execute(statement, key)
    others = {ns: i for ns, i in planned.checkpoints.items() if ns not in planned.namespaces}
    delete_checkpoints(connection, store, thread_id, others)


def drop(
    connection: Connection, store: Store, thread_id: str, *, dry_run: bool
) -> ThreadPrune | None:
    """Delete everything of a thread.

    Returns:
        What goes; `None` where there is no such thread.
    """
    if not dry_run and not lock(connection, store, thread_id):
        return None
    if dry_run and not connection.fetch(store.queries.states, {"thread_ids": [thread_id]}):
        return None
    ids = defaultdict[str, list[str]](list)
    for row in connection.fetch(store.queries.checkpoint_keys, {"thread_id": thread_id}):
        ids[row.checkpoint_ns].append(row.checkpoint_id)
    sizes = sizes_of(connection, store, [thread_id])[thread_id]
    if not dry_run:
        for statement in store.queries.delete_thread:
            connection.execute(statement, {"thread_id": thread_id})
    return ThreadPrune(
        thread_id,
        deleted=True,
        checkpoints={ns: sorted(ids[ns]) for ns in sorted(ids)},
        writes=sizes["writes"].rows,
        segments=sizes["segments"].rows,
        bytes=sum(size.bytes for size in sizes.values()),
    )


def retain(  # noqa: PLR0913 - what, how and whether
    connection: Connection,
    store: Store,
    thread_id: str,
    limits: Limits,
    meaning: Meaning,
    *,
    dry_run: bool,
) -> ThreadPrune | None:
    """Do to one thread what the limits say, as far as they still do once its row is held.

    Returns:
        What goes; `None` for nothing.

    Raises:
        DamagedDataError: As `prune` does.
    """
    if not dry_run and not lock(connection, store, thread_id):
        return None
    if limits.idle_before is not None:
        given = {"thread_ids": [thread_id], "idle_before": limits.idle_before}
        rows = connection.fetch(_idle(store.queries.dialect), given)
        if rows and not _has_any(connection, store, thread_id, limits.protected):
            return drop(connection, store, thread_id, dry_run=dry_run)
    if limits.rule is None:
        return None
    return prune(connection, store, thread_id, limits.rule, meaning, dry_run=dry_run)


def _has_any(
    connection: Connection, store: Store, thread_id: str, checkpoint_ids: Iterable[str]
) -> bool:
    dialect = store.queries.dialect
    return any(
        connection.fetch(_any_checkpoint(dialect), {"thread_id": thread_id, "ids": some})
        for some in batched(sorted(checkpoint_ids), dialect.max_list)
    )


def page(
    connection: Connection, store: Store, after: str | None, limits: Limits
) -> list[tuple[str, bool]]:
    """A page of threads, and whether each may lose something; no manifest is read.

    Args:
        connection: Where to read.
        store: The statements.
        after: The last thread of the page before.
        limits: What goes.
    """
    given = {} if after is None else {"after": after}
    rows = connection.fetch(_ids(cursor=bool(given)), {"limit": PAGE, **given})
    thread_ids = [row.thread_id for row in rows]
    affected = _affected(connection, store, thread_ids, limits) if thread_ids else set[str]()
    return [(thread_id, thread_id in affected) for thread_id in thread_ids]


def _affected(
    connection: Connection, store: Store, thread_ids: Sequence[str], limits: Limits
) -> set[str]:
    """Those of some threads that may lose something.

    No namespace loses anything that has no more checkpoints than are kept in any case, or none
    that is old; and where the root graph's loses nothing, no finished call goes.
    """
    dialect = store.queries.dialect
    found: set[str] = set()
    if limits.idle_before is not None:
        given = {"thread_ids": thread_ids, "idle_before": limits.idle_before}
        found.update(row.thread_id for row in connection.fetch(_idle(dialect), given))
    if (rule := limits.rule) is not None:
        given = {"thread_ids": thread_ids, "keep_last": min(rule.keep_last, MAX_COUNT)}
        found.update(
            row.thread_id
            for row in connection.fetch(_long(dialect), given)
            if not _is_young(row.oldest, row.newest, rule.made_after)
        )
    return found


def _is_young(oldest: str, newest: str, made_after: datetime | None) -> bool:
    """Whether all checkpoints of a namespace are young, told by the first id and the last.

    UUIDv6 sort by their time; of other ids, nothing is known.
    """
    first, last = made_at(oldest), made_at(newest)
    return bool(made_after and first and last and first >= made_after)


@cache
def _ids(*, cursor: bool) -> AnySelect:
    """A page of threads' ids, in order."""
    name = threads.c.thread_id
    statement = sa.select(name).order_by(name).limit(bindparam("limit", type_=sa.Integer))
    return statement.where(name > bindparam("after", type_=name.type)) if cursor else statement


@cache
def _idle(dialect: Dialect) -> AnySelect:
    """Those of `thread_ids` that were last put to before `idle_before`."""
    before = bindparam("idle_before", type_=threads.c.updated_at.type)
    named = dialect.is_any_of(threads.c.thread_id, "thread_ids")
    return sa.select(threads.c.thread_id).where(named, threads.c.updated_at < before)


@cache
def _long(dialect: Dialect) -> AnySelect:
    """The namespaces of `thread_ids` with more than `keep_last` checkpoints."""
    c = checkpoints.c
    ids = (sa.func.min(c.checkpoint_id).label("oldest"), sa.func.max(c.checkpoint_id))
    return (
        sa.select(c.thread_id, c.checkpoint_ns, ids[0], ids[1].label("newest"))
        .where(dialect.is_any_of(c.thread_id, "thread_ids"))
        .group_by(c.thread_id, c.checkpoint_ns)
        .having(sa.func.count() > bindparam("keep_last", type_=sa.BigInteger))
    )


@cache
def _any_checkpoint(dialect: Dialect) -> AnySelect:
    """One checkpoint of a thread whose id is among `ids`."""
    named = dialect.is_any_of(checkpoints.c.checkpoint_id, "ids")
    return (
        sa.select(checkpoints.c.checkpoint_id).where(same(checkpoints, "thread_id"), named).limit(1)
    )
