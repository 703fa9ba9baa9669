"""Threads that are imported from other savers: official tables, and any saver's public methods."""

import json
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from damages import noise
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Send
from officials import history, is_file, official, undo_task_path, writes_of
from pydantic import BaseModel
from scenarios import SCENARIOS, play
from schemas import execute, query
from sqlalchemy.ext.asyncio import create_async_engine
from storing import SENDS, checkpoint, config, put, row_counts, sizes_read, stored_rows

from checkpointer import (
    AsyncSQLAlchemySaver,
    ConfigurationError,
    DamagedDataError,
    DatabaseError,
    InvalidInputError,
    SchemaMissingError,
    SerializationError,
    SourceError,
    TransferError,
    TransferReport,
    UnknownThreadError,
    create_saver,
    holdings,
    import_official,
    importing,
    intake,
    moving,
)
from checkpointer.serde import LosslessSerializer

Saver = AsyncSQLAlchemySaver


class Model(BaseModel):
    name: str
    inner: list["Model"] = []


@dataclass
class Data:
    number: int


class Colour(Enum):
    RED = 1


CUSTOM: dict[str, Any] = {
    "model": Model(name="outer", inner=[Model(name="inner")]),
    "dataclass": Data(1),
    "enum": Colour.RED,
    "none": None,
    "bytes": b"\0\xff",
    "text": "text",
    "number": 1.5,
    "truth": True,
    "empty": {},
    "keys": {1: "a", (2, 3): {4}},
    "sent": Send("node", {"a": 1}),
    "long": [f"message {number}" for number in range(3000)],
}


FEW = ("delta time travel", "subgraph")
"""Graphs whose threads have namespaces, forks, interrupts, and values that no checkpoint holds."""


async def fill(saver: BaseCheckpointSaver[Any], names: Iterable[str] = FEW) -> None:
    """Real graphs, one thread each, and a thread of values of all kinds."""
    for name in names:
        scenario = SCENARIOS[name]
        await play(scenario.builder(saver), scenario.steps, "sync", config(name))
    parent = config("custom")
    for number in range(3):
        stored = checkpoint(f"{number}", CUSTOM | {"long": CUSTOM["long"] + [number]})
        names = dict.fromkeys(stored["channel_values"], f"{number:032}.0.{number}")
        versions: Any = names | {"no value": "1"}
        stored["channel_versions"] = versions
        described: Any = {"step": number, "ü": ["\N{SNOWMAN}"]}
        parent = await saver.aput(parent, stored, described, versions)
        writes = [*CUSTOM.items(), ("__interrupt__", [number]), ("last", number)]
        await saver.aput_writes(parent, writes, "b task", "~path, 1")
        await saver.aput_writes(parent, [("x", number)], "c task", "~path, 0")
        await saver.aput_writes(parent, [("__error__", "no")], "a task", "")


@pytest.fixture
async def source_url(new_database_url: Callable[[], str]) -> str:
    """The URL of a database with an official saver's tables."""
    url = new_database_url()
    async with official(url) as source:
        await fill(source)
    return url


THREADS = len(FEW) + 1


async def assert_histories_are_equal(source: BaseCheckpointSaver[Any], saver: Saver) -> None:
    async with create_saver(saver.engine, cache_bytes=0) as cold:
        assert await history(cold) == await history(source)
        for name in ("delta time travel",):
            for one in [found async for found in source.alist(config(name))]:
                wanted: dict[str, Any] = {"config": one.config, "channels": ["items", "rare"]}
                assert await cold.aget_delta_channel_history(
                    **wanted
                ) == await source.aget_delta_channel_history(**wanted)
        found = await cold.averify()
        assert found.problems == ()


