"""The errors that this package raises, one tree under `CheckpointerError`.

```
CheckpointerError
├── ConfigurationError (ValueError)   a URL, an engine or an option that cannot work
│   └── DriverError                   the URL's database driver is missing, unknown or not async
├── InvalidInputError (ValueError)    an argument that cannot be stored or asked for
│   ├── InvalidFilterError            a metadata filter that is not a JSON object
│   └── UnknownThreadError            a thread that is named and not there
├── UsageError (RuntimeError)         the saver is called where it cannot answer
│   ├── SaverClosedError              ... after `aclose()`
│   ├── SyncCallError                 ... with a sync method, from its own event loop
│   └── EventLoopError                ... from another event loop or process than its own
├── SchemaError                       the database does not have the schema that this version needs
│   ├── SchemaMissingError            ... it has none of our tables
│   ├── SchemaOutdatedError           ... an older revision
│   └── SchemaTooNewError             ... a revision that this version does not know
├── SerializationError                the serde could not dump or load a value
├── DamagedDataError                  a stored row does not hold what was written
├── SourceError                       another saver, which is imported from, failed
├── TransferError                     some threads could not be moved; all others were
└── DatabaseError                     the database refused or failed
    └── DatabaseUnavailableError      ... it could not be reached, or the connection was lost
        └── DatabaseBusyError         ... others held it for longer than the saver waits
```

Each message names what was found, what was expected and what mends it.
"""

from collections.abc import Mapping
from typing import Any


class CheckpointerError(Exception):
    """The base of every error that this package raises on purpose."""


class ConfigurationError(CheckpointerError, ValueError):
    """A URL, an engine or an option cannot work."""


class DriverError(ConfigurationError):
    """The URL's database driver is missing, unknown or not async."""


class InvalidInputError(CheckpointerError, ValueError):
    """An argument cannot be stored or asked for. Nothing was stored."""


class InvalidFilterError(InvalidInputError):
    """A metadata filter is not a JSON object."""


class UnknownThreadError(InvalidInputError):
    """A thread is named and not there."""


class UsageError(CheckpointerError, RuntimeError):
    """The saver is called where it cannot answer."""


class SaverClosedError(UsageError):
    """The saver was closed."""


class SyncCallError(UsageError):
    """A sync method was called from the saver's own event loop, where it would wait for itself."""


class EventLoopError(UsageError):
    """The saver, its engine or its file belongs to another event loop, or to another process."""


class SchemaError(CheckpointerError):
    """The database does not have the schema that this version needs.

    Attributes:
        found: The revision found, or `None` where there is none.
        expected: The revision that this version of the package needs.
    """

    def __init__(self, message: str, *, found: str | None, expected: str) -> None:
        super().__init__(message)
        self.found = found
        self.expected = expected


class SchemaMissingError(SchemaError):
    """The database has none of our tables."""


class SchemaOutdatedError(SchemaError):
    """The database is at an older revision."""


class SchemaTooNewError(SchemaError):
    """The database is at a revision that this version of the package does not know."""


class SerializationError(CheckpointerError):
    """The serde could not dump or load a value."""


class DamagedDataError(CheckpointerError):
    """A stored row does not hold what was written.

    Raised on reading, and never answered with a wrong value. Other threads and checkpoints stay
    readable.
    """


class SourceError(CheckpointerError):
    """Another saver, which is imported from, failed; `__cause__` is its error."""


class TransferError(CheckpointerError):
    """Some threads could not be moved; all others were.

    Attributes:
        failures: Why, by thread. No checkpoint or write of these was stored; a new thread's row may
            have been, ahead of them.
        report: The `TransferReport` of the others.
    """

    def __init__(
        self, message: str, *, failures: Mapping[str, CheckpointerError], report: Any
    ) -> None:
        super().__init__(message)
        self.failures = failures
        self.report = report


class DatabaseError(CheckpointerError):
    """The database refused or failed; `__cause__` is the driver's error."""


class DatabaseUnavailableError(DatabaseError):
    """The database could not be reached, or the connection was lost.

    Whether the operation was stored is not known; each may be called again.
    """


class DatabaseBusyError(DatabaseUnavailableError):
    """Others held the database, or all connections, for longer than the saver waits."""
