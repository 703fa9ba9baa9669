r"""The packing of values without altering a string, with LangGraph's private names.

The stock encoder replaces a lone surrogate with "?", and refuses one in a key of a dict. Lone
surrogates do occur: in a model's tool calls, as broken JSON escapes, and in file names that are not
valid text. In this module

    a string "\ud800"               is packed as str(b"\xed\xa0\x80", "utf-8", "surrogatepass")
    a dict {"\ud800": 1}            as dict([["\ud800", 1]])
    a tuple among that dict's keys  as tuple([...])

each in the extension type that the stock encoder has for calls, so that the stock decoder restores
them at any depth. All other values give the same bytes as with the stock encoder. LangChain's plain
messages, of which conversations consist, give the same bytes and objects in fewer steps.

Importing this module raises an error if a private name is missing. `works` says whether all of them
behave as expected.
"""

import builtins
import ipaddress
import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any, Final
from uuid import UUID

import ormsgpack
from langchain_core.messages import HumanMessage, HumanMessageChunk

# Private: the module of the lists of types, the encoder's options, its hook for what is no plain
# value, and what makes the decoder's hook.
from langgraph.checkpoint.serde import _msgpack, jsonplus
from langgraph.checkpoint.serde.jsonplus import (
    EXT_CONSTRUCTOR_POS_ARGS,
    EXT_DELTA_SNAPSHOT,
    EXT_PYDANTIC_V2,
    JsonPlusSerializer,
    _create_msgpack_ext_hook,
    _msgpack_default,
    _option,
)
from langgraph.store.base import Item

from checkpointer import messages, nesting
from checkpointer.allowlist import ESCAPES, SAFE

_STRICT: Final = _option & ~ormsgpack.OPT_REPLACE_SURROGATES


def pack(value: Any) -> bytes:
    """Return the MessagePack of a value.

    Raises:
        ormsgpack.MsgpackEncodeError: As of the stock serializer, but never for surrogates.
    """
    try:
        return _pack_strictly(value)
    except ormsgpack.MsgpackEncodeError as exc:
        # Surrogates inside an object fail with the same message as any other fault in it. So all
        # failures get the second try: what is wrong besides surrogates fails there as before.
        try:
            return _pack_escaped(value)
        except RecursionError:  # of `_escape`, by a cycle: ormsgpack has an error of its own
            raise exc from None


def _pack_strictly(value: Any) -> bytes:
    return ormsgpack.packb(value, default=_strict_default, option=_STRICT)


def _pack_escaped(value: Any) -> bytes:
    return ormsgpack.packb(_escape(value), default=_escaping_default, option=_STRICT)


def _escape(value: Any) -> Any:
    """Replace what holds surrogates, down to the objects that ormsgpack hands to its hook."""
    if isinstance(value, Enum):
        return value
    if isinstance(value, str):
        return _escape_text(value)
    if isinstance(value, dict):
        # `map` instead of a comprehension takes half the stack on Python 3.11.
        items = zip(value, map(_escape, value.values()), strict=True)
        if any(map(_is_broken, value)):
            return _call("dict", [(_as_value(key), item) for key, item in items])
        return dict(items)
    if isinstance(value, list) or type(value) is tuple:
        return list(map(_escape, value))
    return value


def _escape_text(text: str) -> str | ormsgpack.Ext:
    try:
        text.encode()
    except UnicodeEncodeError:
        return _call("str", text.encode("utf-8", "surrogatepass"), "utf-8", "surrogatepass")
    return text


def _call(name: str, *args: Any) -> ormsgpack.Ext:
    """Return the call of a builtin with arguments that are escaped already."""
    call = ("builtins", name, args)
    data = ormsgpack.packb(call, default=_escaping_default, option=_STRICT)
    return ormsgpack.Ext(EXT_CONSTRUCTOR_POS_ARGS, data)


def _is_broken(key: Any) -> bool:
    """Whether a string, or a key that ormsgpack packs as one or that holds one, has surrogates."""
    if isinstance(key, Enum):
        return _is_broken(key.value)
    if isinstance(key, tuple):
        return any(map(_is_broken, key))
    return isinstance(key, str) and _escape_text(key) is not key


def _as_value(key: Any) -> Any:
    """Return a dict's key, as the stock serializer would load it, escaped as a value."""
    if isinstance(key, Enum):
        return _as_value(key.value)
    if isinstance(key, str):
        return _escape_text(key)
    if type(key) is tuple:  # an array would load as a list, which is no key
        return _call("tuple", list(map(_as_value, key)))
    plain = ormsgpack.packb({key: None}, option=_STRICT)
    return next(iter(ormsgpack.unpackb(plain, option=ormsgpack.OPT_NON_STR_KEYS)))


def _rebind(function: Any, **names: object) -> Callable[..., Any]:
    """Return a copy of a function of `jsonplus` to which these names mean something else there.

    A copy keeps the order of its checks and whatever a release adds. A wrapper would not do: the
    hooks call themselves for what is nested.

    Raises:
        ImportError: The function does not use one of the names.
    """
    if unused := names.keys() - {"__builtins__"} - set(_names_in(function.__code__)):
        raise ImportError(f"found no {', '.join(unused)} in {function.__name__}")
    return FunctionType(function.__code__, vars(jsonplus) | names)


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _names_in(one)


