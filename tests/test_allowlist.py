"""`create_saver(allowed_types=...)`: a type that is not allowed is neither stored nor made."""

import asyncio
import json
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import ormsgpack
import pytest
import test_serde
from hypothesis import example, given, settings
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.serde import _msgpack
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.event_hooks import SerdeEvent, register_serde_event_listener
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.graph import START, StateGraph
from langgraph.types import Command, Interrupt, Send
from pydantic import BaseModel
from pydantic.v1 import BaseModel as BaseModelV1
from storing import NOTHING, SENDS, checkpoint, config, put, row_counts
from test_serde_use import KEY, put_secrets

from checkpointer import (
    AsyncSQLAlchemySaver,
    ConfigurationError,
    LosslessSerializer,
    SerializationError,
    StrictSerializer,
    create_saver,
    lossless,
    serde,
)
from checkpointer.allowlist import ESCAPES, KNOWN_TYPES, METHODS, SAFE
from checkpointer.messages import PLAIN

pytestmark = pytest.mark.usefixtures("way")

THREAD = config()
BROKEN = "\ud800"


@dataclass
class Point:
    x: Any
    y: Any = None


class Pair(NamedTuple):
    left: Any
    right: Any


class Colour(Enum):
    RED = "red"


class Mood(StrEnum):
    GOOD = "good"


class Model(BaseModel):
    colour: Any = None


class OldModel(BaseModelV1):
    text: str = ""


class Remark(HumanMessage):
    pass


class Outer:
    @dataclass
    class Inner:
        x: int


OURS: dict[str, Any] = {
    "dataclass": Point(1),
    "namedtuple": Pair(1, 2),
    "enum": Colour.RED,
    "str enum": Mood.GOOD,
    "model": Model(),
    "model of pydantic 1": OldModel(),
    "subclass of a safe type": Remark(content="x"),
}


def named(value: Any) -> tuple[str, str]:
    return type(value).__module__, type(value).__name__


def nested(value: Any) -> dict[str, Any]:
    """Values of safe types that hold the value."""
    return {
        "itself": value,
        "list": [1, [value]],
        "dict": {"x": {"y": value}},
        "deque": deque([value]),
        "send": Send("node", value),
        "command": Command(update={"x": value}),
        "interrupt": Interrupt(value, id="1"),
        "snapshot": _DeltaSnapshot([value]),
        "beside a surrogate": [BROKEN, value],
        "under a surrogate": {BROKEN: value},
    }


def names_it(error: pytest.ExceptionInfo[SerializationError], *parts: str) -> None:
    for part in ("'a thread'", *parts):
        assert part in str(error.value)


