"""Values come back exactly as they were put: their contents, at any depth, and their types."""

import dataclasses
import enum
import math
import random
from collections import deque
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.types import Interrupt, Send
from storing import config, put

from checkpointer import AsyncSQLAlchemySaver, create_saver

MEGABYTE = 1 << 20


class Colour(str, enum.Enum):  # noqa: UP042 - the kind of enum that a StrEnum is not
    RED = "red"
    NUL = "\0"


class Level(enum.StrEnum):
    HIGH = "high"
    BROKEN = "\udc80"


class Number(enum.IntEnum):
    ONE = 1


class Plain(enum.Enum):
    FIRST = "first"
    SECOND = 2


@dataclasses.dataclass
class Point:
    x: float
    label: str


VALUES: dict[str, Any] = {
    "None": None,
    "an empty string": "",
    "an empty list": [],
    "an empty dict": {},
    "an empty set": set(),
    "empty bytes": b"",
    "True": True,
    "zero": 0,
    "minus zero": -0.0,
    "NaN": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "the smallest float": 5e-324,
    "a float that is no integer": 1.0,
    "63 bits": 2**63 - 1,
    "64 bits": 2**64 - 1,
    "NUL": "\0",
    "NUL inside": "a\0b",
    "NUL in a key": {"a\0b": "\0"},
    "a lone surrogate": "\ud800",
    "a lone surrogate inside": "a\udc80b",
    "a lone surrogate in a key": {"\udc80": 1, "a": ["\udfff"]},
    "surrogates in the wrong order": "\udc80\ud800",
    "a private character": "\ue000",
    "beyond the basic plane": "\U0001f600\U0010ffff",
    "a replacement character": "\ufffd?",
    "what looks like an escape": "\\u0000 \\ud800",
    "bytes": bytes(range(256)),
    "a str enum": Colour.RED,
    "a str enum of NUL": Colour.NUL,
    "a StrEnum": Level.HIGH,
    "a StrEnum of a surrogate": Level.BROKEN,
    "an IntEnum": Number.ONE,
    "plain enums": [Plain.FIRST, Plain.SECOND],
    "keys that are numbers": {1: "a", -2: "b", 1.5: "c", False: "d"},
    "lists of lists": [[1], [[2]], [[3, [4]]]],
    "a set": {1, "a"},
    "a frozenset": frozenset({1}),
    "a deque": deque([1, "a"], maxlen=5),
    "a date": date(2025, 2, 28),
    "a datetime": datetime(
        2025, 2, 28, 1, 2, 3, 4, tzinfo=timezone(timedelta(hours=5, minutes=30))
    ),
    "a datetime in UTC": datetime(1, 1, 1, tzinfo=UTC),
    "a time": time(1, 2, 3, 4),
    "a timedelta": timedelta(days=-1, microseconds=1),
    "a decimal": Decimal("1.10"),
    "a UUID": UUID(int=2**128 - 1),
    "a path": Path("/a/b"),
    "a dataclass": Point(math.inf, "\0"),
    "messages": [
        HumanMessage("a\0b", id="1"),
        AIMessage("", tool_calls=[{"name": "\0", "args": {"a": ["\udc80"]}, "id": "2"}]),
        ToolMessage("ok", tool_call_id="2", artifact=b"\0"),
    ],
    "an interrupt": Interrupt(value={"question": "\0"}, id="1"),
    "a send": Send("node", {"a": [b"\0", "\udc80"]}),
    "100 levels": [[[]]],
    "a long string": "ab\0" * MEGABYTE,
    "a long list": [{"number": n, "text": "\udc80" * (n % 7)} for n in range(5_000)],
}

for _ in range(100):
    VALUES["100 levels"] = [VALUES["100 levels"], {"deep": "\0"}]


def assert_same(found: Any, expected: Any) -> None:
    """Equal, and of the same type, all the way down; NaN equals NaN, and -0.0 is not 0.0."""
    assert type(found) is type(expected)
    if isinstance(expected, float):
        assert repr(found) == repr(expected)
    elif isinstance(expected, Mapping):
        assert len(found) == len(expected)
        for (found_key, found_item), (key, item) in zip(
            found.items(), expected.items(), strict=True
        ):
            assert_same(found_key, key)
            assert_same(found_item, item)
    elif isinstance(expected, list | tuple | deque):
        assert len(found) == len(expected)
        for found_item, item in zip(found, expected, strict=True):
            assert_same(found_item, item)
    else:
        assert found == expected


async def assert_survives(saver: AsyncSQLAlchemySaver, value: Any) -> None:
    """The value comes back from a channel, from metadata and from pending writes, nested or not."""
    thread = config(uuid4())
    values = {"plain": value, "nested": {"list": [value, {"deep": [value]}]}}
    metadata = {"value": value, "nested": {"list": [value]}}
    writes = [("plain", value), ("nested", [{"deep": value}])]
    stored = await put(saver, thread, "1", metadata, **values)
    await saver.aput_writes(stored, writes, "a task")
    async with create_saver(saver.engine) as cold:
        one = await saver.aget_tuple(thread)
        other = await cold.aget_tuple(stored)
        listed = [found async for found in cold.alist(thread)]
    assert len(listed) == 1
    for found in (one, other, *listed):
        assert found is not None
        assert_same(found.checkpoint["channel_values"], values)
        assert_same(found.metadata, metadata)
        assert_same(found.pending_writes, [("a task", *write) for write in writes])


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
async def test_a_value_survives(saver: AsyncSQLAlchemySaver, value: Any) -> None:
    await assert_survives(saver, value)


