"""Threads page by page, and what they take: counted by the database, no value is read.

Each function is a unit of work on a given connection. Statements are built once for each kind of
database.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import islice
from typing import Any, Final, TypeAlias

import sqlalchemy as sa
from sqlalchemy import bindparam

from checkpointer.arrays import AnySelect
from checkpointer.dialect import Dialect
from checkpointer.errors import DamagedDataError
from checkpointer.execution import Connection, Parameters
from checkpointer.manifest import Manifest, Value, decode_manifest
from checkpointer.predicates import same
from checkpointer.records import StoredWrite
from checkpointer.reports import TableStats, ThreadInfo
from checkpointer.sealing import FormatError
from checkpointer.store import Store, batched
from checkpointer.tables import checkpoints, segments, threads, writes

SizesByTable: TypeAlias = Mapping[str, TableStats]

Key: TypeAlias = tuple[Any, ...]

PAGE: Final = 256
"""Threads that are counted at once, and manifests read: so many take a few ms to decode."""

_BATCH: Final = 8192
"""Threads whose metadata is asked for at once, at most."""

_DATA: Final = {"checkpoints": checkpoints, "writes": writes, "segments": segments}
"""The tables that hold what counts as stored, by short name."""

ORDERS: Final = ("thread_id", "created_at", "updated_at")
"""What threads may be sorted by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which threads a page is to hold.

    Attributes:
        limit: At most so many.
        column: What they are sorted by, of `ORDERS`; the id decides between equals.
        descending: Whether the greatest comes first.
        after: The sort value and the id of the last thread of the page before; the id alone where
            that is the sort value.
        bounds: Of `updated_before` and `updated_after`, those given.
        metadata: What the metadata of one of its checkpoints has to contain.
    """

    limit: int
    column: str = "thread_id"
    descending: bool = False
    after: Key | None = None
    bounds: Mapping[str, datetime] | None = None
    metadata: Mapping[str, Any] | None = None


def page_of_threads(
    connection: Connection, store: Store, wanted: Wanted
) -> tuple[list[ThreadInfo], bool]:
    """A page of threads, from one snapshot.

    Returns:
        The threads, and whether more follow.

    Raises:
        DamagedDataError: A thread's row does not hold times.
    """
    rows = list(islice(_rows(connection, store, wanted), wanted.limit + 1))
    more = len(rows) > wanted.limit
    rows = rows[: wanted.limit]
    sizes = sizes_of(connection, store, [row.thread_id for row in rows])
    return [info_of(row, sizes[row.thread_id]) for row in rows], more


def info_of(row: Any, sizes: SizesByTable) -> ThreadInfo:
    """What is known of a thread, by its row and the sizes of its rows in the other tables."""
    return ThreadInfo(
        thread_id=row.thread_id,
        created_at=row.created_at,
        updated_at=row.updated_at,
        checkpoints=sizes["checkpoints"].rows,
        stored_bytes=sum(size.bytes for size in sizes.values()),
    )


def _rows(connection: Connection, store: Store, wanted: Wanted) -> Iterable[Any]:
    """The rows of the threads that are wanted, in order: all that follow, page by page."""
    dialect, limit, after = store.queries.dialect, wanted.limit + 1, wanted.after
    bounds = wanted.bounds or {}
    while True:
        statement = _page(
            wanted.column,
            descending=wanted.descending,
            cursor=after is not None,
            bounds=frozenset(bounds),
        )
        cursor = {f"after_{n}": value for n, value in enumerate(after or ())}
        rows = _thread_rows(connection, statement, {**bounds, **cursor, "limit": limit})
        yield from _matching(connection, dialect, rows, wanted.metadata)
        if len(rows) < limit:
            return
        after = tuple(getattr(rows[-1], column) for column in _sorted_by(wanted.column))
        limit = min(2 * limit, max(limit, _BATCH))


def _thread_rows(
    connection: Connection, statement: AnySelect, parameters: Parameters
) -> Sequence[Any]:
    try:
        return connection.fetch(statement, parameters)
    except (ValueError, TypeError) as exc:  # SQLite stores anything in any column
        raise DamagedDataError(
            f"found a thread whose times cannot be read, expected times: {exc}; restore its row "
            f"in {threads.name} from a backup, or set its times"
        ) from exc


def _matching(
    connection: Connection, dialect: Dialect, rows: Iterable[Any], metadata: Any
) -> Iterable[Any]:
    """Those of the threads that have a checkpoint whose metadata contains what is given."""
    if metadata is None:
        yield from rows
        return
    for some in batched(rows, dialect.max_list):
        parameters = {"thread_ids": [row.thread_id for row in some], "filter": metadata}
        found = {one.thread_id for one in connection.fetch(_with_metadata(dialect), parameters)}
        yield from (row for row in some if row.thread_id in found)


def _sorted_by(column: str) -> list[str]:
    return [column] if column == "thread_id" else [column, "thread_id"]


@cache
def _page(column: str, *, descending: bool, cursor: bool, bounds: Collection[str]) -> AnySelect:
    """A page of threads. The parameters are `limit`, the bounds, and `after_0` and so on."""
    key = [threads.c[name] for name in _sorted_by(column)]
    columns = (threads.c.thread_id, threads.c.created_at, threads.c.updated_at)
    statement = sa.select(*columns).limit(bindparam("limit", type_=sa.Integer))
    statement = statement.order_by(*(c.desc() if descending else c.asc() for c in key))
    if cursor:
        last = sa.tuple_(*(bindparam(f"after_{n}", type_=c.type) for n, c in enumerate(key)))
        here = sa.tuple_(*key)
        statement = statement.where(here < last if descending else here > last)
    updated = threads.c.updated_at
    if "updated_before" in bounds:
        statement = statement.where(updated < bindparam("updated_before", type_=updated.type))
    if "updated_after" in bounds:
        statement = statement.where(updated > bindparam("updated_after", type_=updated.type))
    return statement


@cache
def _with_metadata(dialect: Dialect) -> AnySelect:
    """Those of `thread_ids` that have a checkpoint whose metadata contains `filter`."""
    contained = dialect.json_contains(checkpoints.c.metadata, "filter")
    in_thread = checkpoints.c.thread_id == threads.c.thread_id
    # With a limit, which EXISTS has not: PostgreSQL would join, and read other threads' as well.
    one = sa.select(sa.literal_column("1", sa.Integer)).where(in_thread, contained).limit(1)
    named = dialect.is_any_of(threads.c.thread_id, "thread_ids")
    return sa.select(threads.c.thread_id).where(named, one.scalar_subquery().is_not(None))


def stored_size(dialect: Dialect, table: sa.Table) -> sa.ColumnElement[int]:
    """The bytes of a row that count as stored."""
    if table is checkpoints:
        return length(table.c.manifest) + dialect.json_size(table.c.metadata)
    return length(table.c.data)


def length(column: sa.Column[bytes]) -> sa.ColumnElement[int]:
    """The length of a column's bytes, which both databases tell without reading them."""
    return sa.func.length(column, type_=sa.Integer)


