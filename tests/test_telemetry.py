"""Spans and metrics: their shape, their figures, and that no value or identifier gets out."""

import asyncio
import inspect
import logging
import os
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

import pytest
import sqlalchemy as sa
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from schemas import execute, stamp
from sqlalchemy import event
from storing import LARGE, checkpoint, config, operate, put
from test_factory import unused_port

import checkpointer
from checkpointer import (
    AsyncSQLAlchemySaver,
    ConfigurationError,
    DamagedDataError,
    DatabaseBusyError,
    DatabaseError,
    DatabaseUnavailableError,
    InvalidInputError,
    SchemaTooNewError,
    SerializationError,
    copy_store,
    create_saver,
    import_official,
    worker,
)
from checkpointer.engine import URL_VARIABLE
from checkpointer.execution import Connection
from checkpointer.figures import Figures, current

Saver = AsyncSQLAlchemySaver

THREAD = config()
FIRST = config(checkpoint_id="1")
DOCUMENT = Path(__file__).parent.parent / "docs" / "telemetry.md"

MARK = "S3CR3T"
"""Part of every value and identifier that must not get out."""


@dataclass
class Told:
    """What was exported.

    Attributes:
        exporter: Holds the spans.
        reader: Holds the metrics.
    """

    exporter: InMemorySpanExporter
    reader: InMemoryMetricReader

    @property
    def spans(self) -> list[ReadableSpan]:
        """Those that ended since the test began."""
        return list(self.exporter.get_finished_spans())

    @property
    def operations(self) -> list[ReadableSpan]:
        """All spans but those of commits."""
        return [span for span in self.spans if span.name != "checkpointer.commit"]

    @property
    def commits(self) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == "checkpointer.commit"]

    def forget(self) -> None:
        self.exporter.clear()

    def metrics(self) -> dict[str, list[Any]]:
        """The points of each metric, of all tests in this process."""
        data = self.reader.get_metrics_data()
        return {
            metric.name: list(metric.data.data_points)
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def total(self, name: str, **wanted: str) -> float:
        """The sum of a metric's points with these attributes, dots written as underscores."""
        found = 0.0
        for point in self.metrics().get(name, ()):
            attributes = {k.replace(".", "_"): v for k, v in point.attributes.items()}
            if wanted.items() <= attributes.items():
                found += point.value if isinstance(point, NumberDataPoint) else point.sum
        return found

    def text(self) -> str:
        """All that was exported, as text."""
        data = self.reader.get_metrics_data()
        return "".join([*(span.to_json() for span in self.spans), data.to_json() if data else ""])


@pytest.fixture(scope="module")
def exported() -> Told:
    """A process has one provider of each kind, for good."""
    told = Told(InMemorySpanExporter(), InMemoryMetricReader())
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(told.exporter))
    trace.set_tracer_provider(tracers)
    metrics.set_meter_provider(MeterProvider([told.reader]))
    return told


@pytest.fixture
def told(exported: Told) -> Told:
    exported.forget()
    return exported


@pytest.fixture
def saver(migrated_url: str, told: Told) -> Saver:
    """One that tells. The test opens it."""
    return create_saver(migrated_url, telemetry=True)


def figures(span: ReadableSpan) -> dict[str, Any]:
    """Our own attributes, without their prefix."""
    given = span.attributes or {}
    return {k.removeprefix("checkpointer."): v for k, v in given.items() if "checkpointer." in k}


@contextmanager
def travelled(saver: Saver) -> Iterator[list[object]]:
    """Each round trip: what asyncpg sends to the server, or a hop to a thread of SQLite."""
    seen: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        call = worker.Hop.__call__

        def hop(self: Any) -> None:
            seen.append(self)
            call(self)

        def connected(dbapi_connection: Any, record: object) -> None:
            if saver.engine.driver == "asyncpg":
                dbapi_connection.driver_connection.add_query_logger(seen.append)

        patch.setattr(worker.Hop, "__call__", hop)
        event.listen(saver.engine.sync_engine, "connect", connected)
        yield seen
        event.remove(saver.engine.sync_engine, "connect", connected)