class TestStoring:
    """Nothing is acknowledged that could not be loaded again."""

    async def test_a_type_that_is_not_allowed_is_not_stored(self, migrated_url: str) -> None:
        async with create_saver(migrated_url, allowed_types=()) as saver:
            for value in OURS.values():
                name = repr(named(value))
                with pytest.raises(SerializationError) as caught:
                    await put(saver, THREAD, "1", fine="x", wrong=value)
                names_it(caught, "channel 'wrong'", name, "allowed_types", "nothing was stored")
                with pytest.raises(SerializationError) as caught:
                    await put(saver, THREAD, "1", {"wrong": value})
                names_it(caught, "the metadata", name)
                with pytest.raises(SerializationError) as caught:
                    await saver.aput_writes(config(checkpoint_id="1"), [("wrong", value)], "a task")
                names_it(caught, "the write to 'wrong'", name)
            assert row_counts(migrated_url) == NOTHING
            await put(saver, THREAD, "1", fine="x")
            found = await saver.aget_tuple(THREAD)
            assert found is not None
            assert found.checkpoint["channel_values"] == {"fine": "x"}

    @pytest.mark.parametrize("value", OURS.values(), ids=OURS)
    def test_it_is_found_at_any_depth(self, value: Any, way: str) -> None:
        for where, holder in nested(value).items():
            if (way, where) == ("public", "under a surrogate"):
                continue  # the stock serializer refuses this key itself
            with pytest.raises(SerializationError) as caught:
                StrictSerializer().dumps_typed(holder)
            assert repr(named(value)) in str(caught.value), where

    @pytest.mark.parametrize("value", [Colour.RED, OldModel()], ids=["enum", "model of pydantic 1"])
    def test_it_is_found_in_what_pydantic_dumps(self, value: Any) -> None:
        for holder in (
            HumanMessage("x", additional_kwargs={"x": value}),
            [ToolMessage("x", tool_call_id="1", artifact=[value])],
            HumanMessage(BROKEN, additional_kwargs={"x": value}),
            Document("x", metadata={"x": value}),
        ):
            with pytest.raises(SerializationError) as caught:
                StrictSerializer().dumps_typed(holder)
            assert repr(named(value)) in str(caught.value)

    def test_all_that_are_not_allowed_are_named_once(self) -> None:
        with pytest.raises(SerializationError) as caught:
            StrictSerializer([Pair]).dumps_typed([Point(Colour.RED), Point(Pair(1, Mood.GOOD))])
        message = str(caught.value)
        for value in (Point(1), Colour.RED, Mood.GOOD):
            assert message.count(repr(named(value))) == 1
        assert repr(named(Pair(1, 2))) not in message

    def test_the_error_stays_short_whatever_is_named(self) -> None:
        calls = [ext(0, f"{number} " * 9999, "Class", 1) for number in range(999)]
        with pytest.raises(SerializationError, match=r"'0 0 .*and 979 others") as caught:
            StrictSerializer().loads_typed(("msgpack", pack(calls)))
        assert len(str(caught.value)) < 10_000

    def test_a_call_that_langgraph_never_restores_is_not_stored(self) -> None:
        moment = test_serde.TIMES["created_at"]
        strange = type("Moment", (type(moment),), {})(2026, 1, 1)
        with pytest.raises(SerializationError, match=r"'Moment', 'fromisoformat'"):
            StrictSerializer([(__name__, "Moment")]).dumps_typed([strange])
        assert StrictSerializer().dumps_typed(moment) == LosslessSerializer().dumps_typed(moment)


@dataclass(frozen=True)
class Raw:
    """Bytes that an attacker writes into the database."""

    tag: str
    data: bytes


class Planter(LosslessSerializer):
    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        return (obj.tag, obj.data) if isinstance(obj, Raw) else super().dumps_typed(obj)


MODULE = "planted_by_nobody"
SOURCE = """
from pathlib import Path
Path(__file__).with_name("imported").touch()

def call(*args, **kwargs):
    Path(__file__).with_name("called").touch()

class Class:
    call = call
    __init__ = call
"""


