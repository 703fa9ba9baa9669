"""Statements that take rows as arrays, one a column: any number of rows in one round trip.

For databases that have arrays and change data in WITH clauses (`Dialect.has_arrays`).
"""

import json
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from typing import Any, Final, TypeAlias

import sqlalchemy as sa
from sqlalchemy import bindparam
from sqlalchemy.dialects import postgresql

from checkpointer.dialect import Dialect
from checkpointer.tables import checkpoints, segments, threads, writes
from checkpointer.upserts import replacing

AnySelect: TypeAlias = sa.Select[*tuple[Any, ...]]

PUTS: Final = {
    "segments": segments,
    "checkpoints": checkpoints,
    "writes": writes,
    "special": writes,
}
"""The sets of rows in a batch of puts, with their tables."""

REPLACING: Final = {"checkpoints", "special"}
"""The sets whose rows replace rows with the same key."""


@cache
def put_at_once(dialect: Dialect, names: frozenset[str], *, passes_over: bool = False) -> Any:
    """A whole batch in one statement: rows come as one array a column (see `arrays`).

    The parameters of each thread are its id, the expected state, the next state, and a state for a
    new row. If a state is expected, and the row shows neither that one nor the next one, nothing of
    the thread is stored. If the row shows the next state, this batch was stored before, and its
    answer was lost.

    Args:
        dialect: The kind of database.
        names: Those of `PUTS` of which there are rows.
        passes_over: Leave out the threads whose rows others hold, instead of waiting for them.

    Returns:
        The threads whose rows were stored, with their states. Threads that were passed over have no
        state.
    """
    others = _held_by_others() if passes_over else None
    held = _held(_touched(dialect, others))
    is_held = sa.select(held.c.thread_id)

    def put(name: str, table: sa.Table) -> Any:
        rows = _unnested(name, *table.c)
        columns = table.c.keys()
        values = sa.select(*(_as_stored(rows.c[c], table.c[c].type) for c in columns))
        # IS TRUE keeps the planner from making a join, which would compare each row with each.
        values = values.where(rows.c.thread_id.in_(is_held).is_(sa.true()))
        statement = dialect.insert(table).from_select(columns, values)
        replaces = name in REPLACING
        return replacing(statement) if replaces else statement.on_conflict_do_nothing()

    puts = [put(name, table).cte(f"put_{name}") for name, table in PUTS.items() if name in names]
    done = sa.select(held.c.thread_id, held.c.state)
    if others is None:
        return done.add_cte(*puts)
    no_state = sa.cast(sa.null(), held.c.state.type).label("state")
    return sa.union_all(done, sa.select(others.c.thread_id, no_state)).add_cte(*puts)


def _touched(dialect: Dialect, others: sa.FromClause | None) -> sa.CTE:
    """Touch the threads' rows whose state is the expected one, and make those that are missing."""
    t = threads.c
    given = _unnested("threads", t.thread_id, t.state)
    now = bindparam("now", type_=t.updated_at.type)
    # If a state is expected and the thread was deleted, this makes its row, too. Then the put is
    # refused, and the row is deleted again. If the statement looked for the row first, the server
    # would plan it anew each time: it expects ten threads, and takes the look for expensive.
    rows = sa.select(given.c.thread_id, given.c.state, now, now)
    if others is not None:  # like IS TRUE above, NOT IN keeps the planner from making a join
        rows = rows.where(given.c.thread_id.not_in(sa.select(others.c.thread_id)))
    insert = dialect.insert(threads).from_select(
        ["thread_id", "state", "created_at", "updated_at"], rows
    )
    expected, following = _expected(t.thread_id), _following(t.thread_id)
    touch = insert.on_conflict_do_update(
        index_elements=["thread_id"],
        set_={
            "state": sa.func.coalesce(following, t.state),
            "updated_at": insert.excluded.updated_at,
        },
        where=sa.or_(expected.is_(None), t.state == expected, t.state == following),
    )
    return touch.returning(t.thread_id, t.state).cte("touched")


def _held(touched: sa.CTE) -> sa.CTE:
    """The touched threads whose puts are stored: not a new row where a state is expected."""
    t = touched.c
    fits = t.state == sa.func.coalesce(_following(t.thread_id), t.state)
    held = sa.select(t.thread_id, t.state).where(sa.or_(_expected(t.thread_id).is_(None), fits))
    return held.cte("held")


def _held_by_others() -> sa.CTE:
    """The threads whose rows cannot be locked now."""
    locked, found = _threads_there("locked", lock=True), _threads_there("found", lock=False)
    is_locked = found.c.thread_id.in_(sa.select(locked.c.thread_id))
    return sa.select(found.c.thread_id).where(sa.not_(is_locked)).cte("others")


def _expected(thread_id: sa.ColumnElement[str]) -> Any:
    """The state that a thread's row must show."""
    return _by_thread("threads_expected", thread_id)


