"""What belongs to one event loop or process: pools of connections, and open files of SQLite."""

import asyncio
import os
import sqlite3
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary, ref

import sqlalchemy as sa
from sqlalchemy.pool import NullPool, Pool, QueuePool

from checkpointer.errors import EventLoopError

Loop = asyncio.AbstractEventLoop

_pools: Final = WeakKeyDictionary[Pool, tuple[int, ref[Loop]]]()
"""The process and the event loop that use a pool."""

_open_files: Final[list["OpenFile"]] = []
_imported_by: Final = os.getpid()


def claim_pool(engine: sa.Engine, loop: Loop) -> None:
    """Take an engine's pool for an event loop of this process.

    SQLAlchemy's pools of async connections keep locks and queues of asyncio. A loop that waits
    there is not woken by another one, and would wait for ever.

    Raises:
        EventLoopError: Another loop uses the pool, or the process was forked since.
    """
    pool = engine.pool
    if isinstance(pool, NullPool):  # keeps nothing
        return
    pid, owner = _pools.setdefault(pool, (os.getpid(), ref(loop)))
    if pid != os.getpid():
        raise EventLoopError(
            f"found an engine that a saver of process {pid} has used in its fork {os.getpid()}, "
            f"expected one engine per process; make it after the fork, or call "
            f"engine.sync_engine.dispose(close=False) in the fork first"
        )
    if owner() is not loop and isinstance(pool, QueuePool):
        raise EventLoopError(
            "found an engine that a saver of another event loop has used, expected one engine per "
            "event loop; make another, give it poolclass=NullPool, or `await engine.dispose()` "
            "before its first loop ends"
        )


@dataclass(frozen=True, eq=False)
class OpenFile:
    """A file that a connection of this process, or of one that it was forked from, has opened."""

    pid: int
    identity: tuple[int, int]
    connection: sqlite3.Connection

    def is_open(self) -> bool:
        """Whether the connection has not been closed. One that is only forgotten stays open."""
        try:
            return self.connection.total_changes >= 0
        except sqlite3.ProgrammingError:
            return False


def note_open_file(connection: sqlite3.Connection, database: str | None) -> None:
    """Remember a connection's file until it is closed.

    Args:
        connection: The connection.
        database: The file's path, as an engine's URL has it.
    """
    # Without a lock, which a fork might find held for ever: each step is whole by itself.
    for one in tuple(_open_files):
        if not one.is_open():
            with suppress(ValueError):  # another thread was faster
                _open_files.remove(one)
    if (identity := _identity(database)) is not None:
        _open_files.append(OpenFile(os.getpid(), identity, connection))


def check_not_inherited(database: str | None) -> None:
    """Refuse a file of SQLite that was open when this process was forked.

    Locks of a file end with a fork, and SQLite does not notice: the parent would find the file
    unused when it closes its last connection, and delete the log that the fork still writes to.

    Raises:
        EventLoopError: It was.
    """
    if os.getpid() == _imported_by:
        return
    inherited = [one for one in tuple(_open_files) if one.pid != os.getpid() and one.is_open()]
    identity = _identity(database) if inherited else None
    for one in inherited:
        if one.identity == identity:
            raise EventLoopError(
                f"found the SQLite file {database}, which process {one.pid} had open when it was "
                f"forked into process {os.getpid()}, expected a file that each process opens for "
                f"itself, because its locks end with a fork; close savers before the fork, or "
                f"start processes by multiprocessing's 'spawn' or 'forkserver'"
            )


def _identity(database: str | None) -> tuple[int, int] | None:
    """What tells a file from all others, as SQLite does; `None` for a database in memory."""
    try:
        found = Path((database or ":memory:").removeprefix("file:")).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