@pytest.fixture
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], set[str]]]:
    """Makes a module that can be imported; call it for what of the module was done."""
    directory = tmp_path / "modules"
    directory.mkdir()
    (directory / f"{MODULE}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(directory)
    yield lambda: {"imported", "called"} & {path.name for path in directory.iterdir()}
    sys.modules.pop(MODULE, None)


def pack(value: Any) -> bytes:
    return ormsgpack.packb(value, option=ormsgpack.OPT_NON_STR_KEYS)


def ext(code: int, *call: Any) -> ormsgpack.Ext:
    return ormsgpack.Ext(code, pack(call))


class Planted:
    def __reduce__(self) -> Any:
        return (__import__, (MODULE,))


PLAIN_MESSAGE: Final = ("langchain_core.messages.human", "HumanMessage")
FOUND = (
    ext(0, MODULE, "call", "x"),
    ext(1, MODULE, "call", ["x"]),
    ext(2, MODULE, "call", {"x": 1}),
    ext(3, MODULE, "Class", "x", "call"),
    ext(4, MODULE, "Class", {"x": 1}),
    ext(5, MODULE, "Class", {"x": 1}, "model_validate_json"),
)
ATTACKS: dict[str, Raw] = {
    **{f"code {code}": Raw("msgpack", pack(one)) for code, one in enumerate(FOUND)},
    "in a list": Raw("msgpack", pack([1, [FOUND[0]]])),
    "in a key's value": Raw("msgpack", pack({"x": FOUND[1]})),
    "in another call": Raw("msgpack", pack(ext(0, "builtins", "set", [FOUND[0]]))),
    "in a plain message": Raw("msgpack", pack(ext(5, *PLAIN_MESSAGE, {"content": FOUND[2]}, ""))),
    "beside a plain message": Raw(
        "msgpack", pack([ext(5, *PLAIN_MESSAGE, {"content": "x"}, ""), FOUND[5]])
    ),
    "in a snapshot": Raw("msgpack", pack(ormsgpack.Ext(7, pack(FOUND[0])))),
    "in an object that cannot be made": Raw("msgpack", pack(ext(0, "uuid", "UUID", FOUND[0]))),
    "json whose version would be computed": Raw(
        "json",
        json.dumps(
            {
                "lc": {"lc": 2, "type": "constructor", "id": ["decimal", "Decimal"], "args": ["2"]},
                "type": "constructor",
                "id": [MODULE, "call"],
                "args": [1],
            }
        ).encode(),
    ),
    "json": Raw(
        "json",
        f'[{{"lc": 2, "type": "constructor", "id": ["{MODULE}", "call"], "args": [1]}}]'.encode(),
    ),
}


COMPUTED: dict[str, tuple[Raw, str]] = {
    "module": (
        Raw("msgpack", pack(ext(0, ext(1, "builtins", "str", [MODULE.encode()]), "call", "x"))),
        "extension type 0",
    ),
    "all parts": (
        Raw("msgpack", pack(ormsgpack.Ext(2, pack(ext(0, "builtins", "tuple", [MODULE, "call"]))))),
        "extension type 2",
    ),
    "an extension of another release": (
        Raw("msgpack", pack(ext(99, MODULE, "call", "x"))),
        "extension type 99",
    ),
    "path in json": (
        Raw(
            "json",
            json.dumps(
                {
                    "lc": 2,
                    "type": "constructor",
                    "id": {
                        "lc": 2,
                        "type": "constructor",
                        "id": ["collections", "deque"],
                        "args": [[MODULE, "call"]],
                    },
                }
            ).encode(),
        ),
        "an object of JSON",
    ),
}
"""Calls without a name of their own, and a part of their names."""


async def plant(url: str, raw: Raw) -> None:
    """Store bytes as a channel, a write and a pending send."""
    async with create_saver(url, serde=Planter()) as saver:
        first = await put(saver, THREAD, "1", wrong=raw, fine="x")
        await saver.aput_writes(first, [("wrong", raw)], "a task")
        await put(saver, first, "2", fine="x")
        write = await put(saver, config("written"), "1", fine="x")
        await saver.aput_writes(write, [("wrong", raw)], "a task")
        sent = await put(saver, config("sent"), "1", fine="x")
        await saver.aput_writes(sent, [(SENDS, raw)], "a task")
        old = {**checkpoint("2", {}), "v": 3}
        await saver.aput(sent, old, {}, {})  # type: ignore[arg-type]


async def refuse_everywhere(saver: AsyncSQLAlchemySaver, *parts: str) -> None:
    """Every way to read what was planted names the type, the thread and the channel."""
    with pytest.raises(SerializationError) as caught:
        await saver.aget_tuple(config(checkpoint_id="1"))
    names_it(caught, "checkpoint '1'", "channel 'wrong'", *parts)
    with pytest.raises(SerializationError) as caught:
        async for _ in saver.alist(THREAD):
            pass
    names_it(caught, "channel 'wrong'", *parts)
    with pytest.raises(SerializationError) as caught:
        await saver.aget_delta_channel_history(config=THREAD, channels=["wrong"])
    names_it(caught, "to 'wrong'", "'a task'", *parts)
    with pytest.raises(SerializationError, match=r"'written'.*'a task' to 'wrong'"):
        await saver.aget_tuple(config("written"))
    with pytest.raises(SerializationError, match=rf"'sent'.*'a task' to '{SENDS}'"):
        await saver.aget_tuple(config("sent"))
    found = await saver.aget_tuple(THREAD)
    assert found is not None
    assert found.checkpoint["channel_values"] == {"fine": "x"}


class TestLoading:
    """What an attacker writes into the database runs nothing."""

    @pytest.mark.parametrize("attack", ["code 0", "in a plain message", "json"])
    async def test_a_planted_call_is_refused_by_every_read_and_nothing_of_it_runs(
        self, migrated_url: str, traces: Callable[[], set[str]], attack: str
    ) -> None:
        await plant(migrated_url, ATTACKS[attack])
        async with create_saver(migrated_url, allowed_types=[Point]) as saver:
            await refuse_everywhere(saver, repr(MODULE), "allowed_types")
        assert traces() == set()
        assert MODULE not in sys.modules

    @pytest.mark.parametrize("attack", ATTACKS)
    def test_a_planted_call_is_refused_and_nothing_of_it_runs(
        self, traces: Callable[[], set[str]], attack: str
    ) -> None:
        raw = ATTACKS[attack]
        with pytest.raises(SerializationError, match=rf"found .*\('{MODULE}', .*allowed_types"):
            StrictSerializer([Point]).loads_typed((raw.tag, raw.data))
        assert traces() == set()
        assert MODULE not in sys.modules

    @pytest.mark.parametrize("attack", COMPUTED)
    def test_a_call_whose_name_would_be_computed_is_refused(
        self, traces: Callable[[], set[str]], attack: str
    ) -> None:
        raw, name = COMPUTED[attack]
        with pytest.raises(SerializationError, match=rf"found \('{name}'\)"):
            StrictSerializer([(MODULE, "call")]).loads_typed((raw.tag, raw.data))
        assert traces() == set()

    def test_an_encoding_in_which_no_calls_are_found_is_refused(self) -> None:
        with pytest.raises(NotImplementedError, match="another"):
            StrictSerializer().loads_typed(("another", b"x"))

    async def test_a_planted_pickle_is_refused_and_nothing_of_it_runs(
        self, migrated_url: str, traces: Callable[[], set[str]]
    ) -> None:
        await plant(migrated_url, Raw("pickle", pickle.dumps(Planted())))
        async with create_saver(migrated_url, allowed_types=[(MODULE, "Class")]) as saver:
            await refuse_everywhere(saver, "'pickle'")
        assert traces() == set()

    @pytest.mark.parametrize("attack", ["code 0", "code 1", "code 2", "code 4", "code 5"])
    def test_without_the_option_langgraph_runs_it(
        self, traces: Callable[[], set[str]], attack: str
    ) -> None:
        """Why the option is there: this is the default, as it is LangGraph's."""
        raw = ATTACKS[attack]
        ours = LosslessSerializer(allowed_msgpack_modules=True)
        stock = JsonPlusSerializer(allowed_msgpack_modules=True)
        assert type(ours.loads_typed((raw.tag, raw.data))) is type(
            stock.loads_typed((raw.tag, raw.data))
        )
        assert traces() == {"imported", "called"}

    @pytest.mark.parametrize("kind", OURS)
    def test_a_type_of_the_applications_own_is_refused_and_not_made(
        self, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        value = OURS[kind]
        packed = {where: ("msgpack", lossless.pack(v)) for where, v in nested(value).items()}
        made: list[object] = []
        name = type(value).__name__
        monkeypatch.setattr(sys.modules[__name__], name, lambda *a, **_: made.append(a))
        for where, one in packed.items():
            with pytest.raises(SerializationError) as caught:
                StrictSerializer([named(Outer.Inner(1))]).loads_typed(one)
            assert repr(named(value)) in str(caught.value), where
            assert made == []
            LosslessSerializer(allowed_msgpack_modules=True).loads_typed(one)
            assert made, where
            made.clear()

    async def test_every_read_of_such_a_type_is_refused(self, migrated_url: str) -> None:
        await plant(migrated_url, Raw(*LosslessSerializer().dumps_typed(list(OURS.values()))))
        async with create_saver(migrated_url, allowed_types=()) as saver:
            await refuse_everywhere(saver, *(repr(named(value)) for value in OURS.values()))

    @pytest.mark.parametrize("kind", ["constructor", "secret"])
    def test_langchains_own_json_makes_safe_types_alone(self, kind: str) -> None:
        def old_json(*path: str, version: int = 1, **fields: Any) -> tuple[str, bytes]:
            envelope = {"lc": version, "type": kind, "id": path, "kwargs": fields}
            return "json", json.dumps(envelope).encode()

        serde = StrictSerializer()
        if kind == "secret":
            os.environ["CHECKPOINTER_TEST_SECRET"] = "x"  # noqa: S105
            assert serde.loads_typed(old_json("CHECKPOINTER_TEST_SECRET")) is None
            return
        old = ("langchain", "schema", "messages", "HumanMessage")
        assert serde.loads_typed(old_json(*old, content="x")) == HumanMessage("x")
        new = (*PLAIN_MESSAGE[0].split("."), PLAIN_MESSAGE[1])
        assert serde.loads_typed(old_json(*new, version=2, content="x")) == HumanMessage("x")
        prompt = ("langchain", "prompts", "prompt", "PromptTemplate")
        with pytest.raises(SerializationError, match="PromptTemplate"):
            serde.loads_typed(old_json(*prompt, template="x", input_variables=[]))

    def test_json_makes_an_allowed_type(self) -> None:
        path = [*__name__.split("."), "Point"]
        envelope = {"lc": 2, "type": "constructor", "id": path, "kwargs": {"x": 1}}
        data = "json", json.dumps([envelope]).encode()
        assert StrictSerializer([Point]).loads_typed(data) == [Point(1)]
        with pytest.raises(SerializationError, match="Point"):
            StrictSerializer().loads_typed(data)

    def test_json_whose_own_kind_would_first_be_made_is_refused(self) -> None:
        made = {"lc": 2, "type": "constructor", "id": ["decimal", "Decimal"], "args": ["2"]}
        envelope = {"lc": made, "type": "constructor", "id": ["langchain", "x"], "kwargs": {}}
        with pytest.raises(SerializationError, match="an object of JSON"):
            StrictSerializer().loads_typed(("json", json.dumps(envelope).encode()))


SAFE_VALUES: list[Any] = [
    None,
    b"x",
    bytearray(b"x"),
    [1, "x", {"x": (1, 2.5)}, BROKEN],
    [HumanMessage("x"), AIMessage(BROKEN, tool_calls=[{"name": "f", "args": {}, "id": "1"}])],
    [{1, 2}, frozenset("x"), deque([1])],
    list(test_serde.TIMES.values()),
    [Path("x"), Document("x")],
    [Send("node", {"x": 1}), Command(goto="x"), Interrupt("x", id="1"), _DeltaSnapshot(("a", "b"))],
    [ValueError("x")],
]


class TestAllowed:
    """What is allowed is stored and loaded as without the option."""

    @pytest.mark.parametrize("value", SAFE_VALUES, ids=range(len(SAFE_VALUES)))
    def test_safe_types_need_not_be_named(self, value: Any) -> None:
        strict, lossless = StrictSerializer(()), LosslessSerializer()
        packed = strict.dumps_typed(value)
        assert packed == lossless.dumps_typed(value)
        assert strict.loads_typed(packed) == lossless.loads_typed(packed)

    def test_surrogates_need_no_name(self) -> None:
        value = [BROKEN, {BROKEN: 1, ("x", BROKEN): 2}, HumanMessage(BROKEN)]
        assert StrictSerializer().loads_typed(("msgpack", lossless.pack(value))) == value

    def test_an_array_needs_not_be_named(self) -> None:
        array = np.arange(6.0).reshape(2, 3)
        for one in (array, array.T, array[:, ::2]):
            strict = StrictSerializer()
            assert (strict.loads_typed(strict.dumps_typed([one]))[0] == one).all()

    def test_the_safe_types_are_langgraphs(self) -> None:
        assert SAFE - ESCAPES == _msgpack.SAFE_MSGPACK_TYPES >= KNOWN_TYPES
        assert METHODS == _msgpack.SAFE_MSGPACK_METHODS

    def test_the_plain_messages_are_safe(self) -> None:
        assert {(cls.__module__, cls.__name__) for cls in PLAIN} <= SAFE

    @pytest.mark.parametrize("name", [type, named], ids=["class", "names"])
    async def test_a_named_type_comes_back(
        self, migrated_url: str, way: str, name: Callable[[Any], Any]
    ) -> None:
        text = BROKEN if way == "private" else "?"
        allowed = [name(value) for value in OURS.values()]
        async with create_saver(migrated_url, allowed_types=allowed) as saver:
            stored = await put(saver, THREAD, "1", OURS, value=[*OURS.values(), BROKEN])
            await saver.aput_writes(stored, list(OURS.items()), "a task")
        async with create_saver(migrated_url, allowed_types=iter(allowed)) as cold:
            found = await cold.aget_tuple(THREAD)
            assert found is not None
            assert found.checkpoint["channel_values"] == {"value": [*OURS.values(), text]}
            assert found.pending_writes == [("a task", *item) for item in OURS.items()]
            assert found.metadata == OURS
            assert list(map(type, found.metadata.values())) == list(map(type, OURS.values()))

    def test_what_a_named_type_holds_must_be_named_too(self) -> None:
        holders: list[Any] = [Point(Colour.RED), Pair(Colour.RED, 1), Model(colour=Colour.RED)]
        for holder in holders:
            packed = LosslessSerializer().dumps_typed(holder)
            narrow, wide = (
                StrictSerializer([type(holder)]),
                StrictSerializer([type(holder), Colour]),
            )
            with pytest.raises(SerializationError, match="Colour"):
                narrow.dumps_typed(holder)
            with pytest.raises(SerializationError, match="Colour"):
                narrow.loads_typed(packed)
            assert wide.loads_typed(wide.dumps_typed(holder)) == holder

    @given(test_serde.values(test_serde.any_text, [test_serde.Colour.RED, test_serde.Mood.BROKEN]))
    @settings(max_examples=300, deadline=None)
    @example(_DeltaSnapshot(("a", "b", "c")))
    @example({"\ud800": None})
    def test_all_that_is_stored_can_be_loaded(self, value: Any) -> None:
        lossless, strict = LosslessSerializer(), StrictSerializer()
        try:
            packed = lossless.dumps_typed(value)
        except ormsgpack.MsgpackEncodeError:  # of a surrogate in a key
            assert serde.private_way() is None
            with pytest.raises(ormsgpack.MsgpackEncodeError):
                strict.dumps_typed(value)
            return
        try:
            stored = strict.dumps_typed(value)
        except SerializationError:
            with pytest.raises(SerializationError, match="allowed_types"):
                strict.loads_typed(packed)
            return
        assert stored == packed
        assert strict.loads_typed(stored) == lossless.loads_typed(packed)

    async def test_a_strict_serializer_may_stand_in_an_encrypted_one(
        self, migrated_url: str
    ) -> None:
        def encrypted(*allowed: type) -> EncryptedSerializer:
            strict = StrictSerializer(allowed)
            return EncryptedSerializer.from_pycryptodome_aes(serde=strict, key=KEY)

        async with create_saver(migrated_url, serde=encrypted(Point)) as saver:
            await put_secrets(saver)
            await put(saver, config("point"), "1", point=Point(1))
        async with create_saver(migrated_url, serde=encrypted()) as other:
            assert await other.aget_tuple(THREAD) is not None
            with pytest.raises(SerializationError, match=r"'point'.*channel 'point'.*'Point'"):
                await other.aget_tuple(config("point"))
            with pytest.raises(SerializationError, match="Point"):
                await put(other, THREAD, "9", point=Point(1))

    def test_listeners_of_langgraph_are_told(self) -> None:
        events: list[SerdeEvent] = []
        unregister = register_serde_event_listener(events.append)
        try:
            with pytest.raises(SerializationError):
                StrictSerializer().loads_typed(LosslessSerializer().dumps_typed(Point(1)))
        finally:
            unregister()
        assert [(event["kind"], event["name"]) for event in events] == [
            ("msgpack_blocked", "Point")
        ]

    def test_threads_do_not_see_each_others_refusals(self) -> None:
        strict = StrictSerializer([Point])
        good = strict.dumps_typed([Point(n) for n in range(2000)])
        bad = LosslessSerializer().dumps_typed([Pair(n, n) for n in range(2000)])

        def load(number: int) -> bool:
            try:
                strict.loads_typed(bad if number % 2 else good)
            except SerializationError:
                return False
            return True

        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(load, range(100))) == [True, False] * 50


class TestClones:
    """LangGraph adds the types of a graph's schemas with `with_allowlist`."""

    async def test_a_clone_allows_more_and_refuses_the_rest(self, migrated_url: str) -> None:
        async with create_saver(migrated_url, allowed_types=[Colour]) as saver:
            clone: Any = saver.with_allowlist([named(Point(1))])
            assert clone is not saver
            stored = await put(clone, THREAD, "1", point=Point(Colour.RED))
            await clone.aput_writes(stored, [("point", Point(2))], "a task")
            found = await clone.aget_tuple(THREAD)
            assert found.checkpoint["channel_values"] == {"point": Point(Colour.RED)}
            for one in (clone, clone.with_allowlist([("elsewhere", "Other")])):
                with pytest.raises(SerializationError) as caught:
                    await put(one, THREAD, "2", wrong=[Pair(1, 2)])
                names_it(caught, "channel 'wrong'", repr(named(Pair(1, 2))))
            with pytest.raises(SerializationError) as caught:
                await saver.aget_tuple(THREAD)
            names_it(caught, "channel 'point'", repr(named(Point(1))))
            await put(saver, config("x"), "1", colour=Colour.RED)

    def test_what_is_allowed_already_needs_no_clone(self) -> None:
        saver = create_saver("sqlite://", allowed_types=[Point])
        assert saver.with_allowlist([named(Point(1))]) is saver


@dataclass
class State:
    point: Point
    other: Any = None


def graph_of(saver: AsyncSQLAlchemySaver, other: Any) -> Any:
    def advance(state: State) -> dict[str, Any]:
        return {"point": Point(state.point.x + 1), "other": other}

    builder = StateGraph(State)
    builder.add_node("node", advance)
    builder.add_edge(START, "node")
    return builder.compile(checkpointer=saver)


class TestGraphs:
    """Runs of a graph."""

    async def test_a_run_stores_what_is_allowed(self, migrated_url: str) -> None:
        async with create_saver(migrated_url, allowed_types=[State, Point]) as saver:
            graph = graph_of(saver, [HumanMessage("x")])
            await graph.ainvoke({"point": Point(1)}, THREAD)
            state = await graph.aget_state(THREAD)
            assert state.values == {"point": Point(2), "other": [HumanMessage("x")]}

    async def test_a_run_fails_at_the_first_value_that_is_not(self, migrated_url: str) -> None:
        async with create_saver(migrated_url, allowed_types=[State, Point]) as saver:
            graph = graph_of(saver, Pair(1, 2))
            with pytest.raises(SerializationError) as caught:
                await graph.ainvoke({"point": Point(1)}, THREAD)
            names_it(caught, "'other'", repr(named(Pair(1, 2))))
            state = await graph.aget_state(THREAD)
            assert state.values == {"point": Point(1)}

    @pytest.mark.parametrize("strict", ["", "true"])
    def test_langgraph_adds_a_graphs_types_where_its_environment_is_strict(
        self, migrated_url: str, strict: str
    ) -> None:
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM, migrated_url],
            env=os.environ | {"LANGGRAPH_STRICT_MSGPACK": strict},
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        expected = [
            "in the schema: ok",
            "not in it: refused ('__main__', 'Other')",
            "outside of the graph: refused ('__main__', 'Point')",
            "by default: dict",
        ]
        if not strict:
            expected = [
                "in the schema: refused ('__main__', 'Point')",
                "not in it: refused ('__main__', 'Point')",
                "outside of the graph: nothing",
                "by default: Point",
            ]
        assert ended.stdout.splitlines() == expected


