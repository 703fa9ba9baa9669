"""What a process holds while a saver works in it, and what the saver stores."""

import asyncio
import gc
import sys
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from typing import Final

import aiosqlite
import psutil
import psycopg
from memory import settle
from rows import SQLITE
from sizes import libpq_of, measure, path_of
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import QueuePool


@dataclass(frozen=True, slots=True)
class Held:
    """What the process holds at one moment.

    Attributes:
        operations: Calls of the saver up to then.
        connections: Open connections to the database.
        stray: Those of them that do not lie in the saver's pool.
        tasks: Tasks of the event loop.
        threads: Threads, but for those that SQLite's connections work in, one each.
        files: Open files, sockets and pipes, but for those of the connections.
        blocks: Blocks of memory that Python's allocator has given out: objects, roughly.
        memory: Resident memory, in bytes.
    """

    operations: int
    connections: int
    stray: int
    tasks: int
    threads: int
    files: int
    blocks: int
    memory: int

    @classmethod
    def most(cls, looks: "Iterable[Held]") -> "Held":
        """The greatest figure of each kind."""
        return cls(*map(max, zip(*map(astuple, looks), strict=True)))


@dataclass(frozen=True, slots=True)
class Stored:
    """What stands in the database: rows of all tables, and bytes."""

    rows: int
    size: int


class Gauge:
    """Looks at this process and at one database.

    Args:
        url: The database.
        engine: The saver's.
        operations: Tells how many calls of the saver there were.
    """

    def __init__(self, url: str, engine: AsyncEngine, operations: Callable[[], int]) -> None:
        self.url = url
        self.engine = engine
        self.operations = operations
        self._process: Final = psutil.Process()

    def look(self) -> Held:
        """What is held now."""
        local = self.engine.dialect.name == SQLITE
        connections = _sqlite_connections() if local else _postgresql_connections(self.url)
        files = self._process.num_fds()
        if local:
            # SQLite keeps the files of closed connections for the next ones, because closing one
            # would give up the locks of all.
            of_database = [one.path for one in self._process.open_files()]
            files -= sum(path.startswith(path_of(self.url)) for path in of_database)
        else:
            files -= connections
        return Held(
            operations=self.operations(),
            connections=connections,
            stray=connections - self._pooled(),
            tasks=len(asyncio.all_tasks()),
            threads=self._process.num_threads() - (connections if local else 0),
            files=files,
            blocks=sys.getallocatedblocks(),
            memory=self._process.memory_info().rss,
        )

    def look_at_rest(self) -> Held:
        """The same once garbage is collected, and freed memory given back."""
        settle()
        return self.look()

    def stored(self) -> Stored:
        """What stands in the database. Nobody may be using it."""
        size, relations = measure(self.url)
        return Stored(sum(one.rows or 0 for one in relations), size)

    def _pooled(self) -> int:
        pool = self.engine.pool
        if not isinstance(pool, QueuePool):
            raise TypeError(
                f"found a {type(pool).__name__}, expected a pool that keeps connections"
            )
        return pool.checkedin()


def _sqlite_connections() -> int:
    return sum(type(one) is aiosqlite.Connection for one in gc.get_objects())


_BACKENDS: Final = """
SELECT count(*) FROM pg_stat_activity
 WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


def _postgresql_connections(url: str) -> int:
    with psycopg.connect(libpq_of(url)) as connection:
        row = connection.execute(_BACKENDS).fetchone()
    return row[0] if row else 0
