"""Threads that are copied from one store into another, on any two kinds of database."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from damages import DAMAGES, SEGMENTS, Damage, Rows, cut, noise, store, where
from databases import Databases, PostgreSQLDatabases, SQLiteDatabases
from langgraph.checkpoint.base import CheckpointTuple
from processes import copy_all, on_each_database, started
from scenarios import SCENARIOS, play
from schemas import execute, query
from storing import NOTHING, SENDS, config, operate, put, row_counts, sizes_read, stored_rows

from checkpointer import (
    AsyncSQLAlchemySaver,
    ConfigurationError,
    DamagedDataError,
    DatabaseBusyError,
    InvalidInputError,
    SchemaTooNewError,
    TransferError,
    TransferReport,
    UnknownThreadError,
    copy_store,
    create_saver,
    holdings,
    intake,
    moving,
    transfer,
)
from checkpointer.sealing import FORMAT, seal
from checkpointer.slices import segments_of

Saver = AsyncSQLAlchemySaver

ODD = {
    "nul \0": "\0",
    "surrogate": "\ud800",
    "\ue000": ["\ue000", None, True],
    "numbers": [1e23, 2**53 + 1, 5e-324, -0.0, 1.0, 2**63],
    "not a number": float("nan"),
}
"""Metadata that no two databases hold alike."""

FILTERS: Sequence[dict[str, Any]] = [
    {"nul \0": "\0"},
    {"surrogate": "\ud800"},
    {"numbers": [10**23, 2**53 + 1, 1]},
    {"not a number": float("nan")},
    {"step": 3},
    {"never": 1},
]


@pytest.fixture
def copied_url(
    tmp_path: Path, postgres_url: str, sqlite_template: str, postgresql_template: str
) -> Iterator[Callable[[str], str]]:
    """Call it for a database of that kind at the newest schema."""
    made: list[tuple[Databases, str]] = []
    kinds: dict[str, tuple[Databases, str]] = {
        "sqlite": (SQLiteDatabases(tmp_path), sqlite_template),
        "postgresql": (PostgreSQLDatabases(postgres_url), postgresql_template),
    }

    def create(kind: str) -> str:
        databases, template = kinds[kind]
        url = databases.copy(template)
        made.append((databases, url))
        return url

    yield create
    for databases, url in made:
        databases.drop(url)


@pytest.fixture
def target_url(copied_url: Callable[[str], str], database_kind: str) -> str:
    """The URL of a database of the other kind than the test's, to copy into."""
    return copied_url("postgresql" if database_kind == "sqlite" else "sqlite")


async def seen(saver: Saver, **options: Any) -> list[CheckpointTuple]:
    """All that a reader finds, in its order."""
    return [one async for one in saver.alist(None, **options)]


async def assert_equal(one: Saver, other: Saver) -> None:
    """Two stores read equal, past what they have cached."""
    async with (
        create_saver(one.engine, cache_bytes=0) as first,
        create_saver(other.engine, cache_bytes=0) as second,
    ):
        assert repr(await seen(first)) == repr(await seen(second))
        for wanted in FILTERS:
            found = await seen(first, filter=wanted)
            assert repr(found) == repr(await seen(second, filter=wanted))
            assert found or "never" in wanted
        ends = {one.config.get("configurable", {})["thread_id"] async for one in first.alist(None)}
        for thread in sorted(ends):
            channels = ["a", "b", "items", "rare"]
            history = await first.aget_delta_channel_history(
                config=config(thread), channels=channels
            )
            assert history == await second.aget_delta_channel_history(
                config=config(thread), channels=channels
            )
        assert (await second.averify()).problems == (await first.averify()).problems
    assert dates(one) == dates(other)


def url_of(saver: Saver) -> str:
    return saver.engine.url.render_as_string(hide_password=False)


def dates(saver: Saver) -> list[tuple[object, ...]]:
    """When each thread was made and last changed, without zeros that one database leaves out."""
    rows = query(
        url_of(saver),
        "SELECT thread_id, created_at, updated_at FROM checkpointer_threads ORDER BY thread_id",
    )
    return [
        (name, *(str(at).split("+")[0].removesuffix(".000000") for at in times))
        for name, *times in rows
    ]