async def listed(saver: Saver, **options: Any) -> list[object]:
    return [one async for one in saver.alist(THREAD, **options)]


OPERATIONS: dict[str, tuple[Callable[[Saver], Awaitable[object]], int]] = {
    "put": (lambda saver: put(saver, THREAD, "9", a=[*LARGE, MARK]), 1),
    "put_writes": (lambda saver: saver.aput_writes(FIRST, [("a", MARK)], "another task"), 1),
    "get_tuple": (lambda saver: saver.aget_tuple(THREAD), 1),
    "list": (lambda saver: listed(saver, limit=3), 1),
    "get_delta_channel_history": (
        lambda saver: saver.aget_delta_channel_history(config=THREAD, channels=["a", "x"]),
        1,
    ),
    "list_threads": (lambda saver: saver.alist_threads(), 1),
    "stats": (lambda saver: saver.astats("a thread"), 1),
    "copy_thread": (lambda saver: saver.acopy_thread("a thread", "another"), 2),
    "prune": (lambda saver: saver.aprune(["a thread", "none"]), 2),
    "delete_for_runs": (lambda saver: saver.adelete_for_runs(["run 2"]), 1),
    "delete_thread": (lambda saver: saver.adelete_thread("a thread"), 1),
    "verify": (lambda saver: saver.averify(), 1),
}
"""Each operation, with the number of threads that it is about."""


async def fill(saver: Saver) -> None:
    parent = THREAD
    for number in range(1, 5):
        parent = await put(saver, parent, str(number), {"run_id": f"run {number}"}, a=LARGE)
        await saver.aput_writes(parent, [("a", LARGE[::-1])], "a task")


@pytest.mark.parametrize("name", OPERATIONS)
async def test_each_operation_is_one_span_with_its_figures(
    saver: Saver, told: Told, database_kind: str, name: str
) -> None:
    work, threads = OPERATIONS[name]
    with travelled(saver) as seen:
        async with saver:
            await fill(saver)
            for _ in range(2):  # statements are prepared the first time
                told.forget()
                seen.clear()
                await work(saver)
                await asyncio.sleep(0)  # asyncpg tells soon
            [span] = told.operations
            trips = len(seen)
            assert span.name == f"checkpointer.{name}"

    given = dict(span.attributes or {})
    assert span.kind is trace.SpanKind.CLIENT
    assert span.status.status_code is trace.StatusCode.UNSET
    assert given["db.system.name"] == database_kind
    assert given["db.operation.name"] == name
    told_figures = figures(span)
    assert told_figures["round_trips"] == trips
    if name in {"put", "put_writes"}:
        assert trips == 1
        assert told_figures["commit.puts"] == 1
    if name not in {"delete_thread", "delete_for_runs"}:  # they were done already
        assert told_figures["rows"] > 0
        assert told_figures["threads"] == threads
    assert told_figures["statements"] >= 1
    duration = (span.end_time or 0) - (span.start_time or 0)
    assert 0 < told_figures["wait"] * 1e9 < duration


async def test_bytes_are_those_of_what_was_read_and_put(saver: Saver, told: Told) -> None:
    async with saver:
        await put(saver, THREAD, "1", a=token_urlsafe(3000)[:3000])
        async with create_saver(saver.engine, telemetry=True, cache_bytes=0) as cold:
            await cold.aget_tuple(THREAD)
        await saver.aget_tuple(THREAD)
    first, cold_read, warm_read = map(figures, told.operations)
    assert 2000 < first["bytes"] < 3500  # text of 6 bits a character
    assert 2000 < cold_read["bytes"] < 3500
    assert warm_read["bytes"] < 500


@pytest.mark.parametrize("name", ["copy_store", "import_official"])
async def test_moving_threads_is_a_span_of_the_target(
    saver: Saver, told: Told, tmp_path: Path, name: str
) -> None:
    source = f"{tmp_path}/source.db"
    async with saver:
        if name == "copy_store":
            async with create_saver(f"sqlite:///{source}") as other:
                await put(other, THREAD, "1")
                told.forget()
                await copy_store(other, saver)
        else:
            async with AsyncSqliteSaver.from_conn_string(source) as official:
                await official.aput(THREAD, checkpoint("1", {}), {}, {})
            await import_official(f"sqlite:///{source}", saver)
    [span] = told.operations
    assert span.name == f"checkpointer.{name}"
    assert span.attributes is not None
    assert span.attributes["checkpointer.threads"] == 1
    assert span.attributes["checkpointer.round_trips"]


