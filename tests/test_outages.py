"""Servers that restart, stop, stall and refuse: what was acknowledged stays, and agents go on."""

import asyncio
import logging
import operator
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypedDict
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy as sa
from cancelling import eventually
from databases import PostgreSQLDatabases
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.graph import END, START, StateGraph
from schemas import query
from servers import Server, line, server
from storing import batches, checkpoint, config, put, statements

import checkpointer
from checkpointer import (
    AsyncSQLAlchemySaver,
    DatabaseBusyError,
    DatabaseError,
    DatabaseUnavailableError,
    create_saver,
)

THREAD = config()
AGENTS = 50
DRIVERS = ["asyncpg", "psycopg"]

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("outages")]


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    with server() as running:
        yield running


@pytest.fixture
async def url(own_server: Server) -> AsyncIterator[str]:
    """A database at the newest schema, on a server that nobody else uses."""
    databases = PostgreSQLDatabases(own_server.url)
    created = databases.create()
    async with create_saver(created) as saver:
        await saver.setup()
    yield created
    databases.drop(created)


def with_driver(url: str, driver: str) -> str:
    parsed = sa.make_url(url).set(drivername=f"postgresql+{driver}")
    return parsed.render_as_string(hide_password=False)


HOLD = b"SELECT FROM checkpointer_threads WHERE thread_id = 'held' FOR UPDATE"


async def someone_waits(url: str) -> None:
    """Wait until a statement waits for a row that another transaction holds."""
    waiting = "SELECT 1 FROM pg_locks WHERE NOT granted"
    await eventually(lambda: query(url, waiting), "a statement that waits")


class State(TypedDict):
    """What an agent remembers."""

    said: Annotated[list[str], operator.add]
    left: int


def agent(saver: AsyncSQLAlchemySaver) -> Any:
    """A loop that says something long in each turn, and takes a little time for it."""

    async def say(state: State) -> dict[str, Any]:
        await asyncio.sleep(0.05)
        return {"said": [f"{state['left']} " + "word " * 100], "left": state["left"] - 1}

    graph = StateGraph(State)
    graph.add_node("say", say)
    graph.add_edge(START, "say")
    graph.add_conditional_edges("say", lambda state: "say" if state["left"] else END)
    return graph.compile(checkpointer=saver)


class Acknowledged:
    """What a saver has said that it stored."""

    def __init__(self, saver: AsyncSQLAlchemySaver) -> None:
        self.checkpoints: dict[tuple[str, str], dict[str, Any]] = {}
        self.writes: set[tuple[str, str, str]] = set()
        self._aput, self._aput_writes = saver.aput, saver.aput_writes
        saver.aput = self._put  # type: ignore[method-assign]
        saver.aput_writes = self._put_writes  # type: ignore[method-assign]

    async def _put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        stored = await self._aput(config, checkpoint, metadata, new_versions)
        key = (config["configurable"]["thread_id"], checkpoint["id"])
        self.checkpoints[key] = checkpoint["channel_values"]
        return stored

    async def _put_writes(
        self, config: Any, writes: Any, task_id: str, task_path: str = ""
    ) -> None:
        await self._aput_writes(config, writes, task_id, task_path)
        at = config["configurable"]
        self.writes |= {(at["thread_id"], at["checkpoint_id"], task_id)}

    @property
    def count(self) -> int:
        return len(self.checkpoints) + len(self.writes)

    async def assert_stored(self, url: str) -> None:
        """All of it is there and nothing else, as a process that knows nothing reads it."""
        async with create_saver(url) as saver:
            found = [one async for one in saver.alist(None)]
        assert {_key(one): one.checkpoint["channel_values"] for one in found} == self.checkpoints
        assert len(found) == len(self.checkpoints)
        written = {(*_key(one), task) for one in found for task, _, _ in one.pending_writes or ()}
        assert written == self.writes


def _key(found: CheckpointTuple) -> tuple[str, str]:
    at = found.config.get("configurable", {})
    return at["thread_id"], at["checkpoint_id"]


