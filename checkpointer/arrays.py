"""Statements that take rows as arrays, one a column: any number of rows in one round trip.

For databases that have arrays and change data in WITH clauses (`Dialect.has_arrays`).
"""

from collections.abc import Collection, Mapping
from functools import cache
from typing import Any, Final, TypeAlias

import sqlalchemy as sa
from sqlalchemy import bindparam
from sqlalchemy.dialects import postgresql

from checkpointer.chunking import DIGEST_SIZE, MAX_NODE
from checkpointer.dialect import Dialect
from checkpointer.tables import checkpoints, chunks, threads, writes
from checkpointer.upserts import replacing, touching

AnySelect: TypeAlias = sa.Select[*tuple[Any, ...]]

PUTS: Final = {"chunks": chunks, "checkpoints": checkpoints, "writes": writes, "special": writes}
"""The sets of rows that a batch of puts consists of, with their tables."""

REPLACING: Final = {"checkpoints", "special"}
"""Those of the sets whose rows take the place of others with their key."""


@cache
def put_at_once(dialect: Dialect, names: frozenset[str]) -> AnySelect:
    """A whole batch in one statement: rows come as one array a column (see `arrays`).

    The threads' rows are touched first, because all else waits for the epochs that this
    returns. If one of them is not the wanted one, nothing is stored, and `held` is not true.

    Args:
        dialect: The kind of database.
        names: Those of `PUTS` of which there are rows.
    """
    insert = dialect.insert
    now = bindparam("now", type_=threads.c.updated_at.type)
    given = _unnested("threads", threads.c.thread_id, threads.c.epoch)
    touch = insert(threads).from_select(
        ["thread_id", "epoch", "created_at", "updated_at"],
        sa.select(given.c.thread_id, given.c.epoch, now, now),
    )
    touched = touching(touch).returning(threads.c.thread_id, threads.c.epoch).cte("touched")
    # Side by side in the order of the ids: a join would compare each with each.
    wanted = _unnested("wanted", threads.c.thread_id, threads.c.epoch)
    both = sa.func.unnest(_in_order(touched), _in_order(wanted))
    pairs = both.table_valued("found", "wanted").render_derived()
    fits = sa.func.coalesce(pairs.c.wanted, pairs.c.found) == pairs.c.found
    held = sa.select(sa.func.bool_and(fits).label("held")).select_from(pairs).cte("held")
    is_held = sa.select(held.c.held).scalar_subquery()

    def put(name: str, table: sa.Table) -> Any:
        rows = _unnested(name, *table.c)
        columns = table.c.keys()
        values = sa.select(*(_as_stored(rows.c[c], table.c[c].type) for c in columns))
        statement = insert(table).from_select(columns, values.where(is_held))
        replaces = name in REPLACING
        return replacing(statement) if replaces else statement.on_conflict_do_nothing()

    puts = [put(name, table).cte(f"put_{name}") for name, table in PUTS.items() if name in names]
    found = sa.select(touched.c.thread_id, touched.c.epoch, is_held.label("held"))
    return found.add_cte(*puts)


@cache
def chunks_below(dialect: Dialect) -> AnySelect:
    """Chunks and, of those that are nodes, all that stand below: one round trip for trees.

    The parameters are `thread_ids`, and `given_digest` and `given_depth`: one array each.
    """
    given = _unnested("given", chunks.c.digest, sa.column("depth", sa.Integer))
    below = sa.select(given.c.digest, given.c.depth).cte("below", recursive=True)
    in_threads = dialect.is_any_of(chunks.c.thread_id, "thread_ids")
    # Constants, so that the planner knows how many rows this makes: a guess of a thousand for
    # each node can be dear enough for it to compile the statement first.
    at = sa.func.generate_series(1, MAX_NODE * DIGEST_SIZE, DIGEST_SIZE)
    starts = at.table_valued("at").render_derived()
    named = sa.func.substr(chunks.c.data, starts.c.at, DIGEST_SIZE)
    below = below.union(
        sa.select(sa.type_coerce(named, chunks.c.digest.type), below.c.depth - 1)
        .select_from(below)
        .join(chunks, sa.and_(in_threads, chunks.c.digest == below.c.digest))
        .join(starts, starts.c.at < sa.func.octet_length(chunks.c.data))
        .where(below.c.depth > 0)
    )
    wanted = sa.select(below.c.digest).distinct().subquery("wanted")
    return sa.select(chunks.c.digest, chunks.c.data).join(
        wanted, sa.and_(in_threads, chunks.c.digest == wanted.c.digest)
    )


def _unnested(name: str, *columns: sa.ColumnElement[Any]) -> sa.TableValuedAlias:
    """Rows that are passed as one array a column; the parameters are `name` and the column's."""
    text = sa.Text()
    types = [(c.name, text if isinstance(c.type, sa.Text | sa.JSON) else c.type) for c in columns]
    arrays = [
        bindparam(f"{name}_{column}", type_=postgresql.ARRAY(type_)) for column, type_ in types
    ]
    derived = sa.func.unnest(*arrays).table_valued(
        *(sa.column(column, type_) for column, type_ in types), name=f"given_{name}"
    )
    return derived.render_derived()


def _in_order(rows: sa.FromClause) -> sa.ScalarSelect[Any]:
    """The epochs of some threads as one array, in the order of the threads' ids."""
    epochs = postgresql.aggregate_order_by(rows.c.epoch, rows.c.thread_id.collate("C"))
    return sa.select(sa.func.array_agg(epochs)).scalar_subquery()


def _as_stored(
    value: sa.ColumnElement[Any], type_: sa.types.TypeEngine[Any]
) -> sa.ColumnElement[Any]:
    return sa.cast(value, type_) if isinstance(type_, sa.JSON) else value


def arrays(name: str, rows: Collection[Mapping[str, Any]]) -> dict[str, Any]:
    """The parameters of one set of rows for `put_at_once`."""
    columns = PUTS[name].c.keys()
    return {f"{name}_{column}": [row[column] for row in rows] for column in columns}