def rows_of(saver: Saver) -> list[Any]:
    """All rows but for the metadata's projection, which PostgreSQL writes in its own way."""
    found: list[Any] = stored_rows(url_of(saver))
    return [[(*row[:5], row[6]) for row in found[0]], *found[1:]]


async def fill(saver: Saver) -> None:
    """Store all kinds of things; several threads, one of which is older than the others."""
    await put(saver, config("odd"), "1", ODD, a=noise("odd", 50_000))
    await play(SCENARIOS["delta"].builder(saver), SCENARIOS["delta"].steps, "sync", config("delta"))
    parent = await put(saver, config("a thread"), "000", {"run_id": "run 0", "step": 3}, a=noise(1))
    await saver.aput_writes(parent, [("a", noise("write")), ("b", None)], "a task", "path")
    await saver.aput_writes(parent, [("__error__", "x"), (SENDS, 1)], "failed")
    await saver.aput_writes(config("a thread", "later"), [("a", 1)], "before its checkpoint")
    for number in range(1, 30):
        parent = await put(saver, parent, f"{number:03}", {"step": number}, a=noise(1), n=number)
    await put(saver, config("a thread", checkpoint_ns="inner:1"), "100", {}, a=noise(2))
    execute(
        url_of(saver),
        "UPDATE checkpointer_threads SET created_at = '2024-01-02 03:04:05.678901', "
        "updated_at = '2024-02-03 04:05:06.789012' WHERE thread_id = 'odd'",
    )


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_a_copy_reads_equal_and_a_second_one_finds_nothing_to_do(
    saver: Saver, kind: str, copied_url: Callable[[str], str], new_migrated_url: Callable[[], str]
) -> None:
    await fill(saver)
    target_url = copied_url(kind)
    calls: list[tuple[int, int]] = []
    async with create_saver(target_url) as target, create_saver(new_migrated_url()) as back:
        moved = await copy_store(saver, target, progress=lambda *given: calls.append(given))
        await assert_equal(saver, target)
        assert await copy_store(saver, target) == TransferReport(skipped=3)
        # And back to the kind of database that it came from: the very same rows.
        assert await copy_store(target, back) == moved
        assert rows_of(saver) == rows_of(back)
    counts = row_counts(url_of(saver))
    assert (moved.threads, moved.skipped) == (3, 0)
    assert moved.checkpoints == counts["checkpointer_checkpoints"]
    assert moved.writes == counts["checkpointer_writes"]
    assert moved.bytes > 100_000
    assert calls == [(1, 3), (2, 3), (3, 3)]


async def test_what_every_operation_leaves_is_copied(saver: Saver, target_url: str) -> None:
    await operate(saver)
    async with create_saver(target_url) as target:
        await copy_store(saver, target)
        found = await target.averify()
    assert stored_rows(url_of(saver))[1:] == stored_rows(target_url)[1:]
    assert found.problems == (await saver.averify()).problems


async def test_a_copied_thread_goes_on(saver: Saver, target_url: str) -> None:
    scenario = SCENARIOS["delta"]
    await play(scenario.builder(saver), scenario.steps[:2], "sync", config())
    async with create_saver(target_url) as target:
        await copy_store(saver, target)
        for one in (saver, target):
            await play(scenario.builder(one), scenario.steps[2:], "sync", config())
        states = [
            (await scenario.builder(one).aget_state(config())).values for one in (saver, target)
        ]
    assert states[0] == states[1]