async def test_setup_is_a_span(database_url: str, told: Told) -> None:
    async with create_saver(database_url, telemetry=True) as saver:
        await saver.setup()
    [span] = told.spans
    assert span.name == "checkpointer.setup"


async def test_the_database_is_named_without_host_path_or_user(
    saver: Saver, told: Told, migrated_url: str
) -> None:
    async with saver:
        await saver.aget_tuple(THREAD)
    given = dict(told.spans[0].attributes or {})
    url = sa.make_url(migrated_url)
    if url.host is None:
        assert given["db.namespace"] == Path(url.database or "").name
        assert "/" not in str(given["db.namespace"])
    else:
        assert given["db.namespace"] == url.database
        assert (given["server.address"], given["server.port"]) == (url.host, url.port)


async def test_a_commit_is_linked_to_its_puts_and_tells_them_what_it_took(
    saver: Saver, told: Told
) -> None:
    async with saver:
        await asyncio.gather(*(put(saver, config(str(n)), "0") for n in range(20)))
        told.forget()
        before = told.total("checkpointer.commit.puts")
        await asyncio.gather(*(put(saver, config(str(n)), "1", a=n) for n in range(20)))
        batched = told.total("checkpointer.commit.puts") - before
    assert batched == len(told.operations) == 20
    links = [link for span in told.commits for link in span.links]
    contexts = {link.context.span_id for link in links}
    assert contexts == {span.context.span_id for span in told.operations if span.context}
    for span in told.commits:
        assert span.parent is None
        assert figures(span)["commit.puts"] == len(span.links) == figures(span)["threads"]
        assert figures(span)["rows"] == len(span.links)
    sizes = sorted(figures(span)["commit.puts"] for span in told.operations)
    assert sizes == sorted(len(s.links) for s in told.commits for _ in s.links)
    assert max(sizes) > 1


async def test_a_put_that_fails_with_others_fails_alone_and_says_so(
    saver: Saver, told: Told, migrated_url: str
) -> None:
    trigger = (
        "CREATE TRIGGER refuse BEFORE INSERT ON checkpointer_checkpoints "
        "WHEN NEW.thread_id = 'bad' BEGIN SELECT RAISE(ABORT, 'refused'); END"
        if migrated_url.startswith("sqlite")
        else "ALTER TABLE checkpointer_checkpoints ADD CHECK (thread_id <> 'bad')"
    )
    execute(migrated_url, trigger)
    async with saver:
        done = await asyncio.gather(
            *(put(saver, config(name), "1", a=MARK) for name in ("a", "bad", "b", "c")),
            return_exceptions=True,
        )
    assert [isinstance(one, DatabaseError) for one in done] == [False, True, False, False]
    codes = [span.status.status_code.name for span in told.operations]
    assert sorted(codes) == ["ERROR", "UNSET", "UNSET", "UNSET"]
    [failed] = [s for s in told.operations if s.status.status_code is trace.StatusCode.ERROR]
    assert (failed.attributes or {})["error.type"] == "DatabaseError"
    assert (failed.attributes or {})["db.response.status_code"] in {"23514", "19"}
    assert failed.status.description is None  # the server's message may quote the row
    assert told.total("db.client.operation.duration", error_type="DatabaseError") > 0


async def test_a_list_is_a_span_a_page_and_none_while_the_caller_works(
    saver: Saver, told: Told
) -> None:
    async with saver:
        for number in range(40):
            await put(saver, THREAD, f"{number:03}")
        told.forget()
        async for _ in saver.alist(THREAD):
            assert current.get() is None
            assert not trace.get_current_span().get_span_context().is_valid
            if len(told.spans) == 2:
                break
        assert [span.name for span in told.spans] == ["checkpointer.list"] * 2
        assert [figures(span)["rows"] for span in told.spans] == [16, 24]
        told.forget()
        assert len(await listed(saver, limit=5)) == 5
        assert len(told.spans) == 1


