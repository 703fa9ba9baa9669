"""Conditions that many statements share, and the parameters that they take.

Parameters bear their columns' names; those of many checkpoints come as three lists.
"""

from collections.abc import Iterable
from typing import Final

import sqlalchemy as sa
from sqlalchemy import bindparam

from checkpointer.dialect import Dialect

KEY: Final = ("thread_id", "checkpoint_ns", "checkpoint_id")
"""The columns by which a checkpoint is found."""


def same(table: sa.FromClause, *columns: str) -> sa.ColumnElement[bool]:
    """Whether these columns are equal to the parameters of their names."""
    return sa.and_(
        *(table.c[name] == bindparam(name, type_=table.c[name].type) for name in columns)
    )


def any_key(dialect: Dialect, table: sa.FromClause) -> list[sa.ColumnElement[bool]]:
    """Whether a row is of one of the checkpoints in `keys`.

    Three lists and not one of triples, which SQLite answers by a scan of the table. They may
    find a few more than asked for: callers look rows up by their whole key.
    """
    names = ("thread_ids", "namespaces", "checkpoint_ids")
    columns = (table.c[name] for name in KEY)
    return [dialect.is_any_of(c, name) for c, name in zip(columns, names, strict=True)]


def keys(triples: Iterable[tuple[str, str, str]]) -> dict[str, list[str]]:
    """The parameters of statements about many checkpoints: thread, namespace and id of each."""
    thread_ids, namespaces, checkpoint_ids = (
        sorted(set(part)) for part in zip(*triples, strict=True)
    )
    return {"thread_ids": thread_ids, "namespaces": namespaces, "checkpoint_ids": checkpoint_ids}