async def test_only_what_is_new_is_copied_and_what_the_target_has_besides_stays(
    saver: Saver, target_url: str
) -> None:
    await put(saver, config(), "1", a=noise(1), b=noise("b", 100_000))
    await saver.aput_writes(config(checkpoint_id="1"), [("__resume__", ["old"])], "task")
    await saver.aput_writes(config(checkpoint_id="1"), [("x", "kept")], "task")
    async with create_saver(target_url) as target:
        await copy_store(saver, target)
        await put(target, config(checkpoint_id="1"), "2t", a="of the target")
        await target.aput_writes(config(checkpoint_id="1"), [("x", "of another")], "other task")
        await put(
            saver, config(checkpoint_id="1"), "2", a=noise(1) + b"more", b=noise("b", 100_000)
        )
        await put(saver, config(), "1", a="replaced")
        await saver.aput_writes(config(checkpoint_id="1"), [("__resume__", ["old", "new"])], "task")
        moved = await copy_store(saver, target)
        found = {one.checkpoint["id"]: one for one in await seen(target)}
        assert (await target.averify()).whole
        # A put that builds on what the process remembers of the target stores what it is given.
        await put(
            target, config(checkpoint_id="2t"), "3t", a="of the target", b=noise("b", 100_000)
        )
        assert (await target.averify()).whole
    assert (moved.checkpoints, moved.writes) == (2, 1)
    assert moved.bytes < 50_000
    assert set(found) == {"1", "2", "2t"}
    assert found["1"].checkpoint["channel_values"] == {"a": "replaced"}
    assert found["2t"].checkpoint["channel_values"] == {"a": "of the target"}
    assert found["1"].pending_writes == [
        ("other task", "x", "of another"),
        ("task", "__resume__", ["old", "new"]),
        ("task", "x", "kept"),
    ]


async def test_a_thread_is_as_old_as_the_older_of_both(saver: Saver, target_url: str) -> None:
    async with create_saver(target_url) as target:
        for one in (saver, target):
            await put(one, config(), "1", a=url_of(one))
        moments = ("2024-01-01 00:00:00", "2999-01-01 00:00:00")
        for one, moment in zip((saver, target), moments, strict=True):
            times = f"created_at = '{moment}', updated_at = '{moment}'"
            execute(url_of(one), f"UPDATE checkpointer_threads SET {times}")
        await copy_store(saver, target)
        assert dates(target) == [("a thread", *moments)]


async def test_some_threads_are_copied_and_one_that_is_not_there_is_named(
    saver: Saver, target_url: str
) -> None:
    for name in ("1", "2", "3"):
        await put(saver, config(name), "1", a=noise(name))
    async with create_saver(target_url) as target:
        with pytest.raises(TransferError, match="'none': found no such thread") as raised:
            await copy_store(saver, target, thread_ids=["1", "none", "3", 3])  # type: ignore[list-item]
        copied = {one.config.get("configurable", {})["thread_id"] for one in await seen(target)}
    assert copied == {"1", "3"}
    assert raised.value.report.threads == 2
    assert {name: type(one) for name, one in raised.value.failures.items()} == {
        "none": UnknownThreadError
    }


async def test_a_store_is_not_copied_into_itself(
    saver: Saver, migrated_url: str, database_kind: str
) -> None:
    given: list[Any] = [saver.engine, migrated_url]
    if database_kind == "sqlite":
        path = Path(sa.make_url(migrated_url).database or "")
        given.append(f"sqlite:///{path.parent}/../{path.parent.name}/{path.name}?timeout=3")
    for one in given:
        async with create_saver(one) as target:
            with pytest.raises(ConfigurationError, match="expected two stores"):
                await copy_store(saver, target)
    with pytest.raises(ConfigurationError, match="expected two stores"):
        await copy_store(saver, saver)


@pytest.mark.usefixtures("in_small_pieces")
@pytest.mark.parametrize("damage", [*DAMAGES.values()][:14], ids=[*DAMAGES][:14])
async def test_a_damaged_thread_is_named_and_left_out_and_the_others_are_copied(
    migrated_url: str, new_migrated_url: Callable[[], str], damage: Damage
) -> None:
    stored = await store(migrated_url)
    damage.make(stored)
    async with create_saver(migrated_url) as source, create_saver(new_migrated_url()) as target:
        with pytest.raises(TransferError, match="'a thread'") as raised:
            await copy_store(source, target)
        assert {type(one) for one in raised.value.failures.values()} == {DamagedDataError}
        assert raised.value.report.threads == 1
        [found] = await seen(target)
        assert found.config.get("configurable", {})["thread_id"] == "another"
        assert (await target.averify()).whole


