"""`open_saver`: what an Agent Server's `langgraph.json` names as its checkpointer."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from checkpointer.factory import create_saver
from checkpointer.saver import AsyncSQLAlchemySaver


@asynccontextmanager
async def open_saver() -> AsyncIterator[AsyncSQLAlchemySaver]:
    """A saver for a LangGraph Agent Server, open from the server's start to its end.

    In `langgraph.json`: `"checkpointer": {"path": "checkpointer.open_saver"}`. The environment's
    `CHECKPOINTER_URL` names the database. A SQLite file is brought up to date here; on PostgreSQL
    the deploy runs `checkpointer upgrade` before.

    Raises:
        ConfigurationError: The URL cannot work.
        DatabaseError: The database refused, or did not answer in time.
        SchemaError: It does not have the schema that this version needs.
    """
    async with create_saver() as saver:
        # Looks for no thread: a server that cannot use its database should not start.
        await saver.aget_tuple({"configurable": {"thread_id": ""}})
        yield saver
