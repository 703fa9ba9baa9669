"""A proxy before a PostgreSQL server that delays every byte and counts round trips.

A program of its own, so that it takes nothing from the process that is measured. It listens on
127.0.0.1. Each newline on its standard input is answered with the count; the end of the input ends
it. `Proxy` starts it and asks.

What counts as a round trip: the client sends after the server's last bytes were delivered to it, or
sends for the first time; on each connection by itself. Whatever the client sends before an answer
reaches it belongs to the same round trip, so that a pipeline of statements counts once.
"""

import asyncio
import os
import selectors
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, cast

import sqlalchemy as sa

DELAY: Final = 0.001
"""Seconds on each way: 2 ms a round trip."""


class _Counter:
    """Round trips over all connections."""

    def __init__(self) -> None:
        self.count = 0


class _Way(asyncio.Protocol):
    """One end of a connection: what it receives is delivered to the other end, later."""

    def __init__(self) -> None:
        self.other: _Way | None = None
        self.transport: asyncio.Transport | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def pair(self, other: "_Way") -> None:
        """Name the other end, and pass on what came before it was known."""
        self.other = other
        for data in self._early:
            self.data_received(data)

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self._early.append(data)
        else:
            asyncio.get_running_loop().call_later(DELAY, self.other.deliver, data)

    def deliver(self, data: bytes) -> None:
        """Send on what the other end received."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self.other is not None and self.other.transport is not None:
            asyncio.get_running_loop().call_later(DELAY, self.other.transport.close)


class _Client(_Way):
    """The end towards the client, which counts."""

    def __init__(self, connect: Callable[["_Client"], None], counter: _Counter) -> None:
        super().__init__()
        self._connect = connect
        self._counter = counter
        self._answered = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connect(self)

    def data_received(self, data: bytes) -> None:
        if self._answered:
            self._answered = False
            self._counter.count += 1
        super().data_received(data)

    def deliver(self, data: bytes) -> None:
        self._answered = True
        super().deliver(data)


async def serve(host: str, port: int) -> None:
    """Stand before the server until the standard input ends.

    Args:
        host: Its host, or the directory of its unix socket.
        port: Its port.
    """
    loop = asyncio.get_running_loop()
    counter = _Counter()
    connecting: set[asyncio.Task[None]] = set()

    async def connect(client: _Client) -> None:
        if host.startswith("/"):
            _, server = await loop.create_unix_connection(_Way, f"{host}/.s.PGSQL.{port}")
        else:
            _, server = await loop.create_connection(_Way, host, port)
        server.pair(client)
        client.pair(server)

    def start(client: _Client) -> None:
        task = loop.create_task(connect(client))
        connecting.add(task)
        task.add_done_callback(connecting.discard)

    listening = await loop.create_server(partial(_Client, start, counter), "127.0.0.1", 0)
    ended = asyncio.Event()

    def answer() -> None:
        if os.read(sys.stdin.fileno(), 1):
            print(counter.count, flush=True)
        else:
            ended.set()

    loop.add_reader(sys.stdin.fileno(), answer)
    print(listening.sockets[0].getsockname()[1], flush=True)
    await ended.wait()


class Proxy:
    """A running proxy.

    Args:
        process: It.
        url: The URL that it stands before.
    """

    def __init__(self, process: "subprocess.Popen[str]", url: str) -> None:
        self._process = process
        port = int(self._line())
        behind = sa.make_url(url).difference_update_query(["host", "port"])
        self.url = behind.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)

    def round_trips(self) -> int:
        """Round trips up to now."""
        if self._process.stdin is not None:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        return int(self._line())

    def _line(self) -> str:
        return self._process.stdout.readline() if self._process.stdout is not None else ""


@contextmanager
def proxy(url: str) -> Iterator[Proxy]:
    """Run a proxy before the server of a URL."""
    parsed = sa.make_url(url)
    host = str(parsed.query.get("host") or parsed.host or "127.0.0.1")
    port = str(parsed.query.get("port") or parsed.port or 5432)
    command = [sys.executable, str(Path(__file__).resolve()), host, port]
    with subprocess.Popen(  # noqa: S603 - this file
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Proxy(process, url)


if __name__ == "__main__":
    # epoll waits whole milliseconds; select waits what it is told.
    with asyncio.Runner(
        loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())
    ) as runner:
        runner.run(serve(sys.argv[1], int(sys.argv[2])))