async def test_the_official_saver_and_ours_give_equal_histories(
    saver: Saver, new_database_url: Callable[[], str]
) -> None:
    calls: list[tuple[int, int]] = []
    source_url = new_database_url()
    async with official(source_url) as source:
        await fill(source, SCENARIOS)
    before = official_rows(source_url)
    moved = await import_official(source_url, saver, progress=lambda *one: calls.append(one))
    assert official_rows(source_url) == before
    async with official(source_url) as source:
        await assert_histories_are_equal(source, saver)
    assert await import_official(source_url, saver) == TransferReport(skipped=len(SCENARIOS) + 1)
    counts = row_counts(saver.engine.url.render_as_string(hide_password=False))
    assert moved.threads == len(SCENARIOS) + 1
    assert moved.checkpoints == counts["checkpointer_checkpoints"] > 100
    assert moved.writes == counts["checkpointer_writes"] > 300
    assert moved.bytes > 100_000
    assert calls == [(number, len(SCENARIOS) + 1) for number in range(1, len(SCENARIOS) + 2)]
    paths = "SELECT task_path FROM {} ORDER BY thread_id, checkpoint_id, task_id, idx"
    ours = query(url_of(saver), paths.format("checkpointer_writes"))
    theirs = query(source_url, paths.format(writes_of(source_url)))
    assert ours == theirs


def url_of(saver: Saver) -> str:
    return saver.engine.url.render_as_string(hide_password=False)


def official_rows(url: str) -> list[Any]:
    tables = ("checkpoints", writes_of(url))
    return [query(url, f"SELECT * FROM {table} ORDER BY 1, 2, 3") for table in tables]


