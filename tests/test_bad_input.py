"""Bad input ends in an error of our own that says what to do, and stores nothing."""

import asyncio
import os
import threading
import warnings
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, cast

import pytest
from langchain_core.runnables import RunnableConfig
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool
from storing import NOTHING, checkpoint, config, put, row_counts

from checkpointer import (
    AsyncSQLAlchemySaver,
    CheckpointerError,
    EventLoopError,
    InvalidFilterError,
    InvalidInputError,
    SaverClosedError,
    SerializationError,
    SyncCallError,
    create_saver,
)

Saver = AsyncSQLAlchemySaver
Call = Callable[[Saver], Awaitable[object]]
CallWith = Callable[[Saver, str], Awaitable[object]]
SyncCall = Callable[[Saver], object]

THREAD = config()
CHECKPOINT = config(checkpoint_id="1")


async def listed(saver: Saver, where: RunnableConfig | None = THREAD, **options: Any) -> list[Any]:
    return [found async for found in saver.alist(where, **options)]


async def put_writes(  # noqa: PLR0913 - one argument an identifier
    saver: Saver,
    where: RunnableConfig = CHECKPOINT,
    *,
    channel: str = "messages",
    value: object = "hello",
    task_id: str = "a task",
    task_path: str = "",
) -> None:
    await saver.aput_writes(where, [(channel, value)], task_id, task_path)


async def history(saver: Saver, where: RunnableConfig = THREAD) -> object:
    return await saver.aget_delta_channel_history(config=where, channels=["messages"])


async def put_channel(saver: Saver, channel: str) -> object:
    return await saver.aput(THREAD, checkpoint("1", {channel: "x"}), {}, {})


def assert_explains(error: BaseException) -> None:
    """The message names what was found and what was expected."""
    assert isinstance(error, CheckpointerError)
    assert "found" in str(error)
    assert "expected" in str(error)


CONFIG_CALLS: dict[str, Callable[[Saver, RunnableConfig], Awaitable[object]]] = {
    "aget_tuple": lambda saver, where: saver.aget_tuple(where),
    "alist": listed,
    "aput": lambda saver, where: put(saver, where, "1"),
    "aput_writes": put_writes,
    "aget_delta_channel_history": history,
}


NO_THREAD: list[RunnableConfig] = [
    {},
    {"configurable": {}},
    {"configurable": {"thread_id": None}},
]


@pytest.mark.parametrize("name", CONFIG_CALLS)
async def test_a_config_without_a_thread_id_is_refused(
    saver: Saver, database_url: str, name: str
) -> None:
    for where in NO_THREAD:
        with pytest.raises(
            InvalidInputError, match=r"without a thread_id.*expected.*pass"
        ) as caught:
            await CONFIG_CALLS[name](saver, where)
        assert_explains(caught.value)
    assert row_counts(database_url) == NOTHING


IDENTIFIERS: dict[str, tuple[str, CallWith]] = {
    "aput, thread": ("thread_id", lambda saver, text: put(saver, config(text), "1")),
    "aput, namespace": (
        "checkpoint_ns",
        lambda saver, text: put(saver, config(checkpoint_ns=text), "1"),
    ),
    "aput, parent": ("checkpoint_id", lambda saver, text: put(saver, config("t", text), "1")),
    "aput, checkpoint": ("checkpoint_id", lambda saver, text: put(saver, THREAD, text)),
    "aput, channel": ("channel name", put_channel),
    "aput, run": ("run_id", lambda saver, text: put(saver, THREAD, "1", {"run_id": text})),
    "aput_writes, thread": ("thread_id", lambda saver, text: put_writes(saver, config(text, "1"))),
    "aput_writes, namespace": (
        "checkpoint_ns",
        lambda saver, text: put_writes(saver, config("t", "1", checkpoint_ns=text)),
    ),
    "aput_writes, checkpoint": (
        "checkpoint_id",
        lambda saver, text: put_writes(saver, config("t", text)),
    ),
    "aput_writes, task": ("task_id", lambda saver, text: put_writes(saver, task_id=text)),
    "aput_writes, path": ("task_path", lambda saver, text: put_writes(saver, task_path=text)),
    "aput_writes, channel": ("channel name", lambda saver, text: put_writes(saver, channel=text)),
    "aget_tuple, thread": ("thread_id", lambda saver, text: saver.aget_tuple(config(text))),
    "aget_tuple, namespace": (
        "checkpoint_ns",
        lambda saver, text: saver.aget_tuple(config(checkpoint_ns=text)),
    ),
    "aget_tuple, checkpoint": (
        "checkpoint_id",
        lambda saver, text: saver.aget_tuple(config("t", text)),
    ),
    "alist, thread": ("thread_id", lambda saver, text: listed(saver, config(text))),
    "alist, before": (
        "checkpoint_id",
        lambda saver, text: listed(saver, before=config("t", text)),
    ),
    "history, thread": ("thread_id", lambda saver, text: history(saver, config(text))),
    "adelete_thread": ("thread_id", lambda saver, text: saver.adelete_thread(text)),
    "adelete_for_runs": ("run_id", lambda saver, text: saver.adelete_for_runs(["1", text])),
    "acopy_thread, source": ("thread_id", lambda saver, text: saver.acopy_thread(text, "t")),
    "acopy_thread, target": ("thread_id", lambda saver, text: saver.acopy_thread("t", text)),
    "aprune": ("thread_id", lambda saver, text: saver.aprune(["t", text])),
}


