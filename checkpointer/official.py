"""The tables of the official savers, langgraph-checkpoint-postgres and -sqlite, as they are.

Functions of a layout are units of work on a given connection. Values stay what the official saver's
serde made of them, `(type tag, bytes)`: nothing is loaded here.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from checkpointer.dialect import Dialect
from checkpointer.errors import DamagedDataError
from checkpointer.execution import Connection
from checkpointer.moving import CheckpointKey, WriteKey
from checkpointer.predicates import KEY, any_key, keys, same
from checkpointer.queries import threads_of
from checkpointer.quoting import quoted

CHECKPOINTS: Final = "checkpoints"

CHECKPOINT: Final = (*KEY, "parent_checkpoint_id", "checkpoint", "metadata")


@dataclass(frozen=True, slots=True)
class Carried:
    """A value as a serde made it, that goes on as it is."""

    type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class OfficialCheckpoint:
    """One checkpoint.

    Attributes:
        parent: The id of its parent.
        document: The whole checkpoint; or without its long values, as a dict.
        values: Those of its channels' values that stand by themselves.
        metadata: The metadata.
    """

    checkpoint_ns: str
    checkpoint_id: str
    parent: str | None
    document: Carried | dict[str, Any]
    values: Mapping[str, Carried]
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class OfficialWrite:
    """One pending write."""

    checkpoint_ns: str
    checkpoint_id: str
    task_id: str
    task_path: str
    idx: int
    channel: str
    value: Carried


@dataclass(frozen=True, slots=True)
class Contents:
    """What one thread holds, at one moment."""

    checkpoints: frozenset[CheckpointKey]
    writes: frozenset[WriteKey]


class Layout(ABC):
    """How one of the packages has laid its tables out.

    Args:
        dialect: The kind of database that they stand in.
        schema: Where they stand there, unless in the usual place.
        columns: The columns that were found, by table.
    """

    def __init__(
        self, dialect: Dialect, schema: str | None, columns: Mapping[str, Collection[str]]
    ) -> None:
        self.dialect = dialect
        self.tables = {
            name: sa.table(name, *map(_column, sorted(found)), schema=schema)
            for name, found in columns.items()
        }
        self._checkpoints = self.tables[CHECKPOINTS]
        named = [self._checkpoints, self._writes]
        self._first = threads_of(named, cursor=False)
        self._after = threads_of(named, cursor=True)
        count = sa.union(*(sa.select(table.c.thread_id) for table in named)).subquery()
        self._count = sa.select(sa.func.count().label("threads")).select_from(count)
        self._checkpoint_keys = sa.select(
            self._checkpoints.c.checkpoint_ns, self._checkpoints.c.checkpoint_id
        ).where(same(self._checkpoints, "thread_id"))
        w = self._writes.c
        of_key = (w.checkpoint_ns, w.checkpoint_id, w.task_id, w.idx)
        self._write_keys = sa.select(*of_key).where(same(self._writes, "thread_id"))
        path = w.task_path if "task_path" in w else sa.literal("", sa.Text)
        row = (*of_key, path.label("task_path"), w.channel, w.type, self._value.label("value"))
        where = any_key(dialect, self._writes)
        self._writes_of = sa.select(*row).where(*where)
        size = sa.func.coalesce(sa.func.sum(sa.func.length(self._value)), 0).label("size")
        self._write_sizes = (
            sa.select(w.checkpoint_ns, w.checkpoint_id, size)
            .where(*where)
            .group_by(w.checkpoint_ns, w.checkpoint_id)
        )

    @property
    @abstractmethod
    def _writes(self) -> sa.TableClause:
        """The table of writes."""

    @property
    @abstractmethod
    def _value(self) -> sa.ColumnElement[Any]:
        """Its column of values."""

    @abstractmethod
    def sizes(
        self, connection: Connection, thread_id: str, some: Sequence[CheckpointKey]
    ) -> dict[CheckpointKey, int]:
        """The bytes of some checkpoints' values, about; without those that are gone."""

    @abstractmethod
    def checkpoints(
        self, connection: Connection, thread_id: str, some: Sequence[CheckpointKey]
    ) -> list[OfficialCheckpoint]:
        """Some checkpoints, from one snapshot, without those that are gone.

        Raises:
            DamagedDataError: One of them cannot be read.
        """

    def threads_after(self, connection: Connection, thread_id: str | None, limit: int) -> list[str]:
        """A page of the ids of threads, in the database's order."""
        if thread_id is None:
            rows = connection.fetch(self._first, {"limit": limit})
        else:
            rows = connection.fetch(self._after, {"limit": limit, "after_thread_id": thread_id})
        return [row.thread_id for row in rows]

    def count_threads(self, connection: Connection) -> int:
        """How many threads there are."""
        [row] = connection.fetch(self._count)
        return int(row.threads)

    def contents(self, connection: Connection, thread_id: str) -> Contents:
        """What a thread holds, from one snapshot, without the values."""
        given = {"thread_id": thread_id}
        return Contents(
            frozenset(map(tuple, connection.fetch(self._checkpoint_keys, given))),
            frozenset(map(tuple, connection.fetch(self._write_keys, given))),
        )

    def write_sizes(
        self, connection: Connection, thread_id: str, some: Collection[CheckpointKey]
    ) -> dict[CheckpointKey, int]:
        """The bytes of some checkpoints' writes; without those that have none."""
        rows = connection.fetch(self._write_sizes, keys_of(thread_id, some))
        return {(row.checkpoint_ns, row.checkpoint_id): int(row.size) for row in rows}

    def writes(
        self, connection: Connection, thread_id: str, some: Collection[CheckpointKey]
    ) -> list[OfficialWrite]:
        """All writes of some checkpoints, and perhaps of others.

        Raises:
            DamagedDataError: One of them cannot be read.
        """
        return [*map(_write, connection.fetch(self._writes_of, keys_of(thread_id, some)))]


