"""The sqlite3 connection inside an aiosqlite connection, and whether its thread runs functions."""

import sqlite3
from collections.abc import MutableMapping
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

_CONTAINS: Final = "checkpointer_contains"
_PROBE: Final = "checkpointer_probe"
"""The SQL function that tells in which thread statements run."""


@dataclass(frozen=True, slots=True, eq=False)
class Underlying:
    """What is known about a connection of aiosqlite.

    Attributes:
        raw: The sqlite3 connection, whose other attributes may be read and set in any thread.
        takes_functions: Whether aiosqlite's private `_execute` runs a function in the thread in
            which the connection's statements run.
        autocommit: The driver's mode of Python 3.12, which can be read in that thread alone.
    """

    raw: sqlite3.Connection
    takes_functions: bool
    autocommit: object


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
        look = partial(_look, info=pooled.info, database=database)
        known = pooled.info[_UNDERLYING] = cast("Any", pooled.dbapi_connection).run_async(look)
    return known


async def _look(driver: Any, info: MutableMapping[Any, Any], database: str | None) -> Underlying:
    probe: _Probe = info.setdefault(_PROBE, _Probe())
    await _define(driver, info, _CONTAINS, 2, contains_json, deterministic=True)
    await _define(driver, info, _PROBE, 0, probe)
    async with driver.cursor() as cursor:
        probe.raw = raw = cursor.connection
    try:
        await driver.execute_fetchall(f"SELECT {_PROBE}()")  # one hop: no statement stays open
    finally:
        probe.raw = None  # the connection keeps its functions, and would keep itself
    takes_functions = await _takes_functions(driver, probe)
    note_open_file(raw, database)
    return Underlying(raw, takes_functions, probe.autocommit)


class _Probe:
    """Notes in which threads statements run, and what can be read there alone."""

    def __init__(self) -> None:
        self.threads: set[int] = set()
        self.raw: sqlite3.Connection | None = None
        self.autocommit: object = None

    def __call__(self) -> None:
        self.threads.add(get_ident())
        if self.raw is not None:  # another task that shares the connection may have looked already
            self.autocommit = getattr(self.raw, "autocommit", None)


async def _define(
    driver: Any, info: MutableMapping[Any, Any], name: str, *args: Any, **options: Any
) -> None:
    """Define an SQL function once, also where tasks that share a connection look at it together.

    SQLite refuses to define one again while any statement is under way. What another task hands
    over after this comes after it: the thread does one thing after another.
    """
    if info.setdefault((_UNDERLYING, name), mark := object()) is mark:
        await driver.create_function(name, *args, **options)


async def _takes_functions(driver: Any, probe: _Probe) -> bool:
    """Whether `_execute` runs a function in the thread of the statements, and returns its result.

    aiosqlite has no public way to run a function there.
    """
    try:
        answer = await driver._execute(get_ident)  # noqa: SLF001
    except Exception:  # noqa: BLE001 - whatever it is, it is not what we need
        return False
    return probe.threads == {answer} and answer != get_ident()


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
