"""Operations that are cancelled: whole or absent, and nothing of them is left behind."""

import asyncio
import gc
import logging
import random
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from itertools import count
from typing import Any

import pytest
from cancelling import (
    OPERATIONS,
    Cancelling,
    Onlooker,
    Operation,
    Way,
    at_rest,
    engine_for,
    eventually,
    prepare,
)
from intensity import INTENSITY
from schemas import catalog, execute, held
from storing import LARGE, config, put, row_counts

from checkpointer import AsyncSQLAlchemySaver, SaverClosedError, create_saver
from checkpointer.tables import VERSION_TABLE, metadata

Saver = AsyncSQLAlchemySaver
Opened = Callable[[], AbstractAsyncContextManager[Saver]]
Work = Coroutine[Any, Any, object]

THREAD = config()

pytestmark = [pytest.mark.long, pytest.mark.timeout(120)]

FROM_OUTSIDE = (Way.AT_ONCE, Way.WHEN_DONE, Way.ON_AND_ON)
FROM_INSIDE = (Way.AT_ONCE, Way.WHEN_DONE, Way.NEVER_BEGUN)

DRIVERS = [
    ("sqlite", "own"),
    ("sqlite", "given"),
    ("stepwise", "own"),
    ("stepwise", "given"),
    ("postgresql", "own"),
    ("postgresql", "psycopg"),
]
ENGINES = [*DRIVERS, ("postgresql", "given"), ("postgresql", "watched")]

on_each_engine = pytest.mark.parametrize(
    ("database_kind", "engine_kind"),
    ENGINES if INTENSITY.each_way else DRIVERS,
    indirect=["database_kind"],
)
on_each_driver = pytest.mark.parametrize(
    ("database_kind", "engine_kind"), DRIVERS, indirect=["database_kind"]
)
on_sqlite = pytest.mark.parametrize("database_kind", ["sqlite", "stepwise"], indirect=True)