async def test_spans_of_operations_have_the_callers_as_parent(saver: Saver, told: Told) -> None:
    async with saver:
        with trace.get_tracer("test").start_as_current_span("caller") as caller:
            await put(saver, THREAD, "1")
            await saver.aget_tuple(THREAD)
            await listed(saver)
        await saver.aget_tuple(THREAD)
        assert current.get() is None
    parents = [span.parent and span.parent.span_id for span in told.operations]
    span_id = caller.get_span_context().span_id
    assert parents == [span_id, span_id, span_id, None, None]  # the fourth is the caller itself


async def test_what_drivers_tell_meanwhile_is_part_of_the_operation_or_the_commit(
    saver: Saver, told: Told
) -> None:
    seen: list[str] = []

    def checked_out(*_: object) -> None:
        with trace.get_tracer("driver").start_as_current_span("driver"):
            seen.append("connection")

    event.listen(saver.engine.sync_engine, "checkout", checked_out)
    async with saver:
        await saver.aget_tuple(THREAD)
        told.forget()
        await saver.aget_tuple(THREAD)
        await put(saver, THREAD, "1")
    names = {span.context.span_id: span.name for span in told.spans if span.context}
    inner = [span.parent for span in told.spans if span.name == "driver"]
    assert [names[parent.span_id] for parent in inner if parent] == [
        "checkpointer.get_tuple",
        "checkpointer.commit",
    ]


async def test_a_list_over_all_threads_tells_how_many_it_found(saver: Saver, told: Told) -> None:
    async with saver:
        for number in range(3):
            await put(saver, config(str(number)), "1")
        told.forget()
        assert len([one async for one in saver.alist(None)]) == 3
    assert figures(told.spans[0])["threads"] == 3


Row = namedtuple("Row", ["thread_id"])  # noqa: PYI024 - as the real ones


class Found(Connection):
    def fetch(self, statement: Any, parameters: Any = None) -> list[Any]:
        return [Row(name) for name in "abb"]

    def execute(self, statement: Any, *rows: Any) -> None:
        assert rows


def test_threads_are_counted_once_each_whether_they_are_named_or_found() -> None:
    def work(connection: Connection) -> None:
        connection.execute(sa.text(""), {"thread_id": "c"}, {"thread_id": "a"})
        connection.fetch(sa.text(""), {"thread_ids": ["d", "c"]})

    counted = Figures()
    counted.counted(work, travels=True, begins=True)(Found())
    assert counted.threads == set("abcd")
    assert (counted.statements, counted.round_trips, counted.rows) == (2, 4, 3)


def test_the_pause_before_another_attempt_is_waiting() -> None:
    attempts: list[Connection] = []

    def work(connection: Connection) -> None:
        attempts.append(connection)
        if len(attempts) == 1:
            raise DatabaseBusyError

    counted = Figures()
    attempt = counted.counted(work, travels=False, begins=True)
    with pytest.raises(DatabaseBusyError):
        attempt(Found())
    time.sleep(0.02)
    attempt(Found())
    assert counted.wait >= 0.02
    assert counted.round_trips == 2


def test_sync_calls_tell_the_same(migrated_url: str, told: Told) -> None:
    with create_saver(migrated_url, telemetry=True) as saver:
        stored = checkpoint("1", {"a": MARK})
        with trace.get_tracer("test").start_as_current_span("caller") as caller:
            saver.put(THREAD, stored, {}, stored["channel_versions"])
            assert saver.get_tuple(THREAD) is not None
            assert len(list(saver.list(THREAD))) == 1
        assert not trace.get_current_span().get_span_context().is_valid
    names = ["put", "get_tuple", "list"]
    spans = [span for span in told.operations if span.name != "caller"]
    assert [span.name for span in spans] == [f"checkpointer.{name}" for name in names]
    assert {s.parent and s.parent.span_id for s in spans} == {caller.get_span_context().span_id}


