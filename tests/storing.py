"""Checkpoints to store, and what to look at once they are stored."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import Checkpoint, CheckpointMetadata
from schemas import query

from checkpointer import AsyncSQLAlchemySaver, create_saver, tables
from checkpointer.execution import DriverConnection
from checkpointer.manifest import Value, decode_manifest, decode_value
from checkpointer.slices import Coverage, Layout, Segment, Segments, Slice, slices_of
from checkpointer.wire import WireConnection
from checkpointer.worker import WorkerConnection

LARGE = [f"message {number}: {number * 7919:050}" for number in range(300)]
"""A list that is long enough not to stand in a manifest."""

SENDS = "__pregel_tasks"

TABLES = tuple(tables.metadata.tables)

NOTHING = dict.fromkeys(TABLES, 0)

IGNORED = ("BEGIN", "COMMIT")
"""How statements start that open or end a transaction."""


def config(
    thread_id: object = "a thread", checkpoint_id: str | None = None, *, checkpoint_ns: str = ""
) -> RunnableConfig:
    """The config that names a thread's latest checkpoint, or one of them."""
    configurable = {"thread_id": thread_id, "checkpoint_ns": checkpoint_ns}
    if checkpoint_id is not None:
        configurable["checkpoint_id"] = checkpoint_id
    return {"configurable": configurable}


def checkpoint(checkpoint_id: str, values: dict[str, Any]) -> Checkpoint:
    """A checkpoint with these channel values."""
    return Checkpoint(
        v=4,
        id=checkpoint_id,
        ts="2025-01-01T00:00:00+00:00",
        channel_values=values,
        channel_versions={name: f"{checkpoint_id}.{name}" for name in values},
        versions_seen={},
        updated_channels=None,
    )


async def put(
    saver: AsyncSQLAlchemySaver,
    parent: RunnableConfig,
    checkpoint_id: str,
    metadata: Mapping[str, Any] | None = None,
    **values: Any,
) -> RunnableConfig:
    """Store a checkpoint with these channel values, as a child of what the config names."""
    stored = checkpoint(checkpoint_id, values)
    described = cast("CheckpointMetadata", metadata or {})
    return await saver.aput(parent, stored, described, stored["channel_versions"])


def row_counts(url: str) -> dict[str, int]:
    """How many rows each of our tables has."""
    selects = [f"SELECT '{table}', COUNT(*) FROM {table}" for table in TABLES]
    return {str(name): int(str(count)) for name, count in query(url, " UNION ALL ".join(selects))}


@dataclass(frozen=True)
class Statement:
    """One round trip of SQL.

    Attributes:
        parameters: Those of each execution: more than one where the driver runs it many times.
    """

    sql: str
    parameters: Sequence[Any]


@contextmanager
def statements(before: Callable[[Statement], None] | None = None) -> Iterator[list[Statement]]:
    """All statements that savers send meanwhile to whichever database, but for `BEGIN` and such.

    Args:
        before: Called with each of them before it runs.
    """
    seen: list[Statement] = []

    def record(sql: str, rows: Sequence[Any]) -> None:
        if not sql.upper().lstrip().startswith(IGNORED):
            seen.append(Statement(sql, rows))
            if before is not None:
                before(seen[-1])

    def watched(connection: type[DriverConnection]) -> None:
        run, run_many = connection.run, connection.run_many

        def run_one(self: Any, sql: str, values: Sequence[Any]) -> Any:
            record(sql, [values])
            return run(self, sql, values)

        def run_all(self: Any, sql: str, rows: Iterable[Sequence[Any]]) -> None:
            rows = list(rows)
            record(sql, rows)
            run_many(self, sql, rows)

        patch.setattr(connection, "run", run_one)
        patch.setattr(connection, "run_many", run_all)

    with pytest.MonkeyPatch.context() as patch:
        watched(WireConnection)
        watched(WorkerConnection)
        yield seen