_rebound_strict_default = _rebind(_msgpack_default, _msgpack_enc=_pack_strictly)
_rebound_escaping_default = _rebind(_msgpack_default, _msgpack_enc=_pack_escaped)
_PLAIN: Final = {cls: (cls.__module__, cls.__name__) for cls in messages.PLAIN}


def _strict_default(obj: Any) -> Any:
    name = _PLAIN.get(type(obj))
    if name is not None:
        call = (*name, obj.model_dump(), "model_validate_json")
        return ormsgpack.Ext(EXT_PYDANTIC_V2, _pack_strictly(call))
    return _rebound_strict_default(obj)


def _escaping_default(obj: Any) -> Any:
    return _escape(_rebound_escaping_default(obj))  # an exception is packed as its repr, a string


def _rebound_maker(unpackb: Callable[..., Any], **names: object) -> Callable[..., nesting.Hook]:
    return _rebind(
        _create_msgpack_ext_hook,
        _lg_msgpack=SimpleNamespace(**vars(_msgpack) | {"SAFE_MSGPACK_TYPES": SAFE}),
        importlib=SimpleNamespace(import_module=messages.import_module),
        ormsgpack=SimpleNamespace(**vars(ormsgpack) | {"unpackb": unpackb}),
        **names,
    )


create_ext_hook: Final = _rebound_maker(nesting.unpackb)
"""Makes the decoder's hook, for the types of an allowlist."""


def works() -> bool:
    """Whether the private names behave as this module and `LosslessSerializer` expect."""
    stock, hook = JsonPlusSerializer(allowed_msgpack_modules=None), create_ext_hook(None)

    def load(packed: bytes) -> Any:
        return ormsgpack.unpackb(packed, ext_hook=hook, option=ormsgpack.OPT_NON_STR_KEYS)

    snapshot = load(ormsgpack.packb(ormsgpack.Ext(EXT_DELTA_SNAPSHOT, ormsgpack.packb([1]))))
    return (
        _has_attributes()
        and all(map(_hands_over, _codes()))
        and not isinstance(snapshot, list)
        and all(
            pack(value) == (packed := stock.dumps_typed(value)[1])
            and load(packed) == stock.loads_typed(("msgpack", packed))
            for value in (*_samples(), snapshot)
        )
        and all(load(pack(value)) == value for value in _broken_samples())
    )


def _has_attributes() -> bool:
    """Whether a serializer says what it allows, and whether it has a hook of the caller's own."""
    allowing_all = JsonPlusSerializer(allowed_msgpack_modules=True)
    allowing_safe = JsonPlusSerializer(allowed_msgpack_modules=None)
    allowing_more = allowing_safe.with_msgpack_allowlist(ESCAPES)
    hooked = JsonPlusSerializer(__unpack_ext_hook__=lambda *_: None)
    found = [
        (serde._allowed_msgpack_modules, serde._custom_unpack_ext_hook)  # noqa: SLF001
        for serde in (allowing_all, allowing_safe, allowing_more)
    ]
    return found == [(True, False), (None, False), (ESCAPES, False)] and (
        hooked._custom_unpack_ext_hook  # noqa: SLF001
    )


def _codes() -> list[int]:
    return [code for name, code in vars(jsonplus).items() if name.startswith("EXT_")]


def _hands_over(code: int) -> bool:
    """Whether what stands within an extension is unpacked by the function that counts levels."""
    seen = []

    def unpackb(packed: bytes, **_: object) -> list[Any]:
        seen.append(packed)
        return []

    # NumPy takes long to import.
    without_imports = vars(builtins) | {"__import__": lambda *_: None}
    with suppress(Exception):
        _rebound_maker(unpackb, __builtins__=without_imports)(None)(code, b"packed")
    return seen == [b"packed"]


def _samples() -> list[Any]:
    """Values of each kind that the stock serializer loads without a word."""
    moment = datetime(2026, 1, 2, 3, 4, 5, 6, UTC)
    return [
        [1, "x", b"x", None, True, 1.5, (1, [2])],
        {"x": 1, 2: "y", None: b"z", ("x", 1): [{}]},
        [HumanMessage("x", id="1", additional_kwargs={"y": {1}}), HumanMessageChunk(content="x")],
        [UUID(int=1), Decimal("1.10"), {1}, frozenset({"x"}), deque([{2}])],
        [Path("x"), re.compile("x"), ValueError("x"), ipaddress.ip_address("::1")],
        [moment, date(2026, 1, 2), time(3, 4, 5, 6, UTC), timedelta(1, 2, 3), UTC],
        Item(value={"x": moment}, key="k", namespace=("n",), created_at=moment, updated_at=moment),
    ]


def _broken_samples() -> list[Any]:
    """Values that hold lone surrogates, which the stock serializer alters or refuses."""
    broken = "x\ud800"
    return [
        broken,
        [{broken: [broken], (broken, 1): 2}],
        HumanMessage(broken, additional_kwargs={broken: {broken}}),
        HumanMessageChunk(content=broken, additional_kwargs={broken: deque([broken])}),
    ]