@pytest.fixture(autouse=True)
def nothing_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing is logged as an error, and no exception is left that nobody has asked for."""
    yield
    gc.collect()
    errors = [one for one in caplog.get_records("call") if one.levelno >= logging.ERROR]
    assert [one.getMessage() for one in errors] == []


@pytest.fixture
def onlooker(migrated_url: str) -> Iterator[Onlooker]:
    found = Onlooker(migrated_url)
    yield found
    found.close()


@pytest.fixture
def opened(database_url: str, engine_kind: str) -> Opened:
    """Call it for a saver on a new engine of the kind, open within a block."""
    if engine_kind == "given":
        # SQLAlchemy opens these files, and aiosqlite forgets the connection that its thread has
        # opened when the call was cancelled. It is closed when it is collected, which Python tells
        # since 3.13.
        warnings.filterwarnings("ignore", "unclosed database", ResourceWarning)

    @asynccontextmanager
    async def open_saver() -> AsyncIterator[Saver]:
        engine = None if engine_kind == "own" else engine_for(database_url, engine_kind)
        try:
            async with create_saver(engine or database_url) as saver:
                yield saver
        finally:
            if engine is not None:
                await engine.dispose()

    return open_saver


class Checks:
    """Runs an operation that is cancelled, with a neighbour, and looks at what both leave."""

    def __init__(self, name: str, onlooker: Onlooker, healthy: Saver) -> None:
        self.operation: Operation = OPERATIONS[name]
        self.onlooker = onlooker
        self.healthy = healthy

    async def run(self, saver: Saver, key: str, interrupted: Callable[[Work], Work]) -> list[Any]:
        """What the operation and the put at the same time have ended with, if with an error.

        Args:
            saver: Runs both.
            key: Names the operation's threads.
            interrupted: Makes the operation one that is cancelled.
        """
        await prepare(self.healthy, key)
        changed = self.operation.changes(key)
        before = {thread: self.onlooker.rows(thread) for thread in changed}

        async def operate() -> None:
            await self.operation.run(saver, key)

        neighbour = config(f"{key}, its neighbour")
        works = interrupted(operate()), put(saver, neighbour, "1", a=LARGE)
        tasks = [asyncio.create_task(one) for one in works]
        await asyncio.wait(tasks)
        await at_rest(saver, self.onlooker)
        raised = [_raised(task) for task in tasks]

        left = {thread: self.onlooker.rows(thread) for thread in changed}
        if raised[1] is None:
            await self.holds(self.healthy, neighbour)
        afterwards = config(f"{key}, afterwards")
        await put(saver, afterwards, "1", a=LARGE)
        await self.holds(saver, afterwards)
        await self.operation.run(self.healthy, key)
        for thread in changed:
            whole = self.onlooker.rows(thread)
            assert whole != before[thread], "the operation changes nothing"
            expected = (whole,) if raised[0] is None else (before[thread], whole)
            assert left[thread] in expected, "the operation is not stored as a whole"
        return raised

    async def holds(self, saver: Saver, where: Any) -> None:
        found = await saver.aget_tuple(where)
        assert found is not None, "what was acknowledged is not stored"
        assert found.checkpoint["channel_values"] == {"a": LARGE}


def _raised(task: "asyncio.Task[Any]") -> BaseException | None:
    """What a task ended with; nothing but a cancellation or a timeout may it be."""
    if task.cancelled():
        return asyncio.CancelledError()
    raised = task.exception()
    if raised is not None and not isinstance(raised, TimeoutError):
        raise raised
    return raised


async def assert_whole(saver: Saver) -> None:
    found = await saver.averify()
    assert found.whole, found.problems


def ways(of: tuple[Way, ...], *, each: bool) -> Iterator[tuple[Way, Iterator[int]]]:
    """Ways to cancel, with the points at which to; each way at all of them, or at some."""
    for start, way in enumerate(of, 1):
        # Tasks that have never begun are few, and counted by themselves.
        yield way, count(1) if each or way is Way.NEVER_BEGUN else count(start, len(of))


@pytest.fixture
def each_way(engine_kind: str) -> bool:
    """Whether to cancel at each point in each way."""
    return INTENSITY.each_way and engine_kind not in {"given", "watched"}


@on_each_engine
@pytest.mark.parametrize("name", OPERATIONS)
async def test_a_call_that_is_cancelled_at_each_of_its_await_points(
    name: str, opened: Opened, onlooker: Onlooker, *, each_way: bool
) -> None:
    cancelled = 0
    async with opened() as saver, opened() as healthy:
        await put(saver, config("x"), "1")
        checks = Checks(name, onlooker, healthy)
        for way, points in ways(FROM_OUTSIDE, each=each_way):
            for point in points:
                cancelling = Cancelling(way, point)
                raised = await checks.run(saver, f"{way.value} {point}", cancelling.run)
                assert raised[1] is None, "a neighbour was cancelled"
                assert (raised[0] is not None) == cancelling.cancelled
                if not cancelling.cancelled:
                    break
                cancelled += 1
        await assert_whole(healthy)
    assert cancelled >= 1


@on_each_driver
@pytest.mark.parametrize("name", ["aget_tuple", "aput", "adelete_thread"])
async def test_a_savers_first_call_that_is_cancelled_at_each_of_its_await_points(
    name: str, opened: Opened, onlooker: Onlooker, *, each_way: bool
) -> None:
    """It connects, and checks the schema."""
    cancelled = 0
    async with opened() as healthy:
        checks = Checks(name, onlooker, healthy)
        for way, points in ways(FROM_OUTSIDE, each=each_way):
            for point in points:
                cancelling = Cancelling(way, point)
                async with opened() as saver:
                    raised = await checks.run(saver, f"{way.value} {point}", cancelling.run)
                assert raised[1] is None, "a neighbour was cancelled"
                assert (raised[0] is not None) == cancelling.cancelled
                if not cancelling.cancelled:
                    break
                cancelled += 1
        await assert_whole(healthy)
    assert cancelled >= 2


def from_inside(cancelling: Cancelling) -> Callable[[Work], Work]:
    """Cancels what the package itself makes tasks of, and not the work's own task."""

    async def run(work: Work) -> None:
        with cancelling.in_the_packages_tasks():
            await work

    return run