def _following(thread_id: sa.ColumnElement[str]) -> Any:
    """The state that it shows afterwards."""
    return _by_thread("threads_next", thread_id)


def _by_thread(name: str, thread_id: sa.ColumnElement[str]) -> Any:
    """The item of an array at the thread's place: a join would compare each thread with each."""
    ids, values = _array("threads_thread_id", sa.Text()), _array(name, threads.c.state.type)
    return values[sa.func.array_position(ids, sa.cast(thread_id, sa.Text))]


def _threads_there(name: str, *, lock: bool) -> sa.CTE:
    """The threads that have a row; with `lock`, only those that nobody else holds."""
    t, asked = threads.c, _unnested("threads", threads.c.thread_id)
    one = sa.select(t.thread_id).where(t.thread_id == asked.c.thread_id).correlate(asked)
    # A lock or an offset makes the planner look for them one by one: for all at once, it may scan.
    one = one.with_for_update(skip_locked=True) if lock else one.offset(0)
    there = one.lateral("there")
    return sa.select(there.c.thread_id).join_from(asked, there, sa.true()).cte(name)


def _array(name: str, type_: sa.types.TypeEngine[Any]) -> Any:
    """An array that was bound, in brackets that an index may follow."""
    return sa.select(bindparam(name, type_=postgresql.ARRAY(type_))).scalar_subquery()


@cache
def segments_at_once(dialect: Dialect) -> AnySelect:
    """The segments that hold some slices, see `slices_wanted`.

    A slice begins in the last segment that begins no later than the slice. That segment is found by
    its key: a condition on `stop` would read all earlier segments of the stream, too. Where
    segments overlap, one may be missed: `gather` reads the whole stream then.
    """
    s = segments.c
    if dialect.has_arrays:
        wanted = _unnested("wanted", s.thread_id, s.stream_id, s.start, s.stop)
        return _covering(wanted, laterally=True)
    each = sa.func.json_each(bindparam("wanted", type_=sa.Text)).table_valued("value")
    parts = [
        sa.func.json_extract(each.c.value, f"$[{place}]", type_=column.type).label(column.name)
        for place, column in enumerate((s.stream_id, s.start, s.stop))
    ]
    # Not in the JSON: SQLite's JSON ends a text at a NUL.
    thread_id = bindparam("of_thread", type_=s.thread_id.type).label("thread_id")
    return _covering(sa.select(thread_id, *parts).subquery("wanted"))


def slices_wanted(dialect: Dialect, slices: Collection[tuple[str, int, int, int]]) -> Any:
    """The parameters of `segments_at_once`: thread, stream, start and stop of each slice.

    On a database without arrays, all must be of one thread.
    """
    if not dialect.has_arrays:
        [thread_id] = {one[0] for one in slices}
        return {"of_thread": thread_id, "wanted": json.dumps([one[1:] for one in slices])}
    names = ("thread_id", "stream_id", "start", "stop")
    columns = zip(*slices, strict=True)
    return {f"wanted_{name}": list(c) for name, c in zip(names, columns, strict=True)}


def keys_wanted(dialect: Dialect, thread_id: str, keys: Iterable[tuple[int, int]]) -> Any:
    """The parameters of `segments_at_once` for a thread's segments by stream and start.

    Each is found by its first byte.
    """
    slices = [(thread_id, stream, start, start + 1) for stream, start in keys]
    return slices_wanted(dialect, slices)


def _covering(wanted: sa.FromClause, *, laterally: bool = False) -> AnySelect:
    s, before = segments.c, segments.alias("before")
    first = (
        sa.select(sa.func.max(before.c.start))
        .where(
            before.c.thread_id == wanted.c.thread_id,
            before.c.stream_id == wanted.c.stream_id,
            before.c.start <= wanted.c.start,
        )
        .correlate(wanted)
        .scalar_subquery()
    )
    columns = (s.thread_id, s.stream_id, s.start, s.stop, s.data)
    within = (
        s.thread_id == wanted.c.thread_id,
        s.stream_id == wanted.c.stream_id,
        s.start >= first,
        s.start < wanted.c.stop,
    )
    if not laterally:
        return sa.select(*columns).join_from(wanted, segments, sa.and_(*within))
    # With an offset, the planner takes the slices one by one: without statistics, it would join all
    # segments of the table with them.
    found = sa.select(*columns).where(*within).offset(0).correlate(wanted).lateral("found")
    return sa.select(*found.c).join_from(wanted, found, sa.true())


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


def _as_stored(
    value: sa.ColumnElement[Any], type_: sa.types.TypeEngine[Any]
) -> sa.ColumnElement[Any]:
    return sa.cast(value, type_) if isinstance(type_, sa.JSON) else value


def arrays(name: str, rows: Collection[Mapping[str, Any]]) -> dict[str, Any]:
    """The parameters of one set of rows for `put_at_once`."""
    columns = PUTS[name].c.keys()
    return {f"{name}_{column}": [row[column] for row in rows] for column in columns}
