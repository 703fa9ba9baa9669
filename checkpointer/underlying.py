"""The sqlite3 connection inside an aiosqlite connection, and whether its thread runs functions."""

import sqlite3
from dataclasses import dataclass
from functools import cache, partial
from inspect import signature
from threading import get_ident
from typing import Any, Final, cast

from sqlalchemy.pool import PoolProxiedConnection

from checkpointer.errors import DamagedDataError
from checkpointer.owners import note_open_file
from checkpointer.projection import contains_json

_UNDERLYING: Final = "checkpointer_underlying"
"""Where a pooled connection keeps its `Underlying`."""

_PROBE: Final = "checkpointer_probe"
"""The SQL function that tells in which thread statements run."""


@dataclass(frozen=True, slots=True, eq=False)
class Underlying:
    """What is known about a connection of aiosqlite.

    Attributes:
        raw: The sqlite3 connection, whose attributes may be read and set in any thread.
        takes_functions: Whether aiosqlite's private `_execute` runs a function in the thread in
            which the connection's statements run.
    """

    raw: sqlite3.Connection
    takes_functions: bool


def is_implicit(raw: sqlite3.Connection) -> bool:
    """Whether the driver keeps a transaction open all the time, as `autocommit=False` has it."""
    return getattr(raw, "autocommit", None) is False


def in_transaction(raw: sqlite3.Connection) -> bool:
    """Whether a transaction is open; none is on a connection that has ended."""
    try:
        return raw.in_transaction
    except sqlite3.ProgrammingError:
        return False


def underlying(pooled: PoolProxiedConnection, database: str | None) -> Underlying:
    """Look at a connection before its first use, and define our SQL function on it.

    To be called within a greenlet of SQLAlchemy's.

    Args:
        pooled: The connection.
        database: The file's path, as an engine's URL has it.
    """
    known = cast("Underlying | None", pooled.info.get(_UNDERLYING))
    if known is None:
        look = partial(_look, database=database)
        known = pooled.info[_UNDERLYING] = cast("Any", pooled.dbapi_connection).run_async(look)
    return known


async def _look(driver: Any, database: str | None) -> Underlying:
    await driver.create_function("checkpointer_contains", 2, contains_json, deterministic=True)
    async with driver.cursor() as cursor:
        raw = cursor.connection
        takes_functions = await _takes_functions(driver, cursor)
    note_open_file(raw, database)
    return Underlying(raw, takes_functions)


async def _takes_functions(driver: Any, cursor: Any) -> bool:
    """Whether `_execute` runs a function in the thread of the statements, and returns its result.

    aiosqlite has no public way to run a function there.
    """
    threads: list[int] = []
    await driver.create_function(_PROBE, 0, partial(_note_thread, threads))
    await cursor.execute(f"SELECT {_PROBE}()")
    try:
        answer = await driver._execute(partial(_note_thread, threads))  # noqa: SLF001
    except Exception:  # noqa: BLE001 - whatever it is, it is not what we need
        return False
    # Both have run, in one thread, which is not the event loop's.
    return answer == threads[0] and threads == [answer, answer] and answer != get_ident()


def _note_thread(threads: list[int]) -> int:
    threads.append(get_ident())
    return threads[-1]


def give_back(pooled: PoolProxiedConnection) -> None:
    """Give a connection back to its pool, after our transaction on it has ended.

    A reset would be one more hop. It could also be cancelled, which SQLAlchemy logs as an error.
    SQLAlchemy has no public way to leave out the reset for one connection.
    """
    if skips_reset(cast("Any", type(pooled))):
        cast("Any", pooled)._close_special(transaction_reset=True)  # noqa: SLF001
    else:
        pooled.close()


@cache
def skips_reset(kind: type) -> bool:
    """Whether connections of a pool can be given back without a reset."""
    close = getattr(kind, "_close_special", None)
    return callable(close) and "transaction_reset" in signature(close).parameters


def any_text(data: bytes) -> str:
    """Return text from stored bytes, also from damaged bytes that are not UTF-8."""
    return data.decode(errors="surrogateescape")


def reads_damaged(raw: sqlite3.Connection, exc: BaseException | None) -> bool:
    """Whether a statement failed on text that is not UTF-8, and should be run with `any_text`.

    That error comes from the sqlite3 module itself, and has no code. With `any_text`, the other
    rows stay readable, and the code that reads the damaged row says what is wrong with it.
    """
    return (
        isinstance(exc, sqlite3.OperationalError)
        and not hasattr(exc, "sqlite_errorcode")
        and raw.text_factory is str
    )


def no_key(exc: UnicodeEncodeError) -> DamagedDataError:
    """The error that a value cannot be a key. What callers give was checked: this was read."""
    return DamagedDataError(
        f"found the key {exc.object!r} in the database, expected text in UTF-8; restore "
        f"its row from a backup, or delete the thread with adelete_thread"
    )