async def test_tables_of_one_kind_of_database_into_the_other(
    source_url: str, database_kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if database_kind == "sqlite":
        pytest.skip("see the other way")
    url = f"sqlite:///{tmp_path / 'ours.db'}"
    async with create_saver(url) as saver, official(source_url) as source:
        await import_official(source_url, saver)
        await assert_histories_are_equal(source, saver)


@pytest.mark.parametrize("given", ["a URL", "the saver's own engine"])
async def test_tables_beside_ours(saver: Saver, migrated_url: str, given: str) -> None:
    async with official(migrated_url) as source:
        await fill(source)
        await import_official(migrated_url if given == "a URL" else saver.engine, saver)
        await assert_histories_are_equal(source, saver)
    assert await saver.aget_tuple(config("custom")) is not None  # the engine is not disposed


async def test_an_imported_thread_goes_on(
    saver: Saver, new_database_url: Callable[[], str]
) -> None:
    url = new_database_url()
    for name in ("approval", "delta", "subgraph"):
        scenario = SCENARIOS[name]
        async with official(url) as source:
            await play(scenario.builder(source), scenario.steps[:1], "sync", config(name))
            await import_official(url, saver)
            states = []
            for one in (source, saver):
                graph = scenario.builder(one)
                await play(graph, scenario.steps[1:2], "sync", config(name))
                states.append(repr((await graph.aget_state(config(name))).values.get("items")))
        assert states[0] == states[1]


async def test_what_comes_later_is_imported_by_the_next_call(
    saver: Saver, new_database_url: Callable[[], str]
) -> None:
    url = new_database_url()
    scenario = SCENARIOS["approval"]
    async with official(url) as source:
        for number in range(len(scenario.steps)):
            graph = scenario.builder(source)
            await play(graph, scenario.steps[number : number + 1], "sync", config("approval"))
            moved = await import_official(url, saver)
            assert 0 < moved.checkpoints < 8
            assert await history(saver) == await history(source)
        at = config("approval", (await history(source))[-1].checkpoint["id"])
        for value in (["one"], ["one", "two"]):
            await source.aput_writes(at, [("__resume__", value)], "task")
            moved = await import_official(url, saver)
            assert (moved.checkpoints, moved.writes) == (0, 1)
        assert await history(saver) == await history(source)
    await put(saver, config("approval"), "zzz", own=1)
    assert (await import_official(url, saver)).skipped == 1
    found = await saver.aget_tuple(config("approval"))
    assert found is not None
    assert found.checkpoint["channel_values"] == {"own": 1}


async def test_tables_without_task_paths(saver: Saver, source_url: str) -> None:
    undo_task_path(source_url)
    await import_official(source_url, saver)
    async with official(source_url) as source:  # which adds the column
        assert await history(saver) == await history(source)


async def old_thread(url: str, version: int) -> None:
    """A thread of LangGraph's format before 4, whose pending sends stand with the parent."""
    async with official(url) as source:
        stored: Any = checkpoint("1", {"a": ["one"], "b": 2}) | {"v": version, "pending_sends": []}
        parent = await source.aput(config(), stored, {}, stored["channel_versions"])
        await source.aput_writes(parent, [(SENDS, Send("n", 1)), ("a", 1)], "b", "2")
        await source.aput_writes(parent, [(SENDS, Send("n", 2))], "c", "1")
        await source.aput(parent, stored | {"id": "2"}, {}, {})
    if is_file(url):
        return
    execute(url, "UPDATE checkpoints SET checkpoint = checkpoint - 'channel_values'")
    rows = [("a", b"\x91\xa3one"), ("b", b"\x02")]
    for channel, data in rows:
        execute(
            url,
            "INSERT INTO checkpoint_blobs VALUES ('a thread', '', "
            f"'{channel}', '1.{channel}', 'msgpack', '\\x{data.hex()}') ON CONFLICT DO NOTHING",
        )


@pytest.mark.parametrize("version", [1, 2, 3])
async def test_pending_sends_of_old_formats(
    saver: Saver, new_database_url: Callable[[], str], version: int
) -> None:
    url = new_database_url()
    await old_thread(url, version)
    undo_task_path(url)
    await import_official(url, saver)
    found = {one.checkpoint["id"]: one for one in await history(saver)}
    values = found["2"].checkpoint["channel_values"]
    assert values == {"a": ["one"], "b": 2, SENDS: [Send("n", 1), Send("n", 2)]}
    if not is_file(url):  # the other official saver has forgotten old formats
        async with official(url) as source:
            assert await history(source) == await history(saver)


async def test_rows_of_early_releases_of_the_official_sqlite_saver(
    tmp_path: Path, new_migrated_url: Callable[[], str]
) -> None:
    url = f"sqlite:///{tmp_path / 'old.db'}"
    async with official(url) as source:
        for number in range(4):
            await source.aput(config(number), checkpoint("1", {"a": [1]}), {"step": 1}, {})
            at = config(number, "1")
            await source.aput_writes(at, [("a", None)], "task")
    stored = checkpoint("1", {"a": [1], "set": None})
    stored["channel_values"]["set"] = {
        "lc": 2,
        "type": "constructor",
        "id": ["builtins", "set"],
        "args": [[1]],
    }
    document = json.dumps(stored | {"pending_sends": []}).replace("'", "''")
    execute(
        url,
        "UPDATE checkpoints SET metadata = NULL WHERE thread_id = '0'",
        "UPDATE checkpoints SET metadata = '{\"step\": 2}' WHERE thread_id = '1'",
        f"UPDATE checkpoints SET type = 'json', checkpoint = '{document}' WHERE thread_id = '2'",
        "UPDATE writes SET type = NULL, value = NULL WHERE thread_id = '3'",
    )
    async with create_saver(new_migrated_url()) as saver:
        await import_official(url, saver)
        found = {
            one.config.get("configurable", {})["thread_id"]: one for one in await history(saver)
        }
    assert [found[str(n)].metadata for n in range(4)] == [{}, {"step": 2}, {"step": 1}, {"step": 1}]
    assert found["2"].checkpoint["channel_values"] == {"a": [1], "set": {1}}
    assert found["3"].pending_writes == [("task", "a", None)]


async def test_values_go_on_as_they_are_and_nothing_is_loaded(
    saver: Saver, new_database_url: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_database_url()
    async with official(url) as source:
        values = {"data": Data(1), "deep": [{"a": Data(2)}]}
        stored = checkpoint("1", values)
        where = await source.aput(config(), stored, {}, stored["channel_versions"])
        await source.aput_writes(where, [("data", Data(3))], "task")
    made: list[Data] = []
    monkeypatch.setattr(Data, "__init__", lambda self, number: made.append(self))
    await import_official(url, saver)
    assert made == []
    monkeypatch.undo()
    found = await saver.aget_tuple(config())
    assert found is not None
    assert found.checkpoint["channel_values"] == values
    assert found.pending_writes == [("task", "data", Data(3))]


def aes(key: bytes = b"0" * 16) -> EncryptedSerializer:
    return EncryptedSerializer.from_pycryptodome_aes(key=key)


async def test_encrypted_values_stay_encrypted(
    migrated_url: str, new_database_url: Callable[[], str], tmp_path: Path
) -> None:
    url = new_database_url()
    async with official(url, aes()) as source:
        stored = checkpoint("1", {"a": ["a secret"], "b": {"the": "other secret"}})
        where = await source.aput(config(), stored, {}, stored["channel_versions"])
        await source.aput_writes(where, [("a", "a secret")], "task")
        async with create_saver(migrated_url, serde=aes()) as saver:
            await import_official(url, saver)
            assert await history(saver) == await history(source)
            assert (await import_official(url, saver)).skipped == 1
    assert "secret" not in repr(stored_rows(migrated_url))
    if is_file(url):
        async with create_saver(f"sqlite:///{tmp_path / 'x.db'}", serde=aes(b"1" * 16)) as wrong:
            with pytest.raises(TransferError, match=r"'a thread'.*'msgpack\+aes'") as raised:
                await import_official(url, wrong)
            assert {type(one) for one in raised.value.failures.values()} == {SerializationError}


async def test_rows_that_cannot_be_imported_are_named_and_the_others_are(
    saver: Saver, migrated_url: str, new_database_url: Callable[[], str]
) -> None:
    url = new_database_url()
    async with official(url) as source:
        for name in ("good", "long " * 200, "no type", "misplaced"):
            await source.aput(config(name), checkpoint("1", {}), {}, {})
            await source.aput_writes(config(name, "1"), [("a", [1])], "task")
        await source.aput(
            config("a long key", checkpoint_ns="x" * 2100), checkpoint("1", {}), {}, {}
        )
    execute(
        url,
        f"UPDATE {writes_of(url)} SET type = NULL WHERE thread_id = 'no type'",
        "UPDATE checkpoints SET checkpoint_id = '2' WHERE thread_id = 'misplaced'",
    )
    with pytest.raises(TransferError, match="expected what an official saver stores") as raised:
        await import_official(url, saver)
    failures = raised.value.failures
    assert {name: type(one) for name, one in failures.items()} == {
        "long " * 200: InvalidInputError,
        "no type": DamagedDataError,
        "misplaced": InvalidInputError,
        "a long key": InvalidInputError,
    }
    assert "checkpoint '1'" in str(failures["no type"])
    assert "checkpoint '2'" in str(failures["misplaced"])
    assert "2101 bytes" in str(failures["a long key"])
    assert [one.config.get("configurable", {})["thread_id"] for one in await history(saver)] == [
        "good"
    ]
    assert (await saver.averify()).problems == ()
    with pytest.raises(TransferError, match="'none': found no such thread"):
        await import_official(url, saver, thread_ids=["none", "good"])


async def test_a_database_without_official_tables_is_refused(
    saver: Saver, migrated_url: str, new_database_url: Callable[[], str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="use copy_store"):
        await import_official(migrated_url, saver)
    url = new_database_url()
    execute(url, "CREATE TABLE checkpoints (thread_id TEXT)")
    with pytest.raises(
        ConfigurationError, match="expected among them the tables of an official saver"
    ):
        await import_official(url, saver)
    execute(url, "CREATE TABLE writes (thread_id TEXT)")
    with pytest.raises(ConfigurationError, match=r"without checkpoints\.checkpoint_ns"):
        await import_official(url, saver)
    missing = tmp_path / "missing.db"
    with pytest.raises(ConfigurationError, match="found no file"):
        await import_official(f"sqlite:///{missing}", saver)
    assert not missing.exists()
    with pytest.raises(ConfigurationError, match="no database URL"):
        await import_official("nonsense", saver)
    with pytest.raises(DatabaseError, match="cannot be reached"):  # at once
        await import_official("postgresql://nobody@127.0.0.1:1/none", saver)


async def test_a_target_without_a_schema(
    postgres_url: str, new_database_url: Callable[[], str], database_kind: str
) -> None:
    url, target = new_database_url(), new_database_url()
    async with official(url) as source:
        await source.aput(config(), checkpoint("1", {}), {}, {})
    async with create_saver(target) as saver:
        if database_kind == "postgresql":
            with pytest.raises(SchemaMissingError, match="checkpointer upgrade"):
                await import_official(url, saver)
        else:
            assert (await import_official(url, saver)).threads == 1


@pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)
async def test_official_tables_in_another_schema(
    saver: Saver, new_database_url: Callable[[], str]
) -> None:
    url = new_database_url()
    async with official(url) as source:
        await fill(source)
        before = await history(source)
    names = ("checkpoints", "checkpoint_blobs", "checkpoint_writes", "checkpoint_migrations")
    execute(url, "CREATE SCHEMA old", *(f"ALTER TABLE {one} SET SCHEMA old" for one in names))
    with pytest.raises(ConfigurationError, match="found 0 tables"):
        await import_official(url, saver)
    await import_official(url, saver, schema="old")
    assert await history(saver) == before


async def test_a_read_only_engine_with_pages_of_few_bytes(
    saver: Saver, source_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "PAGE", 3)
    monkeypatch.setattr(importing, "PAGE_BYTES", 5000)
    monkeypatch.setattr(intake, "AHEAD", 2000)
    monkeypatch.setattr(moving, "SPOOL_BYTES", 2000)
    engine = create_async_engine(source_url)
    await import_official(engine, saver)
    await engine.dispose()
    async with official(source_url) as source:
        await assert_histories_are_equal(source, saver)


@pytest.mark.parametrize("part", ["_checkpoints", "_take_writes"])
async def test_a_thread_that_goes_meanwhile_is_not_imported_in_half(
    saver: Saver, source_url: str, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    happened: list[str] = []
    read = getattr(importing.OfficialSource, part)

    def deleting(self: Any, *given: Any) -> Any:
        if not happened:
            happened.append(part)
            execute(source_url, "DELETE FROM checkpoints", f"DELETE FROM {writes_of(source_url)}")
        return read(self, *given)

    monkeypatch.setattr(importing.OfficialSource, part, deleting)
    assert await import_official(source_url, saver) == TransferReport()
    assert happened == [part]
    assert stored_rows(url_of(saver)) == [[], [], [], []]


async def test_dates_are_those_of_the_checkpoints(
    saver: Saver, new_database_url: Callable[[], str]
) -> None:
    url = new_database_url()
    async with official(url) as source:
        for number in (2, 1, 3):
            stored = checkpoint(f"{number}", {})
            stored["ts"] = f"202{number}-01-01T01:00:00+01:00"
            await source.aput(config(), stored, {}, {})
    await import_official(url, saver)
    [found] = query(url_of(saver), "SELECT created_at, updated_at FROM checkpointer_threads")
    assert [str(one)[:19] for one in found] == ["2021-01-01 00:00:00", "2023-01-01 00:00:00"]


class WithoutWrites(InMemorySaver):
    """A saver whose lists leave the pending writes out."""

    async def alist(self, *given: Any, **options: Any) -> AsyncIterator[CheckpointTuple]:
        for one in self.list(*given, **options):
            yield one._replace(pending_writes=None)


@pytest.mark.parametrize("make", [InMemorySaver, WithoutWrites])
async def test_any_saver(saver: Saver, make: Callable[[], InMemorySaver]) -> None:
    source = make()
    await fill(source)
    moved = await saver.aimport_from(source)
    reference = InMemorySaver()
    reference.storage, reference.writes, reference.blobs = (
        source.storage,
        source.writes,
        source.blobs,
    )
    await assert_histories_are_equal(reference, saver)
    assert moved.threads == THREADS
    assert await saver.aimport_from(source) == TransferReport(skipped=THREADS)


async def test_an_official_saver_as_any_other(saver: Saver, source_url: str) -> None:
    async with official(source_url) as source:
        calls: list[tuple[int, int]] = []
        await saver.aimport_from(source, progress=lambda *one: calls.append(one))
        await assert_histories_are_equal(source, saver)
        assert await saver.aimport_from(source) == TransferReport(skipped=THREADS)
    assert calls[-1] == (THREADS, THREADS)


async def test_one_of_our_own_and_threads_by_name(
    saver: Saver, new_migrated_url: Callable[[], str]
) -> None:
    async with create_saver(new_migrated_url()) as source:
        await fill(source)
        with pytest.raises(TransferError, match="'none': found no such thread"):
            await saver.aimport_from(source, thread_ids=["custom", "none"])
        assert [one async for one in saver.alist(None)] == [
            one async for one in source.alist(config("custom"))
        ]


def test_a_sync_saver_is_imported_by_a_sync_call(migrated_url: str) -> None:
    with SqliteSaver.from_conn_string(":memory:") as source, create_saver(migrated_url) as saver:
        for number in range(3):
            stored = checkpoint(f"{number}", {"a": noise(number)})
            at = source.put(config(checkpoint_id="0"), stored, {"step": number}, {})
            source.put_writes(at, [("a", number)], "task")
        assert saver.import_from(source).checkpoints == 3
        assert [*saver.list(None)] == [*source.list(None)]


async def test_writes_come_back_in_the_order_of_paths_that_no_saver_tells(saver: Saver) -> None:
    source = InMemorySaver()
    where = await source.aput(config(), checkpoint("1", {}), {}, {})
    for path, task in (("c", "1"), ("a", "2"), ("b", "3")):
        writes = [("x", task), ("__error__", "no"), ("y", task), ("__interrupt__", "wait")]
        await source.aput_writes(where, writes, task, path)
    await saver.aimport_from(source)
    await source.aput_writes(where, [("x", "late")], "0", "ab")
    for _ in range(2):
        await saver.aimport_from(source)
        found = await saver.aget_tuple(where)
        expected = await source.aget_tuple(where)
        assert found is not None
        assert expected is not None
        assert found.pending_writes == expected.pending_writes
        assert len(found.pending_writes or ()) == 13


WIDE: dict[str, Any] = {"float": 1e22, "whole": 2**70, "score": -1e300, "small": [1]}
"""Numbers that JSONB gives back as whole ones, of more bits than MessagePack holds."""


@pytest.mark.parametrize("serde", ["usual", "encrypting"])
async def test_numbers_that_only_json_holds(
    migrated_url: str, new_database_url: Callable[[], str], serde: str
) -> None:
    url = new_database_url()
    wide = {"small": [1]} if is_file(url) else WIDE
    metadata: Any = {"source": "input", "score": 2**70, "deep": [{"\ud800": -(10**30)}]}
    async with official(url) as source:
        stored = checkpoint("1", wide)
        if not is_file(url):
            metadata["deep"] = [{"a": -(10**30)}]
            stored["channel_versions"] = dict.fromkeys(wide, 2**70)
        await source.aput(config(), stored, metadata, dict.fromkeys(wide, 2**70))
        chosen = aes() if serde == "encrypting" else None
        async with create_saver(migrated_url, serde=chosen) as saver:
            await import_official(url, saver)
            assert await history(saver) == await history(source)
            assert (await saver.averify()).problems == ()
    if serde == "encrypting":
        manifests = query(migrated_url, "SELECT manifest FROM checkpointer_checkpoints")
        assert str(2**70) not in repr(manifests)


@pytest.mark.parametrize("value", [{"lc": 2, "n": 2**70}, {"n": 2**70, "sent": Send("n", 1)}])
async def test_what_json_does_not_give_back_stays_refused(saver: Saver, value: Any) -> None:
    source = InMemorySaver()
    for name in ("good", "bad"):
        where = await source.aput(config(name), checkpoint("1", {}), {}, {})
    source.writes["bad", "", "1"]["task", 0] = ("task", "x", ("pickled", b""), "")
    source.serde = Loading(value)
    with pytest.raises(TransferError, match="can dump") as raised:
        await saver.aimport_from(source)
    assert {name: type(one) for name, one in raised.value.failures.items()} == {
        "bad": SerializationError
    }
    assert await saver.aget_tuple(where) is None


class Loading(LosslessSerializer):
    """A serde to which the tag `pickled` means one value, or an error."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        if data[0] != "pickled":
            return super().loads_typed(data)
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


async def test_a_thread_that_the_source_cannot_read_is_named_and_the_others_are_imported(
    saver: Saver,
) -> None:
    source = InMemorySaver()
    for name in ("1", "bad", "2"):
        await source.aput(config(name), checkpoint("1", {}), {}, {})
    source.writes["bad", "", "1"]["task", 0] = ("task", "x", ("pickled", b""), "")
    source.serde = Loading(KeyError("lost\x1b[2J"))
    with pytest.raises(SourceError, match=r"KeyError.*thread_ids=\[") as all_of_them:
        await saver.aimport_from(source)
    assert isinstance(all_of_them.value.__cause__, SourceError)
    assert "\x1b" not in str(all_of_them.value)
    with pytest.raises(TransferError, match="KeyError") as raised:
        await saver.aimport_from(source, thread_ids=["1", "bad", "2", "none"])
    assert {name: type(one) for name, one in raised.value.failures.items()} == {
        "bad": SourceError,
        "none": UnknownThreadError,
    }
    assert raised.value.report.threads == 2
    found = [one.config.get("configurable", {})["thread_id"] for one in await history(saver)]
    assert found == ["1", "2"]


async def test_an_import_leaves_its_file_as_it_is(saver: Saver, tmp_path: Path) -> None:
    path = tmp_path / "source.db"
    url = f"sqlite:///{path}"
    async with official(url) as source:
        await fill(source)
    execute(url, "PRAGMA journal_mode = DELETE")
    assert query(url, "PRAGMA journal_mode") == [("delete",)]
    before = path.read_bytes()
    assert (await import_official(url, saver)).threads == THREADS
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.glob("source.db*")] == ["source.db"]


@pytest.mark.parametrize("channel", ["x", "__interrupt__"])
async def test_no_more_than_a_page_of_writes_is_held_at_once(
    saver: Saver,
    new_database_url: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    channel: str,
) -> None:
    url = new_database_url()
    async with official(url) as source:
        for number in range(12):
            where = await source.aput(config(), checkpoint(f"{number:02}", {}), {}, {})
            await source.aput_writes(where, [(channel, noise(number, 20_000))], "task")
        monkeypatch.setattr(importing, "PAGE_BYTES", 50_000)
        monkeypatch.setattr(holdings, "BYTES", 30_000)
        with sizes_read(monkeypatch) as sizes:
            assert (await import_official(url, saver)).writes == 12
        assert await history(saver) == await history(source)
    assert 20_000 < max(sizes) < 50_000


@pytest.mark.parametrize("size", [10, 9000])
async def test_what_was_imported_encrypted_is_found_equal(migrated_url: str, size: int) -> None:
    source = InMemorySaver()
    where = await source.aput(config(), checkpoint("1", {}), {}, {})
    for channel in ("__interrupt__", "__resume__", "x"):
        await source.aput_writes(where, [(channel, ["q" * size])], "task")
    async with create_saver(migrated_url, serde=aes()) as saver:
        assert (await saver.aimport_from(source)).writes == 3
        before = stored_rows(migrated_url)
        assert await saver.aimport_from(source) == TransferReport(skipped=1)
        assert stored_rows(migrated_url) == before
        await source.aput_writes(where, [("__resume__", ["q" * size, "more"])], "task")
        assert (await saver.aimport_from(source)).writes == 1
        assert await history(saver) == await history(source)


@pytest.mark.parametrize("public", [False, True])
async def test_bytes_that_checkpoints_and_writes_share_are_stored_once(
    saver: Saver, new_database_url: Callable[[], str], *, public: bool
) -> None:
    """Though nothing tells of a value that it goes on from another."""
    url, where, long = new_database_url(), config(), noise(1, 300_000)
    async with official(url) as source:
        for number in range(12):
            end = 20_000 * (number + 1)
            one = checkpoint(f"{number:02}", {"a": long[:end]})
            where = await source.aput(where, one, {}, one["channel_versions"])
            for task in ("a task", "another task"):
                await source.aput_writes(where, [("a", long[end : end + 20_000])], task)
        moved = await (saver.aimport_from(source) if public else import_official(url, saver))
        assert await history(saver) == await history(source)
    found = await saver.averify()
    assert (moved.checkpoints, moved.writes, found.problems) == (12, 24, ())
    assert found.bytes < 290_000  # of 2 MB; the last write is nowhere else
