"""What retention keeps reads back as before, and nothing else stays."""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, TypeVar, cast
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import example, given, settings
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions, CheckpointMetadata, CheckpointTuple
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, _DeltaSnapshot
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, Durability, interrupt
from model import COUNTERS, conversation, id_of, new_checkpoint
from scenarios import SCENARIOS, play
from schemas import execute, held
from scripted import Graph, Normaliser
from storing import LARGE, SENDS, config, put, row_counts
from test_bad_input import assert_explains

from checkpointer import (
    AsyncSQLAlchemySaver,
    DatabaseBusyError,
    DatabaseUnavailableError,
    InvalidInputError,
    PruneReport,
    RetentionPolicy,
    create_saver,
    tables,
)

Saver = AsyncSQLAlchemySaver
T = TypeVar("T")

HOUR: Final = timedelta(hours=1)
GREGORIAN: Final = datetime(1582, 10, 15, tzinfo=UTC)


def id_at(moment: datetime, number: int = 0) -> str:
    """A UUIDv6 made at that time."""
    ticks = (moment - GREGORIAN) // timedelta(microseconds=1) * 10
    high, low = divmod(ticks, 1 << 12)
    return str(UUID(int=high << 80 | 6 << 76 | low << 64 | 2 << 62 | number))


def whole(thread: str = "a thread") -> RunnableConfig:
    """The config that names all namespaces of a thread."""
    return {"configurable": {"thread_id": thread}}


async def listed(saver: Saver, where: RunnableConfig | None = None) -> list[CheckpointTuple]:
    """All checkpoints, read by a process that remembers none."""
    async with create_saver(saver.engine) as cold:
        return [found async for found in cold.alist(where or whole())]


async def ids(saver: Saver, where: RunnableConfig | None = None) -> list[str]:
    return sorted(id_of(found) for found in await listed(saver, where))


async def line(saver: Saver, where: RunnableConfig, *names: str) -> RunnableConfig:
    """Checkpoints one after the other, each with a value and a write of its own."""
    for name in names:
        where = await put(saver, where, name, a=[*LARGE, name])
        await saver.aput_writes(where, [("a", [name, *LARGE]), ("b", name)], "a task")
    return where


async def set_idle(saver: Saver, thread: str, since: timedelta) -> None:
    moment = datetime.now(UTC) - since
    async with saver.engine.begin() as connection:
        of_thread = tables.threads.c.thread_id == thread
        await connection.execute(
            sa.update(tables.threads).where(of_thread).values(updated_at=moment)
        )


async def both(act: Callable[..., Coroutine[Any, Any, PruneReport]]) -> PruneReport:
    """Do it after a dry run, which tells the same; what was removed."""
    planned = await act(dry_run=True)
    done = await act(dry_run=False)
    assert (planned.dry_run, done.dry_run) == (True, False)
    assert replace(planned, dry_run=False) == done
    return done


# Pruning to the last few.


async def test_the_latest_few_of_each_namespace_stay(saver: Saver) -> None:
    await line(saver, config(), "1", "2", "3", "4")
    await line(saver, config(checkpoint_ns="inner"), "1", "2", "3", "5")
    await line(saver, config("another"), "1", "2")
    before = {id_of(one): one for one in await listed(saver, config())}
    report = await both(partial(saver.aprune, ["a thread", "no thread"], keep_last=2))
    assert await ids(saver, config()) == ["3", "4"]
    # "2" is the one before "3", which a run that starts from there takes up.
    assert await ids(saver, config(checkpoint_ns="inner")) == ["2", "3", "5"]
    assert await ids(saver, config("another")) == ["1", "2"]
    [newest, oldest] = await listed(saver, config())
    assert newest == before["4"]
    assert oldest == before["3"]._replace(parent_config=None)
    assert report.examined == 2
    [one] = report.threads
    assert one.checkpoints == {"": ["1", "2"], "inner": ["1"]}
    assert (one.thread_id, one.deleted, one.writes) == ("a thread", False, 6)
    assert (await saver.averify()).problems == ()


