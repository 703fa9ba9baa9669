"""Statements on a driver's own connection give what SQLAlchemy's `Connection.execute` gives."""

import gc
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from weakref import ref

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite.aiosqlite import dialect as aiosqlite_dialect
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool
from storing import config, operate, put

from checkpointer import AsyncSQLAlchemySaver, create_saver, tables
from checkpointer.execution import (
    NOTHING,
    Compiled,
    Connection,
    CoreConnection,
    DriverConnection,
    Parameters,
    compiled_for,
)
from checkpointer.limits import Limit
from checkpointer.projection import contains_json
from checkpointer.queries import Queries, queries_for

Saver = AsyncSQLAlchemySaver
Work = Callable[[Connection], Any]
Call = tuple[Any, Sequence[Parameters], bool]
"""A statement, its rows of parameters, and whether its own rows were asked for."""

NOW = datetime(2025, 1, 2, 3, 4, 5, 678901, UTC)


@contextmanager
def calls() -> Iterator[list[Call]]:
    """The statements that savers run meanwhile, as Core's expressions."""
    seen: list[Call] = []
    fetch, execute = DriverConnection.fetch, DriverConnection.execute

    def fetched(self: Any, statement: Any, parameters: Parameters = NOTHING) -> Any:
        seen.append((statement, [dict(parameters)], True))
        return fetch(self, statement, parameters)

    def executed(self: Any, statement: Any, *rows: Parameters) -> None:
        seen.append((statement, [dict(row) for row in rows], False))
        execute(self, statement, *rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DriverConnection, "fetch", fetched)
        patch.setattr(DriverConnection, "execute", executed)
        yield seen


class Undone(Exception):  # noqa: N818 - it is no error
    """Carries what was found out of a transaction that is not to commit."""


class TwoWays:
    """Runs work on the driver's connection, and on SQLAlchemy's own; nothing of it is stored."""

    def __init__(self, saver: Saver, engine: AsyncEngine) -> None:
        self.engine = engine
        self._database = saver._backend.database  # noqa: SLF001

    async def driver(self, work: Work) -> Any:
        def undone(connection: Connection) -> None:
            assert isinstance(connection, DriverConnection)
            raise Undone(work(connection))

        with pytest.raises(Undone) as caught:
            await self._database.write(undone)
        return caught.value.args[0]

    async def core(self, work: Work) -> Any:
        async with self.engine.connect() as connection, Limit(30) as limit:
            if self.engine.dialect.name == "sqlite":
                raw = await connection.get_raw_connection()
                function = ("checkpointer_contains", 2, contains_json)
                await raw.driver_connection.create_function(*function)  # type: ignore[union-attr]
            return await connection.run_sync(lambda core: work(CoreConnection(core, limit.extend)))

    async def same(self, work: Work) -> Any:
        """What work finds, which must not rest on the way."""
        found, expected = await self.driver(work), await self.core(work)
        assert found == expected
        return found


@pytest.fixture
async def two_ways(saver: Saver, migrated_url: str) -> AsyncIterator[TwoWays]:
    await saver.aget_tuple(config())
    engine = create_async_engine(migrated_url, poolclass=NullPool)
    yield TwoWays(saver, engine)
    await engine.dispose()


def comparable(rows: Sequence[Any]) -> list[Any]:
    """Rows without their order, but with the names of their columns and the types of values."""
    named = [(row._fields, [(type(value), value) for value in row]) for row in rows]
    return sorted(named, key=repr)


def content(connection: Connection) -> list[Any]:
    """All that stands in our tables."""
    return [comparable(connection.fetch(sa.select(t))) for t in tables.metadata.sorted_tables]


def replayed(call: Call) -> Work:
    """Run a statement once more; what it returns, and what stands in the tables then."""
    statement, rows, fetches = call

    def work(connection: Connection) -> Any:
        if fetches:
            return comparable(connection.fetch(statement, rows[0])), content(connection)
        connection.execute(statement, *rows)
        return [], content(connection)

    return work