async def test_damage_that_stands_in_the_target_is_told_and_nothing_changes(
    saver: Saver, migrated_url: str, new_migrated_url: Callable[[], str]
) -> None:
    url = new_migrated_url()
    stored = await store(url)
    DAMAGES["a segment is missing"].make(stored)
    await put(saver, config(), "4", a="new")
    before = stored_rows(url)
    async with create_saver(url) as target:
        with pytest.raises(TransferError, match="expected that all of the thread is whole"):
            await copy_store(saver, target)
    assert stored_rows(url) == before


async def test_an_identifier_that_the_target_cannot_hold_is_named(
    copied_url: Callable[[str], str],
) -> None:
    async with (
        create_saver(copied_url("sqlite")) as source,
        create_saver(copied_url("sqlite")) as file,
        create_saver(copied_url("postgresql")) as server,
    ):
        await put(source, config("a\0b"), "1", x=1)
        await put(source, config("b"), "1\0", x=1)
        await put(source, config("c"), "1", x=1)
        await source.aput_writes(config("c", "1"), [("chan\0nel", 1)], "task")
        await put(source, config("d"), "1", None, **{"chan\0nel": 1})
        await copy_store(source, file)
        assert await seen(file) == await seen(source)
        with pytest.raises(TransferError, match="NUL character") as raised:
            await copy_store(source, server)
        assert {type(one) for one in raised.value.failures.values()} == {InvalidInputError}
        assert sorted(raised.value.failures) == ["a\0b", "b", "c"]
        [found] = await seen(server)
        assert found.checkpoint["channel_values"] == {"chan\0nel": 1}


