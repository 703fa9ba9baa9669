"""The replacement of connections that were made before the database was lost."""

import time
import weakref
from functools import partial
from typing import Any, Final

from sqlalchemy import event
from sqlalchemy import exc as sa_exc
from sqlalchemy.pool import ConnectionPoolEntry, Pool, StaticPool

_CONNECTED: Final = "checkpointer_connected"
"""Key of the time when a pooled connection was made. Those before the first renewal have none."""

_renewed: Final = weakref.WeakKeyDictionary[Pool, float]()
"""When each pool was renewed last. Older connections are outdated."""


def renew(pool: Pool) -> None:
    """Make a pool replace all connections that it has, each before its next use.

    SQLAlchemy does this itself when it finds a lost connection, but has no public name for it. By
    public events, the pool's own ping and other listeners still meet a lost connection first.
    """
    if isinstance(pool, StaticPool):  # its only connection may be the database itself
        return
    first = pool not in _renewed
    _renewed[pool] = time.time()
    invalidate = getattr(pool, "_invalidate", None)
    if callable(invalidate):
        invalidate(None)
    elif first:
        event.listen(pool, "connect", _connected)
        event.listen(pool, "checkout", partial(_checked_out, weakref.ref(pool)), insert=True)


def is_outdated(pool: Pool, record: ConnectionPoolEntry) -> bool:
    """Whether a connection is from before its pool was renewed."""
    connected = record.info.get(_CONNECTED) or getattr(record, "last_connect_time", None)
    return float(connected or 0) < _renewed.get(pool, 0)


def _connected(connection: Any, record: ConnectionPoolEntry) -> None:
    del connection
    record.info[_CONNECTED] = time.time()


def _checked_out(
    pool: weakref.ref[Pool], connection: Any, record: ConnectionPoolEntry, proxied: object
) -> None:
    del connection, proxied
    renewed = pool()
    if renewed is not None and is_outdated(renewed, record):
        raise sa_exc.DisconnectionError  # SQLAlchemy makes another one
