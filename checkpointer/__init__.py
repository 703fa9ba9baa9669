"""One async LangGraph checkpoint saver for every SQL database."""

from checkpointer.errors import (
    CheckpointerError,
    ConfigurationError,
    DamagedDataError,
    DatabaseError,
    DatabaseUnavailableError,
    DriverError,
    EventLoopError,
    InvalidFilterError,
    InvalidInputError,
    SaverClosedError,
    SchemaError,
    SchemaMissingError,
    SchemaOutdatedError,
    SchemaTooNewError,
    SerializationError,
    SyncCallError,
    UsageError,
)
from checkpointer.factory import create_saver
from checkpointer.saver import AsyncSQLAlchemySaver
from checkpointer.serde import LosslessSerializer
from checkpointer.tables import owns_table

__all__ = [
    "AsyncSQLAlchemySaver",
    "CheckpointerError",
    "ConfigurationError",
    "DamagedDataError",
    "DatabaseError",
    "DatabaseUnavailableError",
    "DriverError",
    "EventLoopError",
    "InvalidFilterError",
    "InvalidInputError",
    "LosslessSerializer",
    "SaverClosedError",
    "SchemaError",
    "SchemaMissingError",
    "SchemaOutdatedError",
    "SchemaTooNewError",
    "SerializationError",
    "SyncCallError",
    "UsageError",
    "create_saver",
    "owns_table",
]