@pytest.fixture
def in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are sent ahead of nearly every thread, and rows are read a few at a time."""
    monkeypatch.setattr(intake, "AHEAD", 4096)
    monkeypatch.setattr(holdings, "KEYS", 16)
    monkeypatch.setattr(holdings, "BYTES", 30_000)
    monkeypatch.setattr(transfer, "KEYS", 16)
    monkeypatch.setattr(transfer, "BYTES", 30_000)
    monkeypatch.setattr(transfer, "PAGE", 3)
    monkeypatch.setattr(moving, "SPOOL_BYTES", 1024)


async def test_a_segment_that_the_target_has_lost_is_sent_again(
    saver: Saver, target_url: str
) -> None:
    parent = await put(saver, config(), "1", a=noise(1, 60_000))
    await put(saver, parent, "2", a=noise(1, 60_000) + noise("more"))
    await put(saver, config("other"), "1", a=noise(2, 60_000))
    async with create_saver(target_url) as target:
        await copy_store(saver, target)
        before = row_counts(target_url)
        rows = Rows(target_url)
        [lost] = [key for key in rows.held() if key[2] < 30_000]
        rows.lose([lost])
        assert not (await target.averify()).whole
        moved = await copy_store(saver, target)
        assert (moved.threads, moved.skipped, moved.checkpoints) == (1, 1, 0)
        assert 0 < moved.bytes < 30_000
        assert (await target.averify()).whole
        assert row_counts(target_url) == before
        assert await copy_store(saver, target) == TransferReport(skipped=2)


async def test_bytes_that_the_target_holds_in_other_rows_are_not_sent(
    saver: Saver, target_url: str
) -> None:
    """And a longer row takes the place of a shorter one."""
    parent = await put(saver, config(), "1", a=noise(1, 60_000))
    async with create_saver(target_url) as target:
        await copy_store(saver, target)
        rows = Rows(target_url)
        [whole] = rows.segments()
        data, stop = whole.unpack(), whole.stop
        rows.lose([(whole.stream, *whole.interval)])
        rows.insert(*segments_of(whole.stream, 0, data, 7_000))
        assert await copy_store(saver, target) == TransferReport(skipped=1)
        rows.lose([(whole.stream, 0, 7_000)])
        rows.insert(*segments_of(whole.stream, 0, data[:5_000]))
        assert not (await target.averify()).whole
        assert (await copy_store(saver, target)).threads == 1
        assert rows.segments()[0] == whole
        assert (await target.averify()).whole
        await put(saver, parent, "2", a=noise(1, 60_000) + b"more")
        assert (await copy_store(saver, target)).bytes < 5_000
        assert {key[1:] for key in rows.held() if key[0] == whole.stream} == {
            (0, stop),
            *((start, min(start + 7_000, stop)) for start in range(7_000, stop, 7_000)),
        }


async def test_rows_of_the_target_that_hold_other_bytes_of_a_stream_are_told(
    saver: Saver, target_url: str
) -> None:
    """As after a failure of the one who made them: nobody writes a position twice."""
    await put(saver, config(), "1", a=noise(1, 60_000))
    [whole] = Rows(url_of(saver)).segments()
    rows = Rows(target_url)
    rows.insert(*segments_of(whole.stream, 1_000, noise("other", 3_000)))
    async with create_saver(target_url) as target:
        with pytest.raises(TransferError, match="found other bytes than in the segment"):
            await copy_store(saver, target)
    assert row_counts(target_url)["checkpointer_checkpoints"] == 0


async def test_what_a_newer_version_has_written_is_left_out_and_is_no_damage(
    saver: Saver, target_url: str
) -> None:
    rows = Rows(url_of(saver))
    for name in ("segment", "manifest", "whole"):
        await put(saver, config(name), "1", a=noise(name))
    newer = seal(bytes([FORMAT + 1, 0]) + b"whatever that is")
    [key] = rows.held("segment")
    rows.alter(SEGMENTS, "data", where(key, "segment"), lambda _: newer)
    rows.alter("checkpointer_checkpoints", "manifest", "thread_id = 'manifest'", lambda _: newer)
    async with create_saver(target_url) as target:
        with pytest.raises(TransferError, match="newer") as raised:
            await copy_store(saver, target)
        assert {name: type(one) for name, one in raised.value.failures.items()} == {
            "segment": SchemaTooNewError,
            "manifest": SchemaTooNewError,
        }
        assert raised.value.report.threads == 1


@pytest.mark.usefixtures("in_small_pieces")
async def test_no_more_than_a_page_of_rows_is_held_at_once(
    saver: Saver, target_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(saver)
    await put(saver, config("long"), "1", a=noise("long", 1_000_000))
    rows = Rows(url_of(saver))
    cut(rows, rows.layout("1", "a", "long"), 5_000, "long")
    async with create_saver(target_url) as target:
        with sizes_read(monkeypatch) as sizes:
            moved = await copy_store(saver, target)
        await assert_equal(saver, target)
    assert moved.bytes > 1_100_000
    assert max(sizes) < 50_000


@pytest.mark.usefixtures("in_small_pieces")
@pytest.mark.parametrize("change", ["replaced", "deleted", "pruned", "grown"])
async def test_a_thread_that_changes_meanwhile_is_copied_as_it_was_at_one_moment(
    saver: Saver, target_url: str, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    parent = config()
    for number in range(9):
        parent = await put(saver, parent, f"{number}", a=noise(number))
    changes: dict[str, Callable[[], Awaitable[Any]]] = {
        "replaced": partial(put, saver, config(), "8", a=noise("other"), b=1),
        "deleted": partial(saver.adelete_thread, "a thread"),
        "pruned": partial(saver.aprune, ["a thread"]),
        "grown": partial(put, saver, parent, "9", a=noise(9)),
    }
    before = await seen(saver)
    happened: list[str] = []
    rows = transfer._Copying._rows  # noqa: SLF001 - between its pages, others write

    async def changing(self: Any, *given: Any) -> Any:
        async for page in rows(self, *given):
            if not happened:
                happened.append(change)
                await changes[change]()
            yield page

    monkeypatch.setattr(transfer._Copying, "_rows", changing)  # noqa: SLF001
    async with create_saver(target_url) as target:
        moved = await copy_store(saver, target)
        expected = before if change == "grown" else await seen(saver)
        assert repr(await seen(target)) == repr(expected)
        assert (await target.averify()).whole
    assert moved.checkpoints == len(expected)


async def test_a_thread_that_never_stands_still_is_told(
    saver: Saver, target_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(saver, config(), "0", a=0)
    add = intake.Intake.add_segments
    numbers = iter(range(1, 100))

    async def changing(self: Any, segments: Any) -> None:
        await add(self, segments)
        await put(saver, config(), "0", a=noise(next(numbers)))

    await put(saver, config(), "0", a=noise(0))
    monkeypatch.setattr(intake.Intake, "add_segments", changing)
    async with create_saver(target_url) as target:
        with pytest.raises(TransferError, match="10 times in a row") as raised:
            await copy_store(saver, target)
        assert await seen(target) == []
    assert {type(one) for one in raised.value.failures.values()} == {DatabaseBusyError}


@pytest.mark.usefixtures("in_small_pieces")
@pytest.mark.parametrize("change", ["swept", "deleted", "deleted and made anew"])
async def test_segments_sent_ahead_that_the_target_loses_are_sent_again(
    saver: Saver, target_url: str, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    await put(saver, config(), "0", a=noise(0, 60_000))
    happened: list[str] = []
    commit = intake.Intake.commit
    async with create_saver(target_url) as target, create_saver(target_url) as other:

        async def late(self: Any) -> TransferReport:
            if not happened:
                assert row_counts(target_url)["checkpointer_segments"] == 1
                happened.append(change)
                if change == "swept":
                    assert (await other.averify(repair=True)).removed == 1
                else:
                    await other.adelete_thread("a thread")
                if change.endswith("anew"):
                    await put(other, config(), "1", a="another")
            return await commit(self)

        monkeypatch.setattr(intake.Intake, "commit", late)
        await copy_store(saver, target)
        assert (await target.averify()).whole
        found = {
            one.checkpoint["id"]: one.checkpoint["channel_values"] for one in await seen(target)
        }
    assert found.pop("0") == {"a": noise(0, 60_000)}
    assert found == ({"1": {"a": "another"}} if change.endswith("anew") else {})


async def test_a_source_without_rows_and_a_closed_saver(
    saver: Saver, new_migrated_url: Callable[[], str]
) -> None:
    url = new_migrated_url()
    async with create_saver(url) as target:
        assert await copy_store(saver, target) == TransferReport()
    assert row_counts(url) == NOTHING


KILLS = 4


@pytest.mark.long
@on_each_database
async def test_a_copy_that_is_killed_leaves_whole_threads_and_is_gone_on_with(
    saver: Saver, target_url: str
) -> None:
    await fill(saver)
    for number in range(4):
        await put(saver, config(f"thread {number}"), "1", a=noise(number, 60_000))
    expected = {thread: repr(found) for thread, found in (await by_thread(saver)).items()}
    seed = uuid4().int
    random = Random(seed)  # noqa: S311 - a test's data, not a secret
    print(f"the seed is {seed}")  # noqa: T201 - captured
    ended = {}
    async with create_saver(target_url) as target:
        for number in range(KILLS):
            with started(copy_all, url_of(saver), target_url) as process:
                stored = segments_in(target_url)
                while process.is_alive() and segments_in(target_url) == stored:  # noqa: ASYNC110 - another process's
                    await asyncio.sleep(0.005)
                await asyncio.sleep(random.uniform(0, 0.03))
                process.kill()
                process.join()
                ended[number] = process.exitcode
            assert (await target.averify()).whole
            for thread, found in (await by_thread(target)).items():
                assert repr(found) == expected[thread]
        assert -signal.SIGKILL in ended.values(), ended
        await copy_store(saver, target)
        await assert_equal(saver, target)


def segments_in(url: str) -> int:
    return row_counts(url)["checkpointer_segments"]


async def by_thread(saver: Saver) -> dict[str, list[CheckpointTuple]]:
    found: dict[str, list[CheckpointTuple]] = {}
    for one in await seen(saver):
        found.setdefault(one.config.get("configurable", {})["thread_id"], []).append(one)
    return found


def test_dates_are_aware() -> None:
    at = datetime.now(UTC)
    assert moving.Outline().dates(at) == moving.Dates(at, at)
    older = moving.Outline(created_at=at - timedelta(1), updated_at=at)
    assert older.dates(at + timedelta(1)) == moving.Dates(at - timedelta(1), at)