async def test_a_report_tells_what_was_freed(saver: Saver) -> None:
    await line(saver, config(), "1", "2", "3", "4")
    await line(saver, config("another"), "1", "2", "3")
    before = await saver.astats()
    report = await both(partial(saver.aprune, ["a thread", "another"], keep_last=2))
    after = await saver.astats()
    assert report.bytes == before.stored_bytes - after.stored_bytes > 0
    for name in ("checkpoints", "writes", "segments"):
        freed = before.tables[name].rows - after.tables[name].rows
        told = getattr(report, name)
        # A segment of which others name a part is cut, perhaps into several.
        assert told > 0 if name == "segments" else told == freed > 0
    assert report.deleted_threads == 0
    before = after
    report = await both(partial(saver.aprune, ["a thread", "a thread"], strategy="delete"))
    after = await saver.astats()
    assert (report.examined, report.deleted_threads, report.checkpoints) == (1, 1, 2)
    assert report.bytes == before.stored_bytes - after.stored_bytes > 0
    assert report.segments >= before.tables["segments"].rows - after.tables["segments"].rows


async def test_a_dry_run_changes_nothing(saver: Saver, database_url: str) -> None:
    await line(saver, config(), "1", "2", "3")
    before = await listed(saver), row_counts(database_url)
    await set_idle(saver, "a thread", HOUR)
    report = await saver.aprune(["a thread"], dry_run=True)
    assert report.checkpoints == 2
    assert (await saver.aprune(["a thread"], strategy="delete", dry_run=True)).deleted_threads == 1
    policy = RetentionPolicy(idle_for=timedelta())
    assert (await saver.aretain(policy, dry_run=True)).deleted_threads == 1
    assert (await listed(saver), row_counts(database_url)) == before


async def test_what_was_replaced_is_swept_though_no_checkpoint_goes(saver: Saver) -> None:
    await line(saver, config(), "1")
    await put(saver, config(), "1", a=[*LARGE[::-1], "instead"])
    report = await both(partial(saver.aprune, ["a thread"]))
    assert (report.checkpoints, report.writes) == (0, 0)
    assert report.segments > 0
    assert (await saver.averify()).problems == ()
    assert (await both(partial(saver.aprune, ["a thread"]))).threads == ()


async def test_writes_of_no_checkpoint_stay(saver: Saver) -> None:
    await line(saver, config(), "1", "2")
    await saver.aput_writes(config(checkpoint_id="3"), [("a", LARGE)], "a task")
    await both(partial(saver.aprune, ["a thread"], keep_last=1))
    await put(saver, config(checkpoint_id="2"), "3")
    found = (await listed(saver))[0]
    assert found.pending_writes == [("a task", "a", LARGE)]


# Policies.


async def aged(saver: Saver, thread: str, *hours: int, ns: str = "") -> list[str]:
    """A line of checkpoints that were made so many hours ago."""
    made = [id_at(datetime.now(UTC) - HOUR * ago) for ago in hours]
    await line(saver, config(thread, checkpoint_ns=ns), *made)
    return made


async def test_old_checkpoints_go_but_the_latest(saver: Saver) -> None:
    made = await aged(saver, "a", 50, 30, 10, 1)
    old = await aged(saver, "b", 90, 80, 70)
    report = await both(partial(saver.aretain, RetentionPolicy(max_age=HOUR * 24)))
    assert await ids(saver, whole("a")) == made[2:]
    assert await ids(saver, whole("b")) == old[-1:]
    assert {one.thread_id: list(one.checkpoints[""]) for one in report.threads} == {
        "a": made[:2],
        "b": old[:2],
    }
    assert (report.examined, report.damaged) == (2, {})
    assert (await saver.averify()).problems == ()


async def test_with_two_limits_only_what_both_let_go_goes(saver: Saver) -> None:
    old = await aged(saver, "old", 90, 80, 70, 60)
    young = await aged(saver, "young", 90, 4, 3, 2)
    await both(partial(saver.aretain, RetentionPolicy(max_age=HOUR * 24, keep_last=2)))
    assert await ids(saver, whole("old")) == old[2:]
    assert await ids(saver, whole("young")) == young[1:]


async def test_the_time_of_an_id_that_is_none_is_the_checkpoints_own(saver: Saver) -> None:
    names = {"1": -50, "2": -40, "3": None, "4": -2, "5": -1}
    at = config()
    for name, hours in names.items():
        stored = new_checkpoint(name, {}, {})
        stored["ts"] = (datetime.now(UTC) + HOUR * hours).isoformat() if hours else "long ago"
        at = await saver.aput(at, stored, {}, {})
    report = await both(partial(saver.aretain, RetentionPolicy(max_age=HOUR * 24)))
    assert await ids(saver) == ["3", "4", "5"]
    assert report.checkpoints == 2


