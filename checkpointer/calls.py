"""The calls that dumped values ask for, found without one being made."""

import json
from operator import itemgetter
from typing import Any, Final, TypeAlias

import ormsgpack
from langgraph.checkpoint.serde import jsonplus

from checkpointer import nesting

Name: TypeAlias = tuple[str, ...]
"""Module and class, and for a call of a method its name. What has no such name has one part."""

_NAMES: Final = dict.fromkeys(
    (
        jsonplus.EXT_CONSTRUCTOR_SINGLE_ARG,
        jsonplus.EXT_CONSTRUCTOR_POS_ARGS,
        jsonplus.EXT_CONSTRUCTOR_KW_ARGS,
        jsonplus.EXT_PYDANTIC_V1,
        jsonplus.EXT_PYDANTIC_V2,
    ),
    itemgetter(0, 1),
) | {jsonplus.EXT_METHOD_SINGLE_ARG: itemgetter(0, 1, 3)}
"""Where an extension names what it calls."""

_VALUES: Final = {jsonplus.EXT_NUMPY_ARRAY, jsonplus.EXT_DELTA_SNAPSHOT}
"""What calls nothing by name."""


def calls_of(encoding: str, dumped: bytes) -> set[Name]:
    """Return the names of all that a serializer of LangGraph's may call to load a value.

    Raises:
        NotImplementedError: It is of an encoding in which calls cannot be found.
        ValueError: The bytes are not of their encoding, or nested too deeply.
    """
    match encoding:
        case "null" | "bytes" | "bytearray":
            return set()
        case "msgpack":
            return _in_msgpack(dumped)
        case "json":
            return _in_json(dumped)
    raise NotImplementedError(f"Unknown serialization type: {encoding}")


def _in_msgpack(packed: bytes) -> set[Name]:
    names: set[Name] = set()

    def hook(code: int, data: bytes) -> None:
        parts = nesting.unpackb(data, ext_hook=hook, option=ormsgpack.OPT_NON_STR_KEYS)
        if code in _VALUES:
            return
        try:
            name = _NAMES[code](parts)
            if name in names:
                return
        except (LookupError, TypeError):
            name = ()
        # A name that would first be computed is none.
        known = name and all(isinstance(part, str) for part in name)
        names.add(name if known else (f"extension type {code}",))

    try:
        ormsgpack.unpackb(packed, ext_hook=hook, option=ormsgpack.OPT_NON_STR_KEYS)
    finally:
        nesting.raise_if_stopped()
    return names


class _Anything:
    """What an object of JSON becomes: as long as it is not made, it may be equal to anything."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True


def _in_json(text: bytes) -> set[Name]:
    names: set[Name] = set()

    def hook(value: dict[str, Any]) -> Any:
        version = value.get("lc")
        if version not in (1, 2):
            return value
        if value.get("type") == "constructor":
            names.add(_name_of_path(value.get("id"), old=version == 1))
        return _Anything()

    json.loads(text, object_hook=hook)
    return names


def _name_of_path(path: Any, *, old: bool) -> Name:
    if not isinstance(path, list) or not all(isinstance(part, str) for part in path):
        return ("an object of JSON",)
    # Old names of LangChain's classes; without the mapping they are refused as they are.
    mappings = getattr(getattr(jsonplus, "LC_REVIVER", None), "import_mappings", {})
    *module, name = (mappings.get(tuple(path), path) if old else path) or [""]
    return ".".join(module), name
