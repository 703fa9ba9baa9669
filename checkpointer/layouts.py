"""How each official package has laid its tables out: found, and read."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from checkpointer.dialect import Dialect
from checkpointer.errors import ConfigurationError
from checkpointer.execution import Connection
from checkpointer.moving import CheckpointKey
from checkpointer.official import (
    CHECKPOINT,
    CHECKPOINTS,
    Layout,
    OfficialCheckpoint,
    carried,
    json_object,
    keys_of,
)
from checkpointer.predicates import KEY, any_key, same
from checkpointer.quoting import quoted

_WRITE: Final = (*KEY, "task_id", "idx", "channel", "type")
_REQUIRED: Final[Mapping[str, Mapping[str, Sequence[str]]]] = {
    "langgraph-checkpoint-postgres": {
        CHECKPOINTS: CHECKPOINT,
        "checkpoint_blobs": ("thread_id", "checkpoint_ns", "channel", "version", "type", "blob"),
        "checkpoint_writes": (*_WRITE, "blob"),
    },
    "langgraph-checkpoint-sqlite": {
        CHECKPOINTS: (*CHECKPOINT, "type"),
        "writes": (*_WRITE, "value"),
    },
}
"""The tables of each package, with the columns that all of its layouts have had."""


class SQLiteLayout(Layout):
    """Each checkpoint whole in one row, with all of its values."""

    def __init__(
        self, dialect: Dialect, schema: str | None, columns: Mapping[str, Collection[str]]
    ) -> None:
        super().__init__(dialect, schema, columns)
        c = self._checkpoints.c
        size = sa.func.coalesce(sa.func.length(c.checkpoint), 0).label("size")
        where = any_key(dialect, self._checkpoints)
        self._sizes = sa.select(c.checkpoint_ns, c.checkpoint_id, size).where(*where)
        self._rows = sa.select(*(c[name] for name in CHECKPOINT), c.type).where(*where)

    @property
    def _writes(self) -> sa.TableClause:
        return self.tables["writes"]

    @property
    def _value(self) -> sa.ColumnElement[Any]:
        return self._writes.c.value

    def sizes(
        self, connection: Connection, thread_id: str, some: Sequence[CheckpointKey]
    ) -> dict[CheckpointKey, int]:
        """The bytes of some checkpoints."""
        rows = connection.fetch(self._sizes, keys_of(thread_id, some))
        return {(row.checkpoint_ns, row.checkpoint_id): row.size for row in rows}

    def checkpoints(
        self, connection: Connection, thread_id: str, some: Sequence[CheckpointKey]
    ) -> list[OfficialCheckpoint]:
        """Some checkpoints."""
        wanted = set(some)
        found = []
        for row in connection.fetch(self._rows, keys_of(thread_id, some)):
            key = (row.checkpoint_ns, row.checkpoint_id)
            if key in wanted:
                document = carried(row, row.type, row.checkpoint, "checkpoint")
                metadata = (
                    {} if row.metadata is None else json_object(row, row.metadata, "metadata")
                )
                parent = row.parent_checkpoint_id or None
                found.append(OfficialCheckpoint(*key, parent, document, {}, metadata))
        return found


class PostgresLayout(Layout):
    """Each checkpoint as JSON, and those of its values that are no primitives by their versions."""

    def __init__(
        self, dialect: Dialect, schema: str | None, columns: Mapping[str, Collection[str]]
    ) -> None:
        super().__init__(dialect, schema, columns)
        c, b = self._checkpoints.c, self.tables["checkpoint_blobs"].c
        where = any_key(dialect, self._checkpoints)
        document, metadata = (sa.cast(c[name], sa.Text).label(name) for name in CHECKPOINT[4:])
        self._rows = sa.select(*(c[name] for name in CHECKPOINT[:4]), document, metadata).where(
            *where
        )
        versions = sa.cast(c.checkpoint, postgresql.JSONB)["channel_versions"]
        each = sa.func.jsonb_each_text(versions).table_valued("key", "value").render_derived("each")
        one_of_them = sa.and_(
            b.thread_id == c.thread_id,
            b.checkpoint_ns == c.checkpoint_ns,
            b.channel == each.c.key,
            b.version == each.c.value,
        )
        size = sa.func.coalesce(sa.func.sum(sa.func.octet_length(b.blob)), 0).label("size")
        joined = self._checkpoints.outerjoin(each, sa.true())
        self._sizes = (
            sa.select(c.checkpoint_ns, c.checkpoint_id, size)
            .select_from(joined.outerjoin(self.tables["checkpoint_blobs"], one_of_them))
            .where(*where)
            .group_by(c.checkpoint_ns, c.checkpoint_id)
        )
        named = sa.select(c.checkpoint_ns, each.c.key, each.c.value)
        of_blob = sa.tuple_(b.checkpoint_ns, b.channel, b.version)
        self._blobs = sa.select(b.checkpoint_ns, b.channel, b.version, b.type, b.blob).where(
            same(self.tables["checkpoint_blobs"], "thread_id"),
            of_blob.in_(named.select_from(self._checkpoints.join(each, sa.true())).where(*where)),
        )

    @property
    def _writes(self) -> sa.TableClause:
        return self.tables["checkpoint_writes"]

    @property
    def _value(self) -> sa.ColumnElement[Any]:
        return self._writes.c.blob

    def sizes(
        self, connection: Connection, thread_id: str, some: Sequence[CheckpointKey]
    ) -> dict[CheckpointKey, int]:
        """The bytes of some checkpoints' values, those that they share with others included."""
        rows = connection.fetch(self._sizes, keys_of(thread_id, some))
        return {(row.checkpoint_ns, row.checkpoint_id): int(row.size) for row in rows}

    def checkpoints(
        self, connection: Connection, thread_id: str, some: Sequence[CheckpointKey]
    ) -> list[OfficialCheckpoint]:
        """Some checkpoints, each with the values of its channels' versions that are stored."""
        given = keys_of(thread_id, some)
        blobs = {
            (row.checkpoint_ns, row.channel, row.version): (row.type, row.blob)
            for row in connection.fetch(self._blobs, given | {"thread_id": thread_id})
        }
        wanted = set(some)
        found = []
        for row in connection.fetch(self._rows, given):
            key = (row.checkpoint_ns, row.checkpoint_id)
            if key not in wanted:
                continue
            values = {}
            for channel, version in _versions(row):
                type_, blob = blobs.get((row.checkpoint_ns, channel, version), (_EMPTY, None))
                if type_ != _EMPTY:
                    values[channel] = carried(row, type_, blob, f"channel {quoted(channel)}")
            document = json_object(row, row.checkpoint, "checkpoint")
            metadata = json_object(row, row.metadata, "metadata")
            parent = row.parent_checkpoint_id or None
            found.append(OfficialCheckpoint(*key, parent, document, values, metadata))
        return found


