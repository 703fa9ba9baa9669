"""The saver's serde is used for every value, and clones share all but the serde."""

import asyncio
import json
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from schemas import query
from storing import TABLES, batches, config, put, statements
from ways import lossless_only

from checkpointer import (
    AsyncSQLAlchemySaver,
    LosslessSerializer,
    SaverClosedError,
    SerializationError,
    create_saver,
    tables,
)
from checkpointer.sealing import unpack

pytestmark = pytest.mark.usefixtures("way")

THREAD = config()
MARK = "a value that nobody may read"
LARGE = [f"{MARK} {number}" for number in range(1_000)]
KEY = b"sixteen bytes ok"


@dataclass
class Point:
    x: int


POINT = (Point.__module__, "Point")


class JsonSerde:
    """A serde of the caller's own, which keeps account."""

    def __init__(self) -> None:
        self.dumped: list[Any] = []
        self.loaded: list[tuple[str, bytes]] = []

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        self.dumped.append(obj)
        return f"json of {type(obj).__name__}", json.dumps(obj).encode()

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        self.loaded.append(data)
        tag, encoded = data
        assert tag.startswith("json of ")
        return json.loads(encoded)


async def test_a_serde_of_the_callers_own_dumps_and_loads_every_value(migrated_url: str) -> None:
    serde = JsonSerde()
    writes = [("small", "one"), ("large", LARGE)]
    async with create_saver(migrated_url, serde=serde) as saver:
        assert saver.serde is serde
        first = await put(saver, THREAD, "1", {"step": 0}, small="x", large=LARGE, none=None)
        await saver.aput_writes(first, writes, "a task")
        for value in ("x", LARGE, None, {"step": 0}, "one"):
            assert value in serde.dumped
        await put(saver, first, "2", {"step": 1}, other="y")
        assert serde.loaded == []
        found = await saver.aget_tuple(first)
        assert found is not None
        assert found.checkpoint["channel_values"] == {"small": "x", "large": LARGE, "none": None}
        assert found.metadata == {"step": 0}
        assert found.pending_writes == [("a task", *write) for write in writes]
        assert ("json of NoneType", b"null") in serde.loaded
        history = await saver.aget_delta_channel_history(
            config=config(checkpoint_id="2"), channels=["large"]
        )
        assert history == {"large": {"writes": [("a task", "large", LARGE)], "seed": LARGE}}
        assert len([one async for one in saver.alist(THREAD, filter={"step": 0})]) == 1


class UntypedSerde:
    """A serde of the old protocol, without type tags."""

    def dumps(self, obj: Any) -> bytes:
        return pickle.dumps(obj)

    def loads(self, data: bytes) -> Any:
        return pickle.loads(data)  # noqa: S301 - the test's own bytes


async def test_a_serde_of_the_old_protocol_is_honoured(migrated_url: str) -> None:
    serde: Any = UntypedSerde()
    async with create_saver(migrated_url, serde=serde) as saver:
        stored = await put(saver, THREAD, "1", {"step": 0}, pair=(1, 2), large=LARGE)
        await saver.aput_writes(stored, [("set", {1, 2})], "a task")
        found = await saver.aget_tuple(THREAD)
        assert found is not None
        assert found.checkpoint["channel_values"] == {"pair": (1, 2), "large": LARGE}
        assert found.pending_writes == [("a task", "set", {1, 2})]


@lossless_only
async def test_the_pickle_fallback_is_honoured(migrated_url: str) -> None:
    async with create_saver(migrated_url, serde=LosslessSerializer(pickle_fallback=True)) as saver:
        await put(saver, THREAD, "1", numbers=range(7), broken="\udc80")
        found = await saver.aget_tuple(THREAD)
        assert found is not None
        assert found.checkpoint["channel_values"] == {"numbers": range(7), "broken": "\udc80"}


async def test_another_serde_than_the_one_that_stored_a_value_is_refused(
    migrated_url: str,
) -> None:
    async with create_saver(migrated_url, serde=JsonSerde()) as saver:
        await put(saver, THREAD, "1", text="x")
    async with create_saver(migrated_url) as other:
        with pytest.raises(SerializationError, match=r"'a thread'.*checkpoint '1'.*serde that"):
            await other.aget_tuple(THREAD)
        await put(other, config("another"), "1", text="x")
        assert await other.aget_tuple(config("another")) is not None