PROGRAM = r"""
import asyncio, re, sys
from dataclasses import dataclass
from typing import Any, TypedDict
from langgraph.graph import START, StateGraph
from checkpointer import SerializationError, create_saver

@dataclass
class Point:
    x: int

@dataclass
class Other:
    x: int

class State(TypedDict, total=False):
    point: Point
    other: Any

async def outcome(name, doing):
    try:
        done = await doing
        print(f"{name}: {'ok' if done else 'nothing'}")
    except SerializationError as exc:
        names = sorted(set(re.findall(r"\('__main__', '\w+'\)", str(exc))))
        print(f"{name}: refused {', '.join(names)}")

def graph_of(saver, update):
    builder = StateGraph(State)
    builder.add_node("node", lambda state: update)
    builder.add_edge(START, "node")
    return builder.compile(checkpointer=saver)

async def main(url):
    where = {"configurable": {"thread_id": "1"}}
    point, both = {"point": Point(1)}, {"point": Point(1), "other": Other(1)}
    async with create_saver(url, allowed_types=()) as saver:
        await outcome("in the schema", graph_of(saver, point).ainvoke({}, where, durability="sync"))
        other = {"configurable": {"thread_id": "2"}}
        await outcome("not in it", graph_of(saver, both).ainvoke({}, other, durability="sync"))
        async def look():
            found = await saver.aget_tuple(where)
            return found and found.checkpoint["channel_values"].get("point")
        await outcome("outside of the graph", look())
    async with create_saver(url) as saver:
        third = {"configurable": {"thread_id": "3"}}
        await graph_of(saver, point).ainvoke({}, third)
    async with create_saver(url) as saver:
        found = await saver.aget_tuple(third)
        print("by default:", type(found.checkpoint["channel_values"]["point"]).__name__)

asyncio.run(main(sys.argv[1]))
"""


