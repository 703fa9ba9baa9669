"""Group commit: what arrives meanwhile shares a batch, and a failure stays its own."""

import asyncio
import random
import traceback
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest
from schemas import execute, held
from sqlalchemy.ext.asyncio import create_async_engine
from storing import batches, config, put, row_counts, statements

from checkpointer import AsyncSQLAlchemySaver, DatabaseError, SaverClosedError, create_saver, writer

Saver = AsyncSQLAlchemySaver
Holding = Callable[[], AbstractContextManager[None]]

HELD = config("held")
THREAD = config()
SECRET = "a value that no message may hold"  # noqa: S105 - a value, no password

REFUSE = {
    "sqlite": """
CREATE TRIGGER refuse BEFORE INSERT ON checkpointer_checkpoints WHEN NEW.checkpoint_id = 'bad'
BEGIN SELECT RAISE(ABORT, 'refused'); END
""",
    "postgresql": """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'refused'; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON checkpointer_checkpoints
FOR EACH ROW WHEN (NEW.checkpoint_id = 'bad') EXECUTE FUNCTION refuse()
""",
}


@pytest.fixture
def refuse_bad(migrated_url: str, database_kind: str) -> None:
    """The database refuses checkpoints of the id "bad"."""
    execute(migrated_url, REFUSE[database_kind])


