"""No SQL text is ever built from input: values travel as parameters, however statements are run."""

import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import timedelta
from itertools import count
from typing import Any, cast

import pytest
import sqlalchemy as sa
from langgraph.checkpoint.memory import InMemorySaver
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from storing import SENDS, Statement, checkpoint, config, put, statements

from checkpointer import AsyncSQLAlchemySaver, RetentionPolicy, create_saver
from checkpointer.arrays import PUTS
from checkpointer.sealing import FormatError, unpack

Saver = AsyncSQLAlchemySaver

METACHARACTERS = """'"`;--/*\\%s%(a)s:thread_id$1?{}[]|\n"""


class Markers:
    """Input, each with a marker of its own and all that means something to SQL."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._numbers = count()
        self.all: list[str] = []

    def __call__(self, size: int = 0) -> str:
        """One more; `size` times, if it is to be a long value."""
        self.all.append(f"{self._name}{next(self._numbers):04}")
        return (self.all[-1] + METACHARACTERS) * max(size, 1)

    def many(self, number: int) -> list[str]:
        return [self() for _ in range(number)]


@contextmanager
def core_statements(engine: AsyncEngine) -> Iterator[list[Statement]]:
    """The statements that an engine sends by SQLAlchemy's own connection."""
    seen: list[Statement] = []

    def record(_c: Any, _cursor: Any, sql: str, parameters: Any, _x: Any, many: Any) -> None:
        seen.append(Statement(sql, parameters if many else [parameters]))

    event.listen(engine.sync_engine, "before_cursor_execute", record)
    yield seen
    event.remove(engine.sync_engine, "before_cursor_execute", record)


on_every_path = pytest.mark.parametrize(
    ("database_kind", "path"),
    [
        ("sqlite", "the driver's own connection"),
        ("postgresql", "the driver's own connection"),
        ("postgresql", "SQLAlchemy's, because of a listener"),
        ("postgresql", "psycopg"),
    ],
    indirect=True,
)
"""The ways in which statements are run."""


@pytest.fixture
def path(request: pytest.FixtureRequest) -> str:
    path: str = request.param
    return path


Recorded = tuple[Saver, list[Statement]]


@pytest.fixture
async def recorded(path: str, migrated_url: str) -> AsyncIterator[Recorded]:
    """A saver, and all that it sends."""
    url = sa.make_url(migrated_url)
    if path == "psycopg":
        url = url.set(drivername="postgresql+psycopg")
    engine = create_async_engine(url)
    with ExitStack() as stack:
        own = path == "the driver's own connection"
        recording = statements() if own else core_statements(engine)
        seen = stack.enter_context(recording)
        async with create_saver(engine) as saver:
            await saver.aget_tuple(config("no thread"))
            seen.clear()
            yield saver, seen
    await engine.dispose()


@asynccontextmanager
async def cold(saver: Saver) -> AsyncIterator[Saver]:
    """A saver that remembers nothing, on the same engine."""
    async with create_saver(saver.engine, cache_bytes=0) as cold:
        yield cold


async def listed(saver: Saver, where: Any, **options: Any) -> list[Any]:
    return [found async for found in saver.alist(where, **options)]


async def fill(saver: Saver, mark: Markers, thread: str, run: str) -> Any:
    """A thread with all that there may be in it: long values, writes, and an old format."""
    where = config(thread, mark(), checkpoint_ns=mark())
    first = await put(saver, where, mark(), {mark(): mark()}, **{mark(): mark(2000)})
    metadata = {"run_id": run, "step": 1, "parents": {"": mark()}, mark(): [mark(), {mark(): 1}]}
    stored = await put(saver, first, mark(), metadata, a=mark(300), b=mark())
    writes = [(mark(), mark()), (mark(), mark(300)), (SENDS, mark()), ("__error__", mark())]
    await saver.aput_writes(stored, writes, mark(), mark())
    old: Any = {**checkpoint(mark(), {"a": mark()}), "v": 3}
    return await saver.aput(stored, old, cast("Any", {"run_id": run}), {})


