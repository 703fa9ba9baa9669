"""The default serde: stock bytes for all that stock can keep, and no string altered otherwise."""

import math
import os
import re
import warnings
from collections import deque
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import ormsgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    HumanMessageChunk,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde import _msgpack
from langgraph.checkpoint.serde.base import CipherProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.event_hooks import SerdeEvent, register_serde_event_listener
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.store.base import Item
from langgraph.types import Command, Interrupt, Send
from pydantic import BaseModel, Field, PrivateAttr, SecretStr
from pydantic.v1 import BaseModel as BaseModelV1
from ways import lossless_only

from checkpointer import lossless
from checkpointer.messages import PLAIN, shortened
from checkpointer.serde import LosslessSerializer

pytestmark = pytest.mark.usefixtures("way")

TIMES: Any = dict.fromkeys(("created_at", "updated_at"), datetime(2026, 1, 1, tzinfo=UTC))

BROKEN = "a\x00\ud800\udfff\ud83d\ude00b"


class Colour(Enum):
    RED = "red"
    BROKEN = BROKEN


class Mood(StrEnum):
    GOOD = "good"
    BROKEN = BROKEN


@dataclass
class Point:
    x: Any
    y: Any = None


class Pair(NamedTuple):
    left: Any
    right: Any


class Model(BaseModel):
    text: str
    data: Any = None


class OldModel(BaseModelV1):
    text: str


class Text(str):
    __slots__ = ()


class Mapping(dict[Any, Any]):
    pass


class Remark(HumanMessage):
    """A message of a class of the caller's own, which stores its fields under another name."""

    note: Any = Field(default=None, serialization_alias="remark")
    _noted: bool = PrivateAttr(default=True)


class QuotedError(Exception):
    def __repr__(self) -> str:
        return f"QuotedError({self})"


clean_text = st.text(max_size=8)
any_text = st.text(st.one_of(st.characters(), st.characters(categories=["Cs"])), max_size=8)


