"""The official savers on databases that URLs of ours name, and their tables of older releases."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import sqlalchemy as sa
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from schemas import execute


def is_file(url: str) -> bool:
    return sa.make_url(url).get_backend_name() == "sqlite"


@asynccontextmanager
async def official(url: str, serde: Any = None) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    """The official saver, with its tables."""
    parsed = sa.make_url(url)
    saver: AsyncSqliteSaver | AsyncPostgresSaver
    if is_file(url):
        async with AsyncSqliteSaver.from_conn_string(parsed.database or "") as saver:
            saver.serde = serde or saver.serde
            await saver.setup()
            yield saver
    else:
        libpq = parsed.set(drivername="postgresql").render_as_string(hide_password=False)
        async with AsyncPostgresSaver.from_conn_string(libpq, serde=serde) as saver:
            await saver.setup()
            yield saver


async def history(saver: BaseCheckpointSaver[Any]) -> list[CheckpointTuple]:
    """All that a saver lists, in an order that does not depend on it."""
    found = [one async for one in saver.alist(None)]
    return sorted(found, key=lambda one: sorted(one.config.get("configurable", {}).items()))


def writes_of(url: str) -> str:
    """The name of the table of writes."""
    return "writes" if is_file(url) else "checkpoint_writes"


def undo_task_path(url: str) -> None:
    """Make the tables those of releases from before tasks had paths."""
    execute(url, f"ALTER TABLE {writes_of(url)} DROP COLUMN task_path")
    if not is_file(url):
        execute(url, "DELETE FROM checkpoint_migrations WHERE v >= 9")
