"""Threads that are imported from other savers: official tables, and any saver's public methods."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import sqlalchemy as sa
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from scenarios import SCENARIOS, play
from storing import config

from checkpointer import AsyncSQLAlchemySaver, import_official

SCENARIO = sorted(SCENARIOS)


@asynccontextmanager
async def official(url: str) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    """The official saver for a database that our URL names, with its tables."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        async with AsyncSqliteSaver.from_conn_string(parsed.database or "") as saver:
            await saver.setup()
            yield saver
    else:
        libpq = parsed.set(drivername="postgresql").render_as_string(hide_password=False)
        async with AsyncPostgresSaver.from_conn_string(libpq) as saver:
            await saver.setup()
            yield saver


async def history(saver: BaseCheckpointSaver[Any]) -> list[CheckpointTuple]:
    found = [one async for one in saver.alist(None)]
    return sorted(found, key=lambda one: sorted(one.config["configurable"].items()))


async def play_all(saver) -> None:
    for name in SCENARIO:
        graph = SCENARIOS[name].builder(saver)
        await play(graph, SCENARIOS[name].steps, "sync", config(name))


async def test_official(saver: AsyncSQLAlchemySaver, new_database_url: Callable[[], str]) -> None:
    url = new_database_url()
    async with official(url) as source:
        await play_all(source)
        before = await history(source)
        print(await import_official(url, saver, progress=print))
        print(await import_official(url, saver))
        assert before == await history(saver)
    assert (await saver.averify()).whole
    print(await saver.averify())


async def test_any(saver: AsyncSQLAlchemySaver, new_database_url: Callable[[], str]) -> None:
    url = new_database_url()
    async with official(url) as source:
        await play_all(source)
        before = await history(source)
        print(await saver.aimport_from(source, progress=print))
        print(await saver.aimport_from(source))
        assert before == await history(saver)
    assert (await saver.averify()).whole
