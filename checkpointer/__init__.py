"""One async LangGraph checkpoint saver for every SQL database."""

import logging

from checkpointer.agent_server import open_saver
from checkpointer.errors import (
    CheckpointerError,
    ConfigurationError,
    DamagedDataError,
    DatabaseBusyError,
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
    SourceError,
    SyncCallError,
    TransferError,
    UnknownThreadError,
    UsageError,
)
from checkpointer.factory import create_saver
from checkpointer.importing import import_official
from checkpointer.moving import TransferReport
from checkpointer.problems import Problem, ProblemKind, Verification
from checkpointer.reports import (
    PruneReport,
    RetentionPolicy,
    Stats,
    TableStats,
    ThreadInfo,
    ThreadPage,
    ThreadPrune,
)
from checkpointer.saver import AsyncSQLAlchemySaver
from checkpointer.serde import LosslessSerializer, StrictSerializer
from checkpointer.tables import owns_table
from checkpointer.transfer import copy_store

__all__ = [
    "AsyncSQLAlchemySaver",
    "CheckpointerError",
    "ConfigurationError",
    "DamagedDataError",
    "DatabaseBusyError",
    "DatabaseError",
    "DatabaseUnavailableError",
    "DriverError",
    "EventLoopError",
    "InvalidFilterError",
    "InvalidInputError",
    "LosslessSerializer",
    "Problem",
    "ProblemKind",
    "PruneReport",
    "RetentionPolicy",
    "SaverClosedError",
    "SchemaError",
    "SchemaMissingError",
    "SchemaOutdatedError",
    "SchemaTooNewError",
    "SerializationError",
    "SourceError",
    "Stats",
    "StrictSerializer",
    "SyncCallError",
    "TableStats",
    "ThreadInfo",
    "ThreadPage",
    "ThreadPrune",
    "TransferError",
    "TransferReport",
    "UnknownThreadError",
    "UsageError",
    "Verification",
    "copy_store",
    "create_saver",
    "import_official",
    "open_saver",
    "owns_table",
]

# Where the application sets no logging up, ours writes nothing.
logging.getLogger(__name__).addHandler(logging.NullHandler())
