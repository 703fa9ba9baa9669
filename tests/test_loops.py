"""Savers beside each other, and loops, threads and processes that end: no call waits for ever."""

import asyncio
import gc
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from cancelling import OPERATIONS, Onlooker, engine_for, eventually, prepare
from schemas import held
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool, StaticPool
from storing import LARGE, checkpoint, config, put

from checkpointer import (
    AsyncSQLAlchemySaver,
    CheckpointerError,
    EventLoopError,
    SaverClosedError,
    create_saver,
)

Saver = AsyncSQLAlchemySaver

LIMIT = 180
"""Seconds after which a test that waits has failed."""

pytestmark = [pytest.mark.long, pytest.mark.timeout(LIMIT)]

logging_nothing = pytest.mark.usefixtures("nothing_logged")

THREAD = config()

on_sqlite = pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)


@pytest.fixture
def nothing_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing is logged as an error, and no exception is left that nobody has asked for."""
    yield
    gc.collect()
    errors = [one for one in caplog.get_records("call") if one.levelno >= logging.ERROR]
    assert [one.getMessage() for one in errors] == []


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """What the work returns, on an event loop of its own."""
    # A loop factory keeps the runner from replacing the current event loop, which is pytest's.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(work)


def put_sync(saver: Saver, where: Any, name: str, **values: Any) -> None:
    saver.put(where, checkpoint(name, values), {}, {})


async def ids(saver: Saver, thread: object = "a thread") -> list[str]:
    return [one.checkpoint["id"] async for one in saver.alist(config(thread))][::-1]


async def stored_ids(url: str, thread: object = "a thread") -> list[str]:
    """The checkpoints of a thread, as another process finds them, and all is whole."""
    async with create_saver(url) as other:
        found = await other.averify()
        assert found.whole, found.problems
        return await ids(other, thread)


@logging_nothing
class TestCloseWithOperationsUnderWay:
    @pytest.mark.parametrize("kind", ["own", "given", "watched", "psycopg"])
    @pytest.mark.parametrize("steps", [2, 5, 30])
    async def test_they_finish_and_later_ones_are_refused(
        self, migrated_url: str, database_kind: str, kind: str, steps: int
    ) -> None:
        if database_kind == "sqlite" and kind in {"watched", "psycopg"}:
            pytest.skip("only PostgreSQL has these")
        engine = None if kind == "own" else engine_for(migrated_url, kind)
        async with create_saver(migrated_url) as healthy:
            for name in OPERATIONS:
                await prepare(healthy, name)
            saver = create_saver(engine or migrated_url)
            await put(saver, THREAD, "0")
            tasks = {
                name: asyncio.create_task(_awaited(one.run(saver, name)))
                for name, one in OPERATIONS.items()
            }
            puts = [asyncio.create_task(put(saver, config(n), "1", a=LARGE)) for n in range(10)]
            for _ in range(steps):
                await asyncio.sleep(0)
            await saver.aclose()
            assert all(one.done() for one in puts)
            await asyncio.gather(*tasks.values(), *puts)
            for name in ("aget_tuple", "aput"):
                with pytest.raises(SaverClosedError):
                    await OPERATIONS[name].run(saver, name)
            for number in range(10):
                assert await ids(healthy, number) == ["1"]
            assert await ids(healthy, "adelete_thread") == []
            assert await ids(healthy, "aput") == ["0", "1", "2", "3"]
        if engine is not None:
            pool: Any = engine.pool
            assert pool.checkedout() == 0
            await engine.dispose()


async def _awaited(work: Awaitable[object]) -> object:
    return await work


class Stopped(Exception):  # noqa: N818 - it is no error
    """Ends a program."""


class Acknowledged:
    """Puts one checkpoint after the other, and notes which of them have returned."""

    def __init__(self, thread: object) -> None:
        self.thread = thread
        self.ids: list[str] = []

    async def run(self, saver: Saver) -> None:
        at = config(self.thread)
        for number in range(100_000):
            at = await put(saver, at, f"{number:06}", a=[*LARGE, number])
            self.ids.append(f"{number:06}")


def assert_stored(url: str, all_of: list[Acknowledged]) -> None:
    """All that has returned is stored, and at most one more of each."""

    async def look() -> None:
        async with create_saver(url) as other:
            found = await other.averify()
            assert found.whole, found.problems
            for one in all_of:
                assert (await ids(other, one.thread))[: len(one.ids)] == one.ids
                assert len(await ids(other, one.thread)) <= len(one.ids) + 1

    run(look())


def open_connections() -> int:
    """How many connections of SQLite this process has, which nobody has dropped."""
    gc.collect()
    return sum("_connection_worker_thread" in one.name for one in threading.enumerate())


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Saver]:
    """A saver whose pool has all the connections that it needs; nobody closes it."""
    saver = create_saver(url)
    async with AsyncExitStack() as stack:
        for _ in range(4):
            await stack.enter_async_context(saver.engine.connect())
    yield saver


@pytest.fixture
def collected() -> Iterator[None]:
    """Savers that nobody has closed are collected after the test; nothing of them is left."""
    before = open_connections()

    async def collect() -> None:  # within a loop: aiosqlite would make and leave one
        await eventually(lambda: open_connections() <= before, "a connection")

    yield
    run(collect())


@pytest.mark.usefixtures("collected")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
class TestALoopThatEnds:
    @logging_nothing
    @pytest.mark.parametrize("error", [Stopped, KeyboardInterrupt, SystemExit])
    def test_with_operations_under_way(self, migrated_url: str, error: type[BaseException]) -> None:
        acknowledged: list[Acknowledged] = []

        async def main(turn: int) -> None:
            async with connected(migrated_url) as saver:
                some = [Acknowledged(f"{turn} {n}") for n in range(5)]
                acknowledged.extend(some)
                works = [one.run(saver) for one in some]
                works += [_reading(saver, one.thread) for one in some]
                works.append(_pruning(saver))
                tasks = [asyncio.create_task(one) for one in works]
                await eventually(lambda: sum(len(one.ids) for one in some) >= turn, "a put")
                for _ in range(turn):
                    await asyncio.sleep(0)
                assert not any(one.done() for one in tasks)
                raise error

        for turn in range(12):
            with pytest.raises(error):
                run(main(turn))
        assert sum(len(one.ids) for one in acknowledged) >= 11 * 12 / 2
        assert_stored(migrated_url, acknowledged)

    @logging_nothing
    def test_after_a_block_that_lets_what_is_under_way_finish(self, migrated_url: str) -> None:
        some = [Acknowledged(n) for n in range(5)]
        refused: list[object] = []

        async def work(saver: Saver, one: Acknowledged) -> None:
            try:
                await one.run(saver)
            except SaverClosedError as exc:
                refused.append(exc)

        async def main() -> None:
            async with create_saver(migrated_url) as saver:
                tasks = [asyncio.create_task(work(saver, one)) for one in some]
                await eventually(lambda: sum(len(one.ids) for one in some) >= 20, "puts")
                assert len(tasks) == 5
                raise Stopped

        with pytest.raises(Stopped):
            run(main())
        assert_stored(migrated_url, some)

    @logging_nothing
    def test_before_the_writers_task_has_begun(self, migrated_url: str) -> None:
        """The agent has put its checkpoint into a batch that nobody takes any more."""
        closed: list[Saver] = []

        async def agent(saver: Saver) -> None:
            try:
                await put(saver, THREAD, "2")
            finally:
                await saver.aclose()
                closed.append(saver)

        async def main() -> None:
            saver = create_saver(migrated_url)
            await put(saver, THREAD, "1")
            asyncio.create_task(agent(saver))  # noqa: RUF006 - the loop ends before it
            raise Stopped

        with pytest.raises(Stopped):
            run(main())
        assert len(closed) == 1
        assert run(stored_ids(migrated_url)) == ["1"]

    def test_and_goes_on(self, migrated_url: str) -> None:
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            loop = runner.get_loop()

            async def begin() -> tuple[Saver, "asyncio.Task[Any]"]:
                saver = create_saver(migrated_url)
                await put(saver, THREAD, "1")
                task = asyncio.create_task(put(saver, THREAD, "2"))
                await asyncio.sleep(0)
                return saver, task

            async def end(saver: Saver, task: "asyncio.Task[Any]") -> None:
                await task
                assert await ids(saver) == ["1", "2"]
                await saver.aclose()

            saver, task = runner.run(begin())
            assert not loop.is_running()
            with pytest.raises(EventLoopError, match="does not run"):
                saver.get_tuple(THREAD)
            runner.run(end(saver, task))

    @pytest.mark.parametrize("end", ["closed", "stopped"])
    def test_under_sync_calls_of_other_threads(self, migrated_url: str, end: str) -> None:
        assert program("late_calls.py", migrated_url, end).stdout == "EventLoopError 48\n"


def program(name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run one of the programs beside this file to its end."""
    return subprocess.run(
        [sys.executable, Path(__file__).with_name(name), *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT - 5,
        check=False,
    )


async def _reading(saver: Saver, thread: object) -> None:
    while True:
        await saver.aget_tuple(config(thread))


async def _pruning(saver: Saver) -> None:
    while True:
        await saver.acopy_thread("nothing", "nowhere")
        await saver.adelete_thread("nothing")


def test_a_sync_call_may_take_longer_than_a_look_at_its_loop(
    migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("checkpointer.bridge.LOOK_SECONDS", 0.01)
    with create_saver(migrated_url) as saver:
        bridge = saver._backend.bridge  # noqa: SLF001

        async def slow() -> str:
            await asyncio.sleep(0.1)
            return "done"

        async def late() -> None:
            await asyncio.sleep(0.1)
            raise TimeoutError("its own")

        assert bridge.call(slow) == "done"
        with pytest.raises(TimeoutError, match="its own"):
            bridge.call(late)


@logging_nothing
@pytest.mark.usefixtures("ctrl_c")
class TestCtrlC:
    """In the middle of a sync call: nobody waits for it any more, and the saver stays usable."""

    @contextmanager
    def pressed(self) -> Iterator[None]:
        main = threading.main_thread()
        assert threading.current_thread() is main
        press = threading.Timer(0.3, lambda: signal.pthread_kill(main.ident or 0, signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - it may come before the block
            press.start()
            yield
        press.join()

    def test_in_a_put(self, migrated_url: str) -> None:
        with create_saver(migrated_url) as saver:
            put_sync(saver, THREAD, "1")
            with held(migrated_url, "a thread"), self.pressed():
                put_sync(saver, THREAD, "2", a=LARGE)
            put_sync(saver, THREAD, "3", a=LARGE)
            assert {"1", "3"} <= {one.checkpoint["id"] for one in saver.list(THREAD)}
        assert run(stored_ids(migrated_url))[-1] == "3"

    def test_in_a_deletion(self, migrated_url: str) -> None:
        with create_saver(migrated_url) as saver:
            put_sync(saver, THREAD, "1")
            with held(migrated_url, "a thread"), self.pressed():
                saver.delete_thread("a thread")
            put_sync(saver, THREAD, "2")
        assert run(stored_ids(migrated_url)) == ["1", "2"]


async def agents(saver: Saver, threads: int, turns: int, who: str) -> None:
    """Put into threads that others put into as well, and read them."""

    async def agent(thread: int) -> None:
        at = config(thread)
        for turn in range(turns):
            at = await put(saver, at, f"{turn:03} {who}", a=[*LARGE, who, turn])
            await saver.aput_writes(at, [("a", who)], f"a task of {who}")
            found = await saver.aget_tuple(at)
            assert found is not None
            assert found.checkpoint["channel_values"] == {"a": [*LARGE, who, turn]}
            assert found.pending_writes == [(f"a task of {who}", "a", who)]

    await asyncio.gather(*map(agent, range(threads)))


async def assert_all_there(url: str, threads: int, turns: int, who: str) -> None:
    for thread in range(threads):
        expected = sorted(f"{turn:03} {one}" for turn in range(turns) for one in who)
        assert await stored_ids(url, thread) == expected


@logging_nothing
class TestTwoSavers:
    @pytest.mark.parametrize(
        "options", [{}, {"pool_size": 1, "max_overflow": 0}, {"poolclass": NullPool}], ids=repr
    )
    async def test_on_one_engine_in_one_loop(
        self, migrated_url: str, options: dict[str, Any]
    ) -> None:
        engine = create_async_engine(migrated_url, **options)
        async with create_saver(engine) as one, create_saver(engine) as other:
            await asyncio.gather(agents(one, 4, 5, "x"), agents(other, 4, 5, "y"))
            await assert_all_there(migrated_url, 4, 5, "xy")
            await one.adelete_thread("0")
            await agents(other, 4, 5, "z")
        assert await stored_ids(migrated_url, 0) == [f"{turn:03} z" for turn in range(5)]
        await engine.dispose()

    async def test_on_one_connection(self) -> None:
        """As a database in memory has one alone."""
        engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
        async with create_saver(engine) as one, create_saver(engine) as other:
            await one.setup()  # a StaticPool that is empty makes each caller a connection
            await asyncio.gather(agents(one, 4, 5, "x"), agents(other, 4, 5, "y"))
            assert len(await ids(one, 0)) == 10
        await engine.dispose()

    def test_on_one_database_in_two_loops(self, migrated_url: str) -> None:
        async def main(who: str) -> None:
            async with create_saver(migrated_url) as saver:
                await agents(saver, 4, 10, who)

        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(run, main(who)) for who in "xy"]:
                done.result()
        run(assert_all_there(migrated_url, 4, 10, "xy"))

    def test_on_one_database_with_and_without_a_loop(self, migrated_url: str) -> None:
        def without() -> None:
            with create_saver(migrated_url) as saver:
                for turn in range(10):
                    for thread in range(4):
                        put_sync(saver, config(thread), f"{turn:03} y", a=LARGE)

        async def main() -> None:
            async with create_saver(migrated_url) as saver:
                await asyncio.gather(agents(saver, 4, 10, "x"), asyncio.to_thread(without))

        run(main())
        run(assert_all_there(migrated_url, 4, 10, "xy"))


@logging_nothing
class TestOneEngineInTwoLoops:
    """What SQLAlchemy's pools wait for in one loop, another loop does not wake."""

    def test_is_refused_while_both_run(self, migrated_url: str) -> None:
        engine = create_async_engine(migrated_url)

        async def second() -> None:
            saver = create_saver(engine)
            for call in (saver.aget_tuple(THREAD), saver.setup(), saver.aclose()):
                with pytest.raises(EventLoopError, match=r"engine\.dispose\(\).*NullPool|NullPool"):
                    await call

        def from_outside() -> None:
            run(second())
            with pytest.raises(EventLoopError, match="another event loop"):
                create_saver(engine).get_tuple(THREAD)

        async def first() -> None:
            async with create_saver(engine) as saver:
                await put(saver, THREAD, "1")
                await asyncio.to_thread(from_outside)
                assert await ids(saver) == ["1"]
            await engine.dispose()

        run(first())

    @pytest.mark.usefixtures("collected")
    @pytest.mark.filterwarnings("ignore::ResourceWarning")
    def test_is_refused_one_after_the_other(self, migrated_url: str) -> None:
        engine = create_async_engine(migrated_url)

        async def use(name: str) -> None:
            async with create_saver(engine) as saver:
                await put(saver, THREAD, name)

        async def use_and_dispose(name: str) -> None:
            await use(name)
            await engine.dispose()

        run(use_and_dispose("1"))
        run(use("2"))
        with pytest.raises(EventLoopError, match="another event loop"):
            run(use("3"))
        engine.sync_engine.dispose(close=False)
        assert run(stored_ids(migrated_url)) == ["1", "2"]

    def test_works_without_a_pool(self, migrated_url: str) -> None:
        engine = create_async_engine(migrated_url, poolclass=NullPool)

        async def use(who: str) -> None:
            async with create_saver(engine) as saver:
                await agents(saver, 4, 5, who)

        run(use("x"))  # SQLAlchemy's first connection to a database may have no other beside it
        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(run, use(who)) for who in "yz"]:
                done.result()
        run(assert_all_there(migrated_url, 4, 5, "xyz"))


def answer_of_fork(work: Callable[[], object]) -> str:
    """What a fork of this process gets from the work, or the error of ours that it raises."""
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)

    def answer() -> None:
        try:
            found = str(work())
        except CheckpointerError as exc:
            found = f"{type(exc).__name__}: {exc}"
        writer.send(found)

    process = context.Process(target=answer, daemon=True)
    with warnings.catch_warnings():
        # Since Python 3.12, a fork of a process with threads gets this warning.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    writer.close()
    try:
        assert reader.poll(LIMIT / 2), "the fork waits for ever"
        found: str = reader.recv()
        process.join(LIMIT / 2)
        assert process.exitcode == 0
        return found
    finally:
        process.kill()
        process.join()
        process.close()
        reader.close()


def put_and_list(saver: Saver, thread: object) -> list[str]:
    """What a program without an event loop does with a saver."""
    with saver:
        put_sync(saver, config(thread), "1", a=LARGE)
        return [one.checkpoint["id"] for one in saver.list(config(thread))]


async def put_and_list_async(saver: Saver, thread: object) -> list[str]:
    async with saver:
        await put(saver, config(thread), "1", a=LARGE)
        return await ids(saver, thread)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
class TestForks:
    def test_with_a_saver_that_was_never_used(self, migrated_url: str) -> None:
        """As a module has one, for a server that forks its workers."""
        saver = create_saver(migrated_url)
        assert answer_of_fork(lambda: put_and_list(saver, 1)) == "['1']"
        assert answer_of_fork(lambda: run(put_and_list_async(saver, 2))) == "['1']"
        assert put_and_list(saver, 3) == ["1"]
        for thread in (1, 2, 3):
            assert run(stored_ids(migrated_url, thread)) == ["1"]

    def test_after_the_savers_end(self, migrated_url: str) -> None:
        put_and_list(create_saver(migrated_url), 1)
        run(put_and_list_async(create_saver(migrated_url), 2))
        answer = answer_of_fork(lambda: put_and_list(create_saver(migrated_url), 3))
        assert answer == "['1']"
        assert put_and_list(create_saver(migrated_url), 4) == ["1"]
        for thread in (1, 2, 3, 4):
            assert run(stored_ids(migrated_url, thread)) == ["1"]

    @on_postgresql
    async def test_of_a_running_loop(self, migrated_url: str) -> None:
        async with create_saver(migrated_url) as saver:
            acknowledged = Acknowledged("parent")
            task = asyncio.create_task(acknowledged.run(saver))
            for number in range(3):
                count = len(acknowledged.ids)
                await eventually(lambda: len(acknowledged.ids) > count + 5, "puts")  # noqa: B023
                own = create_saver(migrated_url)
                answer = answer_of_fork(lambda: run(put_and_list_async(own, number)))  # noqa: B023
                assert answer == "['1']"
                answer = answer_of_fork(lambda: put_and_list(create_saver(migrated_url), "sync"))
                assert answer == "['1']"
            count = len(acknowledged.ids)
            await eventually(lambda: len(acknowledged.ids) > count + 20, "puts")
            task.cancel()
            await asyncio.wait([task])
            assert (await ids(saver, "parent"))[: len(acknowledged.ids)] == acknowledged.ids

    @on_postgresql
    def test_that_ends_as_programs_do(self, migrated_url: str) -> None:
        ended = program("forking.py", migrated_url)
        assert (ended.stdout, ended.stderr) == ("whole\n", "")

    @on_sqlite
    def test_cannot_share_an_open_file(self, migrated_url: str, tmp_path: Path) -> None:
        with create_saver(migrated_url) as saver:
            put_sync(saver, THREAD, "1")
            for work in (
                lambda: put_and_list(create_saver(migrated_url), 1),
                lambda: run(put_and_list_async(create_saver(migrated_url), 1)),
                lambda: put_and_list(create_saver(create_async_engine(migrated_url)), 1),
            ):
                answer = answer_of_fork(work)
                assert answer.startswith("EventLoopError: found the SQLite file")
                assert "spawn" in answer
            elsewhere = f"sqlite:///{tmp_path / 'another.db'}"
            assert answer_of_fork(lambda: put_and_list(create_saver(elsewhere), 1)) == "['1']"
            put_sync(saver, THREAD, "2")
        assert run(stored_ids(migrated_url)) == ["1", "2"]
        assert run(stored_ids(migrated_url, 1)) == []

    def test_cannot_share_an_engine_in_use(self, migrated_url: str, database_kind: str) -> None:
        engine = create_async_engine(migrated_url)

        def after_dispose() -> object:
            engine.sync_engine.dispose(close=False)
            gc.collect()
            return put_and_list(create_saver(engine), 1)

        async def main() -> None:
            async with create_saver(engine) as saver:
                await put(saver, THREAD, "1")
                answer = answer_of_fork(lambda: put_and_list(create_saver(engine), 1))
                assert answer.startswith("EventLoopError: found an engine")
                assert "dispose(close=False)" in answer
                answer = answer_of_fork(after_dispose)
                refused = answer.startswith("EventLoopError: found the SQLite file")
                assert refused if database_kind == "sqlite" else answer == "['1']"
                await put(saver, THREAD, "2")
                assert await ids(saver) == ["1", "2"]
            await engine.dispose()

        run(main())


NEVER_CLOSED = {
    "without a loop": """
saver = create_saver(sys.argv[1])
saver.put({"configurable": {"thread_id": "a thread", "checkpoint_ns": ""}}, ONE, {}, {})
""",
    "in a loop": """
async def main():
    saver = create_saver(sys.argv[1])
    await saver.aput({"configurable": {"thread_id": "a thread", "checkpoint_ns": ""}}, ONE, {}, {})
asyncio.run(main())
""",
    "in a loop, by a module": """
saver = create_saver(sys.argv[1])
async def main():
    await saver.aput({"configurable": {"thread_id": "a thread", "checkpoint_ns": ""}}, ONE, {}, {})
asyncio.run(main())
""",
}

PREAMBLE = """
import asyncio, sys
from checkpointer import create_saver
ONE = {"v": 4, "id": "1", "ts": "", "channel_values": {}, "channel_versions": {},
       "versions_seen": {}, "updated_channels": None}
"""


@pytest.mark.usefixtures("collected")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
class TestSaversThatNobodyCloses:
    @pytest.mark.parametrize("program", NEVER_CLOSED.values(), ids=NEVER_CLOSED)
    def test_end_with_their_program(self, migrated_url: str, program: str) -> None:
        ended = subprocess.run(
            [sys.executable, "-c", PREAMBLE + program, migrated_url],
            capture_output=True,
            text=True,
            timeout=LIMIT / 2,
            check=False,
        )
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
        assert run(stored_ids(migrated_url)) == ["1"]

    async def test_end_when_they_are_collected(self, migrated_url: str) -> None:
        before = open_connections()
        onlooker = Onlooker(migrated_url)

        async def use() -> None:
            saver = create_saver(migrated_url)
            await asyncio.gather(*(put(saver, config(n), "1", a=LARGE) for n in range(3)))
            await asyncio.gather(*(ids(saver, n) for n in range(3)))

        await use()
        await eventually(
            lambda: (open_connections(), onlooker.sessions()) == (before, 0), "a connection"
        )
        onlooker.close()
        assert await stored_ids(migrated_url, 2) == ["1"]

    def test_end_with_their_thread(self, migrated_url: str) -> None:
        saver = create_saver(migrated_url)
        put_sync(saver, THREAD, "1")
        (thread,) = [one for one in threading.enumerate() if one.name == "checkpointer loop"]
        del saver
        until = time.monotonic() + LIMIT / 2
        while thread.is_alive():
            assert time.monotonic() < until
            gc.collect()
            thread.join(0.01)
        assert run(stored_ids(migrated_url)) == ["1"]