@lossless_only
async def test_a_conversation_comes_back_whole_and_in_order(migrated_url: str) -> None:
    call = {"name": "f", "args": {"x": [1, None]}, "id": "1"}
    conversation = [
        SystemMessage([{"type": "text", "text": MARK}], id="0"),
        HumanMessage("x", id="1", name="someone"),
        AIMessage("", id="2", tool_calls=[call], response_metadata={"model": "m"}),
        ToolMessage("y", id="3", tool_call_id="1", artifact={"rows": LARGE}, status="error"),
        AIMessage([{"type": "text", "text": "\udc80"}], id="4", additional_kwargs={"x": None}),
    ]
    async with create_saver(migrated_url) as saver:
        stored = await put(saver, THREAD, "1", messages=conversation)
        await saver.aput_writes(stored, [("messages", conversation[-2:])], "a task")
        warm = await _found(saver)
    async with create_saver(migrated_url) as another:
        cold = await _found(another)
    for found in (warm, cold):
        assert found.checkpoint["channel_values"]["messages"] == conversation
        assert found.pending_writes == [("a task", "messages", conversation[-2:])]


def encrypted(key: bytes = KEY) -> EncryptedSerializer:
    return EncryptedSerializer.from_pycryptodome_aes(serde=LosslessSerializer(), key=key)


async def put_secrets(saver: AsyncSQLAlchemySaver) -> None:
    stored = await put(saver, THREAD, "1", small=MARK, large=LARGE, broken=f"{MARK}\0\udc80")
    writes = [("small", MARK), ("large", LARGE), ("__error__", MARK)]
    await saver.aput_writes(stored, writes, "a task")
    await put(saver, stored, "2", {"source": "loop"}, small=MARK, large=[*LARGE, "one more"])


def columns_holding(url: str, wanted: bytes) -> set[str]:
    """The columns of our tables in which the bytes stand."""
    found = set()
    for table in TABLES:
        names = list(tables.metadata.tables[table].columns.keys())
        for row in query(url, f"SELECT {', '.join(names)} FROM {table}"):
            for name, value in zip(names, row, strict=True):
                data = unpack(value, 1 << 20) if isinstance(value, bytes) else str(value).encode()
                if wanted in data:
                    found.add(f"{table}.{name}")
    return found


async def test_nothing_of_an_encrypted_value_can_be_read_in_the_tables(migrated_url: str) -> None:
    async with create_saver(migrated_url, serde=encrypted()) as saver:
        await put_secrets(saver)
    assert columns_holding(migrated_url, MARK.encode()) == set()
    assert columns_holding(migrated_url, b"one more") == set()
    async with create_saver(migrated_url) as plain:
        await plain.adelete_thread("a thread")
        await put_secrets(plain)
    assert columns_holding(migrated_url, MARK.encode()) >= {
        "checkpointer_checkpoints.manifest",
        "checkpointer_writes.data",
        "checkpointer_segments.data",
    }


@lossless_only
async def test_encrypted_values_come_back(migrated_url: str) -> None:
    async with create_saver(migrated_url, serde=encrypted()) as saver:
        await put_secrets(saver)
        history = await saver.aget_delta_channel_history(
            config=config(checkpoint_id="2"), channels=["small"]
        )
        assert history == {"small": {"writes": [("a task", "small", MARK)], "seed": MARK}}
    async with create_saver(migrated_url, serde=encrypted()) as cold:
        (second, first) = [one async for one in cold.alist(THREAD)]
        assert first.checkpoint["channel_values"]["broken"] == f"{MARK}\0\udc80"
        assert second.checkpoint["channel_values"]["large"] == [*LARGE, "one more"]
        assert first.pending_writes is not None
        assert sorted(first.pending_writes, key=lambda write: write[1]) == [
            ("a task", "__error__", MARK),
            ("a task", "large", LARGE),
            ("a task", "small", MARK),
        ]
        assert len([one async for one in cold.alist(THREAD, filter={"source": "loop"})]) == 1


