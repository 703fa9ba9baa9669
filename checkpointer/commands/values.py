"""Stored values read without any class of theirs: nothing is imported or called for them.

A value of a class becomes a `Typed`, which has the class's name and what it would be made from.
"""

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import ormsgpack
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import (
    EXT_CONSTRUCTOR_POS_ARGS,
    EXT_DELTA_SNAPSHOT,
    EXT_NUMPY_ARRAY,
)

from checkpointer import nesting
from checkpointer.errors import SerializationError
from checkpointer.quoting import quoted

ROLES: Final = {
    f"{name}{suffix}": role
    for name, role in {
        "HumanMessage": "human",
        "AIMessage": "ai",
        "SystemMessage": "system",
        "ToolMessage": "tool",
        "FunctionMessage": "function",
        "ChatMessage": "chat",
        "RemoveMessage": "remove",
    }.items()
    for suffix in ("", "Chunk")
}
"""LangChain's messages, by the names of their classes."""

_MAPS: Final = frozenset([*range(0x80, 0x90), 0xDE, 0xDF])
"""How MessagePack's maps begin."""

_OPTION: Final = ormsgpack.OPT_NON_STR_KEYS
_KINDS: Final = frozenset({"null", "bytes", "bytearray", "json", "msgpack", "pickle"})


@dataclass(frozen=True, slots=True, eq=False)
class Typed:
    """A value of a class.

    Attributes:
        name: The class's module and name.
        value: What it would be made from.
    """

    name: str
    value: Any

    @property
    def role(self) -> str | None:
        """Who says it, if it is one of LangChain's messages."""
        module, _, name = self.name.rpartition(".")
        known = module.startswith("langchain") and isinstance(self.value, dict)
        return ROLES.get(name) if known else None

    def is_a(self, name: str) -> bool:
        """Whether it is one of LangGraph's own types: `Interrupt`, `Send`, `Overwrite`."""
        return self.name == f"langgraph.types.{name}"


@dataclass(frozen=True, slots=True, eq=False)
class Unread:
    """A value that nobody has looked at yet."""

    kind: str
    data: bytes


class PlainSerializer(SerializerProtocol):
    """Reads what LangGraph's serializers wrote: dicts at once, all else as `Unread`."""

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """Refuse: a reader stores nothing."""
        raise NotImplementedError

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """Return a value of which at most the outermost dict is read.

        Raises:
            SerializationError: It is encrypted, or of an encoding that is not LangGraph's.
        """
        kind, packed = data
        if kind not in _KINDS:
            raise SerializationError(
                f"found the encoding {quoted(kind)}, expected LangGraph's own, because the command "
                f"line has neither your serde nor its key; read it in Python: "
                f"create_saver(serde=...)"
            )
        one = Unread(kind, packed)
        at_once = kind == "json" or (kind == "msgpack" and packed[:1] and packed[0] in _MAPS)
        return _load(one) if at_once else one


def loaded(value: Any) -> Any:
    """A value, read now if it was not yet. One that cannot be read is a `Typed` that says so."""
    if not isinstance(value, Unread):
        return value
    try:
        return _load(value)
    except ValueError as exc:
        return Typed("unreadable", f"{value.kind}, {len(value.data)} bytes: {exc}")


def _load(one: Unread) -> Any:
    match one.kind:
        case "null":
            return None
        case "bytes" | "bytearray":
            return bytes(one.data)
        case "json":
            try:
                return json.loads(one.data, object_hook=_revived)
            except RecursionError as exc:
                raise ValueError("found JSON nested too deeply, expected less") from exc
        case "msgpack":
            try:
                return nesting.unpackb(one.data, ext_hook=_typed, option=_OPTION)
            finally:
                nesting.raise_if_stopped()
    return Typed(one.kind, one.data)


def _typed(code: int, data: bytes) -> Any:
    """What an extension of LangGraph's encoder stands for."""
    parts = nesting.unpackb(data, ext_hook=_typed, option=_OPTION)
    if code == EXT_DELTA_SNAPSHOT:
        return parts
    if code == EXT_NUMPY_ARRAY:
        return Typed("numpy.ndarray", dict(zip(("dtype", "shape", "order", "data"), parts)))  # noqa: B905
    if not isinstance(parts, list) or len(parts) < 3:  # noqa: PLR2004
        return Typed("unreadable", parts)
    module, name, value, *_ = parts
    if module == "builtins" and code == EXT_CONSTRUCTOR_POS_ARGS:
        return _builtin(name, value)
    return Typed(f"{module}.{name}", value)


def _builtin(name: str, args: Any) -> Any:
    """What our lossless serializer packs as a call: see `serde`."""
    match name, args:
        case "str", [bytes(data), *_]:
            return data.decode("utf-8", "surrogatepass")
        case "dict", [list(items)]:
            return {_key(key): value for key, value in items}
        case "tuple", [list(items)]:
            return tuple(items)
    return Typed(f"builtins.{name}", args)


def _key(key: Any) -> Any:
    return tuple(map(_key, key)) if isinstance(key, list) else key


def _revived(value: dict[str, Any]) -> Any:
    """What an object of LangGraph's old JSON encoding, or LangChain's, stands for."""
    path = value.get("id")
    if "lc" in value and value.get("type") == "constructor" and isinstance(path, list):
        return Typed(".".join(map(str, path)), value.get("kwargs") or value.get("args"))
    return value


def as_json(value: Any) -> Any:
    """A value as JSON: as docs/cli.md says, nothing is lost, and what has a class says so."""
    value = loaded(value)
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: as_json(item) for key, item in value.items()}
        return {"type": "dict", "items": [[as_json(k), as_json(v)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, Typed):
        role = value.role
        name, key = (value.name, "value") if role is None else (role, "data")
        return {"type": name, key: as_json(value.value)}
    if isinstance(value, bytes):
        return {"type": "bytes", "base64": base64.b64encode(value).decode()}
    odd = isinstance(value, float) and not math.isfinite(value)
    return {"type": "float", "value": str(value)} if odd else value