def all_statements(queries: Queries) -> dict[str, Any]:
    """The statements that are built once for all, by name."""
    found: dict[str, Any] = {}
    for name, value in vars(queries).items():
        for number, one in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(one, sa.sql.expression.Executable) and not name.startswith("_"):
                found[f"{name} {number}"] = one
    return found


async def test_every_statement_gives_what_sqlalchemy_gives(saver: Saver, two_ways: TwoWays) -> None:
    with calls() as seen:
        await operate(saver)
        await saver.averify(progress=lambda done, total: None)
    used = {id(statement) for statement, _, _ in seen}
    named = all_statements(queries_for(saver.engine.dialect.name))
    assert {name for name, one in named.items() if id(one) not in used} <= ALTERNATIVES
    returned = 0
    for call in _some_of_each(seen):
        rows, _ = await two_ways.same(replayed(call))
        returned += len(rows)
    assert returned > 30


ALTERNATIVES = {
    f"{name} 0"
    for name in (
        "set_thread",
        "states_and_touch",
        "put_segment",
        "put_checkpoint",
        "put_write",
        "put_special_write",
        "copy_segment",
        "delete_new_thread",
        "stream",
    )
}
"""Statements that only one of the databases needs, or that only some stores need."""


def _some_of_each(seen: Sequence[Call]) -> Iterator[Call]:
    """For each statement, some calls with different numbers of rows or of items in lists."""
    known: dict[int, set[Any]] = {}
    for statement, rows, fetches in seen:
        sizes = tuple(len(v) if isinstance(v, list) else -1 for v in rows[0].values())
        of_statement = known.setdefault(id(statement), set())
        if len(of_statement) < 4 and (len(rows), sizes) not in of_statement:
            of_statement.add((len(rows), sizes))
            yield statement, rows, fetches


METADATA: list[Any] = [
    None,
    True,
    0,
    1.5,
    "",
    "null",
    [],
    {},
    {"a": None, "b": [True, {"c": "\N{SNOWMAN} ' $1 ? %s :x"}]},
]


def checkpoint_row(number: int, metadata: Any, **values: Any) -> dict[str, Any]:
    return {
        "thread_id": "a thread",
        "checkpoint_ns": "",
        "checkpoint_id": f"{number:04}",
        "parent_checkpoint_id": None,
        "run_id": None,
        "metadata": metadata,
        "manifest": b"\0\xff",
        **values,
    }


def write_row(number: int, **values: Any) -> dict[str, Any]:
    return {
        "thread_id": "a thread",
        "checkpoint_ns": "",
        "checkpoint_id": f"{number:04}",
        "task_id": "a task",
        "idx": -3,
        "task_path": "",
        "channel": "ü",
        "data": b"",
        "sliced": False,
        **values,
    }


def segment_row(number: int, data: object) -> dict[str, Any]:
    place = {"thread_id": "x", "stream_id": 1 << 62, "start": number, "stop": number + 1}
    return {**place, "data": data}


def thread_row(number: int, at: datetime = NOW, state: int = 1) -> dict[str, Any]:
    return {"thread_id": f"{number}", "state": state, "created_at": at, "updated_at": at}