async def test_cancelled_calls_end_their_spans_without_an_error(saver: Saver, told: Told) -> None:
    async with saver:
        await put(saver, THREAD, "1")
        told.forget()
        tasks = [asyncio.create_task(put(saver, config(str(n)), "1")) for n in range(9)]
        await asyncio.sleep(0)
        for task in tasks[1:]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert len(told.operations) == 9
    assert {span.status.status_code for span in told.spans} == {trace.StatusCode.UNSET}


async def test_the_cache_and_the_waits_are_counted(saver: Saver, told: Told) -> None:
    def counts() -> dict[str, float]:
        return {
            result: told.total(f"checkpointer.cache.{result}", checkpointer_cache_kind="value")
            for result in ("hits", "misses")
        }

    waited = told.total("checkpointer.wait.duration", db_operation_name="get_tuple")
    async with saver:
        await put(saver, THREAD, "1", a=LARGE)
        before = counts()
        await saver.aget_tuple(THREAD)
        warm = counts()
        async with create_saver(saver.engine, telemetry=True) as cold:
            await cold.aget_tuple(THREAD)
        after = counts()
    assert warm["hits"] == before["hits"] + 1
    assert warm["misses"] == before["misses"]
    assert after["hits"] == warm["hits"]
    assert after["misses"] == warm["misses"] + 1
    assert told.total("checkpointer.wait.duration", db_operation_name="get_tuple") > waited


class Refused:
    """The serde cannot dump it."""

    def __reduce__(self) -> str:
        raise TypeError(MARK)


async def use_with_secrets(saver: Saver) -> None:
    """Use all that a saver can do, failures too, with a mark in each value and identifier."""
    name = f"thread {MARK}"
    where = config(name, checkpoint_ns=f"ns {MARK}")
    metadata = {"run_id": f"run {MARK}", f"key {MARK}": MARK}
    stored = await put(saver, where, f"1{MARK}", metadata, **{f"channel_{MARK}": [MARK, *LARGE]})
    await saver.aput_writes(stored, [(f"channel_{MARK}", MARK)], f"task {MARK}", f"path {MARK}")
    assert await saver.aget_tuple(stored) is not None
    assert [one async for one in saver.alist(where, filter={f"key {MARK}": MARK})]
    await saver.aget_delta_channel_history(config=where, channels=[f"channel_{MARK}"])
    await saver.acopy_thread(name, f"copy {MARK}")
    await saver.averify()
    with pytest.raises(InvalidInputError):
        await put(saver, config(f"{MARK}\udc00"), "1")
    with pytest.raises(InvalidInputError):
        await saver.aprune([name], strategy=MARK)
    with pytest.raises(SerializationError):
        await put(saver, where, "2", a=Refused())
    table = "checkpointer_checkpoints"
    execute(
        saver.engine.url.render_as_string(hide_password=False), f"UPDATE {table} SET manifest = ''"
    )
    with pytest.raises(DamagedDataError):
        await saver.aget_tuple(where)
    with pytest.raises(DamagedDataError):
        await saver.aprune([name])
    await saver.adelete_for_runs([f"run {MARK}"])
    await saver.adelete_thread(name)


async def test_no_value_and_no_identifier_gets_out(saver: Saver, told: Told) -> None:
    async with saver:
        await use_with_secrets(saver)
    failed = [s for s in told.spans if s.status.status_code is trace.StatusCode.ERROR]
    kinds = {str((span.attributes or {})["error.type"]) for span in failed}
    assert kinds == {"InvalidInputError", "SerializationError", "DamagedDataError"}
    assert MARK not in told.text()
    assert not any(span.events for span in told.spans)


async def test_everything_that_a_saver_does_holds_no_text_of_ours(saver: Saver, told: Told) -> None:
    async with saver:
        await operate(saver)
    known = {*(f"checkpointer.{name}" for name in (*OPERATIONS, "commit"))}
    assert {span.name for span in told.spans} <= known
    allowed = {"db.system.name", "db.namespace", "db.operation.name", "server.address"}
    for span in told.spans:
        given = span.attributes or {}
        assert {k for k, v in given.items() if isinstance(v, str)} <= allowed