class TestOption:
    """What `allowed_types` may be."""

    @pytest.mark.parametrize(
        "allowed",
        [Point, "app.models", ("app.models", "Point"), 7, [7], ["Point"], [Colour.RED], [list[int]],
         [("app", "models", "Point")], [("app.models", 7)], [None], [Outer.Inner]],
        ids=repr,
    )  # fmt: skip
    def test_what_names_no_type_is_refused(self, allowed: Any) -> None:
        with pytest.raises(ConfigurationError, match=r"found .*allowed_types.*expected") as caught:
            create_saver("sqlite://", allowed_types=allowed)
        assert (
            "Point" in str(caught.value)
            or "'app.models'" in str(caught.value)
            or allowed == [Outer.Inner]
        )

    def test_a_class_that_could_not_be_found_again_is_refused(self) -> None:
        @dataclass
        class Local:
            x: int

        for cls in (Local, Outer.Inner):
            with pytest.raises(ConfigurationError, match=rf"{cls.__qualname__}.*top level"):
                create_saver("sqlite://", allowed_types=[cls])
            packed = LosslessSerializer().dumps_typed(cls(1))
            assert LosslessSerializer().loads_typed(packed) == {"x": 1}

    def test_a_serde_beside_it_is_refused(self) -> None:
        for one in (LosslessSerializer(), StrictSerializer(), JsonPlusSerializer()):
            with pytest.raises(ConfigurationError, match=r"allowed_types.*serde.*StrictSerializer"):
                create_saver("sqlite://", allowed_types=(), serde=one)

    async def test_an_engine_may_stand_beside_it(self, saver: AsyncSQLAlchemySaver) -> None:
        async with create_saver(saver.engine, allowed_types=[]) as strict:
            with pytest.raises(SerializationError, match="Point"):
                await put(strict, THREAD, "1", point=Point(1))

    async def test_the_sync_twins_refuse_as_well(self, migrated_url: str) -> None:
        await plant(migrated_url, ATTACKS["code 0"])

        def look() -> None:
            with create_saver(migrated_url, allowed_types=()) as strict:
                with pytest.raises(SerializationError, match="'wrong'"):
                    strict.get_tuple(config(checkpoint_id="1"))
                with pytest.raises(SerializationError, match="'wrong'"):
                    list(strict.list(THREAD))

        await asyncio.to_thread(look)