text = st.text(st.characters(exclude_categories=()), max_size=10)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    text,
    st.binary(max_size=600),
    st.sampled_from([*Colour, *Level, *Number, *Plain]),
    st.uuids(),
    st.datetimes(timezones=st.just(UTC)),
    st.decimals(allow_nan=False),
)
keys = st.one_of(text, st.integers(-(2**63), 2**64 - 1))
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4),
    ),
    max_leaves=20,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values)
async def test_any_value_survives(saver: AsyncSQLAlchemySaver, value: Any) -> None:
    await assert_survives(saver, value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(text, leaves, max_size=5))
async def test_metadata_with_any_keys_survives(
    saver: AsyncSQLAlchemySaver, metadata: dict[str, Any]
) -> None:
    thread = config(uuid4())
    await put(saver, thread, "1", metadata)
    found = await saver.aget_tuple(thread)
    assert found is not None
    assert_same(found.metadata, metadata)


async def test_what_a_config_adds_to_the_metadata_survives(saver: AsyncSQLAlchemySaver) -> None:
    thread = config()
    thread["metadata"] = {
        "user": "a\0b",
        "broken": "\udc80",
        "colour": Colour.NUL,
        "rate": math.inf,
    }
    await put(saver, thread, "1", {"source": "loop"})
    found = await saver.aget_tuple(thread)
    assert found is not None
    assert_same(found.metadata, {"source": "loop", **thread["metadata"]})


async def test_unusual_channel_names_survive(saver: AsyncSQLAlchemySaver) -> None:
    names = ["", " ", "a.b", "a:b|c", "%s %(a)s :a $1 ?", "'; --", "ü\U0001f600", "x" * 1000]
    values = {name: name for name in names}
    thread = config()
    stored = await saver.aput(thread, _with_values(values), {}, {})
    await saver.aput_writes(stored, list(values.items()), "a task")
    found = await saver.aget_tuple(thread)
    assert found is not None
    assert found.checkpoint["channel_values"] == values
    assert found.pending_writes == [("a task", name, name) for name in names]


@pytest.mark.parametrize("thread_id", ["", " ", "%s :a $1 ?", "'; --", "ü\U0001f600", "x" * 512])
async def test_unusual_thread_ids_survive(saver: AsyncSQLAlchemySaver, thread_id: str) -> None:
    where = config(thread_id, checkpoint_ns=thread_id)
    stored = await put(saver, where, "1", text=thread_id)
    assert stored == config(thread_id, "1", checkpoint_ns=thread_id)
    found = await saver.aget_tuple(where)
    assert found is not None
    assert found.config == stored


@pytest.mark.parametrize("thread_id", [0, 7, -1, UUID(int=7), 1.5, True, Colour.RED])
async def test_thread_ids_that_are_no_plain_strings_are_stored_as_their_text(
    saver: AsyncSQLAlchemySaver, thread_id: object
) -> None:
    text = thread_id.value if isinstance(thread_id, Colour) else str(thread_id)
    stored = await put(saver, config(thread_id), "1")
    assert stored == config(text, "1")
    for asked in (config(thread_id), config(text)):
        found = await saver.aget_tuple(asked)
        assert found is not None
        assert found.config == stored
    await saver.adelete_thread(cast("Any", thread_id))
    assert await saver.aget_tuple(config(thread_id)) is None


@pytest.mark.parametrize("size", [255, 256, 257, 1023, 4095, 4096, 4097, 8192, 70_000, 300_000])
async def test_bytes_of_any_size_survive(saver: AsyncSQLAlchemySaver, size: int) -> None:
    for data in (bytes(size), random.Random(size).randbytes(size)):  # noqa: S311 - not a secret
        await assert_survives(saver, data)


async def test_values_of_64_megabytes_survive(migrated_url: str) -> None:
    data = random.Random(64).randbytes(64 * MEGABYTE)  # noqa: S311 - not a secret
    thread = config()
    async with create_saver(migrated_url) as saver:
        stored = await put(saver, thread, "1", {"value": data}, value=data)
        await saver.aput_writes(stored, [("value", data)], "a task")
        # Compared as a plain truth: pytest would explain a difference at great length.
        warm = await saver.aget_tuple(thread)
        assert warm is not None
        assert (warm.checkpoint["channel_values"]["value"] == data) is True
    del warm
    async with create_saver(migrated_url) as saver:
        cold = await saver.aget_tuple(thread)
        assert cold is not None
        assert cold.pending_writes is not None
        assert (cold.checkpoint["channel_values"]["value"] == data) is True
        assert (cast("Any", cold.metadata)["value"] == data) is True
        assert (cold.pending_writes[0][2] == data) is True


def _with_values(values: dict[str, Any]) -> Any:
    return {"v": 4, "id": "1", "ts": "", "channel_values": values, "channel_versions": {}}