async def test_another_key_reads_nothing(migrated_url: str) -> None:
    async with create_saver(migrated_url, serde=encrypted()) as saver:
        await put_secrets(saver)
    async with create_saver(migrated_url, serde=encrypted(b"sixteen other b.")) as other:
        with pytest.raises(SerializationError, match="serde") as caught:
            await other.aget_tuple(THREAD)
        assert MARK not in str(caught.value)


async def test_an_unchanged_channel_is_not_encrypted_again(migrated_url: str) -> None:
    async with create_saver(migrated_url, serde=encrypted()) as saver:
        first = await put(saver, THREAD, "1", large=LARGE)
        before = query(migrated_url, "SELECT COUNT(*) FROM checkpointer_segments")
        checkpoint = (await _found(saver)).checkpoint
        checkpoint["id"] = "2"
        await saver.aput(first, checkpoint, {}, {})
        assert query(migrated_url, "SELECT COUNT(*) FROM checkpointer_segments") == before
        assert (await _found(saver)).checkpoint == checkpoint


async def _found(saver: AsyncSQLAlchemySaver) -> Any:
    found = await saver.aget_tuple(THREAD)
    assert found is not None
    return found


def strict() -> LosslessSerializer:
    return LosslessSerializer(allowed_msgpack_modules=())


async def test_strict_mode_refuses_types_until_a_clone_allows_them(migrated_url: str) -> None:
    async with create_saver(migrated_url, serde=strict()) as saver:
        stored = await put(saver, THREAD, "1", point=Point(7))
        await saver.aput_writes(stored, [("point", Point(8))], "a task")
        clone = saver.with_allowlist([POINT])
        assert isinstance(clone, AsyncSQLAlchemySaver)
        assert clone is not saver
        allowed = await _found(clone)
        assert allowed.checkpoint["channel_values"] == {"point": Point(7)}
        assert allowed.pending_writes == [("a task", "point", Point(8))]
        refused = await _found(saver)
        assert not isinstance(refused.checkpoint["channel_values"]["point"], Point)
        assert not isinstance(refused.pending_writes[0][2], Point)


async def test_a_clone_of_an_encrypted_saver_stays_encrypted(migrated_url: str) -> None:
    serde = EncryptedSerializer.from_pycryptodome_aes(serde=strict(), key=KEY)
    async with create_saver(migrated_url, serde=serde) as saver:
        clone: Any = saver.with_allowlist([POINT])
        await put(clone, THREAD, "1", point=Point(7), text=MARK)
        assert (await _found(clone)).checkpoint["channel_values"]["point"] == Point(7)
        assert not isinstance((await _found(saver)).checkpoint["channel_values"]["point"], Point)
    assert columns_holding(migrated_url, MARK.encode()) == set()


@pytest.mark.parametrize("used_before", [True, False])
async def test_a_clone_shares_engine_cache_and_writer(
    migrated_url: str, *, used_before: bool
) -> None:
    async with create_saver(migrated_url, serde=strict()) as saver:
        if used_before:
            assert await saver.aget_tuple(THREAD) is None
        clone: Any = saver.with_allowlist([POINT])
        assert clone.engine is saver.engine
        await put(clone, THREAD, "1", large=LARGE)

        with statements() as seen:
            assert (await _found(saver)).checkpoint["channel_values"] == {"large": LARGE}
        assert seen
        assert not [one for one in seen if "checkpointer_segments" in one.sql]

        with statements() as seen:
            await asyncio.gather(
                *(put(one, config(f"{n}"), "1") for n, one in enumerate([saver, clone] * 20))
            )
        assert batches(seen) == 1

    for one in (saver, clone):
        with pytest.raises(SaverClosedError):
            await one.aget_tuple(THREAD)


async def test_a_clone_is_closed_with_its_original(migrated_url: str) -> None:
    saver = create_saver(migrated_url, serde=strict())
    clone: Any = saver.with_allowlist([POINT])
    await put(clone, THREAD, "1", point=Point(7))
    await clone.aclose()
    with pytest.raises(SaverClosedError):
        await saver.aget_tuple(THREAD)
    await saver.aclose()
