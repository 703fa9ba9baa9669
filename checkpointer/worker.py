"""A whole transaction inside the worker thread of an aiosqlite connection, in one hop.

The stock dialect hops to that thread three to four times a statement. In one hop, a transaction is
also whole on a connection that others share, as those of an in-memory database do.
"""

import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy import exc as sa_exc
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import StaticPool
from sqlalchemy.util import greenlet_spawn

from checkpointer.errors import DatabaseError
from checkpointer.projection import contains_json

T = TypeVar("T")


async def run_in_worker(engine: AsyncEngine, work: Callable[[sa.Connection], T], begin: str) -> T:
    """Run work in one transaction on one of the engine's connections.

    Args:
        engine: An engine of aiosqlite.
        work: Gets a plain connection, on which a transaction is open.
        begin: The statement that opens it.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: The database refused or failed.
        DatabaseError: Someone else has a transaction open on the connection.
    """
    try:
        fairy = await engine.raw_connection()
    except sqlite3.Error as exc:
        raise sa_exc.OperationalError("connect", None, exc) from exc
    try:
        driver = cast("Any", fairy.driver_connection)

        def transact() -> T:
            worker = fairy.info.get("checkpointer_worker")
            if worker is None:
                worker = fairy.info["checkpointer_worker"] = _Worker(driver._conn)  # noqa: SLF001
            return worker.transact(begin, work)

        # aiosqlite has no public way to run a function in its thread; SQLAlchemy's dialect
        # reaches for the same queue.
        return cast("T", await driver._execute(transact))  # noqa: SLF001
    finally:
        await greenlet_spawn(fairy.close)


class _Worker:
    """A plain connection over one open sqlite3 connection, for use inside its thread."""

    def __init__(self, raw: sqlite3.Connection) -> None:
        raw.create_function("checkpointer_contains", 2, contains_json, deterministic=True)
        engine = sa.create_engine(
            "sqlite://",
            creator=lambda: raw,
            poolclass=StaticPool,
            pool_reset_on_return=None,
            hide_parameters=True,
        )
        self._raw = raw
        self._connection = engine.connect()

    def transact(self, begin: str, work: Callable[[sa.Connection], T]) -> T:
        """Run work in a transaction opened by `begin`; none stays open, whatever fails."""
        with _driver_autocommit(self._raw):
            try:
                self._raw.execute(begin)
            except sqlite3.Error as exc:
                raise sa_exc.OperationalError(begin, None, exc) from exc
            try:
                with self._connection.begin():
                    return work(self._connection)
            except BaseException:
                # SQLAlchemy sends no ROLLBACK after a COMMIT that failed.
                if self._raw.in_transaction:
                    self._raw.rollback()
                raise


@contextmanager
def _driver_autocommit(raw: sqlite3.Connection) -> Iterator[None]:
    """Keep the driver from opening and closing transactions by itself, as its legacy mode does.

    Raises:
        DatabaseError: Someone else has a transaction open on the connection.
    """
    settings: dict[str, Any] = {"isolation_level": None}
    if sys.version_info >= (3, 12):
        settings["autocommit"] = sqlite3.LEGACY_TRANSACTION_CONTROL
    legacy = getattr(raw, "autocommit", None) in {None, settings.get("autocommit")}
    if legacy and raw.in_transaction:
        # Changing the mode would commit it.
        raise DatabaseError(
            "found a transaction of the application's on the SQLite connection, expected one that "
            "is free; give the saver an engine of its own, or one whose pool has more connections"
        )
    before = {name: getattr(raw, name) for name in settings}
    for name in reversed(settings):
        if before[name] != settings[name]:
            setattr(raw, name, settings[name])
    try:
        yield
    finally:
        for name, value in before.items():
            if value != settings[name]:
                setattr(raw, name, value)
