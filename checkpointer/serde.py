r"""The default serde: LangGraph's `JsonPlusSerializer`, except that it alters no string.

The stock encoder writes a lone surrogate as "?" and refuses one in a dict's key. They do occur: in
a model's tool calls, as broken JSON escapes, and in file names, as bytes that are no text. Here

    a string "\ud800"               is packed as str(b"\xed\xa0\x80", "utf-8", "surrogatepass")
    a dict {"\ud800": 1}            as dict([["\ud800", 1]])
    a tuple among that dict's keys  as tuple([...])

each in the extension type that the stock encoder has for calls, so that the stock decoder restores
them at any depth. All else is packed to the very bytes of the stock encoder. What conversations
consist of, LangChain's plain messages, takes a shorter way to the same bytes and the same objects.
"""

import pickle
from collections.abc import Callable, Container
from enum import Enum
from types import FunctionType, SimpleNamespace
from typing import Any, Final

import ormsgpack
from langgraph.checkpoint.serde import _msgpack, jsonplus
from langgraph.checkpoint.serde.event_hooks import SerdeEvent, emit_serde_event

# Private: the encoder's options, its hook for what is no plain value, and what makes the decoder's
# hook. The first two hold the format that must not differ; `langgraph-checkpoint<4.4` pins them.
from langgraph.checkpoint.serde.jsonplus import (
    EXT_CONSTRUCTOR_POS_ARGS,
    EXT_DELTA_SNAPSHOT,
    EXT_PYDANTIC_V2,
    LC_REVIVER,
    JsonPlusSerializer,
    _create_msgpack_ext_hook,
    _msgpack_default,
    _option,
)
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from checkpointer import messages, nesting
from checkpointer.allowlist import SAFE, AllowedTypes, names_of, watch, watched

_STRICT: Final = _option & ~ormsgpack.OPT_REPLACE_SURROGATES


class LosslessSerializer(JsonPlusSerializer):
    """`JsonPlusSerializer` that keeps lone surrogates, in values and in keys.

    The options mean what they mean there. An allowlist never blocks the calls of this module.
    """

    _hook: tuple[object, Callable[[int, bytes], Any]] | None = None
    """The decoder's hook, behind the allowlist that it is for: making one takes as long as loading
    a small value."""

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """Return the encoding's name and the bytes of a value.

        Raises:
            ormsgpack.MsgpackEncodeError: As the stock serializer does, but never for surrogates.
        """
        if obj is None or isinstance(obj, bytes | bytearray):
            return super().dumps_typed(obj)
        try:
            return "msgpack", _pack(obj)
        except ormsgpack.MsgpackEncodeError:
            if self.pickle_fallback:
                return "pickle", pickle.dumps(obj)
            raise

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """Return the value that `dumps_typed` of this or of the stock serializer encoded."""
        encoding, packed = data
        if encoding != "msgpack" or self._custom_unpack_ext_hook:
            return super().loads_typed(data)
        hook = self._hook
        if hook is None or hook[0] is not self._allowed_msgpack_modules:
            allowed = self._allowed_msgpack_modules
            self._hook = hook = allowed, _create_ext_hook(allowed)
        try:
            return ormsgpack.unpackb(packed, ext_hook=hook[1], option=ormsgpack.OPT_NON_STR_KEYS)
        finally:
            nesting.raise_if_stopped()


