"""Checkpoints to store, and what to look at once they are stored."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import sqlalchemy as sa
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import Checkpoint, CheckpointMetadata
from schemas import query
from sqlalchemy import event

from checkpointer import AsyncSQLAlchemySaver, tables

TABLES = tuple(tables.metadata.tables)

NOTHING = dict.fromkeys(TABLES, 0)

IGNORED = ("BEGIN", "PRAGMA", "SHOW", "SELECT PG_CATALOG", "SELECT CURRENT_SCHEMA")
"""How statements start that open a transaction, or a connection."""


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
def statements() -> Iterator[list[Statement]]:
    """All statements that run meanwhile, on whichever engine, but for those that open things."""
    seen: list[Statement] = []

    def record(  # noqa: PLR0913, PLR0917 - the event's signature
        connection: sa.Connection,
        cursor: object,
        sql: str,
        parameters: Any,
        context: object,
        executemany: bool,  # noqa: FBT001 - the event's signature
    ) -> None:
        if not sql.upper().lstrip().startswith(IGNORED):
            seen.append(Statement(sql, parameters if executemany else [parameters]))

    event.listen(sa.Engine, "before_cursor_execute", record)
    try:
        yield seen
    finally:
        event.remove(sa.Engine, "before_cursor_execute", record)


def batches(seen: Iterable[Statement]) -> int:
    """How many batches of puts are among the statements: each touches its threads once."""
    return sum("INTO checkpointer_threads" in one.sql for one in seen)
