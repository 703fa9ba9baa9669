"""INSERTs of rows that may be there already, and of rows of another thread."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy import bindparam

from checkpointer.dialect import Dialect


def copying(dialect: Dialect, table: sa.Table, *conditions: sa.ColumnElement[bool]) -> Any:
    """An INSERT into the thread `target` of the rows of `source` that meet the conditions."""
    others = [column for column in table.c if column.name != "thread_id"]
    source = sa.select(bindparam("target", type_=table.c.thread_id.type), *others).where(
        table.c.thread_id == bindparam("source"), *conditions
    )
    names = ["thread_id", *(column.name for column in others)]
    return dialect.insert(table).from_select(names, source)


def replacing(insert: Any) -> Any:
    """An INSERT that takes the place of the row with its key."""
    table = insert.table
    return insert.on_conflict_do_update(
        index_elements=list(table.primary_key),
        set_={c.name: insert.excluded[c.name] for c in table.c if not c.primary_key},
    )


def lengthening(insert: Any) -> Any:
    """An INSERT of segments that takes the place of shorter ones with their key."""
    given, there = insert.excluded, insert.table.c
    return insert.on_conflict_do_update(
        index_elements=list(insert.table.primary_key),
        set_={"stop": given.stop, "data": given.data},
        where=given.stop > there.stop,
    )


def touching(insert: Any, *columns: str) -> Any:
    """An INSERT of threads that only touches those that are there already.

    Args:
        insert: The INSERT.
        columns: Further columns that take the values that are given.
    """
    names = ("updated_at", *columns)
    return insert.on_conflict_do_update(
        index_elements=["thread_id"], set_={name: insert.excluded[name] for name in names}
    )
