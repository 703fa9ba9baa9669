"""Threads that are copied from one store into another, on the same or on another kind of database."""

from collections.abc import Callable
from typing import Any

import pytest
from storing import config, operate, put

from checkpointer import AsyncSQLAlchemySaver, TransferReport, copy_store, create_saver


async def all_of(saver: AsyncSQLAlchemySaver) -> list[Any]:
    return [one async for one in saver.alist(None)]


async def test_a(saver: AsyncSQLAlchemySaver, new_migrated_url: Callable[[], str]) -> None:
    await operate(saver)
    async with create_saver(new_migrated_url()) as target:
        print(await copy_store(saver, target, progress=print))
        print(await copy_store(saver, target))
        assert await all_of(saver) == await all_of(target)
        print(await target.averify())