@pytest.mark.parametrize(("kind", "call"), IDENTIFIERS.values(), ids=IDENTIFIERS)
async def test_a_lone_surrogate_in_an_identifier_is_refused(
    saver: Saver, database_url: str, kind: str, call: CallWith
) -> None:
    with pytest.raises(InvalidInputError, match=rf"{kind} 'a\\udc80b'.*replace") as caught:
        await call(saver, "a\udc80b")
    assert_explains(caught.value)
    assert row_counts(database_url) == NOTHING


@pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)
@pytest.mark.parametrize(("kind", "call"), IDENTIFIERS.values(), ids=IDENTIFIERS)
async def test_postgresql_refuses_nul_in_an_identifier(
    saver: Saver, database_url: str, kind: str, call: CallWith
) -> None:
    with pytest.raises(InvalidInputError, match=rf"{kind} 'a\\x00b'.*remove") as caught:
        await call(saver, "a\0b")
    assert_explains(caught.value)
    assert row_counts(database_url) == NOTHING


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
async def test_sqlite_keeps_nul_in_identifiers_apart(saver: Saver) -> None:
    for text in ("a\0b", "a\0c", "a"):
        where = config(text, checkpoint_ns=text)
        stored = await saver.aput(where, checkpoint(text, {text: text}), {"run_id": text}, {})
        await put_writes(saver, stored, channel=text, task_id=text, task_path=text)
    for text in ("a\0b", "a\0c", "a"):
        (found,) = await listed(saver, {"configurable": {"thread_id": text}})
        assert found.config == config(text, text, checkpoint_ns=text)
        assert found.checkpoint["channel_values"] == {text: text}
        assert found.pending_writes == [(text, text, "hello")]
    await saver.adelete_for_runs(["a\0b"])
    assert await saver.aget_tuple(config("a\0b", checkpoint_ns="a\0b")) is None
    assert len(await listed(saver, None)) == 2


@pytest.mark.parametrize("limit", [-1, -100])
async def test_a_negative_limit_is_refused(saver: Saver, limit: int) -> None:
    with pytest.raises(InvalidInputError, match=f"limit {limit}, expected 0 or more") as caught:
        await listed(saver, limit=limit)
    assert_explains(caught.value)


@pytest.mark.parametrize("strategy", ["keep-latest", "", "oldest", None])
async def test_an_unknown_prune_strategy_is_refused(saver: Saver, strategy: Any) -> None:
    await put(saver, THREAD, "1")
    await put(saver, CHECKPOINT, "2")
    with pytest.raises(InvalidInputError, match=r"expected one of keep_latest, delete") as caught:
        await saver.aprune(["a thread"], strategy=strategy)
    assert_explains(caught.value)
    assert len(await listed(saver)) == 2


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        ("thread_id", lambda saver: saver.aprune("a thread")),
        ("thread_id", lambda saver: saver.aprune("a thread", strategy="delete")),
        ("run_id", lambda saver: saver.adelete_for_runs("a thread")),
    ],
)
async def test_one_id_where_many_are_expected_is_refused(
    saver: Saver, kind: str, call: Call
) -> None:
    for letter in "a thread":
        await put(saver, config(letter), "1", {"run_id": letter})
    with pytest.raises(InvalidInputError, match=rf"single {kind} .*pass \['a thread'\]") as caught:
        await call(saver)
    assert_explains(caught.value)
    assert len(await listed(saver, None)) == len(set("a thread"))