async def test_idle_threads_go_whole_unless_they_hold_what_is_protected(saver: Saver) -> None:
    for thread in ("busy", "idle", "kept", "protected"):
        await line(saver, config(thread), f"{thread} 1", f"{thread} 2")
        await line(saver, config(thread, checkpoint_ns="inner:1"), "0")
        if thread != "busy":
            await set_idle(saver, thread, HOUR * 3)
    policy = RetentionPolicy(
        idle_for=HOUR, protected_threads=["kept"], protected_checkpoints={"protected 1"}
    )
    calls: list[tuple[int, int]] = []
    progress = lambda done, total: calls.append((done, total))  # noqa: E731
    report = await both(partial(saver.aretain, policy, progress=progress))
    assert calls[4:] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [(one.thread_id, one.deleted) for one in report.threads] == [("idle", True)]
    assert report.threads[0].checkpoints == {"": ["idle 1", "idle 2"], "inner:1": ["0"]}
    page = await saver.alist_threads(order="thread_id")
    assert [one.thread_id for one in page.threads] == ["busy", "kept", "protected"]
    assert all(one.checkpoints == 3 for one in page.threads)
    policy = replace(policy, keep_last=1, protected_threads=())
    await both(partial(saver.aretain, policy))
    assert await ids(saver, whole("protected")) == ["0", "protected 1", "protected 2"]
    assert await ids(saver, whole("busy")) == ["0", "busy 2"]
    assert await ids(saver, whole("kept")) == []


async def test_a_forks_end_that_waits_for_an_answer_stays(saver: Saver) -> None:
    start = await line(saver, config(), "1")
    waits = await line(saver, start, "2")
    await saver.aput_writes(waits, [(INTERRUPT, "what now?")], "asks")
    await saver.aput_writes(start, [(INTERRUPT, "was answered")], "asks")
    failed = await put(saver, start, "3", {"source": "loop"}, a=LARGE)
    await saver.aput_writes(failed, [(ERROR, "broken")], "fails")
    call = {"parents": {"": "2"}}
    await put(saver, config(checkpoint_ns="call:1"), "2.1", call, a=LARGE)
    await put(saver, config(checkpoint_ns="call:2"), "3.1", {"parents": {"": "3"}}, a=LARGE)
    await line(saver, start, "4", "5")
    before = await saver.aget_tuple(waits)
    assert before is not None
    report = await both(partial(saver.aretain, RetentionPolicy(keep_last=1)))
    assert await ids(saver) == ["2", "2.1", "5"]
    assert await saver.aget_tuple(waits) == before._replace(parent_config=None)
    assert report.threads[0].checkpoints == {"": ["1", "3", "4"], "call:2": ["3.1"]}
    await both(partial(saver.aprune, ["a thread"], keep_last=1))  # which names this thread
    assert await ids(saver) == ["5"]


async def ask(state: MessagesState) -> dict[str, Any]:
    return {"messages": [interrupt("what now?")]}


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_a_question_with_forks_beside_it_stays_until_it_is_answered(
    saver: Saver, durability: Durability
) -> None:
    builder = StateGraph(MessagesState)
    builder.add_node(ask)
    builder.add_edge(START, "ask")
    graph = builder.compile(checkpointer=saver)
    policy = RetentionPolicy(keep_last=1)
    hello = MessagesState(messages=[HumanMessage("hello")])
    await graph.ainvoke(hello, whole(), durability=durability)
    question = (await graph.aget_state(whole())).config
    await graph.aupdate_state(question, {"messages": ["what if"]}, as_node="ask")
    await graph.aupdate_state(question, {"messages": ["or"]}, as_node=START)
    await both(partial(saver.aretain, policy))
    [asked] = (await graph.aget_state(question)).interrupts
    assert asked.value == "what now?"
    answer: Command[Any] = Command(resume="this")
    end = await graph.ainvoke(answer, question, durability=durability)
    assert [one.content for one in end["messages"]] == ["hello", "this"]
    await both(partial(saver.aretain, policy))
    assert await ids(saver) == [id_of(found) for found in (await listed(saver))[:1]]
    assert await saver.aget_tuple(question) is None


