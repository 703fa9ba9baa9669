"""The first tables: threads, checkpoints, pending writes, segments.

Revision: 0001.
"""

from typing import Any, Final

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from checkpointer.tables import KeepUncompressed, SetFillfactor

revision: Final[str] = "0001"
down_revision: Final[str | None] = None
branch_labels: Final[None] = None
depends_on: Final[None] = None

# Text compares by bytes on every database; SQLite's default collation does so already.
TEXT: Final = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
JSON: Final = sa.JSON(none_as_null=False).with_variant(
    postgresql.JSONB(none_as_null=False), "postgresql"
)
TIME: Final = sa.DateTime(timezone=True)


def _column(
    name: str, type_: sa.types.TypeEngine[Any], *, nullable: bool = False
) -> sa.Column[Any]:
    return sa.Column(name, type_, nullable=nullable, autoincrement=False)


def upgrade() -> None:
    """Create the tables."""
    schema = op.get_context().version_table_schema
    threads = op.create_table(
        "checkpointer_threads",
        _column("thread_id", TEXT),
        _column("state", sa.BigInteger()),
        _column("created_at", TIME),
        _column("updated_at", TIME),
        sa.PrimaryKeyConstraint("thread_id", name="checkpointer_threads_pkey"),
        schema=schema,
    )
    if op.get_context().dialect.name == "postgresql":
        op.execute(SetFillfactor(threads, 50))
    checkpoints = op.create_table(
        "checkpointer_checkpoints",
        _column("thread_id", TEXT),
        _column("checkpoint_ns", TEXT),
        _column("checkpoint_id", TEXT),
        _column("parent_checkpoint_id", TEXT, nullable=True),
        _column("run_id", TEXT, nullable=True),
        _column("metadata", JSON),
        _column("manifest", sa.LargeBinary()),
        sa.PrimaryKeyConstraint(
            "thread_id", "checkpoint_ns", "checkpoint_id", name="checkpointer_checkpoints_pkey"
        ),
        schema=schema,
    )
    op.create_index(
        "checkpointer_checkpoints_checkpoint_id_idx",
        "checkpointer_checkpoints",
        ["checkpoint_id"],
        schema=schema,
    )
    op.create_index(
        "checkpointer_checkpoints_run_id_idx",
        "checkpointer_checkpoints",
        ["run_id"],
        sqlite_where=sa.text("run_id IS NOT NULL"),
        postgresql_where=sa.text("run_id IS NOT NULL"),
        schema=schema,
    )
    writes = op.create_table(
        "checkpointer_writes",
        _column("thread_id", TEXT),
        _column("checkpoint_ns", TEXT),
        _column("checkpoint_id", TEXT),
        _column("task_id", TEXT),
        _column("idx", sa.Integer()),
        _column("task_path", TEXT),
        _column("channel", TEXT),
        _column("data", sa.LargeBinary()),
        _column("sliced", sa.Boolean()),
        sa.PrimaryKeyConstraint(
            "thread_id",
            "checkpoint_ns",
            "checkpoint_id",
            "task_id",
            "idx",
            name="checkpointer_writes_pkey",
        ),
        schema=schema,
    )
    segments = op.create_table(
        "checkpointer_segments",
        _column("thread_id", TEXT),
        _column("stream_id", sa.BigInteger()),
        _column("start", sa.BigInteger()),
        _column("stop", sa.BigInteger()),
        _column("data", sa.LargeBinary()),
        sa.PrimaryKeyConstraint(
            "thread_id", "stream_id", "start", name="checkpointer_segments_pkey"
        ),
        schema=schema,
    )
    if op.get_context().dialect.name == "postgresql":
        op.execute(KeepUncompressed(checkpoints, "manifest"))
        op.execute(KeepUncompressed(writes, "data"))
        op.execute(KeepUncompressed(segments, "data"))


def downgrade() -> None:
    """Drop the tables with all that is in them."""
    schema = op.get_context().version_table_schema
    op.drop_table("checkpointer_segments", schema=schema)
    op.drop_table("checkpointer_writes", schema=schema)
    op.drop_table("checkpointer_checkpoints", schema=schema)
    op.drop_table("checkpointer_threads", schema=schema)
