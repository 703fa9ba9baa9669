"""The default serde: LangGraph's `JsonPlusSerializer`, except that it alters no string.

This needs private names of LangGraph: see `lossless`. If a name is missing or behaves differently,
LangGraph's own serializer does the work, and lone surrogates become "?".
"""

import logging
import pickle
from collections.abc import Callable, Iterable
from copy import copy
from functools import cache, partial
from types import ModuleType
from typing import Any, Final

import ormsgpack
from langgraph.checkpoint.serde.event_hooks import SerdeEvent, emit_serde_event
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from checkpointer import nesting
from checkpointer.allowlist import (
    ESCAPES,
    SAFE,
    AllowedTypes,
    names_of,
    raise_refused,
    refused,
)
from checkpointer.calls import Name, calls_of

_log: Final = logging.getLogger("checkpointer")


@cache
def private_way() -> ModuleType | None:
    """Return `lossless` if LangGraph's private names are there and behave as it expects."""
    try:
        from checkpointer import lossless  # noqa: PLC0415 - fails where a name is missing

        if lossless.works():
            return lossless
        fault = "they behave in another way"
    except Exception as exc:  # noqa: BLE001 - whatever another release of LangGraph makes of them
        fault = str(exc)
    _log.warning(
        "this release of langgraph-checkpoint has not the private names that are expected (%s): "
        "values are stored as JsonPlusSerializer does, lone surrogates as '?'",
        fault,
    )
    return None


class LosslessSerializer(JsonPlusSerializer):
    """`JsonPlusSerializer` that keeps lone surrogates, in values and in keys.

    It takes the same options. An allowlist never blocks the calls by which surrogates are stored.
    """

    _hook: tuple[object, Callable[[int, bytes], Any]] | None = None
    """An allowlist and the decoder's hook for it. The hook is kept, because making one takes as
    long as loading a small value."""

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """Return the encoding's name and the bytes of a value.

        Raises:
            ormsgpack.MsgpackEncodeError: As the stock serializer does, but never for surrogates.
        """
        lossless = private_way()
        if lossless is None or obj is None or isinstance(obj, bytes | bytearray):
            return super().dumps_typed(obj)
        try:
            return "msgpack", lossless.pack(obj)
        except ormsgpack.MsgpackEncodeError:
            if self.pickle_fallback:
                return "pickle", pickle.dumps(obj)
            raise

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """Return the value that `dumps_typed` of this or of the stock serializer encoded."""
        encoding, packed = data
        lossless = private_way()
        if encoding != "msgpack":
            return super().loads_typed(data)
        if lossless is None:
            stock = super().with_msgpack_allowlist(ESCAPES)
            load = partial(JsonPlusSerializer.loads_typed, stock, data)
            return nesting.load_on_one_stack(packed, load)
        if self._custom_unpack_ext_hook:
            return super().loads_typed(data)
        hook = self._hook
        if hook is None or hook[0] is not self._allowed_msgpack_modules:
            allowed = self._allowed_msgpack_modules
            self._hook = hook = allowed, lossless.create_ext_hook(allowed)
        try:
            return ormsgpack.unpackb(packed, ext_hook=hook[1], option=ormsgpack.OPT_NON_STR_KEYS)
        finally:
            nesting.raise_if_stopped()


class StrictSerializer(LosslessSerializer):
    """`LosslessSerializer` that allows only LangGraph's safe types and those that the caller names.

    A value of another type is neither stored nor loaded: its class is not called, its module is not
    imported, and an error is raised. Values that were stored as pickles are not loaded either.

    Args:
        allowed_types: Classes, and pairs of a module's name and the name of a class in it. Allowing
            a class does not allow its subclasses.

    Raises:
        ConfigurationError: One of the types is neither a class nor such a pair, or is a class whose
            values could not be loaded, because its module does not have it under its name.
    """

    def __init__(self, allowed_types: AllowedTypes = ()) -> None:
        self._allow(names_of(allowed_types))

    def _allow(self, names: frozenset[Name]) -> None:
        self._names = names
        super().__init__(
            allowed_msgpack_modules=SAFE | names,
            allowed_json_modules=[(*module.split("."), *name) for module, *name in SAFE | names],
        )

    def with_msgpack_allowlist(self, extra_allowlist: Iterable[Name | type]) -> "StrictSerializer":
        """Return a serializer that allows more: LangGraph adds the types of a graph's schemas."""
        names = self._names.union(
            (one.__module__, one.__name__) if isinstance(one, type) else one
            for one in extra_allowlist
        )
        if names == self._names:
            return self
        clone = copy(self)
        clone._allow(names)  # noqa: SLF001 - a copy of itself
        return clone

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """Return the encoding's name and the bytes of a value.

        Raises:
            SerializationError: Something in it is of a type that is not allowed.
        """
        dumped = super().dumps_typed(obj)
        raise_refused(refused(calls_of(*dumped), self._names))
        return dumped

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """Return a value.

        Raises:
            SerializationError: Something in it is of a type that is not allowed.
        """
        names = refused(calls_of(*data), self._names)
        for name in names:
            _tell_listeners(*name)
        raise_refused(names)
        return super().loads_typed(data)


def _tell_listeners(module: str, name: str = "", *method: str) -> None:
    """Report a refused call to LangGraph's listeners, as its own serializer does."""
    event: SerdeEvent = {"kind": "msgpack_blocked", "module": module, "name": name}
    if method:
        event["kind"], event["method"] = "msgpack_method_blocked", method[0]
    emit_serde_event(event)