async def test_a_protected_checkpoint_of_a_finished_call_stays(saver: Saver) -> None:
    await line(saver, config(), "1", "2", "3")
    for name in ("1.1", "1.2", "1.3"):
        await put(saver, config(checkpoint_ns="call:1"), name, {"parents": {"": "1"}}, a=LARGE)
    await put(saver, config(checkpoint_ns="call:2"), "2.1", {"parents": {"": "2"}})
    policy = RetentionPolicy(keep_last=1, protected_checkpoints=["1.2", "none"])
    report = await both(partial(saver.aretain, policy))
    assert await ids(saver) == ["1.2", "3"]
    assert report.threads[0].checkpoints["call:1"] == ["1.1", "1.3"]
    assert (await saver.averify()).problems == ()


async def test_a_damaged_thread_keeps_no_other_from_retention(
    saver: Saver, database_url: str
) -> None:
    for thread in ("a", "b", "c"):
        await line(saver, config(thread), "1", "2")
    broken = {"sqlite": "x'00'", "postgresql": r"'\x00'"}[saver.engine.dialect.name]
    execute(
        database_url,
        f"UPDATE checkpointer_checkpoints SET manifest = {broken}"
        " WHERE thread_id = 'b' AND checkpoint_id = '1'",
    )
    report = await both(partial(saver.aretain, RetentionPolicy(keep_last=1)))
    assert [one.thread_id for one in report.threads] == ["a", "c"]
    assert list(report.damaged) == ["b"]
    assert "checkpoint '1'" in report.damaged["b"]
    await set_idle(saver, "b", HOUR)
    report = await both(partial(saver.aretain, RetentionPolicy(idle_for=HOUR / 2)))
    assert [one.thread_id for one in report.threads] == ["b"]


async def test_a_thread_that_someone_holds_keeps_no_other_from_retention(
    migrated_url: str, database_kind: str
) -> None:
    async with create_saver(migrated_url, timeout=3, patience=0) as saver:
        for thread in ("a", "b", "c"):
            await line(saver, config(thread), "1", "2")
        policy = RetentionPolicy(keep_last=1)
        with held(migrated_url, "b"):
            if database_kind == "sqlite":  # where it is the file, and so each thread
                with pytest.raises(DatabaseBusyError):
                    await saver.aretain(policy)
                return
            report = await saver.aretain(policy)
            assert [one.thread_id for one in report.threads] == ["a", "c"]
            assert list(report.skipped) == ["b"]
            assert (report.examined, report.damaged) == (3, {})
            assert (await saver.aretain(policy, dry_run=True)).skipped == {}
        report = await saver.aretain(policy)
        assert ([one.thread_id for one in report.threads], report.skipped) == (["b"], {})