class TestTypes:
    @pytest.fixture
    def queries(self, saver: Saver) -> Queries:
        return queries_for(saver.engine.dialect.name)

    @pytest.mark.parametrize("at_once", [True, False], ids=["many", "one by one"])
    async def test_json(self, two_ways: TwoWays, queries: Queries, *, at_once: bool) -> None:
        rows = [checkpoint_row(number, value) for number, value in enumerate(METADATA)]

        def work(connection: Connection) -> Any:
            for some in [rows] if at_once else [[row] for row in rows]:
                connection.execute(queries.put_checkpoint, *some)
            found = connection.fetch(sa.select(tables.checkpoints))
            nulls = sa.select(sa.func.count().label("count")).where(
                tables.checkpoints.c.metadata == sa.null()
            )
            return comparable(found), comparable(connection.fetch(nulls))

        found, (nulls,) = await two_ways.same(work)
        assert [dict(zip(keys, values, strict=True))["metadata"][1] for keys, values in found] == (
            METADATA
        )
        assert nulls[1] == [(int, 0)], "JSON's null became SQL's NULL"

    @pytest.mark.parametrize("made", [bytes, memoryview, bytearray])
    async def test_bytes(
        self, two_ways: TwoWays, queries: Queries, made: Callable[[bytes], Any]
    ) -> None:
        data = bytes(range(256)) * 9

        def work(connection: Connection) -> Any:
            rows = [segment_row(n, made(data)) for n in range(3)]
            connection.execute(queries.put_segment, *rows)
            given = {"thread_id": "x", "stream_id": 1 << 62}
            return comparable(connection.fetch(queries.stream, given))

        found = await two_ways.same(work)
        assert [values[2:] for _, values in found] == [
            [(int, n), (int, n + 1), (bytes, data)] for n in range(3)
        ]

    async def test_booleans_and_numbers(self, two_ways: TwoWays, queries: Queries) -> None:
        def work(connection: Connection) -> Any:
            rows = [write_row(n, sliced=bool(n % 2), idx=n - 2) for n in range(4)]
            connection.execute(queries.put_write, *rows)
            some = connection.fetch(queries.sliced_writes, {"thread_id": "a thread"})
            exists = connection.fetch(queries.any_rows, {"thread_id": "a thread"})
            return comparable(some), comparable(exists), content(connection)

        some, exists, _ = await two_ways.same(work)
        assert len(some) == 2
        assert [value for _, value in exists[0][1]] == [False, True, False]

    async def test_moments(self, two_ways: TwoWays, queries: Queries) -> None:
        moments = [NOW, NOW.astimezone(timezone(timedelta(hours=5.5))), NOW.replace(microsecond=0)]

        def work(connection: Connection) -> Any:
            rows = [thread_row(n, at, 1 << 62) for n, at in enumerate(moments)]
            connection.execute(queries.touch_thread, *rows)
            connection.execute(queries.touch_thread, rows[1])
            given = {"thread_ids": ["0", "1", "2"], "touched_after": NOW, "now": NOW}
            return comparable(connection.fetch(queries.states_and_touch, given)), content(
                connection
            )

        touched, found = await two_ways.same(work)
        assert [bool(values[2][1]) for _, values in touched] == [True, True, False]
        (of_threads,) = [rows for rows in found if rows]
        assert [values[3][1] for _, values in of_threads] == moments
        assert {values[3][1].tzinfo for _, values in of_threads} == {UTC}

    async def test_a_naive_moment_is_refused(self, saver: Saver, queries: Queries) -> None:
        row = thread_row(1, NOW.replace(tzinfo=None))
        with pytest.raises(ValueError, match="naive datetime"):
            await saver._backend.write(  # noqa: SLF001
                lambda connection: connection.execute(queries.touch_thread, row)
            )

    async def test_constants_of_statements(self, two_ways: TwoWays, queries: Queries) -> None:
        def work(connection: Connection) -> Any:
            rows = [checkpoint_row(n, {}, parent_checkpoint_id="x") for n in range(4)]
            connection.execute(queries.put_checkpoint, *rows)
            children = {"of_thread": "a thread", "of_namespace": "", "checkpoint_ids": ["x"]}
            connection.execute(queries.orphan_checkpoints, children)
            where = {"thread_id": "a thread", "checkpoint_ns": ""}
            latest = connection.fetch(queries.latest_checkpoint, where)
            connection.execute(queries.touch_thread, thread_row(1, state=5))
            connection.execute(queries.set_state, {"of_thread": "1", "new_state": 6})
            states = connection.fetch(queries.states, {"thread_ids": ["1"]})
            return comparable(latest), comparable(states), content(connection)

        latest, states, _ = await two_ways.same(work)
        assert len(latest) == 1
        assert latest[0][1][2:4] == [(str, "0003"), (type(None), None)]
        assert states[0][1][1] == (int, 6)

    @pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 1000])
    async def test_lists(self, two_ways: TwoWays, queries: Queries, count: int) -> None:
        def work(connection: Connection) -> Any:
            connection.execute(queries.touch_thread, *map(thread_row, range(0, 1200, 2)))
            given = {"thread_ids": [*map(str, range(count))]}
            return comparable(connection.fetch(queries.states, given))

        threads = await two_ways.same(work)
        assert len(threads) == (count + 1) // 2

    async def test_lists_of_changes(self, two_ways: TwoWays, queries: Queries) -> None:
        def work(connection: Connection) -> Any:
            connection.execute(queries.put_checkpoint, *(checkpoint_row(n, {}) for n in range(9)))
            given = {"thread_id": "a thread", "checkpoint_ns": ""}
            for some in ([], [1], [2, 3, 4]):
                ids = [f"{n:04}" for n in some]
                connection.execute(queries.delete_checkpoints, {**given, "checkpoint_ids": ids})
            return content(connection)

        assert sum(map(len, await two_ways.same(work))) == 5

    async def test_no_rows(self, two_ways: TwoWays, queries: Queries) -> None:
        assert (
            await two_ways.same(
                lambda connection: list(
                    connection.fetch(queries.lock_thread, {"thread_id": "none"})
                )
            )
            == []
        )


