"""What a driver's error means, told by SQLSTATE, SQLite's code or class, never by its text."""

import sqlite3
from enum import Enum
from ssl import SSLCertVerificationError
from typing import Final

from sqlalchemy import exc as sa_exc

from checkpointer.errors import DatabaseBusyError, DatabaseError, DatabaseUnavailableError


class Fault(Enum):
    """What has happened. After the first two, the same transaction may be run again."""

    AWAY = "cannot be reached"
    BUSY = "is held by others"
    REFUSED = "refused"


_ERRORS: Final[dict[Fault, type[DatabaseError]]] = {
    Fault.AWAY: DatabaseUnavailableError,
    Fault.BUSY: DatabaseBusyError,
    Fault.REFUSED: DatabaseError,
}

_AWAY_STATES: Final = ("08", "57P")
"""Classes of SQLSTATE: connection exceptions, and a server that shuts down or starts."""

_BUSY_STATES: Final = {
    "40001",  # serialization_failure
    "40P01",  # deadlock_detected
    "53300",  # too_many_connections
    "55P03",  # lock_not_available
}
_BUSY_CODES: Final = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}

_READ_ONLY: Final = "25006"
_DAMAGE_STATES: Final = {
    "58030",  # io_error
    "XX001",  # data_corrupted
    "XX002",  # index_corrupted
}
_DAMAGE_CODES: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOTADB}

_POOLER_MEND: Final = (
    "a pooler lends each transaction another connection of the server: pass the saver the URL "
    "instead of an engine, or give create_async_engine connect_args={'statement_cache_size': 0} "
    "(asyncpg) or connect_args={'prepare_threshold': None} (psycopg)"
)

_AWAY_MEND: Final = (
    "see that the server runs, and check the URL's host and port; with psycopg, which does not "
    "tell them apart, also its database, user and password"
)

_STATE_MENDS: Final = {
    "26000": _POOLER_MEND,  # invalid_sql_statement_name
    "42P05": _POOLER_MEND,  # duplicate_prepared_statement
    _READ_ONLY: "it only reads: writing needs the primary server, and a role whose transactions "
    "are not read-only",
    "28000": "check the URL's user, and what the server's pg_hba.conf lets in",
    "28P01": "check the URL's user and password; special characters of a password are "
    "percent-encoded",
    "3D000": "create the database, or correct its name in the URL",
    "42501": "GRANT the URL's role USAGE on the schema, and SELECT, INSERT, UPDATE and DELETE on "
    "the tables checkpointer_*; reading needs only SELECT, and an upgrade CREATE on the schema, "
    "or on the database to make a schema that is missing",
    "42P01": "run: checkpointer upgrade (with the saver's --schema, if it has one)",
    "53100": "free space on the server's disk; nothing was stored",
    "57014": "raise the server's or the role's statement_timeout",
}

_CODE_MENDS: Final = {
    sqlite3.SQLITE_CANTOPEN: "create the file's directory, and let this process write in it; a "
    "file in a directory that cannot be written is read by "
    "sqlite:///file:PATH?mode=ro&immutable=1&uri=true",
    sqlite3.SQLITE_CORRUPT: "restore the file from a backup",
    sqlite3.SQLITE_FULL: "free space on the disk; nothing was stored",
    sqlite3.SQLITE_IOERR: "look at the disk's state and free space; nothing was stored",
    sqlite3.SQLITE_NOTADB: "the URL names a file of another kind",
    sqlite3.SQLITE_READONLY: "let this process write to the file and to its directory; "
    "what cannot be written is read as it is, or by "
    "sqlite:///file:PATH?mode=ro&immutable=1&uri=true where the directory cannot be written either",
}


def fault_of(exc: Exception) -> Fault:
    """What an error of SQLAlchemy, of a driver or of the operating system means."""
    if isinstance(exc, sa_exc.TimeoutError):  # no connection of the pool became free
        return Fault.BUSY
    error = _original(exc)
    if (code := _sqlite_code(error)) is not None:
        return Fault.BUSY if code in _BUSY_CODES else Fault.REFUSED
    if isinstance(exc, sa_exc.DBAPIError) and exc.connection_invalidated:
        return Fault.AWAY
    if state := _state(error):
        if state in _BUSY_STATES:
            return Fault.BUSY
        return Fault.AWAY if state.startswith(_AWAY_STATES) else Fault.REFUSED
    # What fails before a server could name a state: a socket, or psycopg's connecting.
    lost = isinstance(error, OSError) or isinstance(exc, sa_exc.OperationalError)
    lost = lost and not isinstance(error, SSLCertVerificationError)
    return Fault.AWAY if lost else Fault.REFUSED


def needs_new_connections(exc: Exception) -> bool:
    """Whether connections made before the error are of no more use.

    They are lost, or lead to a server that was a primary once and only reads now.
    """
    return fault_of(exc) is Fault.AWAY or _state(_original(exc)) == _READ_ONLY


def means_damage(error: DatabaseError) -> bool:
    """Whether an error of ours says that stored rows cannot be read any more."""
    cause = error.__cause__
    original = _original(cause) if isinstance(cause, Exception) else error
    return _state(original) in _DAMAGE_STATES or _sqlite_code(original) in _DAMAGE_CODES


def status_of(error: DatabaseError) -> str:
    """The SQLSTATE or SQLite's result code of what an error of ours was made from, or nothing."""
    cause = error.__cause__
    original = _original(cause) if isinstance(cause, Exception) else error
    code = _sqlite_code(original)
    return _state(original) if code is None else str(code)


def translated(exc: Exception, where: str) -> DatabaseError:
    """An error of ours for one of SQLAlchemy, of a driver or of the operating system.

    Args:
        exc: The error.
        where: The database's URL, without secrets.
    """
    fault, error = fault_of(exc), _original(exc)
    mend = _mend(error)
    if fault is Fault.AWAY and not _state(error) and not isinstance(error, TimeoutError):
        mend = _AWAY_MEND
    reason = f"{type(error).__name__}: {error}"
    return _ERRORS[fault](
        f"the database {where} {fault.value}: {reason}{'; ' if mend else ''}{mend}"
    )


def _original(exc: Exception) -> BaseException:
    """The driver's own error."""
    return (exc.orig if isinstance(exc, sa_exc.DBAPIError) else None) or exc


def _mend(error: BaseException) -> str:
    if (code := _sqlite_code(error)) is not None:
        return _CODE_MENDS.get(code, "")
    return _STATE_MENDS.get(_state(error), "")


def _sqlite_code(error: BaseException) -> int | None:
    """SQLite's primary result code."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _state(error: BaseException) -> str:
    return str(getattr(error, "sqlstate", None) or "")