async def test_no_message_of_an_error_gets_out(told: Told, tmp_path: Path) -> None:
    """It would name users, and directories."""
    away = f"postgresql://{MARK}:{MARK}@127.0.0.1:{unused_port()}/app"
    async with create_saver(away, telemetry=True, patience=0) as saver:
        with pytest.raises(DatabaseUnavailableError, match=MARK):
            await saver.aget_tuple(THREAD)
    directory = tmp_path / MARK
    directory.mkdir()
    url = f"sqlite:///{directory}/x.db"
    async with create_saver(url) as saver:
        await put(saver, THREAD, "1")
    stamp(url, "9999")
    async with create_saver(url, telemetry=True) as saver:
        with pytest.raises(SchemaTooNewError, match=MARK):
            await saver.aget_tuple(THREAD)
    kinds = [(span.attributes or {})["error.type"] for span in told.spans]
    assert kinds == ["DatabaseUnavailableError", "SchemaTooNewError"]
    assert {span.status.status_code for span in told.spans} == {trace.StatusCode.ERROR}
    assert {span.status.description for span in told.spans} == {None}
    assert MARK not in told.text()


def test_every_public_async_method_is_an_operation(told: Told) -> None:
    made = create_saver("sqlite://", telemetry=True)
    is_async = (inspect.iscoroutinefunction, inspect.isasyncgenfunction)
    for name in dir(Saver):
        method = getattr(Saver, name)
        ours = str(getattr(method, "__module__", "")).startswith("checkpointer.")
        if ours and any(is_(method) for is_ in is_async) and not name.startswith("_"):
            same = getattr(type(made), name) is method
            assert same == (name == "aclose"), name
    assert isinstance(made, Saver)
    assert repr(made).startswith("<AsyncSQLAlchemySaver on sqlite")


async def test_clones_tell_too(saver: Saver, told: Told) -> None:
    async with saver:
        clone = saver.with_allowlist([("a", "b")])
        await clone.aget_tuple(THREAD)
    assert [span.name for span in told.spans] == ["checkpointer.get_tuple"]


QUIET = """
import asyncio, logging, sys
from checkpointer import create_saver
async def main():
    async with create_saver({url!r}) as saver:
        config = {{"configurable": {{"thread_id": "1", "checkpoint_ns": ""}}}}
        stored = {{"v": 4, "id": "1", "ts": "", "channel_values": {{}}, "channel_versions": {{}},
                  "versions_seen": {{}}}}
        await saver.aput(config, stored, {{}}, {{}})
        assert await saver.aget_tuple(config)
        assert [one async for one in saver.alist(config)]
asyncio.run(main())
logging.getLogger("checkpointer").warning("written nowhere")
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""


def test_without_telemetry_nothing_of_it_is_imported_and_nothing_is_logged(
    migrated_url: str,
) -> None:
    code = QUIET.format(url=migrated_url)
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (ended.stdout, ended.stderr) == ("[]\n", "")


def test_without_the_extra_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "checkpointer.tracing", raising=False)
    monkeypatch.delattr(checkpointer, "tracing", raising=False)
    with pytest.raises(
        ConfigurationError, match=r"pip install 'langgraph-checkpoint-sqlalchemy\[otel\]'"
    ):
        create_saver("sqlite://", telemetry=True)


def test_our_logger_writes_nowhere_by_itself() -> None:
    handlers = logging.getLogger("checkpointer").handlers
    assert any(isinstance(one, logging.NullHandler) for one in handlers)


def test_the_example_of_the_document_prints_spans(migrated_url: str, tmp_path: Path) -> None:
    code = DOCUMENT.read_text("utf-8").split("<!-- example -->\n```python\n")[1].split("```")[0]
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env={**os.environ, URL_VARIABLE: migrated_url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    for name in ("put", "put_writes", "get_tuple", "commit"):
        assert f'"name": "checkpointer.{name}"' in ended.stdout


async def test_the_document_names_every_attribute_and_metric(saver: Saver, told: Told) -> None:
    async with saver:
        await operate(saver)
    described = DOCUMENT.read_text("utf-8")
    attributes = {name for span in told.spans for name in span.attributes or {}}
    for name in attributes | told.metrics().keys():
        assert f"`{name}`" in described, name
