"""The wait for an answer of the server, where the event loop is blocked meanwhile."""

import asyncio
import socket
import time

import pytest

from checkpointer.limits import Limit


async def test_an_answer_that_came_while_the_loop_was_blocked_is_taken() -> None:
    server, client = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=client)

    async def ask() -> bytes:
        async with Limit(0.3) as limit:
            limit.extend()
            return await reader.read(1)

    asking = asyncio.create_task(ask())
    await asyncio.sleep(0)
    server.send(b"x")
    time.sleep(0.6)  # a node that blocks the event loop for longer than an answer may take

    assert await asking == b"x"
    writer.close()
    server.close()


async def test_no_answer_is_an_error_though_the_loop_was_blocked() -> None:
    async def ask() -> None:
        async with Limit(0.3) as limit:
            limit.extend()
            await asyncio.Event().wait()

    asking = asyncio.create_task(ask())
    await asyncio.sleep(0)
    time.sleep(0.6)

    with pytest.raises(TimeoutError, match=r"no answer within 0\.3 s"):
        await asking


async def test_each_answer_begins_the_wait_anew_and_the_end_ends_it() -> None:
    async with Limit(2) as limit:
        for _ in range(3):
            limit.extend()
            await asyncio.sleep(0.8)
    await asyncio.sleep(2.2)  # nothing cuts off what comes after