@contextmanager
def sizes_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The bytes of values that each statement read, in order."""
    sizes: list[int] = []
    fetch = DriverConnection.fetch

    def measured(self: DriverConnection, statement: Any, parameters: Any = {}) -> Sequence[Any]:  # noqa: B006 - only read
        found = fetch(self, statement, parameters)
        sizes.append(sum(len(part) for row in found for part in row if isinstance(part, bytes)))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(DriverConnection, "fetch", measured)
        yield sizes


def batches(seen: Iterable[Statement]) -> int:
    """How many batches of puts are among the statements: each asks once what it has touched."""
    return sum("touched" in one.sql for one in seen)


async def operate(saver: AsyncSQLAlchemySaver) -> list[object]:
    """Use all that a saver can do; what it found."""
    random.seed(1)  # versions that a saver makes up have a random part
    found: list[object] = []

    async def look(where: RunnableConfig | None = None, **options: Any) -> None:
        found.append([one async for one in saver.alist(where, **options)])

    parent = await put(saver, config(), "000", {"run_id": "run 0"}, a=LARGE, empty=None)
    for number in range(1, 8):
        await saver.aput_writes(parent, [("a", [*LARGE, number]), ("b", None)], "a task", "path")
        await saver.aput_writes(parent, [("__error__", "x"), (SENDS, number)], "failed")
        metadata = {"run_id": f"run {number}", "step": number, "ü": [None, True, "\N{SNOWMAN}"]}
        parent = await put(saver, parent, f"{number:03}", metadata, b=bytes([number]), n=number)
    await asyncio.gather(*(put(saver, config(n), "1", a=[*LARGE, n]) for n in range(9)))
    inner = config(checkpoint_ns="inner:1")
    await put(saver, inner, "100", {"parents": {"": "000"}}, a=LARGE[::-1])
    old = await put(saver, config("old"), "1")
    await saver.aput_writes(old, [(SENDS, "sent")], "a task")
    stored = {"v": 3, "id": "2", "ts": "", "channel_values": {}, "channel_versions": {}}
    await saver.aput(old, stored, {}, {})  # type: ignore[arg-type]
    async with create_saver(saver.engine, cache_bytes=0) as cold:
        wanted = (config(), config(checkpoint_id="000"), inner, config("none"), config("old"))
        found.extend([await cold.aget_tuple(where) for where in wanted])
        channels = ["a", "b", "never"]
        found.append(await cold.aget_delta_channel_history(config=config(), channels=channels))
        found.append(await cold.aget_delta_channel_history(config=parent, channels=channels))
    await look(config(), limit=3)
    await look(filter={"step": 3})
    await look({"configurable": {"thread_id": "a thread"}}, before=config(checkpoint_id="005"))
    await saver.acopy_thread("a thread", "copy")
    await saver.adelete_for_runs(["run 2", "run 3", "none"])
    await saver.aprune(["copy", "old"])
    await saver.aprune(["3"], strategy="delete")
    await saver.adelete_thread("4")
    await saver.adelete_for_runs(["run 0", "run 1", *(f"run {n}" for n in range(4, 8))])
    await look()
    return found


STORED = (
    "SELECT * FROM checkpointer_checkpoints ORDER BY 1, 2, 3",
    "SELECT * FROM checkpointer_writes ORDER BY 1, 2, 3, 4, 5",
    "SELECT * FROM checkpointer_segments ORDER BY 1, 2, 3",
    "SELECT thread_id FROM checkpointer_threads ORDER BY 1",
)


def stored_rows(url: str) -> list[object]:
    """All rows of our tables as they are, but for the threads' states and times."""
    return [query(url, statement) for statement in STORED]


def stored_contents(url: str) -> list[object]:
    """What stands in our tables, but for what is random or tells the time."""
    return contents(lambda sql: query(url, sql))


def contents(rows_of: Callable[[str], Any], thread_id: str | None = None) -> list[object]:
    """What rows hold, but for what is random or tells the time.

    Long values as their bytes: the numbers of streams are random.

    Args:
        rows_of: The rows of a query.
        thread_id: This thread alone.
    """
    where = "" if thread_id is None else f" WHERE thread_id = '{thread_id}'"
    threads = rows_of(f"SELECT thread_id FROM checkpointer_threads{where} ORDER BY 1")
    segments = defaultdict[str, list[Segment]](list)
    for thread, stream, start, stop, data in rows_of(f"SELECT * FROM checkpointer_segments{where}"):
        segments[thread].append(Segment(stream, start, stop, bytes(data)))

    def whole(thread: str, value: Value) -> tuple[str, bytes]:
        content = value.content
        if isinstance(content, Layout):
            return value.type, Segments(segments[thread]).join(content)[0]
        return value.type, content

    checkpoints = []
    for *others, data in rows_of(f"SELECT * FROM checkpointer_checkpoints{where} ORDER BY 1, 2, 3"):
        found = decode_manifest(bytes(data))
        values = [whole(others[0], one) for one in found.values()]
        checkpoints.append((*others, found.version, [*found.channels], values))
    written = [
        (*row[:7], row[8], whole(row[0], decode_value(bytes(row[7]))))
        for row in rows_of(f"SELECT * FROM checkpointer_writes{where} ORDER BY 1, 2, 3, 4, 5")
    ]
    return [threads, checkpoints, written]


def stored_bytes(url: str) -> dict[tuple[str, int], list[tuple[int, int]]]:
    """Which bytes of each stream are stored, told from the rows alone."""
    found = defaultdict[str, Coverage](Coverage)
    rows: Any = query(url, "SELECT thread_id, stream_id, start, stop FROM checkpointer_segments")
    for thread, stream, start, stop in rows:
        found[thread].add([Slice(stream, start, stop)])
    return _intervals(found)


def named_bytes(url: str) -> dict[tuple[str, int], list[tuple[int, int]]]:
    """Which bytes of each stream manifests and pending writes name."""
    found = defaultdict[str, Coverage](Coverage)
    rows: Any = query(url, "SELECT thread_id, manifest FROM checkpointer_checkpoints")
    for thread, data in rows:
        found[thread].add(slices_of(decode_manifest(bytes(data)).layouts()))
    rows = query(url, "SELECT thread_id, data FROM checkpointer_writes")
    for thread, data in rows:
        layout = decode_value(bytes(data)).layout()
        found[thread].add(layout.slices() if layout is not None else ())
    return _intervals(found)


def _intervals(
    found: Mapping[str, Coverage],
) -> dict[tuple[str, int], list[tuple[int, int]]]:
    return {
        (thread, stream): coverage.merged(stream)
        for thread, coverage in found.items()
        for stream in coverage.intervals
    }


def assert_no_garbage(url: str) -> None:
    """All bytes that are named are stored, and all that are stored are named."""
    assert stored_bytes(url) == named_bytes(url)


def assert_all_stored(url: str) -> None:
    """All bytes that are named are stored."""
    stored = stored_bytes(url)
    for key, intervals in named_bytes(url).items():
        for start, stop in intervals:
            assert any(a <= start and stop <= b for a, b in stored.get(key, ()))