async def test_retention_stops_where_the_database_is_away(
    saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for thread in ("a", "b"):
        await line(saver, config(thread), "1", "2")
    tried: list[str] = []

    async def away(*args: Any, **_: Any) -> Any:
        tried.extend(one for one in args if isinstance(one, str))
        raise DatabaseUnavailableError("away")

    monkeypatch.setattr(saver, "_retain", away)
    monkeypatch.setattr(saver._backend, "read", away)  # noqa: SLF001 - as an outage does
    with pytest.raises(DatabaseUnavailableError):
        await saver.aretain(RetentionPolicy(keep_last=1))
    assert tried == ["a"]


async def test_pages_of_threads_are_gone_through(
    saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("checkpointer.retention.PAGE", 2)
    for number in range(5):
        await line(saver, config(str(number)), "1", "2")
    report = await both(partial(saver.aretain, RetentionPolicy(keep_last=1)))
    assert (report.examined, report.checkpoints) == (5, 5)
    assert await ids(saver, None) == []
    assert sorted(id_of(one) for one in [o async for o in saver.alist(None)]) == ["2"] * 5


async def test_a_thread_that_was_put_to_meanwhile_is_not_idle(
    saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read of a page is asked for again once the thread's row is held."""
    for thread in ("a", "b"):
        await line(saver, config(thread), "1", "2")
        await set_idle(saver, thread, HOUR * 3)
    retain = saver._retain  # noqa: SLF001 - to come in between

    async def come_between(thread_id: str, *args: Any, **options: Any) -> None:
        if thread_id == "b":
            async with create_saver(saver.engine) as other:
                await line(other, config("b"), "3")
        await retain(thread_id, *args, **options)

    monkeypatch.setattr(saver, "_retain", come_between)
    report = await saver.aretain(RetentionPolicy(idle_for=HOUR))
    assert [one.thread_id for one in report.threads] == ["a"]
    assert await ids(saver, whole("b")) == ["1", "2", "3"]


async def test_a_checkpoint_that_was_put_meanwhile_counts(
    saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await line(saver, config(), "1", "2", "3")
    retain = saver._retain  # noqa: SLF001 - to come in between

    async def come_between(*args: Any, **options: Any) -> None:
        async with create_saver(saver.engine) as other:
            await line(other, config(checkpoint_id="3"), "4")
        await retain(*args, **options)

    monkeypatch.setattr(saver, "_retain", come_between)
    report = await saver.aretain(RetentionPolicy(keep_last=2))
    assert report.threads[0].checkpoints == {"": ["1", "2"]}
    assert await ids(saver) == ["3", "4"]


async def test_others_are_read_and_put_to_while_a_thread_is_pruned(
    saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retention holds a thread's row, and stops there until others were read and put to."""
    if saver.engine.dialect.name == "sqlite":
        pytest.skip("a file has one writer at a time; between two threads, others take their turn")
    for thread in ("a", "b"):
        await line(saver, config(thread), "1", "2")
    holder = await saver.engine.connect()
    try:
        rows = sa.select(tables.threads).where(tables.threads.c.thread_id == "a").with_for_update()
        await holder.execute(rows)
        retaining = asyncio.create_task(saver.aretain(RetentionPolicy(keep_last=1)))
        while not await _waits_for_a_row(saver):  # noqa: ASYNC110 - the server tells no one
            await asyncio.sleep(0.01)
        await line(saver, config("b", "2"), "3")
        await line(saver, config("new"), "1")
        assert await ids(saver, whole("b")) == ["1", "2", "3"]
        assert await ids(saver, whole("a")) == ["1", "2"]
        assert not retaining.done()
    finally:
        await holder.rollback()
        await holder.close()
    report = await retaining
    assert {one.thread_id: list(one.checkpoints[""]) for one in report.threads} == {
        "a": ["1"],
        "b": ["1", "2"],
    }


async def _waits_for_a_row(saver: Saver) -> bool:
    async with saver.engine.connect() as connection:
        sql = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        return bool(await connection.scalar(sa.text(sql)))


async def test_others_are_put_to_between_the_threads_that_are_pruned(
    saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        await line(saver, config(f"old {number}"), "1", "2")
    retain = saver._retain  # noqa: SLF001 - what comes after it comes between two threads
    at, puts = config("a new one"), 0

    async def retain_and_put(*args: Any, **options: Any) -> None:
        nonlocal at, puts
        await retain(*args, **options)
        at = await put(saver, at, f"{puts:03}", a=1)
        puts += 1

    monkeypatch.setattr(saver, "_retain", retain_and_put)
    report = await saver.aretain(RetentionPolicy(keep_last=1))
    assert [one.checkpoints for one in report.threads] == [{"": ["1"]}] * 6
    assert puts == 6


# Refusals.


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_age": -HOUR},
        {"max_age": 3600},
        {"idle_for": -timedelta.resolution},
        {"idle_for": "1 day"},
        {"keep_last": 0},
        {"keep_last": -1},
        {"keep_last": True},
        {"keep_last": 2.0},
        {"keep_last": 1, "protected_threads": "a thread"},
        {"keep_last": 1, "protected_checkpoints": b"1"},
        {"keep_last": 1, "protected_checkpoints": 7},
    ],
    ids=str,
)
def test_a_policy_that_means_nothing_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        RetentionPolicy(**options)
    assert_explains(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"keep_last": 0},
        {"keep_last": "2"},
        {"keep_last": 2, "strategy": "delete"},
        {"dry_run": 1},
        {"dry_run": None},
    ],
    ids=str,
)
async def test_a_prune_that_means_nothing_is_refused(saver: Saver, options: dict[str, Any]) -> None:
    await line(saver, config(), "1", "2", "3")
    with pytest.raises(InvalidInputError) as caught:
        await saver.aprune(["a thread"], **options)
    assert_explains(caught.value)
    policy: Any
    for policy in (None, {"keep_last": 1}, 7):
        with pytest.raises(InvalidInputError, match="RetentionPolicy"):
            await saver.aretain(policy)
    assert await ids(saver) == ["1", "2", "3"]


async def test_what_is_protected_must_be_an_id(saver: Saver) -> None:
    await line(saver, config(), "1", "2")
    wrong: list[dict[str, Any]] = [
        {"protected_threads": [b"x"]},
        {"protected_checkpoints": [object()]},
    ]
    for options in wrong:
        with pytest.raises(InvalidInputError):
            await saver.aretain(RetentionPolicy(keep_last=1, **options))
    number: Any = 1
    await saver.aretain(RetentionPolicy(keep_last=1, protected_checkpoints=[number]))
    assert await ids(saver) == ["1", "2"]


async def test_limits_of_any_size_are_answered(saver: Saver) -> None:
    await line(saver, config(), "1", "2")
    await both(partial(saver.aprune, ["a thread"], keep_last=10**30))
    forever = RetentionPolicy(max_age=timedelta.max, idle_for=timedelta.max, keep_last=10**30)
    assert (await both(partial(saver.aretain, forever))).threads == ()
    assert await ids(saver) == ["1", "2"]


def test_the_sync_twins_do_the_same(migrated_url: str) -> None:
    with create_saver(migrated_url) as saver:
        for name in ("1", "2", "3"):
            saver.put(config(), new_checkpoint(name, {}, {}), {}, {})
        assert saver.prune(["a thread"], keep_last=2, dry_run=True).checkpoints == 1
        assert saver.retain(RetentionPolicy(keep_last=1), dry_run=True).checkpoints == 2
        saver.copy_thread("a thread", "a copy", checkpoint_id="2")
        found = saver.list(config("a copy"))
        assert [id_of(one) for one in found] == ["2"]


# Random histories.


@dataclass(frozen=True)
class Put:
    """One checkpoint of a random history, made as many hours after its start as come before it.

    Attributes:
        ns: Its namespace.
        parent: Which of the namespace's checkpoints before it is its parent, if any.
        deltas: What it has of each delta channel: its value, or writes to be replayed.
        root: Which root checkpoint it started from.
        waits: Whether an interrupt is written to it.
        loop: Whether a run made it from its parent.
        version: Of LangGraph's format.
    """

    ns: str
    parent: int | None
    deltas: Mapping[str, bool]
    root: int | None
    waits: bool
    version: int
    loop: bool = False


NAMESPACES = ("", "", "", "", "memory", "memory", "call:1", "call:2", "memory|call:3")

rarely = st.integers(0, 3).map(lambda n: n == 0)

histories = st.lists(
    st.builds(
        Put,
        ns=st.sampled_from(NAMESPACES),
        parent=st.sampled_from([None, -3, -2, -1, -1, -1, -1]),
        deltas=st.fixed_dictionaries({"x": rarely, "y": rarely}),
        root=st.none() | st.integers(-3, -1),
        waits=rarely,
        version=st.sampled_from([4, 4, 3]),
        loop=st.booleans(),
    ),
    min_size=6,
    max_size=16,
)
places = st.integers(0, 15)

CHAIN = [
    Put("", -1, {"x": n == 1, "y": n == 2}, root=None, waits=False, version=4) for n in range(9)
]
"""The latest rebuilds its channels from all but the first of the others."""


@dataclass(frozen=True)
class Given:
    """Limits for a random history: places in it stand for its checkpoints."""

    keep_last: int | None
    youngest: int | None
    protected: Collection[int]
    as_policy: bool


limits = st.builds(
    Given,
    keep_last=st.none() | st.integers(1, 4),
    youngest=st.none() | places,
    protected=st.sets(places, max_size=2),
    as_policy=st.booleans(),
).filter(lambda one: one.keep_last or (one.youngest is not None and one.as_policy))


class History:
    """A random history in a thread, and what of it has to stay."""

    def __init__(self, puts: list[Put]) -> None:
        self.start = datetime.now(UTC) - HOUR * 100
        self.puts = puts
        self.ids = [id_at(self.start + HOUR * n) for n in range(len(puts))]
        self.by_ns: dict[str, list[int]] = {}
        self.parents: dict[int, int] = {}
        for n, one in enumerate(puts):
            line = self.by_ns.setdefault(one.ns, [])
            if one.parent is not None and -one.parent <= len(line):
                self.parents[n] = line[one.parent]
            line.append(n)

    def root_of(self, n: int) -> int | None:
        """The root checkpoint that one started from."""
        roots = [root for root in self.by_ns.get("", []) if root < n]
        place = self.puts[n].root
        return roots[place] if place is not None and -place <= len(roots) else None

    async def store(self, saver: Saver) -> None:
        """Put all, in any order."""
        await asyncio.gather(*(self._store(saver, n, one) for n, one in enumerate(self.puts)))

    async def _store(self, saver: Saver, n: int, one: Put) -> None:
        """Put one checkpoint, with writes to its delta channels."""
        values: dict[str, Any] = {
            name: _DeltaSnapshot(conversation(n)) for name, has in one.deltas.items() if has
        }
        values["own"] = conversation(n * 3)
        replayed = {name: [1, 1] for name, has in one.deltas.items() if not has}
        metadata: dict[str, Any] = {"step": n, COUNTERS: replayed}
        root = self.root_of(n)
        if one.loop:
            metadata["source"] = "loop"
        if one.ns:
            metadata["parents"] = {} if root is None else {"": self.ids[root]}
        versions: ChannelVersions = dict.fromkeys(values, f"{n:032}.0")
        stored = new_checkpoint(self.ids[n], values, versions, one.version)
        parent = self.ids[self.parents[n]] if n in self.parents else None
        at = config(checkpoint_id=parent, checkpoint_ns=one.ns)
        await saver.aput(at, stored, cast("CheckpointMetadata", metadata), {})
        at = config(checkpoint_id=self.ids[n], checkpoint_ns=one.ns)
        written = [("x", [f"{n} x"]), ("y", conversation(n)), (SENDS, n)]
        waits = [(INTERRUPT, f"question {n}")] if one.waits else []
        await saver.aput_writes(at, written + waits, "a task")

    def wanted(self, given: Given) -> set[int]:
        """What limits name, each by itself."""
        wanted: set[int] = set()
        for line in self.by_ns.values():
            wanted |= set(line[-(given.keep_last or 1) :])
            if given.as_policy:
                youngest = len(self.puts) if given.youngest is None else given.youngest
                wanted |= {n for n in line if n >= youngest or n in given.protected}
                done = {self.parents.get(n) for n in line if self.puts[n].loop}
                wanted |= {n for n in line if self.puts[n].waits and n not in done}
        for root in wanted & set(self.by_ns.get("", [])):
            wanted |= {max((n for n in self.by_ns.get("memory", []) if n < root), default=root)}
        return wanted

    def ancestors(self, n: int) -> set[int]:
        """One checkpoint and all before it."""
        found = {n}
        while n in self.parents:
            n = self.parents[n]
            found.add(n)
        return found


async def seen(saver: Saver, history: History, n: int) -> Any:
    """All that a saver tells of a checkpoint, but for its parent."""
    at = config(checkpoint_id=history.ids[n], checkpoint_ns=history.puts[n].ns)
    found = await saver.aget_tuple(at)
    if found is None:
        return None
    [same] = [one async for one in saver.alist(at)]
    assert found == same
    rebuilt = [name for name, has in history.puts[n].deltas.items() if not has]
    deltas = await saver.aget_delta_channel_history(config=at, channels=rebuilt)
    return found._replace(parent_config=None), deltas


async def check(saver: Saver, cold: Saver, puts: list[Put], given: Given) -> None:
    """Store a history, retain of it, and look at what is left."""
    history = History(puts)
    every = range(len(puts))
    await saver.adelete_thread("a thread")
    await history.store(saver)
    before = await asyncio.gather(*(seen(cold, history, n) for n in every))
    if given.as_policy:
        # In the middle between two checkpoints.
        youngest = history.start + HOUR * ((given.youngest or 0) - 0.5)
        policy = RetentionPolicy(
            max_age=None if given.youngest is None else datetime.now(UTC) - youngest,
            keep_last=given.keep_last,
            protected_checkpoints=[history.ids[n] for n in given.protected if n in every],
        )
        report = await both(partial(saver.aretain, policy))
    else:
        report = await both(partial(saver.aprune, ["a thread"], keep_last=given.keep_last))
    left = await asyncio.gather(*(seen(cold, history, n) for n in every))
    kept = {n for n in every if left[n] is not None}
    wanted = history.wanted(given)
    for n in wanted - kept:  # only what belongs to a call that has finished
        root = history.root_of(history.by_ns[puts[n].ns][-1])
        assert ":" in puts[n].ns
        assert root is not None
        assert root not in kept
        assert not given.as_policy or n not in given.protected
    for n in wanted & kept:
        assert left[n] == before[n]
    assert kept <= {one for n in wanted for one in history.ancestors(n)}
    gone = {name for one in report.threads for ids in one.checkpoints.values() for name in ids}
    assert gone == {name for n, name in enumerate(history.ids) if n not in kept}
    verified = await saver.averify()
    assert verified.problems == ()
    assert verified.checkpoints == len(kept)


def test_what_is_kept_of_a_random_history_reads_as_before(migrated_url: str) -> None:
    with asyncio.Runner() as runner:

        async def opened(**options: Any) -> Saver:
            return await create_saver(migrated_url, **options).__aenter__()

        saver, cold = runner.run(opened()), runner.run(opened(cache_bytes=0))

        @settings(max_examples=min(settings().max_examples, 20))
        @given(puts=histories, given=limits)
        @example(puts=CHAIN, given=Given(1, None, (), as_policy=False))
        def hold(puts: list[Put], given: Given) -> None:
            runner.run(check(saver, cold, puts, given))

        hold()
        runner.run(saver.aclose())
        runner.run(cold.aclose())


# Real graphs.


def moved(at: RunnableConfig, thread: str) -> RunnableConfig:
    """A config of another thread's."""
    return {"configurable": {**at.get("configurable", {}), "thread_id": thread}}


async def shown(graph: Graph, at: RunnableConfig, thread: str = "a thread") -> Any:
    """The state of a checkpoint and of the subgraphs that its tasks call, without parents."""
    state = await graph.aget_state(moved(at, thread), subgraphs=True)
    tasks = [task._replace(state=getattr(task.state, "values", None)) for task in state.tasks]
    return [state.values, state.next, state.metadata, state.interrupts, tasks]


@pytest.mark.parametrize("name", SCENARIOS)
async def test_graphs_go_on_from_each_checkpoint_that_is_kept(saver: Saver, name: str) -> None:
    keep_last = 2
    scenario = SCENARIOS[name]
    graph = scenario.builder(saver)
    *steps, last = scenario.steps
    await play(graph, steps, "sync")
    root = [state.config async for state in graph.aget_state_history(whole())][:keep_last]
    before = [await shown(graph, at) for at in root]
    await saver.acopy_thread("a thread", "a twin")
    for number in range(keep_last):
        await saver.acopy_thread("a thread", f"twin {number}")
    report = await both(partial(saver.aprune, ["a thread"], keep_last=keep_last))
    # One channel's value is never stored whole there, so all that came before it is needed.
    assert (report.checkpoints > 0) is (name != "delta")
    assert [await shown(graph, at) for at in root] == before
    for number in range(keep_last):
        await saver.acopy_thread("a thread", f"pruned {number}")
    # The head with the step that comes next, the others with what they would have done.
    ways = [(replace(last, back=0), "a thread", "a twin")] if not last.back else []
    for step, pruned, twin in ways:
        found = [await play(graph, [step], "sync", whole(thread)) for thread in (pruned, twin)]
        states = [
            await graph.aget_state(whole(thread), subgraphs=True) for thread in (pruned, twin)
        ]
        assert same(found[0], found[1])
        assert same(states[0].values, states[1].values)
        assert states[0].next == states[1].next
    for number, at in enumerate(root):
        outcomes = []
        for thread in (f"pruned {number}", f"twin {number}"):
            output = await graph.ainvoke(None, moved(at, thread), durability="sync")
            state = await graph.aget_state(whole(thread), subgraphs=True)
            outcomes.append([output, state.values, state.next])
        assert same(*outcomes)
    assert (await saver.averify()).problems == ()


def same(one: Any, other: Any) -> bool:
    """Whether two values differ by made-up ids alone."""
    return bool(Normaliser()(one) == Normaliser()(other))