async def run_agents(saver: AsyncSQLAlchemySaver, turns: int) -> None:
    """Many agents at once, each to its end."""
    graph = agent(saver)

    async def run(number: int) -> None:
        durability = "async" if number % 2 else "sync"
        given = {"said": ["begin"], "left": turns}
        last = await graph.ainvoke(given, config(str(number)), durability=durability)
        assert len(last["said"]) == turns + 1

    await asyncio.gather(*map(run, range(AGENTS)))


async def in_thread(function: Callable[[], object]) -> None:
    await asyncio.to_thread(function)


@pytest.mark.parametrize("driver", DRIVERS)
async def test_agents_outlive_restarts_of_the_server(
    own_server: Server, url: str, driver: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "checkpointer")
    async with create_saver(with_driver(url, driver)) as saver:
        acknowledged = Acknowledged(saver)
        agents = asyncio.create_task(run_agents(saver, 40))
        before = 0
        for _ in range(2):
            await asyncio.sleep(1)
            assert not agents.done()
            before = len(acknowledged.checkpoints)
            await in_thread(own_server.restart)
        await agents
    assert len(acknowledged.checkpoints) > before > 0
    await acknowledged.assert_stored(url)
    told = [one for one in caplog.records if one.name == "checkpointer"]
    lost = [one for one in told if one.levelno == logging.WARNING]
    back = [one for one in told if "is back after" in one.getMessage()]
    assert 1 <= len(lost) <= 2
    assert len(back) == len(lost)