class StrictSerializer(LosslessSerializer):
    """`LosslessSerializer` that takes LangGraph's safe types and some of the caller's, no others.

    A value of another type is neither stored nor loaded: its class is not called, its module not
    imported, and the call raises. Nor are values loaded that were stored as pickles.

    Args:
        allowed_types: Classes, and pairs of a module's name and a class's name in it. A subclass
            has a name of its own.

    Raises:
        ConfigurationError: One of the types is neither, or a class whose values could not be
            loaded, because its module does not have it under its name.
    """

    def __init__(self, allowed_types: AllowedTypes = ()) -> None:
        # Whatever passes `_reviver` below is allowed.
        super().__init__(allowed_msgpack_modules=names_of(allowed_types), allowed_json_modules=True)

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """Return the encoding's name and the bytes of a value.

        Raises:
            SerializationError: Something in it is of a type that is not allowed.
        """
        return watched(self._allowed_types(), super().dumps_typed, obj)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """Return a value.

        Raises:
            SerializationError: Something in it is of a type that is not allowed.
        """
        return watched(self._allowed_types(), super().loads_typed, data)

    def _allowed_types(self) -> Container[tuple[str, ...]]:
        """What a saver's clones allow is more: LangGraph adds the types of a graph's schemas."""
        allowed = self._allowed_msgpack_modules
        return allowed if isinstance(allowed, set) else ()

    def _reviver(self, value: dict[str, Any]) -> Any:
        """Return what an object of the old JSON encoding stands for, LangChain's own included."""
        path: Any = value.get("id")
        if value.get("lc") in (1, 2) and value.get("type") == "constructor" and path:
            if value["lc"] == 1:
                path = LC_REVIVER.import_mappings.get(tuple(path), path)
            watching = watch()
            if watching is None or not watching.check(".".join(path[:-1]), path[-1]):
                return None
        return super()._reviver(value)


def _pack(value: Any) -> bytes:
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
    """
    return FunctionType(function.__code__, vars(jsonplus) | names)


def _checking(pack: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """Return what packs a call, (module, class, arguments) and perhaps a method, and checks it."""

    def pack_call(call: Any) -> bytes:
        watching = watch()
        # What the hook packs for an array are four values, of which the second is its shape.
        if watching is not None and isinstance(call[1], str):
            module, name, _, *method = call
            watching.check(module, name, *(one for one in method if one != _VALIDATE))
        return pack(call)

    return pack_call


_VALIDATE: Final = "model_validate_json"
"""What stands in the place of a method for pydantic's objects, and is not called."""

_rebound_strict_default = _rebind(_msgpack_default, _msgpack_enc=_checking(_pack_strictly))
_rebound_escaping_default = _rebind(_msgpack_default, _msgpack_enc=_checking(_pack_escaped))
_PLAIN: Final = {cls: (cls.__module__, cls.__name__) for cls in messages.PLAIN}


def _strict_default(obj: Any) -> Any:
    name = _PLAIN.get(type(obj))
    if name is not None:  # one of the safe types
        call = (*name, obj.model_dump(), _VALIDATE)
        return ormsgpack.Ext(EXT_PYDANTIC_V2, _pack_strictly(call))
    if isinstance(obj, _DeltaSnapshot):  # a value, and no call
        return ormsgpack.Ext(EXT_DELTA_SNAPSHOT, _pack_strictly(obj.value))
    return _rebound_strict_default(obj)


def _escaping_default(obj: Any) -> Any:
    if isinstance(obj, _DeltaSnapshot):
        return ormsgpack.Ext(EXT_DELTA_SNAPSHOT, _pack_escaped(obj.value))
    return _escape(_rebound_escaping_default(obj))  # an exception is packed as its repr, a string


def _emit(event: SerdeEvent) -> None:
    """Tell LangGraph's listeners of a type, and the watch of one that is refused."""
    emit_serde_event(event)
    watching = watch()
    if watching is not None:  # which allows no type that is not registered
        watching.refuse(event["module"], event["name"], *filter(None, [event.get("method")]))


_create_ext_hook = _rebind(
    _create_msgpack_ext_hook,
    _lg_msgpack=SimpleNamespace(**vars(_msgpack) | {"SAFE_MSGPACK_TYPES": SAFE}),
    importlib=SimpleNamespace(import_module=messages.import_module),
    emit_serde_event=_emit,
    ormsgpack=SimpleNamespace(**vars(ormsgpack) | {"unpackb": nesting.unpackb}),
)