def json_like(text: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Values that a pydantic model dumps and takes back unchanged."""
    scalars = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False),
        text,
        st.binary(max_size=8),
    )
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
        max_leaves=6,
    )


def keys(text: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.binary() | text
    return st.recursive(scalars, lambda inner: st.lists(inner, max_size=2).map(tuple), max_leaves=3)


def messages(text: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Messages with every field that they have, and with one that they have not."""
    data = st.dictionaries(text, json_like(text), max_size=3)
    content = text | st.lists(text | data, max_size=2)
    number = st.integers(0, 9)
    calls = st.fixed_dictionaries({"name": text, "args": data, "id": st.none() | text})
    broken = st.fixed_dictionaries(dict.fromkeys(("name", "args", "id", "error"), st.none() | text))
    usage = st.fixed_dictionaries(
        dict.fromkeys(("input_tokens", "output_tokens", "total_tokens"), number),
        optional={"input_token_details": st.fixed_dictionaries({"cache_read": number})},
    )
    common = {
        "additional_kwargs": data.map(lambda fields: fields | {"refusal": None}),
        "response_metadata": data,
        "name": st.none() | text,
        "id": st.none() | text,
        "another": json_like(text),
    }
    called = {
        "tool_calls": st.lists(calls, max_size=2),
        "invalid_tool_calls": st.lists(broken, max_size=2),
        "usage_metadata": st.none() | usage,
    }
    result = {"artifact": json_like(text), "status": st.sampled_from(["success", "error"])}

    def build(cls: type[BaseMessage], **fields: Any) -> st.SearchStrategy[BaseMessage]:
        given_fields = st.fixed_dictionaries({"content": content}, optional=common | fields)
        return given_fields.map(lambda chosen: cls(**chosen))

    return st.one_of(
        *(build(cls) for cls in (HumanMessage, HumanMessageChunk, SystemMessage)),
        build(AIMessage, **called),
        build(AIMessageChunk, usage_metadata=called["usage_metadata"]),
        st.builds(ToolMessage, content, tool_call_id=text, **common, **result),
        build(Remark, note=json_like(text)),
        text.map(lambda message_id: RemoveMessage(id=message_id)),
    )


def leaves(text: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    names = text.map(lambda name: re.sub("[\0/]", "", name))
    return st.one_of(
        json_like(text),
        messages(text),
        st.builds(Model, text=text, data=json_like(text)),
        st.builds(OldModel, text=text),
        st.builds(SecretStr, text),
        st.builds(Path, names, names),
        st.builds(re.compile, text.map(re.escape)),
        st.sets(keys(text).filter(lambda key: not isinstance(key, tuple)), max_size=3),
        st.frozensets(text, max_size=3),
        st.uuids(),
        st.decimals(allow_nan=False),
        st.datetimes(timezones=st.none() | st.just(UTC)),
        st.dates(),
        st.times(),
        st.timedeltas(),
        st.ip_addresses(),
    )


def values(text: st.SearchStrategy[str], members: list[Enum]) -> st.SearchStrategy[Any]:
    def within(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        mapping = st.dictionaries(keys(text), inner, max_size=3)
        return st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(deque),
            mapping,
            st.builds(Point, inner, inner),
            st.builds(Pair, inner, inner),
            st.builds(Send, text, inner),
            st.builds(Interrupt, value=inner, id=text),
            st.builds(Command, update=mapping, goto=st.lists(text, max_size=2), resume=inner),
            st.builds(_DeltaSnapshot, inner),
        )

    return st.recursive(leaves(text) | st.sampled_from(members), within, max_leaves=8)


def dumped(serde: JsonPlusSerializer, value: Any) -> tuple[str, bytes] | tuple[type, str]:
    """What a serde makes of a value: its bytes, or the type and the message of its error."""
    try:
        return serde.dumps_typed(value)
    except Exception as exc:  # noqa: BLE001 - which ones are raised is the question
        return type(exc), str(exc)


def again(value: Any, serde: JsonPlusSerializer | None = None) -> Any:
    """A value, stored in the private way, as it is loaded: the public way reads such bytes, too."""
    return (serde or LosslessSerializer()).loads_typed(("msgpack", lossless.pack(value)))


@given(values(clean_text, [Colour.RED, Mood.GOOD]))
@settings(max_examples=300, deadline=None)
@example([math.nan, math.inf, -math.inf, (1, (2, "x")), bytearray(b"x"), Text("x"), Mapping(x=1)])
@example([ValueError("x"), Item(value={"x": 1}, key="k", namespace=("n",), **TIMES)])
@example({Mood.GOOD: 1, Colour.RED: 2, date(2026, 1, 1): 3, ("x", (1,)): 4, 1.5: 5})
@example(bytearray(b"x"))
def test_without_surrogates_the_bytes_are_those_of_the_stock_serializer(value: Any) -> None:
    assert LosslessSerializer().dumps_typed(value) == JsonPlusSerializer().dumps_typed(value)


@given(values(any_text, [*Colour, *Mood]))
@settings(max_examples=300, deadline=None)
def test_every_value_survives_at_any_depth(value: Any) -> None:
    assert again(value) == value


@given(values(any_text, [*Colour, *Mood]))
@settings(max_examples=100, deadline=None)
def test_the_stock_serializer_loads_the_same(value: Any) -> None:
    assert JsonPlusSerializer().loads_typed(("msgpack", lossless.pack(value))) == value


def test_a_serializer_keeps_surrogates_in_the_private_way_alone(way: str) -> None:
    ours, stock = LosslessSerializer(), JsonPlusSerializer()
    for value in (BROKEN, [HumanMessage(BROKEN)], {BROKEN: 1}):
        expected = dumped(stock, value)
        if way == "private":
            expected = "msgpack", lossless.pack(value)
            assert ours.loads_typed(expected) == value
        assert dumped(ours, value) == expected


@pytest.mark.parametrize(
    "value",
    [
        BROKEN,
        [BROKEN],
        {BROKEN: 1, "x": 2, "": 3, None: 4},
        {("x", BROKEN, (1, BROKEN)): [BROKEN], ("x",): 1, 1: 2, b"x": 3},
        {"x": {BROKEN: {BROKEN: {BROKEN}}}},
        [HumanMessage(BROKEN)],
        AIMessage("", tool_calls=[{"name": "f", "args": {BROKEN: [BROKEN]}, "id": "1"}]),
        Point(BROKEN, {BROKEN: Point({BROKEN})}),
        Pair(BROKEN, frozenset([BROKEN])),
        _DeltaSnapshot([{BROKEN: BROKEN}]),
        Send(BROKEN, {BROKEN: BROKEN}),
        Command(update={BROKEN: Interrupt(BROKEN, id=BROKEN)}, goto=[Send("n", BROKEN)]),
        Mood.BROKEN,
        Colour.BROKEN,
        Model(text=BROKEN, data={BROKEN: [BROKEN]}),
        OldModel(text=BROKEN),
        SecretStr(BROKEN),
        re.compile("\ud800"),
        Path(os.fsdecode(b"/tmp/\xff")),
        "x" * 2**20 + BROKEN,
        ["", {}, [], set(), b"", None, BROKEN],
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("fill", [False, True], ids=["alone", "nested"])
def test_surrogates_survive_in(value: Any, *, fill: bool) -> None:
    value = {"list": [1, {"deeper": value}]} if fill else value
    loaded = again(value)
    assert loaded == value
    assert type(loaded) is type(value)


def test_floats_survive_beside_surrogates() -> None:
    nan, *others = again([math.nan, math.inf, -math.inf, -0.0, BROKEN])
    assert math.isnan(nan)
    assert others == [math.inf, -math.inf, 0.0, BROKEN]
    assert math.copysign(1, others[2]) == -1


@pytest.mark.parametrize("value", [None, b"", b"\xed\xa0\x80", bytearray(b"x"), "", [], {}, set()])
def test_empty_and_raw_values_survive(value: Any) -> None:
    serde = LosslessSerializer()
    loaded = serde.loads_typed(serde.dumps_typed(value))
    assert loaded == value
    assert type(loaded) is type(value)


@pytest.mark.parametrize(
    ("value", "plain"),
    [(Text(BROKEN), BROKEN), (Mapping({BROKEN: 1}), {BROKEN: 1}), ((BROKEN,), [BROKEN])],
)
def test_a_subclass_or_tuple_loads_as_with_the_stock_serializer(value: Any, plain: Any) -> None:
    loaded = again(value)
    assert loaded == plain
    assert type(loaded) is type(plain)


def test_keys_beside_a_broken_one_load_as_with_the_stock_serializer() -> None:
    others = {date(2026, 1, 1): 1, Colour.RED: 2, (Mood.GOOD, date(2026, 1, 1)): 3, 1.5: 4}
    assert again(others | {BROKEN: 5}) == JsonPlusSerializer().loads_typed(
        JsonPlusSerializer().dumps_typed(others)
    ) | {BROKEN: 5}


def test_an_enum_key_is_stored_by_its_value() -> None:
    assert again({Colour.BROKEN: 1}) == {BROKEN: 1}
    assert again({Mood.BROKEN: 1}) == {Mood.BROKEN: 1}


def test_an_exception_is_stored_by_its_repr() -> None:
    assert again([QuotedError(BROKEN)]) == [f"QuotedError({BROKEN})"]


def test_deep_values_with_surrogates_survive() -> None:
    listed: Any = BROKEN
    keyed: Any = BROKEN
    for _ in range(255):
        listed = [listed]
    for _ in range(200):
        keyed = {BROKEN: keyed}
    assert again(listed) == listed
    assert again(keyed) == keyed


def cycle() -> list[Any]:
    value: list[Any] = [1]
    value.append(value)
    return value


UNSTORABLE: list[Any] = [
    object(),
    [{"x": object()}],
    Point(Point({"x": object()})),
    2**64,
    -(2**63) - 1,
    Point([2**64]),
    {frozenset(): 1},
    {Pair(1, 2): 1},
    {("x", object()): 1},
    cycle(),
    Point(cycle()),
    ["x", test_floats_survive_beside_surrogates, lambda: 1],
]


@pytest.mark.parametrize("value", UNSTORABLE, ids=range(len(UNSTORABLE)))
def test_what_cannot_be_stored_raises_what_the_stock_serializer_raises(value: Any) -> None:
    error = dumped(JsonPlusSerializer(), value)
    assert error[0] is TypeError
    assert dumped(LosslessSerializer(), value) == error


@pytest.mark.parametrize("value", [object(), 2**64, Point(object())], ids=["type", "int", "inner"])
def test_what_cannot_be_stored_raises_the_same_beside_surrogates(value: Any) -> None:
    expected = dumped(JsonPlusSerializer(), [value])
    assert dumped(LosslessSerializer(), [BROKEN, value]) == expected
    assert dumped(LosslessSerializer(), [value, {BROKEN: BROKEN}]) == expected


@lossless_only
@pytest.mark.parametrize("key", [frozenset([BROKEN]), Pair(BROKEN, 1), 2**64])
def test_a_key_that_the_stock_serializer_refuses_is_refused_beside_a_broken_one(key: Any) -> None:
    expected = dumped(JsonPlusSerializer(), {key: 1})
    assert expected[0] is TypeError
    assert dumped(LosslessSerializer(), {BROKEN: 1, key: 1}) == expected


def test_a_cycle_through_a_broken_key_raises_an_error_of_the_encoder() -> None:
    value: dict[str, Any] = {}
    value[BROKEN] = value
    with pytest.raises(TypeError, match="surrogates"):
        LosslessSerializer().dumps_typed(value)


@pytest.mark.parametrize("value", [2**64, {"x": [2**64, BROKEN], BROKEN: 1}, [Pair(2**64, BROKEN)]])
def test_the_pickle_fallback_serves_what_cannot_be_packed(value: Any) -> None:
    serde = LosslessSerializer(pickle_fallback=True)
    assert serde.dumps_typed(value) == JsonPlusSerializer(pickle_fallback=True).dumps_typed(value)
    assert serde.dumps_typed(value)[0] == "pickle"
    assert serde.loads_typed(serde.dumps_typed(value)) == value


@lossless_only
def test_the_pickle_fallback_is_not_taken_for_surrogates() -> None:
    assert LosslessSerializer(pickle_fallback=True).dumps_typed({BROKEN: BROKEN})[0] == "msgpack"


POINT = (Point.__module__, Point.__name__)
PAYLOAD: dict[str, Any] = {"x": BROKEN, "y": {BROKEN: ("x", BROKEN), ("x", BROKEN): 1}}
LOADED = PAYLOAD | {"y": {BROKEN: ["x", BROKEN], ("x", BROKEN): 1}}


@pytest.mark.parametrize("allowed", [None, [], [("elsewhere", "Other")], [Pair]])
def test_an_allowlist_blocks_other_types_but_never_a_string(allowed: Any) -> None:
    serde = LosslessSerializer(allowed_msgpack_modules=allowed)
    assert again(Point(**PAYLOAD), serde) == LOADED
    assert again(HumanMessage(BROKEN), serde) == HumanMessage(BROKEN)


@pytest.mark.parametrize("allowed", [True, [POINT], [Point]])
def test_an_allowlist_admits_what_it_names(allowed: Any) -> None:
    serde = LosslessSerializer(allowed_msgpack_modules=allowed)
    assert again(Point(**PAYLOAD), serde) == Point(**LOADED)


@pytest.mark.parametrize("strict", [False, True])
def test_the_strict_environment_decides_the_default(
    monkeypatch: pytest.MonkeyPatch, *, strict: bool
) -> None:
    monkeypatch.setattr(_msgpack, "STRICT_MSGPACK_ENABLED", strict)
    expected = LOADED if strict else Point(**LOADED)
    assert again(Point(**PAYLOAD), LosslessSerializer()) == expected


def test_an_extended_allowlist_admits_more_and_leaves_the_original_alone() -> None:
    strict = LosslessSerializer(allowed_msgpack_modules=None)
    extended = strict.with_msgpack_allowlist([POINT])
    assert isinstance(extended, LosslessSerializer)
    assert again(Point(**PAYLOAD), extended) == Point(**LOADED)
    assert again(Point(**PAYLOAD), strict) == LOADED
    assert extended.with_msgpack_allowlist([Point]) is extended


def test_a_permissive_serializer_needs_no_extended_allowlist() -> None:
    serde = LosslessSerializer(allowed_msgpack_modules=True)
    assert serde.with_msgpack_allowlist([POINT]) is serde


def test_a_savers_allowlist_reaches_the_serializer() -> None:
    saver = InMemorySaver(serde=LosslessSerializer(allowed_msgpack_modules=None))
    clone = saver.with_allowlist([POINT])
    packed = "msgpack", lossless.pack(Point(**PAYLOAD))
    assert clone.serde.loads_typed(packed) == Point(**LOADED)
    assert saver.serde.loads_typed(packed) == LOADED


class Mirror(CipherProtocol):
    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        return "mirror", plaintext[::-1]

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        return ciphertext[::-1]


def test_a_savers_allowlist_reaches_the_serializer_inside_an_encrypted_one() -> None:
    inner = LosslessSerializer(allowed_msgpack_modules=None)
    saver = InMemorySaver(serde=EncryptedSerializer(Mirror(), inner)).with_allowlist([POINT])
    packed = saver.serde.dumps_typed(Point("x"))
    assert packed[0] == "msgpack+mirror"
    assert saver.serde.loads_typed(packed) == Point("x")


@pytest.mark.parametrize("allowed", [True, None, [POINT]])
def test_loading_surrogates_warns_of_nothing(
    caplog: pytest.LogCaptureFixture, way: str, allowed: Any
) -> None:
    if (way, allowed) == ("public", True):
        return  # the stock serializer warns of all types but its safe ones
    events: list[SerdeEvent] = []
    unregister = register_serde_event_listener(events.append)
    try:
        again([PAYLOAD, HumanMessage(BROKEN)], LosslessSerializer(allowed_msgpack_modules=allowed))
    finally:
        unregister()
    assert events == []
    assert caplog.records == []


def test_loading_another_type_still_emits_its_event() -> None:
    events: list[SerdeEvent] = []
    unregister = register_serde_event_listener(events.append)
    try:
        again(Point("x"), LosslessSerializer(allowed_msgpack_modules=True))
    finally:
        unregister()
    assert [(event["module"], event["name"]) for event in events] == [POINT]


def test_a_hook_of_the_callers_own_is_used() -> None:
    serde = LosslessSerializer(__unpack_ext_hook__=lambda code, _data: code)
    assert again([BROKEN, Point(1)], serde) == [1, 2]


def test_the_json_encoding_of_old_checkpoints_loads() -> None:
    assert LosslessSerializer().loads_typed(("json", b'{"x": "\\ud800"}')) == {"x": "\ud800"}


def test_an_unknown_encoding_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="unknown"):
        LosslessSerializer().loads_typed(("unknown", b""))


def state(value: Any) -> Any:
    """All that makes an object what it is, its fields in their order."""
    if not isinstance(value, BaseModel):
        return type(value), value
    inner = value.__getstate__()
    extra = inner.pop("__pydantic_extra__") or {}
    return type(value), list(vars(value).items()), list(extra.items()), inner


def outcome(serde: JsonPlusSerializer, packed: bytes) -> Any:
    """What a serde loads, and the events that it emits over it."""
    events: list[SerdeEvent] = []
    unregister = register_serde_event_listener(events.append)
    try:
        return state(serde.loads_typed(("msgpack", packed))), events
    finally:
        unregister()


@given(messages(clean_text))
@settings(max_examples=300, deadline=None)
def test_a_message_takes_the_bytes_and_comes_back_as_with_the_stock_serializer(
    message: BaseMessage,
) -> None:
    ours, stock = LosslessSerializer(), JsonPlusSerializer()
    packed = stock.dumps_typed(message)
    assert ours.dumps_typed(message) == packed
    assert outcome(ours, packed[1]) == outcome(stock, packed[1])
    content = message.content
    message.content = content + "x" if isinstance(content, str) else [*content, "x"]
    message.response_metadata["x"] = {"y": AIMessage("x"), "z": Point(HumanMessage("x"))}
    assert ours.dumps_typed(message) == stock.dumps_typed(message)


FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "content": st.none() | st.integers(0, 9) | st.text() | st.lists(json_like(st.text())),
        "content_blocks": st.none() | st.just([{"type": "tool_call", "name": "f", "args": {}}]),
        "type": st.sampled_from(["human", "ai", "system", "tool"]),
        "tool_calls": st.lists(st.dictionaries(st.sampled_from(["name", "args", "id"]), st.text())),
        "invalid_tool_calls": st.none() | st.just([{}]),
        "tool_call_chunks": st.just([{"name": "f", "args": "{", "id": "1", "index": 0}]),
        "tool_call_id": st.integers(0, 9) | st.text(),
        "additional_kwargs": st.just({"tool_calls": [{"function": {"name": "f", "arguments": ""}}]})
        | json_like(st.text()),
        "id": st.integers(0, 9) | st.text(),
        "self": st.none(),
        "_fields_set": st.none(),
        "another": json_like(st.text()),
        7: st.none(),
        b"id": st.none(),
    },
)


@given(
    st.sampled_from([*PLAIN, HumanMessageChunk]),
    st.sampled_from([5, 5, 5, 4, 2, 1, 0]),  # as pydantic object, of version 1, or by arguments
    FIELDS | json_like(st.text()),
)
@settings(max_examples=1000, deadline=None)
@example(HumanMessage, 5, {"content": "", "id": 7, "self": 1})
@pytest.mark.filterwarnings("ignore:The `construct` method")
def test_what_is_no_whole_message_comes_back_as_with_the_stock_serializer(
    cls: type[BaseMessage], code: int, fields: Any
) -> None:
    arguments = (cls.__module__, cls.__name__, fields)
    call = ormsgpack.packb(arguments, option=ormsgpack.OPT_NON_STR_KEYS)
    packed = ormsgpack.packb(ormsgpack.Ext(code, call))
    for allowed in (True, None, [POINT]):
        ours = LosslessSerializer(allowed_msgpack_modules=allowed)
        stock = JsonPlusSerializer(allowed_msgpack_modules=allowed)
        assert outcome(ours, packed) == outcome(stock, packed)


def test_a_message_that_pydantic_warns_of_is_warned_of_as_by_the_stock_serializer() -> None:
    message = AIMessage("x")
    message.tool_calls = [{"name": 7}]  # type: ignore[typeddict-item]
    told = []
    for serde in (JsonPlusSerializer(), LosslessSerializer()):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            packed = serde.dumps_typed(message)
        told.append((packed, [(str(one.message), one.filename, one.lineno) for one in caught]))
    assert len(told[0][1]) == 1
    assert told[0] == told[1]


@lossless_only
@pytest.mark.parametrize("cls", PLAIN)
def test_the_plain_messages_are_made_in_fewer_steps(cls: type[BaseMessage]) -> None:
    assert shortened(cls) is not cls


class Counted(HumanMessage):
    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields, count=1)


class Refusing(HumanMessage):
    def __init__(self) -> None:
        super().__init__("x")


@pytest.mark.parametrize("cls", [Counted, Refusing])
def test_a_class_that_does_more_than_the_known_ones_makes_its_objects_itself(
    cls: type[BaseMessage],
) -> None:
    assert shortened(cls) is cls


def test_a_clone_of_a_serializer_that_has_loaded_something_has_its_own_allowlist() -> None:
    strict = LosslessSerializer(allowed_msgpack_modules=None)
    assert again(Point(1), strict) == {"x": 1, "y": None}
    extended = strict.with_msgpack_allowlist([POINT])
    assert again(Point(1), extended) == Point(1)
    assert again(Point(1), strict) == {"x": 1, "y": None}