@pytest.fixture
async def held_up(saver: Saver, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Holding:
    """Within it, no put into the thread "held" gets on, and so no batch behind it."""
    monkeypatch.setattr(writer, "SLOW", 60)
    await put(saver, HELD, "0")
    return partial(held, database_url, "held")


async def started(*works: Coroutine[Any, Any, object]) -> list[asyncio.Task[object]]:
    """Tasks for works, which have come as far as they get."""
    tasks = [asyncio.ensure_future(work) for work in works]
    for _ in range(100):
        await asyncio.sleep(0)
    return tasks


async def ids(saver: Saver, thread: object = "a thread") -> list[str]:
    return [one.checkpoint["id"] async for one in saver.alist(config(thread))]


async def test_puts_that_arrive_meanwhile_share_one_batch(saver: Saver, held_up: Holding) -> None:
    with statements() as seen:
        with held_up():
            first = await started(put(saver, HELD, "1"))
            others = await started(
                *(put(saver, config(n), "1") for n in range(20)),
                *(saver.aput_writes(config(n, "1"), [("a", n)], "a task") for n in range(20)),
            )
            assert not any(task.done() for task in (*first, *others))
        await asyncio.gather(*first, *others)
    assert batches(seen) == 2
    assert await ids(saver, "held") == ["1", "0"]
    for number in range(20):
        found = await saver.aget_tuple(config(number))
        assert found is not None
        assert found.pending_writes == [("a task", "a", number)]


async def test_a_put_that_is_alone_is_a_batch_of_its_own(saver: Saver) -> None:
    with statements() as seen:
        for number in range(3):
            await put(saver, THREAD, str(number))
    assert batches(seen) == 3


@pytest.mark.parametrize(
    ("limit", "value", "count"), [("MAX_BATCH", 10, 4), ("MAX_BATCH_BYTES", 30_000, 5)]
)
async def test_a_batch_is_bounded(
    saver: Saver, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, count: int
) -> None:
    assert await saver.aget_tuple(THREAD) is None
    monkeypatch.setattr(f"checkpointer.writer.{limit}", value)
    data = random.Random(1).randbytes(4_000)  # noqa: S311 - not a secret
    with statements() as seen:
        await asyncio.gather(*(put(saver, config(n), "1", data=data) for n in range(35)))
    assert batches(seen) == count
    assert len([one async for one in saver.alist(None)]) == 35


@pytest.mark.usefixtures("refuse_bad")
async def test_a_put_that_fails_fails_alone(saver: Saver) -> None:
    works = [put(saver, config(n), "bad" if n % 5 == 2 else "1", n=n) for n in range(12)]
    ended = await asyncio.gather(*works, return_exceptions=True)
    failed = [n for n, one in enumerate(ended) if isinstance(one, BaseException)]
    assert failed == [2, 7]
    for number in failed:
        error = ended[number]
        assert isinstance(error, DatabaseError)
        assert "refused" in str(error)
        assert error.__cause__ is not None
    found = [one async for one in saver.alist(None)]
    assert {one.checkpoint["channel_values"]["n"] for one in found} == {*range(12)} - {*failed}
    await put(saver, THREAD, "1")


@pytest.mark.usefixtures("refuse_bad")
async def test_a_put_that_fails_stores_nothing(saver: Saver, database_url: str) -> None:
    counts = row_counts(database_url)
    with pytest.raises(DatabaseError):
        await put(saver, THREAD, "bad", data=random.Random(1).randbytes(9_000))  # noqa: S311
    assert row_counts(database_url) == counts
    stored = await put(saver, THREAD, "1", data=random.Random(1).randbytes(9_000))  # noqa: S311
    async with create_saver(saver.engine) as cold:
        assert await cold.aget_tuple(stored) is not None


@pytest.mark.usefixtures("refuse_bad")
async def test_no_message_holds_a_value(saver: Saver) -> None:
    with pytest.raises(DatabaseError) as caught:
        await put(saver, THREAD, "bad", {"user": SECRET}, text=SECRET, long=[SECRET] * 1000)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in "".join(traceback.format_exception_only(error))
        error = error.__cause__ or error.__context__


async def test_a_put_that_waits_is_taken_back_when_it_is_cancelled(
    saver: Saver, held_up: Holding
) -> None:
    with held_up():
        (first,) = await started(put(saver, HELD, "1"))
        cancelled, other = await started(put(saver, THREAD, "1"), put(saver, THREAD, "2"))
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
    await asyncio.gather(first, other)
    assert await ids(saver) == ["2"]


async def test_a_put_that_was_started_stays_whole_when_it_is_cancelled(
    saver: Saver, held_up: Holding, database_kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SLOW", 0)
    with held_up():
        (cancelled,) = await started(put(saver, HELD, "1", text="x" * 5_000))
        (neighbour,) = await started(put(saver, THREAD, "1"))
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        # A file is held as a whole; of a server's threads, only the one.
        if database_kind == "postgresql":
            await neighbour
        assert neighbour.done() == (database_kind == "postgresql")
    await neighbour
    await put(saver, THREAD, "2")
    await saver.aput_writes(config("held", "1"), [("a", 1)], "a task")  # after what was cancelled
    async with create_saver(saver.engine) as cold:
        found = await cold.aget_tuple(HELD)
    assert found is not None
    # A server has begun with it; on SQLite, it still waited for the file.
    begun = database_kind == "postgresql"
    assert found.checkpoint["channel_values"] == ({"text": "x" * 5_000} if begun else {})
    assert await ids(saver) == ["2", "1"]


async def test_the_end_waits_for_what_was_started(
    migrated_url: str, held_up: Holding, database_kind: str
) -> None:
    saver = create_saver(migrated_url)
    assert await saver.aget_tuple(THREAD) is None
    with held_up():
        first, cancelled = await started(put(saver, HELD, "1"), put(saver, HELD, "2"))
        (waiting,) = await started(put(saver, THREAD, "1"))
        cancelled.cancel()
        (end,) = await started(saver.aclose())
        assert not end.done()
        with pytest.raises(SaverClosedError):
            await put(saver, THREAD, "2")
    await asyncio.gather(first, waiting, end)
    async with create_saver(migrated_url) as other:
        begun = ["2"] if database_kind == "postgresql" else []
        assert await ids(other, "held") == [*begun, "1", "0"]
        assert await ids(other) == ["1"]


async def test_the_end_waits_for_a_deletion_under_way(migrated_url: str, held_up: Holding) -> None:
    saver = create_saver(migrated_url)
    assert await saver.aget_tuple(THREAD) is None
    with held_up():
        deletion, prune = await started(saver.adelete_thread("held"), saver.aprune(["held"]))
        (end,) = await started(saver.aclose())
        assert not end.done()
    await asyncio.gather(deletion, prune, end)
    assert row_counts(migrated_url)["checkpointer_threads"] == 0


async def test_the_last_put_of_a_checkpoint_wins_within_a_batch(saver: Saver) -> None:
    await asyncio.gather(*(put(saver, THREAD, "1", {"step": n}, n=n) for n in range(5)))
    (found,) = [one async for one in saver.alist(THREAD)]
    assert found.checkpoint["channel_values"] == {"n": 4}
    assert [one.checkpoint["id"] async for one in saver.alist(THREAD, filter={"step": 4})] == ["1"]


async def test_writes_keep_the_first_and_special_ones_the_last_within_a_batch(
    saver: Saver,
) -> None:
    where = await put(saver, THREAD, "1")
    await asyncio.gather(
        *(saver.aput_writes(where, [("a", n), ("__error__", n)], "a task") for n in range(5))
    )
    await saver.aput_writes(where, [("__interrupt__", n) for n in range(5)], "a task")
    found = await saver.aget_tuple(THREAD)
    assert found is not None
    assert found.pending_writes is not None
    assert sorted(found.pending_writes, key=lambda write: write[1]) == [
        ("a task", "__error__", 4),
        ("a task", "__interrupt__", 4),
        ("a task", "a", 0),
    ]


async def test_a_thread_and_its_writes_may_be_put_at_the_same_time(saver: Saver) -> None:
    """As with `durability="async"`: whichever comes first."""
    for number in range(10):
        where = config(checkpoint_id=str(number))
        works = [
            put(saver, THREAD, str(number), long="x" * 9_000),
            saver.aput_writes(where, [("long", "x" * 9_000)], "a task"),
        ]
        await asyncio.gather(*works[:: 1 if number % 2 else -1])
        found = await saver.aget_tuple(where)
        assert found is not None
        assert found.pending_writes == [("a task", "long", "x" * 9_000)]


async def test_batches_of_two_savers_never_wait_for_each_other_in_a_circle(
    migrated_url: str,
) -> None:
    async with create_saver(migrated_url) as one, create_saver(migrated_url) as other:
        numbers = random.Random(1)  # noqa: S311 - not a secret
        for turn in range(10):
            order = [(saver, n) for saver in (one, other) for n in range(15)]
            numbers.shuffle(order)
            await asyncio.gather(*(put(saver, config(n), f"{turn:02}") for saver, n in order))
        assert len([found async for found in one.alist(None)]) == 150


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
async def test_a_locked_file_is_answered_with_an_error_of_ours(
    migrated_url: str, held_up: Holding
) -> None:
    engine = create_async_engine(migrated_url, connect_args={"timeout": 0.05})
    async with create_saver(engine, patience=0) as saver:
        assert await saver.aget_tuple(THREAD) is None
        with held_up():
            with pytest.raises(DatabaseError, match="locked"):
                await put(saver, THREAD, "1")
            with pytest.raises(DatabaseError, match="locked"):
                await saver.adelete_thread("held")
        await put(saver, THREAD, "2")
        assert await ids(saver) == ["2"]
    await engine.dispose()
