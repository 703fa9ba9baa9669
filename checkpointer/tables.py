"""The tables, declared once for every database; Alembic's revisions create them.

Every key starts with `thread_id`, so that a thread can be deleted, copied, moved or sharded alone.
There are no foreign keys: writes may commit before their checkpoint (`durability="async"`), and a
cascading key loses rows when SQLite rebuilds a table in a migration.
"""

from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    event,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql.compiler import DDLCompiler

VERSION_TABLE: Final = "checkpointer_schema_version"

NAMING_CONVENTION: Final = {
    "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    "pk": "%(table_name)s_pkey",
}


class UtcDateTime(TypeDecorator[datetime]):
    """An aware `datetime` in UTC; SQLite, which has no such type, stores it as naive text."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive values; shift the others to UTC."""
        del dialect
        if value is not None and value.tzinfo is None:
            raise ValueError(f"found the naive datetime {value!r}, expected an aware one")
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give back an aware value on every database."""
        del dialect
        if value is None or value.tzinfo is not None:
            return value and value.astimezone(UTC)
        return value.replace(tzinfo=UTC)


class SetFillfactor(ExecutableDDLElement):
    """Set a table's fillfactor on PostgreSQL, for which SQLAlchemy 2.0 has no option.

    Args:
        table: The table, which has no rows yet.
        percent: How full a page may be made by inserts.
    """

    def __init__(self, table: Table, percent: int) -> None:
        self.table = table
        self.percent = percent


@compiles(SetFillfactor, "postgresql")
def _compile_fillfactor(element: SetFillfactor, compiler: DDLCompiler, **_: Any) -> str:
    name = compiler.preparer.format_table(element.table)
    return f"ALTER TABLE {name} SET (fillfactor = {element.percent})"


class KeepUncompressed(ExecutableDDLElement):
    """Have PostgreSQL store a column's long bytes as they are, without compressing them.

    Args:
        table: The table.
        column: The name of the column.
    """

    def __init__(self, table: Table, column: str) -> None:
        self.table = table
        self.column = column


@compiles(KeepUncompressed, "postgresql")
def _compile_storage(element: KeepUncompressed, compiler: DDLCompiler, **_: Any) -> str:
    table = compiler.preparer.format_table(element.table)
    column = compiler.preparer.quote(element.column)
    return f"ALTER TABLE {table} ALTER COLUMN {column} SET STORAGE EXTERNAL"


metadata = MetaData(naming_convention=NAMING_CONVENTION)

# Text compares by bytes on every database, so that ORDER BY checkpoint_id means the same
# everywhere and the same as in Python. SQLite's default collation does so already.
_text = Text().with_variant(Text(collation="C"), "postgresql")
_json = JSON(none_as_null=False).with_variant(JSONB(none_as_null=False), "postgresql")

threads = Table(
    "checkpointer_threads",
    metadata,
    Column[str]("thread_id", _text, primary_key=True),
    # Random, and another one after everything that stores or deletes segments: a writer that has
    # learned what is stored under one state may rely on it only under the same one.
    Column[int]("state", BigInteger, nullable=False),
    Column[datetime]("created_at", UtcDateTime, nullable=False),
    Column[datetime]("updated_at", UtcDateTime, nullable=False),
)

# Every put updates a row here. With half of each page free, PostgreSQL puts the new version beside
# the old one, and the index does not grow.
event.listen(threads, "after_create", SetFillfactor(threads, 50).execute_if(dialect="postgresql"))

checkpoints = Table(
    "checkpointer_checkpoints",
    metadata,
    Column[str]("thread_id", _text, primary_key=True),
    Column[str]("checkpoint_ns", _text, primary_key=True),
    Column[str]("checkpoint_id", _text, primary_key=True),
    Column[str]("parent_checkpoint_id", _text, nullable=True),
    Column[str]("run_id", _text, nullable=True),
    Column[Any]("metadata", _json, nullable=False),
    Column[bytes]("manifest", LargeBinary, nullable=False),
    Index(None, "checkpoint_id"),
    # Most checkpoints belong to no run, and need no entry.
    Index(
        None,
        "run_id",
        sqlite_where=text("run_id IS NOT NULL"),
        postgresql_where=text("run_id IS NOT NULL"),
    ),
)

writes = Table(
    "checkpointer_writes",
    metadata,
    Column[str]("thread_id", _text, primary_key=True),
    Column[str]("checkpoint_ns", _text, primary_key=True),
    Column[str]("checkpoint_id", _text, primary_key=True),
    Column[str]("task_id", _text, primary_key=True),
    Column[int]("idx", Integer, primary_key=True, autoincrement=False),
    Column[str]("task_path", _text, nullable=False),
    Column[str]("channel", _text, nullable=False),
    Column[bytes]("data", LargeBinary, nullable=False),
    # Whether `data` names slices: tells a sweep which writes to read.
    Column[bool]("sliced", Boolean, nullable=False),
)

segments = Table(
    "checkpointer_segments",
    metadata,
    Column[str]("thread_id", _text, primary_key=True),
    Column[int]("stream_id", BigInteger, primary_key=True, autoincrement=False),
    Column[int]("start", BigInteger, primary_key=True, autoincrement=False),
    Column[int]("stop", BigInteger, nullable=False),
    Column[bytes]("data", LargeBinary, nullable=False),
)

# What is stored in these was compressed before.
for table, column in ((checkpoints, "manifest"), (writes, "data"), (segments, "data")):
    event.listen(
        table, "after_create", KeepUncompressed(table, column).execute_if(dialect="postgresql")
    )


def owns_table(name: str | None) -> bool:
    """Whether a table of that name is this package's own, its version table included.

    For an application's Alembic `include_name`, so that its autogenerate leaves these tables alone.
    """
    return name == VERSION_TABLE or name in metadata.tables