@pytest.mark.parametrize("driver", DRIVERS)
async def test_agents_outlive_the_end_of_their_sessions(
    url: str, driver: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with create_saver(with_driver(url, driver)) as saver:
        acknowledged = Acknowledged(saver)
        agents = asyncio.create_task(run_agents(saver, 30))
        ended = []
        while not agents.done():
            # Whatever the machine's speed, each call gets on between two ends.
            enough = acknowledged.count + AGENTS
            while acknowledged.count < enough and not agents.done():  # noqa: ASYNC110 - for either
                await asyncio.sleep(0.01)
            ended.append(await asyncio.to_thread(end_sessions, url))
        await agents
    assert sum(ended) > 10
    await acknowledged.assert_stored(url)
    told = [one for one in caplog.records if one.name == "checkpointer"]
    assert len(told) <= len(ended)


def libpq(url: str) -> str:
    return sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def end_sessions(url: str) -> int:
    with psycopg.connect(libpq(url), autocommit=True) as connection:
        ended = connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return len(ended.fetchall())


@pytest.mark.parametrize("driver", DRIVERS)
async def test_past_the_patience_there_is_one_error_and_then_it_works_again(
    own_server: Server, url: str, driver: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with create_saver(with_driver(url, driver), patience=1) as saver:
        await put(saver, THREAD, "1")
        await in_thread(own_server.stop)
        try:
            started = time.monotonic()
            puts = (put(saver, config(n), "1") for n in range(20))
            failed = await asyncio.gather(*puts, saver.aget_tuple(THREAD), return_exceptions=True)
            assert time.monotonic() - started < 20
        finally:
            await in_thread(own_server.start)
        assert {type(one) for one in failed} == {DatabaseUnavailableError}
        assert "cannot be reached" in str(failed[-1])
        assert re.search(r"tried again for [1-9]\d*\.\d s", str(failed[-1]))
        assert "patience" in str(failed[-1])
        await asyncio.gather(*(put(saver, config(n), "1") for n in range(20)))
        assert await saver.aget_tuple(THREAD) is not None
    warned = [one.getMessage() for one in caplog.records if one.name == "checkpointer"]
    assert len(warned) == 1
    assert "cannot be reached" in warned[0]


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_first_call_waits_for_the_server(own_server: Server, url: str, driver: str) -> None:
    await in_thread(own_server.stop)
    async with create_saver(with_driver(url, driver)) as saver:
        first = asyncio.create_task(put(saver, THREAD, "1"))
        await asyncio.sleep(0.5)
        assert not first.done()
        await in_thread(own_server.start)
        await first


OPERATIONS: dict[str, Callable[[AsyncSQLAlchemySaver], Any]] = {
    "put": lambda saver: put(saver, THREAD, "2"),
    "get": lambda saver: saver.aget_tuple(THREAD),
    "list": lambda saver: anext(saver.alist(THREAD)),
    "delete": lambda saver: saver.adelete_thread("a thread"),
    "history": lambda saver: saver.aget_delta_channel_history(config=THREAD, channels=["a"]),
}


@pytest.mark.parametrize(
    ("driver", "name"), [*(("asyncpg", name) for name in OPERATIONS), ("psycopg", "put")]
)
async def test_a_server_that_stalls_is_an_error_at_the_timeout(
    own_server: Server, url: str, driver: str, name: str
) -> None:
    async with create_saver(with_driver(url, driver), patience=0, timeout=2) as saver:
        await put(saver, THREAD, "1")
        with own_server.paused():
            started = time.monotonic()
            with pytest.raises(DatabaseUnavailableError, match=r"no answer within 2 s.*timeout"):
                await OPERATIONS[name](saver)
            # SQLAlchemy and psycopg give the server a few seconds more to end the session.
            assert time.monotonic() - started < 25
        await put(saver, THREAD, "3")
        assert saver.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_server_that_stalls_before_the_first_connection_is_an_error(
    own_server: Server, url: str, driver: str
) -> None:
    async with create_saver(with_driver(url, driver), patience=0, timeout=2) as saver:
        with own_server.paused():
            started = time.monotonic()
            with pytest.raises(DatabaseUnavailableError, match="cannot be reached"):
                await saver.aget_tuple(THREAD)
            assert time.monotonic() - started < 25
        assert await saver.aget_tuple(THREAD) is None


async def test_a_stall_within_the_patience_is_no_error(own_server: Server, url: str) -> None:
    async with create_saver(url, timeout=0.3) as saver:
        await put(saver, THREAD, "1")
        with own_server.paused():
            puts = [asyncio.create_task(put(saver, config(n), "1")) for n in range(20)]
            await asyncio.sleep(1)
        await asyncio.gather(*puts)
        assert len([one async for one in saver.alist(None)]) == 21


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_long_transaction_that_goes_on_is_not_cut_off(url: str, driver: str) -> None:
    async with create_saver(with_driver(url, driver), patience=0, timeout=3) as saver:
        sleep = sa.select(sa.func.pg_sleep(sa.bindparam("seconds", type_=sa.Float)).label("slept"))

        def work(connection: Any) -> int:
            return len([connection.fetch(sleep, {"seconds": 1.0}) for _ in range(4)])

        assert await saver._backend.write(work) == 4  # noqa: SLF001


@asynccontextmanager
async def on_a_line(url: str, driver: str, **options: Any) -> AsyncIterator[Any]:
    async with (
        line(url) as (cut, through),
        create_saver(with_driver(through, driver), **options) as saver,
    ):
        yield cut, saver


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_half_open_connection_is_replaced(url: str, driver: str) -> None:
    async with on_a_line(url, driver, timeout=2) as (cut, saver):
        await put(saver, THREAD, "1")
        await asyncio.gather(*(saver.aget_tuple(THREAD) for _ in range(10)))
        cut.cut()
        started = time.monotonic()
        await put(saver, THREAD, "2")
        assert [one.checkpoint["id"] async for one in saver.alist(THREAD)] == ["2", "1"]
        # One timeout, and not one for each connection of the pool.
        assert time.monotonic() - started < 20


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_half_open_connection_is_an_error_at_the_timeout(url: str, driver: str) -> None:
    async with on_a_line(url, driver, timeout=2, patience=0) as (cut, saver):
        await put(saver, THREAD, "1")
        cut.cut()
        with pytest.raises(DatabaseUnavailableError, match="no answer within 2 s"):
            await put(saver, THREAD, "2")
        await put(saver, THREAD, "2")


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_serialization_failures_are_tried_again(
    own_server: Server, url: str, driver: str, level: str
) -> None:
    name = sa.make_url(url).database
    with psycopg.connect(own_server.url, autocommit=True) as connection:
        connection.execute(
            f"ALTER DATABASE {name} SET default_transaction_isolation TO '{level}'".encode()
        )
    async with (
        create_saver(with_driver(url, driver)) as one,
        create_saver(with_driver(url, driver)) as other,
    ):
        for number in range(20):
            same = (
                put(saver, THREAD, f"{number:02}{name}") for saver in (one, other) for name in "ab"
            )
            await asyncio.gather(*same, one.aget_tuple(THREAD), other.aprune([str(number)]))
        assert len([found async for found in other.alist(THREAD)]) == 40


async def test_a_deadlock_is_tried_again(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """The saver's transaction is the one that PostgreSQL ends."""
    caplog.set_level(logging.DEBUG, "checkpointer")
    with psycopg.connect(libpq(url), autocommit=True) as admin:
        # A session looks for a deadlock once, after so long a wait: the deadlock must be there.
        name = sa.make_url(url).database
        admin.execute(f"ALTER DATABASE {name} SET deadlock_timeout TO '4s'".encode())
    touch = b"UPDATE checkpointer_threads SET updated_at = now() WHERE thread_id = %s"
    async with create_saver(url) as saver:
        await asyncio.gather(put(saver, config("1"), "1"), put(saver, config("2"), "1"))
        async with await psycopg.AsyncConnection.connect(libpq(url)) as connection:
            await connection.execute(b"SET deadlock_timeout = '60s'")
            await connection.execute(touch, ["2"])
            # A copy, which holds the first thread's row and waits for the second one's.
            copying = asyncio.create_task(saver.acopy_thread("1", "2"))
            await someone_waits(url)
            await connection.execute(touch, ["1"])
            await connection.commit()
        await copying
        assert len([one async for one in saver.alist(None)]) == 2
    assert any("deadlock detected" in one.getMessage() for one in caplog.records)


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_server_that_has_no_connection_left_is_waited_for(
    own_server: Server, url: str, driver: str
) -> None:
    role = f"few_{uuid4().hex}"
    with psycopg.connect(libpq(url), autocommit=True) as admin:
        admin.execute(
            f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 1 IN ROLE pg_read_all_data".encode()
        )
    alone = with_driver(
        sa.make_url(url).set(username=role).render_as_string(hide_password=False), driver
    )
    held = await psycopg.AsyncConnection.connect(libpq(alone))
    async with create_saver(alone) as saver:
        read = asyncio.create_task(saver.aget_tuple(THREAD))
        await asyncio.sleep(0.5)
        assert not read.done()
        await held.close()
        assert await read is None
    with psycopg.connect(libpq(url), autocommit=True) as admin:
        admin.execute(f"DROP ROLE {role}".encode())


async def test_a_put_that_was_cancelled_during_an_outage_does_not_come_after_it(
    own_server: Server, url: str
) -> None:
    async with create_saver(url) as saver:
        await put(saver, THREAD, "1")
        await in_thread(own_server.stop)
        putting = asyncio.create_task(put(saver, THREAD, "2"))
        await asyncio.sleep(1)
        putting.cancel()
        await asyncio.gather(putting, return_exceptions=True)
        await in_thread(own_server.start)
        await saver.adelete_thread("a thread")
        await asyncio.sleep(1.5)  # longer than the longest pause
        assert await saver.aget_tuple(THREAD) is None


async def test_a_thread_that_someone_holds_keeps_no_other_from_its_puts(url: str) -> None:
    async with create_saver(url, timeout=0.5) as saver:
        await asyncio.gather(put(saver, config("held"), "1"), put(saver, config("free"), "1"))
        async with await psycopg.AsyncConnection.connect(libpq(url)) as holder:
            await holder.execute(HOLD)
            # The first is alone in its batch; the others share the next one.
            puts = [put(saver, config(name), "2") for name in ("first", "held", "free", "other")]
            first, held, *others = map(asyncio.create_task, puts)
            await asyncio.wait_for(asyncio.gather(first, *others), 20)
            with statements() as seen:
                later = asyncio.create_task(put(saver, config("held"), "3"))
                await asyncio.wait_for(put(saver, config("free"), "3"), 20)
            assert batches(seen)
            # What is put into the thread that is held is apart from the start.
            together = ["free", "held"]
            assert not any(together in one.parameters[0] for one in seen)
            assert not held.done()
            await holder.rollback()
        await asyncio.gather(held, later)
        found = [one async for one in saver.alist(config("held"))]
        assert [one.checkpoint["id"] for one in found] == ["3", "2", "1"]


async def test_the_end_waits_for_what_is_tried_again_apart(url: str) -> None:
    async with create_saver(url, timeout=0.5) as saver:
        await put(saver, config("held"), "1")
        holder = await psycopg.AsyncConnection.connect(libpq(url))
        await holder.execute(HOLD)
        puts = [put(saver, config(name), "2") for name in ("first", "held", "free")]
        first, held, free = map(asyncio.create_task, puts)
        await asyncio.wait_for(asyncio.gather(first, free), 20)
        closing = asyncio.create_task(saver.aclose())
        await asyncio.sleep(0.1)
        await holder.close()
        await asyncio.gather(closing, held)
    async with create_saver(url) as saver:
        assert len([one async for one in saver.alist(None)]) == 4


async def test_calls_that_wait_for_the_first_one_share_its_patience(
    own_server: Server, url: str
) -> None:
    await in_thread(own_server.stop)
    try:
        async with create_saver(url, patience=1) as saver:
            started = time.monotonic()
            calls = (saver.aget_tuple(config(n)) for n in range(20))
            failed = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(one) for one in failed} == {DatabaseUnavailableError}
            assert time.monotonic() - started < 12
    finally:
        await in_thread(own_server.start)


async def test_a_pool_that_asks_before_it_lends_is_cut_off_too(
    own_server: Server, url: str
) -> None:
    options = {"pool_pre_ping": True}
    async with create_saver(url, patience=0, timeout=2, engine_options=options) as saver:
        await put(saver, THREAD, "1")
        with own_server.paused():
            started = time.monotonic()
            with pytest.raises(DatabaseUnavailableError, match="no answer within 6 s"):
                await saver.aget_tuple(THREAD)
            assert time.monotonic() - started < 25
        assert await saver.aget_tuple(THREAD) is not None


async def test_closing_on_a_server_that_stalls_takes_no_time_for_each_connection(
    own_server: Server, url: str
) -> None:
    async with create_saver(url) as saver:
        await put(saver, THREAD, "1")
        await asyncio.gather(*(saver.aget_tuple(THREAD) for _ in range(50)))
        assert saver.engine.pool.checkedin() > 10  # type: ignore[attr-defined]
        with own_server.paused():
            started = time.monotonic()
            await saver.aclose()
            assert time.monotonic() - started < 15


async def test_what_is_given_up_with_its_caller_costs_no_memory(url: str) -> None:
    async with create_saver(url) as saver:
        await put(saver, THREAD, "1", a=["x" * 1000])
        memory = saver._backend.store.memory  # noqa: SLF001
        sleep = sa.select(sa.func.pg_sleep(10).label("slept"))
        reading = asyncio.create_task(
            saver._backend.read(lambda connection: connection.fetch(sleep))  # noqa: SLF001
        )
        await asyncio.sleep(0.3)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await saver.aget_tuple(config("other"))
        assert memory.get("a thread") is not None
        assert await asyncio.to_thread(end_sessions, url) > 0
        await saver.aget_tuple(config("other"))
        assert memory.get("a thread") is not None, "a lost connection says nothing of the database"


async def test_a_put_after_an_outage_keeps_the_parents_values_without_a_cache(url: str) -> None:
    """They are asked for; dumped again, a live object would be what it has become since."""
    async with create_saver(url, cache_bytes=0) as saver:
        live = ["x" * 5000]
        stored = checkpoint("1", {"live": live})
        stored["channel_versions"]["live"] = "1"
        at = await saver.aput(THREAD, stored, {}, {"live": "1"})
        child = checkpoint("2", {"live": live})
        child["channel_versions"]["live"] = "1"
        holder = await psycopg.AsyncConnection.connect(libpq(url))
        await holder.execute(b"SELECT FROM checkpointer_threads FOR UPDATE")
        putting = asyncio.create_task(saver.aput(at, child, {}, {}))
        await someone_waits(url)
        live.append("changed meanwhile")
        await holder.close()
        await asyncio.to_thread(end_sessions, url)
        await putting
        found = await saver.aget_tuple(THREAD)
    assert found is not None
    assert found.checkpoint["channel_values"] == {"live": ["x" * 5000]}


def test_the_error_of_a_busy_database_is_public() -> None:
    assert issubclass(DatabaseBusyError, DatabaseUnavailableError)
    assert issubclass(checkpointer.DatabaseBusyError, DatabaseError)