_EMPTY: Final = "empty"
"""The tag of a channel without a value."""

_LAYOUTS: Final[Mapping[str, Callable[..., Layout]]] = {
    "langgraph-checkpoint-postgres": PostgresLayout,
    "langgraph-checkpoint-sqlite": SQLiteLayout,
}


def find_layout(
    connection: sa.Connection, dialect: Dialect, schema: str | None, where: str
) -> Layout:
    """The layout of the official tables in a database.

    Args:
        connection: SQLAlchemy's own.
        dialect: The kind of database.
        schema: Where to look, unless in the usual place.
        where: What the database is called in errors.

    Raises:
        ConfigurationError: There are none, or they are not as any release that is known made them.
    """
    inspector = sa.inspect(connection)
    found = set(inspector.get_table_names(schema=schema))
    expected = [f"{', '.join(tables)} ({package})" for package, tables in _REQUIRED.items()]
    place = where if schema is None else f"{where}, schema {quoted(schema)}"
    for package, tables in _REQUIRED.items():
        if not found.issuperset(tables):
            continue
        columns = {
            name: tuple(sorted(c["name"] for c in inspector.get_columns(name, schema=schema)))
            for name in tables
        }
        missing = [
            f"{name}.{column}"
            for name, required in tables.items()
            for column in required
            if column not in columns[name]
        ]
        if missing:
            raise ConfigurationError(
                f"found tables of {package} in {place} without {', '.join(missing)}, expected a "
                f"layout of its releases 1 to 3; let its newest release's setup() upgrade them "
                f"first. Shallow savers keep no history and cannot be imported"
            )
        return _LAYOUTS[package](dialect, schema, columns)
    ours = any(name.startswith("checkpointer_") for name in found)
    hint = (
        "; it holds a store of this package: use copy_store, or `checkpointer copy`" if ours else ""
    )
    raise ConfigurationError(
        f"found {len(found)} tables in {place}, expected among them the tables of an "
        f"official saver: {' or '.join(expected)}{hint}"
    )


def _versions(row: Any) -> list[tuple[str, str]]:
    """The versions of a checkpoint's channels, in the database's own text."""
    found = json.loads(row.checkpoint, parse_int=str, parse_float=str)
    versions = found.get("channel_versions") or {}
    return [(channel, version) for channel, version in versions.items() if isinstance(version, str)]
