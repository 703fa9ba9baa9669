"""Whatever is passed in, the answer is right or an error of ours, and a refusal stores nothing.

The single kinds of bad input, with their messages, are in `test_bad_input.py`.
"""

import math
import pickle
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast
from uuid import UUID

import hostile
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from langchain_core.runnables import RunnableConfig
from metadata_values import pairs
from storing import NOTHING, checkpoint, config, put, row_counts

from checkpointer import (
    AsyncSQLAlchemySaver,
    CheckpointerError,
    DamagedDataError,
    InvalidFilterError,
    InvalidInputError,
    create_saver,
)
from checkpointer.projection import contains, project, project_filter
from checkpointer.serde import LosslessSerializer

pytestmark = pytest.mark.usefixtures("way")

Saver = AsyncSQLAlchemySaver
Draw = Callable[[st.SearchStrategy[Any]], Any]

fuzz = settings(
    max_examples=min(settings().max_examples, 60),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


async def listed(saver: Saver, where: Any, **options: Any) -> list[Any]:
    return [found async for found in saver.alist(where, **options)]


def text_of(value: object) -> str | None:
    """The text that an identifier should be stored as, if it should be stored."""
    if isinstance(value, str):
        return str.__str__(value)
    own = isinstance(value, int | float | UUID) and value is not hostile.HUGE
    return str(value) if own else None


def can_hold(saver: Saver, text: str | None) -> bool:
    """Whether the database can hold the text."""
    if text is None or any("\ud800" <= character <= "\udfff" for character in text):
        return False
    return saver.engine.dialect.name == "sqlite" or "\0" not in text


any_identifiers = hostile.mostly(hostile.texts | hostile.numbers, hostile.misfits)


class Names(NamedTuple):
    """What everything of one checkpoint is called."""

    thread: Any
    namespace: Any
    parent: Any
    checkpoint: Any
    run: Any
    task: Any
    path: Any
    channel: Any

    def texts(self) -> "Names":
        """The texts that they should be stored as."""
        return Names(*map(text_of, self))

    def config(self) -> RunnableConfig:
        return config(self.thread, self.checkpoint, checkpoint_ns=self.namespace)

    async def store(self, saver: Saver) -> None:
        """Store the checkpoint, and a write with it."""
        start = config(self.thread, self.parent, checkpoint_ns=self.namespace)
        stored: Any = {**checkpoint("1", {self.channel: self.channel}), "id": self.checkpoint}
        await saver.aput(start, stored, cast("Any", {"run_id": self.run}), {})
        await saver.aput_writes(self.config(), [(self.channel, self.channel)], self.task, self.path)


all_names = st.builds(Names, *[any_identifiers] * 7, hostile.texts).filter(
    lambda names: text_of(names.checkpoint) != ""  # which means the latest
)


@fuzz
@given(names=all_names)
@example(Names("a", "b", "c", "d", math.nan, "e", "f", "g"))
async def test_any_identifier_is_stored_as_its_text_or_refused(
    saver: Saver, database_url: str, names: Names
) -> None:
    texts = names.texts()
    if not all(can_hold(saver, text) for text in texts):
        with pytest.raises(InvalidInputError, match=r"found.*expected"):
            await names.store(saver)
        if can_hold(saver, texts.thread):
            await saver.adelete_thread(names.thread)
        assert row_counts(database_url) == NOTHING
        return
    try:
        await names.store(saver)
        await assert_found(saver, names)
        await saver.acopy_thread(names.thread, "a copy")
        await saver.aprune([names.thread, "a copy"])
        await saver.adelete_for_runs([names.run])
        assert await listed(saver, None) == []
    finally:
        await saver.adelete_thread(names.thread)
        await saver.adelete_thread("a copy")
    assert row_counts(database_url) == NOTHING


async def assert_found(saver: Saver, names: Names) -> None:
    """The checkpoint is found by its names, and by their texts, and says the texts."""
    texts = names.texts()
    parent = config(texts.thread, texts.parent, checkpoint_ns=texts.namespace)
    async with create_saver(saver.engine) as cold:
        found = await cold.aget_tuple(names.config())
        assert found is not None
        # Dumped, because a NaN among the metadata is not equal to itself.
        assert dumped(await saver.aget_tuple(texts.config())) == dumped(found)
        assert dumped(await listed(cold, names.config())) == dumped([found])
        assert await listed(cold, config(names.thread), before=names.config()) == []
        channels = [names.channel]
        history = await cold.aget_delta_channel_history(config=names.config(), channels=channels)
    assert found.config == texts.config()
    assert found.parent_config == (parent if texts.parent else None)
    assert found.checkpoint["channel_values"] == {texts.channel: texts.channel}
    assert found.pending_writes == [(texts.task, texts.channel, texts.channel)]
    assert history.keys() == {texts.channel}


serde = LosslessSerializer()


def dumped(value: Any) -> tuple[str, bytes]:
    """What a value is, types, NaN and order included."""
    return serde.dumps_typed(value)


def restored(value: Any) -> Any:
    """A value as the serde gives it back."""
    return serde.loads_typed(serde.dumps_typed(value))


async def put_junk(saver: Saver, draw: Draw) -> None:
    where, metadata = draw(hostile.configs), draw(hostile.metadata)
    stored, versions = draw(hostile.checkpoints), draw(hostile.mostly(hostile.versions))
    named: Any = await saver.aput(where, stored, metadata, versions)
    body = {name: value for name, value in stored.items() if name != "channel_values"}
    async with create_saver(saver.engine) as cold:
        if text_of(stored["id"]):
            found: Any = await cold.aget_tuple(named)
        else:  # which means the latest, and that may be an earlier example's
            named["configurable"].pop("checkpoint_id")
            (found,) = [
                one
                async for one in cold.alist(named)
                if not one.config.get("configurable", {}).get("checkpoint_id")
            ]
    assert dumped(found.checkpoint.pop("channel_values")) == dumped(
        restored(stored.get("channel_values", {}))
    )
    assert dumped(found.checkpoint) == dumped(restored(body))
    items = list(found.metadata.items())[: len(metadata)]
    assert dumped(items) == dumped(list(restored(metadata).items()))


async def put_junk_writes(saver: Saver, draw: Draw) -> None:
    where, writes = draw(hostile.configs), draw(hostile.writes)
    task, path = draw(hostile.identifiers), draw(hostile.identifiers)
    await saver.aput_writes(where, writes, task, path)


async def get_junk(saver: Saver, draw: Draw) -> None:
    await saver.aget_tuple(draw(hostile.configs))


async def list_junk(saver: Saver, draw: Draw) -> None:
    where, before = draw(st.none() | hostile.configs), draw(st.none() | hostile.configs)
    wanted = draw(hostile.mostly(st.dictionaries(hostile.texts, hostile.plain, max_size=2)))
    limit = draw(hostile.mostly(st.none() | st.integers(0, 3)))
    await listed(saver, where, before=before, filter=wanted, limit=limit)


async def junk_history(saver: Saver, draw: Draw) -> None:
    where, channels = draw(hostile.configs), draw(hostile.mostly(st.lists(hostile.channels)))
    await saver.aget_delta_channel_history(config=where, channels=channels)


async def delete_junk(saver: Saver, draw: Draw) -> None:
    await saver.adelete_thread(draw(hostile.identifiers))


async def delete_junk_runs(saver: Saver, draw: Draw) -> None:
    await saver.adelete_for_runs(draw(hostile.mostly(st.lists(hostile.identifiers))))


async def copy_junk(saver: Saver, draw: Draw) -> None:
    await saver.acopy_thread(draw(hostile.identifiers), draw(hostile.identifiers))


async def prune_junk(saver: Saver, draw: Draw) -> None:
    strategy = draw(hostile.mostly(st.sampled_from(["keep_latest", "delete"])))
    await saver.aprune(draw(hostile.mostly(st.lists(hostile.identifiers))), strategy=strategy)


async def verify_junk(saver: Saver, draw: Draw) -> None:
    await saver.averify(draw(hostile.identifiers))


async def junk_version(saver: Saver, draw: Draw) -> None:
    saver.get_next_version(draw(hostile.mostly(hostile.numbers)), None)


CALLS: dict[str, Callable[[Saver, Draw], Awaitable[None]]] = {
    "aput": put_junk,
    "aput_writes": put_junk_writes,
    "aget_tuple": get_junk,
    "alist": list_junk,
    "aget_delta_channel_history": junk_history,
    "adelete_thread": delete_junk,
    "adelete_for_runs": delete_junk_runs,
    "acopy_thread": copy_junk,
    "aprune": prune_junk,
    "averify": verify_junk,
    "get_next_version": junk_version,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@fuzz
@given(data=st.data())
async def test_junk_is_answered_or_refused(
    saver: Saver, database_url: str, data: st.DataObject, call: Callable[[Saver, Draw], Any]
) -> None:
    before = row_counts(database_url)
    try:
        await call(saver, data.draw)
    except CheckpointerError as exc:
        refusal = str(exc)
    else:
        return
    assert re.search(r"found.*expected", refusal)
    assert len(refusal) < 5_000
    assert row_counts(database_url) == before


THREAD, FIRST = config(), config(checkpoint_id="1")


async def put_parts(saver: Saver, metadata: Any = None, versions: Any = None, **parts: Any) -> None:
    """Put a checkpoint with some parts of another shape."""
    stored: Any = {**checkpoint("1", {"a": 1}), **parts}
    described: Any = metadata or {}
    await saver.aput(THREAD, stored, described, {} if versions is None else versions)


SEVEN: Any = 7
SHAPES: list[Any] = [None, SEVEN, "text", b"bytes", [], [("a", 1)], ("a",), object()]
MISSHAPEN: dict[str, Callable[[Saver, Any], Awaitable[object]]] = {
    "config to get": lambda saver, shape: saver.aget_tuple(shape),
    "configurable": lambda saver, shape: saver.aget_tuple({"configurable": shape}),
    "config to put": lambda saver, shape: put(saver, shape, "1"),
    "config's metadata": lambda saver, shape: put(
        saver, {**THREAD, "metadata": shape or SEVEN}, "1"
    ),
    "config to list": lambda saver, shape: listed(saver, shape or SEVEN),
    "config to list before": lambda saver, shape: listed(saver, THREAD, before=shape or SEVEN),
    "checkpoint": lambda saver, shape: saver.aput(THREAD, shape, {}, {}),
    "channel values": lambda saver, shape: put_parts(saver, channel_values=shape),
    "channel versions": lambda saver, shape: put_parts(saver, channel_versions=shape),
    "checkpoint's metadata": lambda saver, shape: put_parts(saver, shape or SEVEN),
    "new versions": lambda saver, shape: put_parts(saver, versions=shape or SEVEN),
    "writes": lambda saver, shape: saver.aput_writes(FIRST, shape or SEVEN, "a task"),
    "a write": lambda saver, shape: saver.aput_writes(FIRST, [shape], "a task"),
    "channel names": lambda saver, shape: saver.aget_delta_channel_history(
        config=THREAD, channels=shape or SEVEN
    ),
    "run ids": lambda saver, shape: saver.adelete_for_runs(shape or SEVEN),
    "thread ids": lambda saver, shape: saver.aprune(shape or SEVEN),
    "strategy": lambda saver, shape: saver.aprune(["1"], strategy=shape),
}
RIGHT = {"writes": [("a", 1)], "channel names": ("a",), "run ids": ("a",), "thread ids": ("a",)}


@pytest.mark.parametrize("name", MISSHAPEN)
async def test_what_is_of_another_shape_is_refused(
    saver: Saver, database_url: str, name: str
) -> None:
    for shape in SHAPES:
        if shape != RIGHT.get(name):
            with pytest.raises(InvalidInputError, match=r"found.*expected"):
                await MISSHAPEN[name](saver, shape)
    assert row_counts(database_url) == NOTHING


@pytest.mark.parametrize("limit", [True, False, 1.0, "1", b"1", [1], float("nan")], ids=repr)
async def test_a_limit_that_is_no_integer_is_refused(saver: Saver, limit: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"found the limit .*, expected 0 or more"):
        await listed(saver, THREAD, limit=limit)


@pytest.mark.parametrize("name", [None, 7, 1.5, True, b"a", ("a",), UUID(int=7)], ids=repr)
async def test_a_channel_name_that_is_no_text_is_refused(
    saver: Saver, database_url: str, name: Any
) -> None:
    """Its text would be read as another name."""
    for call in (
        put_parts(saver, channel_values={name: 1}),
        saver.aput_writes(FIRST, [(name, 1)], "a task"),
        saver.aget_delta_channel_history(config=THREAD, channels=[name]),
    ):
        with pytest.raises(InvalidInputError, match="as a channel name, expected a str"):
            await call
    assert row_counts(database_url) == NOTHING


async def test_a_channel_name_that_is_an_enum_of_text_is_stored_as_its_text(saver: Saver) -> None:
    await put_parts(saver, channel_values={hostile.Shouting("a"): 1})
    await saver.aput_writes(FIRST, [(hostile.Shouting("b"), 2)], "a task")
    found = await saver.aget_tuple(THREAD)
    assert found is not None
    assert found.checkpoint["channel_values"] == {"a": 1}
    assert found.pending_writes == [("a task", "b", 2)]


async def test_what_is_no_text_in_a_config_is_no_metadata(saver: Saver) -> None:
    where: Any = {"configurable": {"thread_id": "a thread", 7: "a", None: 1, "b": "c", "d": []}}
    await put(saver, where, "1")
    found = await saver.aget_tuple(where)
    assert found is not None
    assert found.metadata == {"b": "c"}


@pytest.mark.parametrize(
    "version",
    ["", "one", "1x", "9" * 5000, 10**5000, b"1", [], True],
    ids=lambda v: type(v).__name__,
)
def test_a_version_that_begins_with_no_number_has_no_next(saver: Saver, version: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"found the channel version .*, expected"):
        saver.get_next_version(version, None)


@dataclass(eq=False)
class Odd:
    """What no version is: comparing it fails."""

    number: int

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("this object does not answer")

    __hash__ = object.__hash__


async def test_versions_that_are_none_keep_no_value_from_being_stored(saver: Saver) -> None:
    parent = config()
    for number in range(3):
        stored: Any = checkpoint(str(number), {"a": number})
        stored["channel_versions"] = {"a": Odd(number)}
        parent = await saver.aput(parent, stored, {}, {})
        found = await saver.aget_tuple(parent)
        assert found is not None
        assert found.checkpoint["channel_values"] == {"a": number}


async def test_versions_without_an_order_are_damage_where_they_need_one(saver: Saver) -> None:
    parent = await put(saver, config(), "1")
    await saver.aput_writes(parent, [("__pregel_tasks", "sent")], "a task")
    stored: Any = {**checkpoint("2", {}), "v": 3, "channel_versions": {"a": "1", "b": 2}}
    child = await saver.aput(parent, stored, {}, {})
    with pytest.raises(DamagedDataError, match="versions have no order"):
        await saver.aget_tuple(child)


async def test_a_value_too_long_is_refused(
    saver: Saver, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a limit that is lower here, because the real one takes gigabytes of memory to reach."""
    monkeypatch.setattr("checkpointer.encoder.MAX_SIZE", 10_000)
    parent = await put(saver, config(), "1", a="x" * 9_000)
    before = row_counts(database_url)
    for call in (
        put(saver, parent, "2", b="x" * 10_000),
        put(saver, parent, "2", {"long": "x" * 10_000}),
        saver.aput_writes(parent, [("b", "x" * 10_000)], "a task"),
    ):
        with pytest.raises(InvalidInputError, match=r"found .* bytes, expected at most 10000"):
            await call
    assert row_counts(database_url) == before


class Pickles:
    """A serde that takes all metadata, so that all of it can be asked for."""

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        return "pickle", pickle.dumps(obj)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        return pickle.loads(data[1])  # noqa: S301 - the test's own


@fuzz
@given(
    stored=st.lists(pairs(), min_size=1, max_size=4),
    junk=hostile.mostly(st.just({}), st.dictionaries(hostile.names, hostile.junk, max_size=2)),
)
async def test_a_filter_finds_what_contains_it_or_is_refused(
    migrated_url: str, stored: list[tuple[dict[str, Any], dict[str, Any]]], junk: Any
) -> None:
    async with create_saver(migrated_url, serde=Pickles()) as saver:
        for number, (metadata, _) in enumerate(stored):
            await put(saver, config(), str(number), metadata)
        for _, wanted in stored:
            asked = wanted | junk
            try:
                projected = project_filter(asked)
            except InvalidFilterError as exc:
                with pytest.raises(InvalidFilterError, match=re.escape(str(exc))):
                    await listed(saver, config(), filter=asked)
                continue
            expected = [
                str(number)
                for number, (metadata, _) in enumerate(stored)
                if contains(project(metadata), projected)
            ]
            found = await listed(saver, config(), filter=asked)
            assert [one.checkpoint["id"] for one in reversed(found)] == expected
        await saver.adelete_thread("a thread")