def compiled(statement: Any) -> Compiled:
    return compiled_for(statement, aiosqlite_dialect())


class TestCompiled:
    @pytest.mark.parametrize(
        ("count", "bound"), [(0, 0), (1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (1000, 1024)]
    )
    def test_a_list_is_filled_up_to_a_power_of_two(self, count: int, bound: int) -> None:
        names = [str(n) for n in range(count)]
        sql, values = compiled(queries_for("sqlite").states).bound({"thread_ids": names})
        assert sql.count("?") == len(values) == bound
        assert values[:count] == names
        assert set(values) == set(names)
        assert names == [str(n) for n in range(count)], "the caller's list has changed"

    def test_lists_of_like_lengths_share_a_statement(self) -> None:
        one = compiled(queries_for("sqlite").writes_of_many)
        texts = {
            one.bound({"thread_ids": ["x"], "namespaces": [""], "checkpoint_ids": ["x"] * n})[0]
            for n in range(1, 1001)
        }
        assert len(texts) == 11

    @pytest.mark.parametrize("name", ["channel_writes_of_many", "writes_of_many"])
    def test_the_longest_lists_fit_into_a_statement(self, name: str) -> None:
        queries = queries_for("sqlite")
        names = [str(number) for number in range(queries.dialect.max_list)]
        given = {
            "thread_ids": ["x"],
            "namespaces": names,
            "checkpoint_ids": names,
            "channels": ["x"],
        }
        _, values = compiled(getattr(queries, name)).bound(given)
        assert len(values) <= 32_766  # SQLITE_MAX_VARIABLE_NUMBER since 3.32

    def test_a_statement_is_compiled_once_for_a_dialect(self) -> None:
        statement, dialect = queries_for("sqlite").states, aiosqlite_dialect()
        assert compiled_for(statement, dialect) is compiled_for(statement, dialect)

    # SQLAlchemy itself keeps the dialects of the last 128 engines of PostgreSQL.
    @pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
    async def test_statements_go_with_their_engine(self, migrated_url: str) -> None:
        async def use() -> ref[sa.Dialect]:
            async with create_saver(migrated_url) as saver:
                await put(saver, config(), "1")
                await saver.aget_tuple(config())
                return ref(saver.engine.dialect)

        dialects = [await use() for _ in range(3)]
        gc.collect()
        assert [one() for one in dialects] == [None, None, None]

    def test_a_parameter_that_is_missing_is_an_error(self) -> None:
        with pytest.raises(KeyError, match="checkpoint_ns"):
            compiled(queries_for("sqlite").latest_checkpoint).bound({"thread_id": "x"})