async def use_everything(saver: Saver, mark: Markers) -> None:
    """Every public operation, each argument of it marked."""
    thread, run, target = mark(), mark(), mark()
    stored = await fill(saver, mark, thread, run)
    await asyncio.gather(*(fill(saver, mark, name, run) for name in mark.many(4)))
    whole = {"configurable": {"thread_id": thread}}
    async with cold(saver) as other:
        assert await other.aget_tuple(stored) is not None
        assert len(await listed(other, whole)) == 3
    found = await listed(saver, None, limit=2)
    await listed(saver, stored, before=config(thread, mark() + "~"), filter={mark(): mark()})
    await listed(saver, stored, filter={mark(): [mark(), {mark(): mark()}], "run_id": run}, limit=5)
    namespace = stored["configurable"]["checkpoint_ns"]
    for where in (config(thread, checkpoint_ns=namespace), stored, found[0].config):
        await saver.aget_tuple(where)
        channels = [mark(), "a", mark()]
        await saver.aget_delta_channel_history(config=where, channels=channels)
    await saver.acopy_thread(thread, target)
    await saver.aprune([target, mark()])
    await saver.aprune(mark.many(2), strategy="delete")
    await saver.averify()
    await saver.averify(thread, repair=True)
    page = await saver.alist_threads(limit=1, order="thread_id", metadata={"run_id": run})
    await saver.alist_threads(order="thread_id", after=page.after, metadata={mark(): [mark()]})
    await saver.astats(mark())
    await saver.astats()
    await saver.aretain(RetentionPolicy(keep_last=1, max_age=timedelta(0)))
    await saver.adelete_for_runs([mark(), run])
    await saver.adelete_thread(thread)
    source: Any = InMemorySaver()
    at = await put(source, config(mark()), mark(), {mark(): mark()}, a=mark(300))
    await source.aput_writes(at, [(mark(), mark()), ("__error__", mark())], mark())
    await saver.aimport_from(source)
    await saver.setup()


EXERCISED = set(use_everything.__code__.co_names) | set(fill.__code__.co_names)


def test_every_public_operation_is_exercised() -> None:
    methods = inspect.getmembers(AsyncSQLAlchemySaver, inspect.isfunction)
    operations = {
        name
        for name, method in methods
        if not name.startswith("_")
        and (inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method))
    }
    assert operations - EXERCISED <= {"aget", "alist", "aclose"}  # aget is LangGraph's own
    assert "alist" in listed.__code__.co_names


@on_every_path
async def test_no_statement_has_input_in_its_text(recorded: Recorded) -> None:
    saver, seen = recorded
    mark = Markers("splice")
    await use_everything(saver, mark)
    assert len(seen) > 30
    assert [one.sql for one in seen if "splice" in one.sql] == []
    sent = b"".join(part for one in seen for part in parts_of(one.parameters))
    assert [marker for marker in mark.all if marker.encode() not in sent] == []


def parts_of(parameters: Any) -> Iterator[bytes]:
    """All text and bytes in a statement's parameters."""
    parameters = getattr(parameters, "obj", parameters)  # as psycopg and views hold bytes
    if isinstance(parameters, Mapping):
        yield from parts_of([*parameters.keys(), *parameters.values()])
    elif isinstance(parameters, list | tuple):
        for one in parameters:
            yield from parts_of(one)
    elif isinstance(parameters, bytes):
        yield unpacked(parameters)
    else:
        yield str(parameters).encode()


def unpacked(data: bytes) -> bytes:
    """What is stored as these bytes, if they are packed."""
    try:
        return unpack(data, 1 << 20)
    except FormatError:
        return data


@on_every_path
async def test_other_input_makes_no_other_text(recorded: Recorded) -> None:
    saver, seen = recorded
    await use_everything(saver, Markers("first"))
    texts = set(map(text_of, seen))
    seen.clear()
    for name in ("second", "third"):
        await use_everything(saver, Markers(name))
    assert set(map(text_of, seen)) - texts == set()


def text_of(statement: Statement) -> str:
    """The text, whatever the lengths of its lists, of which there are few.

    That of a batch rests on which puts have come together, and that on who was first.
    """
    if "touched AS" in statement.sql:
        assert set(re.findall(r"put_(\w+) AS", statement.sql)) <= PUTS.keys()
        return "a batch"
    return re.sub(r"\(\?(, \?)*\)", "(?, ...)", statement.sql)


async def put_and_read(saver: Saver, mark: Markers, number: int) -> None:
    stored = await put(saver, config(mark()), "1", a="".join(mark.many(number * 20)))
    async with cold(saver) as other:
        assert await other.aget_tuple(stored) is not None


LISTS: dict[str, Callable[[Saver, Markers, int], Awaitable[object]]] = {
    "runs": lambda saver, mark, number: saver.adelete_for_runs(mark.many(number)),
    "channels": lambda saver, mark, number: saver.aget_delta_channel_history(
        config=config(checkpoint_id="2"), channels=mark.many(number)
    ),
    "puts": lambda saver, mark, number: asyncio.gather(
        *(put(saver, config(name), "1", a=name) for name in mark.many(number))
    ),
    "writes": lambda saver, mark, number: saver.aput_writes(
        config(checkpoint_id="1"), [(name, name * 200) for name in mark.many(number)], mark()
    ),
}


@on_every_path
@pytest.mark.parametrize("work", LISTS.values(), ids=LISTS)
async def test_lists_of_any_length_make_few_texts(
    recorded: Recorded, work: Callable[[Saver, Markers, int], Awaitable[object]]
) -> None:
    saver, seen = recorded
    first = await put(saver, config(), "1")
    await put(saver, first, "2")
    seen.clear()
    mark = Markers("mark")
    lengths = [*range(1, 20), 40, 63, 64, 65, 100]
    for number in lengths:
        await work(saver, mark, number)
    assert len(seen) >= len(lengths)
    assert len({one.sql for one in seen}) <= 20