async def test_writes_without_a_checkpoint_id_are_refused(saver: Saver, database_url: str) -> None:
    with pytest.raises(InvalidInputError, match=r"without a checkpoint_id.*pass") as caught:
        await put_writes(saver, THREAD)
    assert_explains(caught.value)
    assert row_counts(database_url) == NOTHING


FILTERS: dict[str, Any] = {
    "list": ["source", "loop"],
    "empty list": [],
    "str": "source",
    "empty str": "",
    "bytes": b"source",
    "int": 0,
    "an object as value": {"source": object()},
    "bytes as value": {"source": b"loop"},
    "a set as value": {"source": {"loop"}},
    "an object deep inside": {"nested": [{"deep": (1, object())}]},
    "an int as key": {1: "loop"},
    "None as key": {None: "loop"},
    "bytes as key": {b"source": "loop"},
}


@pytest.mark.parametrize("limit", [None, 0])
@pytest.mark.parametrize("wanted", FILTERS.values(), ids=FILTERS)
async def test_a_filter_that_is_no_json_object_is_refused(
    saver: Saver, wanted: Any, limit: int | None
) -> None:
    with pytest.raises(InvalidFilterError, match="filter") as caught:
        await listed(saver, filter=wanted, limit=limit)
    assert_explains(caught.value)


UNDUMPABLE = object()

REFUSED_VALUES: dict[str, tuple[str, Call]] = {
    "channel": ("channel 'bad'", lambda saver: put(saver, THREAD, "1", good="x", bad=UNDUMPABLE)),
    "deep in a channel": (
        "channel 'bad'",
        lambda saver: put(saver, THREAD, "1", good="x", bad={"a": [{"b": (1, UNDUMPABLE)}]}),
    ),
    "metadata": (
        "the metadata",
        lambda saver: put(saver, THREAD, "1", {"bad": UNDUMPABLE}, good="x"),
    ),
    "checkpoint": (
        "the checkpoint",
        lambda saver: saver.aput(
            THREAD, cast("Any", {**checkpoint("1", {}), "versions_seen": UNDUMPABLE}), {}, {}
        ),
    ),
    "write": (
        "the write to 'bad'",
        lambda saver: saver.aput_writes(CHECKPOINT, [("good", 1), ("bad", UNDUMPABLE)], "a task"),
    ),
}


@pytest.mark.parametrize(("what", "call"), REFUSED_VALUES.values(), ids=REFUSED_VALUES)
async def test_a_value_that_the_serde_refuses_is_named(
    saver: Saver, database_url: str, what: str, call: Call
) -> None:
    with pytest.raises(SerializationError, match=f"{what}.*nothing was stored") as caught:
        await call(saver)
    assert "'a thread'" in str(caught.value)
    assert "serde" in str(caught.value)
    assert caught.value.__cause__ is not None
    assert row_counts(database_url) == NOTHING


@pytest.mark.parametrize("call", [call for _, call in REFUSED_VALUES.values()], ids=REFUSED_VALUES)
async def test_a_refused_value_leaves_its_neighbours_alone(saver: Saver, call: Call) -> None:
    ended = await asyncio.gather(
        put(saver, config("before"), "1", text="x"),
        call(saver),
        put(saver, config("after"), "1", text="y"),
        put_writes(saver, config("after", "1")),
        return_exceptions=True,
    )
    assert [isinstance(one, SerializationError) for one in ended] == [False, True, False, False]
    found = {one.config["configurable"]["thread_id"]: one for one in await listed(saver, None)}
    assert found.keys() == {"before", "after"}
    assert found["after"].pending_writes == [("a task", "messages", "hello")]