def _column(name: str) -> sa.ColumnClause[Any]:
    texts = {*KEY, "parent_checkpoint_id", "task_id", "task_path", "channel", "version", "type"}
    return sa.column(name, sa.Text()) if name in texts else sa.column(name)


def keys_of(thread_id: str, some: Iterable[CheckpointKey]) -> dict[str, Any]:
    """The parameters of `any_key` for some checkpoints of a thread."""
    return keys((thread_id, *key) for key in some)


def _write(row: Any) -> OfficialWrite:
    value = carried(row, row.type, row.value, f"the write of task {quoted(row.task_id)}")
    return OfficialWrite(
        row.checkpoint_ns,
        row.checkpoint_id,
        row.task_id,
        row.task_path or "",
        row.idx,
        row.channel,
        value,
    )


def carried(row: Any, type_: object, data: object, what: str) -> Carried:
    """A stored value; `None` where neither its type nor its bytes are there.

    Raises:
        DamagedDataError: One of both is missing, or it consists of something else.
    """
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogateescape")
    if type_ in {None, "null"} and not data:
        return Carried("null", b"")
    if isinstance(type_, str) and isinstance(data, bytes):
        return Carried(type_, data)
    raise _unreadable(row, what, f"the type {quoted(type_)} beside {quoted(data)}")


def json_object(row: Any, data: object, what: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DamagedDataError: It is none.
    """
    try:
        found = json.loads(data) if isinstance(data, str | bytes) else data
    except (ValueError, RecursionError) as exc:
        raise _unreadable(row, what, f"what is no JSON ({exc})") from exc
    if not isinstance(found, dict):
        raise _unreadable(row, what, f"{quoted(found)}, which is no JSON object")
    return found


def _unreadable(row: Any, what: str, found: str) -> DamagedDataError:
    return DamagedDataError(
        f"namespace {quoted(row.checkpoint_ns)}, checkpoint {quoted(row.checkpoint_id)}, {what}: "
        f"found {found}, expected what an official saver stores; mend or delete the row"
    )