@cache
def _sizes(dialect: Dialect) -> sa.CompoundSelect[*tuple[Any, ...]]:
    """Rows and bytes of `thread_ids`, by thread and table."""
    return sa.union_all(
        *(
            sa.select(
                sa.literal_column(f"'{name}'", sa.Text).label("table_name"),
                table.c.thread_id,
                sa.func.count().label("row_count"),
                sa.func.sum(stored_size(dialect, table)).label("bytes"),
            )
            .where(dialect.is_any_of(table.c.thread_id, "thread_ids"))
            .group_by(table.c.thread_id)
            for name, table in _DATA.items()
        )
    )


def sizes_of(
    connection: Connection, store: Store, thread_ids: Iterable[str]
) -> Mapping[str, SizesByTable]:
    """How much each of some threads has in each table."""
    found = defaultdict[str, dict[str, TableStats]](lambda: dict.fromkeys(_DATA, TableStats()))
    for some in batched(thread_ids, PAGE):
        for row in connection.fetch(_sizes(store.queries.dialect), {"thread_ids": some}):
            found[row.thread_id][row.table_name] = TableStats(row.row_count, int(row.bytes))
    return found


def page_of_sizes(
    connection: Connection, store: Store, wanted: Wanted
) -> list[tuple[ThreadInfo, SizesByTable]]:
    """A page of threads with what they have in each table, from one snapshot."""
    rows = list(islice(_rows(connection, store, wanted), wanted.limit))
    sizes = sizes_of(connection, store, [row.thread_id for row in rows])
    return [(info_of(row, sizes[row.thread_id]), sizes[row.thread_id]) for row in rows]


def one_thread(
    connection: Connection, store: Store, thread_id: str
) -> list[tuple[ThreadInfo, SizesByTable]]:
    """The same of one thread; none if it has no row."""
    rows = _thread_rows(connection, _one_thread, {"thread_id": thread_id})
    sizes = sizes_of(connection, store, [thread_id])[thread_id]
    return [(info_of(row, sizes), sizes) for row in rows]


_one_thread = sa.select(threads.c.thread_id, threads.c.created_at, threads.c.updated_at).where(
    same(threads, "thread_id")
)


@cache
def _values(table: sa.Table, *, cursor: bool, thread: bool) -> AnySelect:
    """A page of rows that name values, in the order of their keys."""
    key = list(table.primary_key)
    statement = sa.select(table) if table is writes else sa.select(*key, table.c.manifest)
    statement = statement.order_by(*key).limit(bindparam("limit", type_=sa.Integer))
    if thread:
        statement = statement.where(same(table, "thread_id"))
    if cursor:
        last = sa.tuple_(*(bindparam(f"after_{c.name}", type_=c.type) for c in key))
        statement = statement.where(sa.tuple_(*key) > last)
    return statement


def page_of_values(
    connection: Connection,
    table: sa.Table,
    thread_id: str | None,
    after: Mapping[str, Any] | None,
) -> tuple[int, Mapping[str, Any] | None]:
    """What the values of a page of checkpoints or writes would take, were each stored whole.

    Args:
        connection: Where to read.
        table: `checkpoints` or `writes`.
        thread_id: This thread alone.
        after: What the page before returned.

    Returns:
        The bytes, and where the next page begins, `None` at the end. What cannot be read counts
        nothing.
    """
    given = {} if thread_id is None else {"thread_id": thread_id}
    statement = _values(table, cursor=after is not None, thread=thread_id is not None)
    rows = connection.fetch(statement, {**given, **(after or {}), "limit": PAGE})
    total = sum(_logical_size(row, table) for row in rows)
    if len(rows) < PAGE:
        return total, None
    return total, {f"after_{c.name}": getattr(rows[-1], c.name) for c in table.primary_key}


def _logical_size(row: Any, table: sa.Table) -> int:
    if table is writes:
        value = StoredWrite.from_row(row).value
        return _size(value) if isinstance(value, Value) else 0
    try:
        manifest: Manifest = decode_manifest(row.manifest)
    except FormatError:
        return 0
    return sum(map(_size, manifest.values()))


def _size(value: Value) -> int:
    content = value.content
    return len(content) if isinstance(content, bytes) else content.size