class OddSerde:
    """A serde that answers what the protocol does not allow."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        return cast("tuple[str, bytes]", self.answer)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        return data


@pytest.mark.parametrize(
    "answer",
    [("text", "no bytes"), ("number", 5), ("nothing", None), (7, b"x"), (None, b"x"), b"xyz", None],
    ids=repr,
)
async def test_a_serde_that_answers_no_tagged_bytes_is_refused(
    migrated_url: str, answer: Any
) -> None:
    async with create_saver(migrated_url, serde=OddSerde(answer)) as saver:
        with pytest.raises(SerializationError):
            await put(saver, THREAD, "1", text="x")
        with pytest.raises(SerializationError):
            await put_writes(saver)
    assert row_counts(migrated_url) == NOTHING


async def test_a_type_tag_that_is_no_text_is_refused(migrated_url: str) -> None:
    async with create_saver(migrated_url, serde=OddSerde(("a\udc80b", b"x"))) as saver:
        with pytest.raises((InvalidInputError, SerializationError)):
            await put(saver, THREAD, "1", text="x")
        with pytest.raises((InvalidInputError, SerializationError)):
            await put_writes(saver)
    assert row_counts(migrated_url) == NOTHING


ASYNC_CALLS: dict[str, Call] = {
    "aget_tuple": lambda saver: saver.aget_tuple(THREAD),
    "alist": listed,
    "aput": lambda saver: put(saver, THREAD, "1"),
    "aput_writes": put_writes,
    "adelete_thread": lambda saver: saver.adelete_thread("a thread"),
    "adelete_for_runs": lambda saver: saver.adelete_for_runs(["a run"]),
    "acopy_thread": lambda saver: saver.acopy_thread("a thread", "another"),
    "aprune": lambda saver: saver.aprune(["a thread"]),
    "aget_delta_channel_history": history,
    "setup": lambda saver: saver.setup(),
}

SYNC_CALLS: dict[str, SyncCall] = {
    "get_tuple": lambda saver: saver.get_tuple(THREAD),
    "get": lambda saver: saver.get(THREAD),
    "list": lambda saver: list(saver.list(THREAD)),
    "put": lambda saver: saver.put(THREAD, checkpoint("1", {}), {}, {}),
    "put_writes": lambda saver: saver.put_writes(CHECKPOINT, [("messages", 1)], "a task"),
    "delete_thread": lambda saver: saver.delete_thread("a thread"),
    "delete_for_runs": lambda saver: saver.delete_for_runs(["a run"]),
    "copy_thread": lambda saver: saver.copy_thread("a thread", "another"),
    "prune": lambda saver: saver.prune(["a thread"]),
    "get_delta_channel_history": lambda saver: saver.get_delta_channel_history(
        config=THREAD, channels=["messages"]
    ),
    "setup_sync": lambda saver: saver.setup_sync(),
}


async def test_a_closed_saver_refuses_calls(migrated_url: str) -> None:
    async with create_saver(migrated_url) as saver:
        assert await saver.aget_tuple(THREAD) is None
    for call in ASYNC_CALLS.values():
        with pytest.raises(SaverClosedError, match=r"closed.*make another") as caught:
            await call(saver)
        assert_explains(caught.value)
    assert row_counts(migrated_url) == NOTHING


async def test_a_saver_closed_before_its_first_use_refuses_calls(migrated_url: str) -> None:
    saver = create_saver(migrated_url)
    await saver.aclose()
    for call in ASYNC_CALLS.values():
        with pytest.raises(SaverClosedError, match=r"closed.*make another"):
            await call(saver)


def test_a_saver_closed_by_its_with_block_refuses_sync_calls(migrated_url: str) -> None:
    with create_saver(migrated_url) as saver:
        assert saver.get_tuple(THREAD) is None
    for call in SYNC_CALLS.values():
        with pytest.raises(SaverClosedError, match=r"closed.*make another"):
            call(saver)
    assert row_counts(migrated_url) == NOTHING


async def test_a_list_under_way_ends_when_the_saver_is_closed(migrated_url: str) -> None:
    async with create_saver(migrated_url) as saver:
        for number in range(40):
            await put(saver, THREAD, f"{number:03}")
        found = saver.alist(THREAD)
        assert (await anext(found)).checkpoint["id"] == "039"
    with pytest.raises(SaverClosedError):
        _ = [one async for one in found]


TWINS = {name: f"a{name}" for name in SYNC_CALLS} | {"get": "aget_tuple", "setup_sync": "setup"}


async def test_a_sync_call_from_the_savers_own_loop_is_refused(
    saver: Saver, database_url: str
) -> None:
    assert await saver.aget_tuple(THREAD) is None
    for name, call in SYNC_CALLS.items():
        twin = rf"own event loop.*await saver\.{TWINS[name]}\("
        with pytest.raises(SyncCallError, match=twin) as caught:
            call(saver)
        assert_explains(caught.value)
    assert row_counts(database_url) == NOTHING
    assert await saver.aget_tuple(THREAD) is None


async def test_a_sync_call_before_the_first_async_one_is_refused_as_well(
    migrated_url: str,
) -> None:
    async with create_saver(migrated_url) as saver:
        with pytest.raises(SyncCallError):
            saver.get_tuple(THREAD)
        assert await saver.aget_tuple(THREAD) is None


async def test_a_sync_close_from_the_savers_own_loop_is_refused(migrated_url: str) -> None:
    async with create_saver(migrated_url) as saver:
        assert await saver.aget_tuple(THREAD) is None
        with pytest.raises(SyncCallError, match=r"await saver\.aclose\("):
            saver.close()
        assert await saver.aget_tuple(THREAD) is None


def in_another_loop(call: Call, saver: Saver) -> BaseException | None:
    """What the call raises on an event loop of its own, in a thread of its own."""
    raised: list[BaseException | None] = [None]

    async def run() -> None:
        await call(saver)

    def work() -> None:
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            try:
                runner.run(run())
            except CheckpointerError as exc:
                raised[0] = exc

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return raised[0]


ASYNC_CALLS_AND_CLOSE: dict[str, Call] = {**ASYNC_CALLS, "aclose": lambda saver: saver.aclose()}


async def test_a_call_from_another_running_loop_is_refused(saver: Saver, database_url: str) -> None:
    assert await saver.aget_tuple(THREAD) is None
    for call in ASYNC_CALLS_AND_CLOSE.values():
        raised = await asyncio.to_thread(in_another_loop, call, saver)
        assert isinstance(raised, EventLoopError)
        assert_explains(raised)
        assert "create_saver" in str(raised)
    assert row_counts(database_url) == NOTHING
    assert await saver.aget_tuple(THREAD) is None


def test_an_async_call_to_a_saver_in_its_sync_block_is_refused(migrated_url: str) -> None:
    with create_saver(migrated_url) as saver:
        assert saver.get_tuple(THREAD) is None
        for call in ASYNC_CALLS_AND_CLOSE.values():
            raised = in_another_loop(call, saver)
            assert isinstance(raised, EventLoopError)
            assert_explains(raised)


def used_in_a_loop_that_is_closed(url: str) -> Saver:
    """A saver that nobody closed; its engine keeps no connection open."""
    saver = create_saver(create_async_engine(url, poolclass=NullPool))
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(put(saver, THREAD, "1"))
    return saver


def test_a_call_after_the_loop_was_closed_is_refused(migrated_url: str) -> None:
    saver = used_in_a_loop_that_is_closed(migrated_url)
    for call in ASYNC_CALLS_AND_CLOSE.values():
        raised = in_another_loop(call, saver)
        assert isinstance(raised, EventLoopError)
        assert_explains(raised)
        assert "closed" in str(raised)
    for sync_call in SYNC_CALLS.values():
        with pytest.raises(EventLoopError, match="closed") as caught:
            sync_call(saver)
        assert_explains(caught.value)


@pytest.fixture
def forked(migrated_url: str) -> Iterator[Callable[[Sequence[SyncCall]], list[str]]]:
    """Calls made in a fork of a process that has used the saver: what each of them raised."""
    with create_saver(migrated_url) as saver:
        assert saver.get_tuple(THREAD) is None

        def fork(calls: Sequence[SyncCall]) -> list[str]:
            reader, writer = os.pipe()
            with warnings.catch_warnings():
                # Since Python 3.12, a fork of a process with threads gets this warning.
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            if pid == 0:
                try:
                    os.write(writer, "\n".join(map(raised_by, calls)).encode())
                finally:
                    os._exit(0)
            os.close(writer)
            os.waitpid(pid, 0)
            with os.fdopen(reader) as answers:
                return answers.read().splitlines()

        def raised_by(call: SyncCall) -> str:
            try:
                call(saver)
            except CheckpointerError as exc:
                return f"{type(exc).__name__}: {exc}"
            return "nothing"

        yield fork
        assert saver.get_tuple(THREAD) is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_call_from_a_fork_is_refused(
    forked: Callable[[Sequence[SyncCall]], list[str]], migrated_url: str
) -> None:
    def on_a_new_loop(call: Call) -> SyncCall:
        async def wait(saver: Saver) -> object:
            return await call(saver)

        return lambda saver: asyncio.new_event_loop().run_until_complete(wait(saver))

    calls = [
        *SYNC_CALLS.values(),
        lambda saver: saver.close(),
        *map(on_a_new_loop, ASYNC_CALLS_AND_CLOSE.values()),
    ]
    answers = forked(calls)
    assert len(answers) == len(calls)
    for answer in answers:
        assert answer.startswith("EventLoopError: found")
        assert "fork" in answer
        assert "create_saver" in answer
    assert row_counts(migrated_url) == NOTHING