@pytest.mark.parametrize(
    ("database_kind", "engine_kind", "name"),
    [
        *(
            (database, kind, name)
            for database in ("sqlite", "stepwise")
            for kind in ("own", "given")
            for name in OPERATIONS
        ),
        *(
            ("postgresql", kind, name)
            for kind in ("own", "psycopg")
            for name in ("aput", "aput_writes")
        ),
    ],
    indirect=["database_kind"],
)
async def test_the_packages_own_tasks_that_are_cancelled_at_each_of_their_await_points(
    name: str, opened: Opened, onlooker: Onlooker, *, each_way: bool
) -> None:
    """As a loop that closes cancels them; and as only it does."""
    cancelled = 0
    async with opened() as healthy:
        checks = Checks(name, onlooker, healthy)
        for way, points in ways(FROM_INSIDE, each=each_way):
            for point in points:
                cancelling = Cancelling(way, point)
                async with opened() as saver:
                    key = f"{way.value} {point}"
                    raised = await checks.run(saver, key, from_inside(cancelling))
                if not cancelling.cancelled:
                    break
                cancelled += any(raised)
        await assert_whole(healthy)
    assert cancelled >= 2


@pytest.mark.parametrize(
    ("database_kind", "engine_kind", "inside"),
    [
        pytest.param("sqlite", "own", False, id="sqlite, from outside"),
        pytest.param("sqlite", "own", True, id="sqlite, from inside"),
        pytest.param("sqlite", "given", True, id="sqlite, given, from inside"),
        pytest.param("stepwise", "own", False, id="stepwise, from outside"),
        pytest.param("stepwise", "own", True, id="stepwise, from inside"),
        pytest.param("postgresql", "own", False, id="asyncpg"),
        pytest.param("postgresql", "psycopg", False, id="psycopg"),
    ],
    indirect=["database_kind"],
)
async def test_setup_that_is_cancelled_at_each_of_its_await_points(
    opened: Opened, database_url: str, *, inside: bool, each_way: bool
) -> None:
    nothing = catalog(database_url)
    async with opened() as saver:
        await saver.setup()
    everything = catalog(database_url)
    assert everything != nothing
    seen = []
    for way, points in ways(FROM_INSIDE if inside else FROM_OUTSIDE, each=each_way):
        for point in points:
            drop_schema(database_url)
            cancelling = Cancelling(way, point)
            async with opened() as saver:
                interrupted = from_inside(cancelling) if inside else cancelling.run
                task = asyncio.create_task(interrupted(saver.setup()))
                await asyncio.wait([task])
                with closing(Onlooker(database_url)) as onlooker:
                    await at_rest(saver, onlooker)
                seen.append(catalog(database_url))
                whole_or_absent = (nothing, everything) if _raised(task) else (everything,)
                assert seen[-1] in whole_or_absent
                await saver.setup()
            assert catalog(database_url) == everything
            if not cancelling.cancelled:
                break
    assert nothing in seen


def drop_schema(url: str) -> None:
    """Remove all of our tables."""
    execute(url, *(f"DROP TABLE IF EXISTS {name}" for name in (VERSION_TABLE, *metadata.tables)))


def worker_threads() -> set[threading.Thread]:
    """The threads of aiosqlite's connections."""
    return {one for one in threading.enumerate() if "_connection_worker_thread" in one.name}


@on_each_engine
async def test_aclose_that_is_cancelled_at_each_of_its_await_points(
    engine_kind: str, opened: Opened, onlooker: Onlooker
) -> None:
    cancelled = 0
    threads = worker_threads()
    async with opened() as healthy:
        for way, points in ways(FROM_OUTSIDE, each=True):
            for point in points:
                key = f"{way.value} {point}"
                cancelling = Cancelling(way, point)
                async with opened() as saver:
                    await asyncio.gather(*(put(saver, config(n), key) for n in range(3)))
                    await asyncio.gather(*(listed(saver, n) for n in range(3)))
                    under_way = asyncio.create_task(put(saver, config(key), "1", a=LARGE))
                    await asyncio.sleep(0)
                    end = asyncio.create_task(cancelling.run(saver.aclose()))
                    await asyncio.wait([end, under_way])
                    assert end.cancelled() == cancelling.cancelled
                    await under_way
                    with pytest.raises(SaverClosedError):
                        await put(saver, config(key), "2")
                    await saver.aclose()
                    await at_rest(saver, onlooker)
                stored = await healthy.aget_tuple(config(key))
                assert stored is not None
                assert stored.checkpoint["channel_values"] == {"a": LARGE}
                if not cancelling.cancelled:
                    break
                cancelled += 1
    assert cancelled >= (2 if engine_kind == "own" else 1)
    await eventually(lambda: onlooker.sessions() == 0, "a session")
    await eventually(lambda: worker_threads() <= threads, "a thread")


