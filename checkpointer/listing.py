"""Checkpoints of a list, page by page, with no connection held in between."""

from collections.abc import AsyncGenerator, Mapping
from functools import partial
from typing import Any, Final

from checkpointer.backend import Backend
from checkpointer.records import StoredCheckpoint

FIRST_PAGE: Final = 16
LAST_PAGE: Final = 128
"""Checkpoints that are read at once: few at first, because many callers stop early."""


async def checkpoints(
    backend: Backend, conditions: Mapping[str, Any], limit: int | None, sends_channel: str
) -> AsyncGenerator[StoredCheckpoint, None]:
    """The checkpoints that meet the conditions, newest first.

    Args:
        backend: Where to read.
        conditions: Parameters of `Queries.page`; those that are there say which conditions hold.
        limit: At most so many, or all.
        sends_channel: The channel of pending sends.
    """
    queries = backend.store.queries
    parameters = dict(conditions)
    left = limit
    size = FIRST_PAGE
    while left is None or left > 0:
        parameters["limit"] = size if left is None else min(size, left)
        statement = queries.page(
            thread="thread_id" in parameters,
            namespace="checkpoint_ns" in parameters,
            checkpoint="checkpoint_id" in parameters,
            before="before" in parameters,
            metadata="filter" in parameters,
            cursor="after_thread_id" in parameters,
        )
        work = partial(backend.store.page, statement=statement, parameters=parameters)
        page, more = await backend.read_snapshot(partial(work, sends_channel=sends_channel))
        for stored in page:
            yield stored
        if not more:
            return
        for column in ("thread_id", "checkpoint_ns", "checkpoint_id"):
            parameters[f"after_{column}"] = getattr(page[-1], column)
        left = None if left is None else left - len(page)
        size = min(size * 2, LAST_PAGE)