async def listed(saver: Saver, thread_id: object) -> list[Any]:
    return [one async for one in saver.alist(config(thread_id))]


@on_each_driver
async def test_calls_that_run_into_a_timeout(opened: Opened, onlooker: Onlooker) -> None:
    moments = random.Random(1)  # noqa: S311 - not a secret
    ended = {True: 0, False: 0}
    async with opened() as saver, opened() as healthy:
        await put(saver, config("x"), "1")
        for name in OPERATIONS:
            checks = Checks(name, onlooker, healthy)
            taken = 0.0
            for turn in range(INTENSITY.timeouts):
                # The first has time enough, and tells how long the others need; the second has no
                # time at all.
                seconds = moments.uniform(0, 1.1) * taken if turn > 1 else 30.0 * (turn == 0)

                async def within(work: Work, seconds: float = seconds) -> None:
                    nonlocal taken
                    started = time.perf_counter()
                    async with asyncio.timeout(seconds):
                        await work
                    taken = taken or time.perf_counter() - started

                timed_out, neighbour = await checks.run(saver, f"{name} {turn}", within)
                assert neighbour is None
                assert timed_out is None or isinstance(timed_out, TimeoutError)
                ended[timed_out is None] += 1
        await assert_whole(healthy)
    assert min(ended.values()) >= len(OPERATIONS), ended


@on_sqlite
@pytest.mark.parametrize("engine_kind", ["own"])
class TestAFileThatAnotherProcessHolds:
    async def test_what_waited_for_it_and_was_cancelled_does_not_happen_afterwards(
        self, opened: Opened, migrated_url: str, onlooker: Onlooker
    ) -> None:
        async with opened() as saver:
            await put(saver, THREAD, "1", a=LARGE)
            stored = row_counts(migrated_url)
            with held(migrated_url, "a thread"):
                started = time.monotonic()
                deletion = asyncio.create_task(saver.adelete_thread("a thread"))
                copy = asyncio.create_task(saver.acopy_thread("a thread", "a copy"))
                await asyncio.wait([deletion, copy], timeout=0.2)
                for one in (deletion, copy):
                    one.cancel()
                await asyncio.wait([deletion, copy])
                assert deletion.cancelled()
                assert copy.cancelled()
                assert time.monotonic() - started < 20, "a cancellation waited for the file"
            await at_rest(saver, onlooker)
            assert row_counts(migrated_url) == stored

    async def test_its_connections_are_used_by_nobody_else_until_it_is_free(
        self, opened: Opened, migrated_url: str, onlooker: Onlooker
    ) -> None:
        async with opened() as saver:
            await put(saver, THREAD, "1", a=LARGE)
            with held(migrated_url, "a thread"):
                for _ in range(5):
                    with pytest.raises(TimeoutError):
                        await asyncio.wait_for(saver.adelete_thread("a thread"), 0.05)
                async with asyncio.timeout(20):
                    for _ in range(20):
                        assert await saver.aget_tuple(THREAD) is not None
            await at_rest(saver, onlooker)

    async def test_the_end_waits_for_what_was_cancelled(
        self, opened: Opened, migrated_url: str
    ) -> None:
        threads = worker_threads()
        async with opened() as saver:
            await put(saver, THREAD, "1")
            with held(migrated_url, "a thread"):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(saver.adelete_thread("a thread"), 0.1)
                end = asyncio.create_task(saver.aclose())
                done, _ = await asyncio.wait([end], timeout=0.2)
                assert not done
            await end
        await eventually(lambda: worker_threads() <= threads, "a thread")
