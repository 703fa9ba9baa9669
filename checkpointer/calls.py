"""The calls that loading a dumped value would make, found without making any of them."""

import json
from operator import itemgetter
from typing import Any, Final, TypeAlias

import ormsgpack
from langgraph.checkpoint.serde import jsonplus

from checkpointer import nesting

Name: TypeAlias = tuple[str, ...]
"""Module and class, and the method if one is called. If these are unknown, one description."""

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
"""For each extension type that calls something: how to get the name from its parts."""

_VALUES: Final = {jsonplus.EXT_NUMPY_ARRAY, jsonplus.EXT_DELTA_SNAPSHOT}
"""Extension types that call nothing by name."""


def calls_of(encoding: str, dumped: bytes) -> set[Name]:
    """Return the names of everything that LangGraph's serializer may call to load a value.

    Raises:
        NotImplementedError: The encoding is one in which calls cannot be found.
        ValueError: The bytes are not valid in this encoding, or are nested too deeply.
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
        # If a part is not a string, another call would have to compute it: refuse the type.
        known = name and all(isinstance(part, str) for part in name)
        names.add(name if known else (f"extension type {code}",))

    try:
        ormsgpack.unpackb(packed, ext_hook=hook, option=ormsgpack.OPT_NON_STR_KEYS)
    finally:
        nesting.raise_if_stopped()
    return names


class _Anything:
    """A placeholder for an object in JSON. It is never made, so it may be equal to anything."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True


def _in_json(text: bytes) -> set[Name]:
    names: set[Name] = set()

    def hook(value: dict[str, Any]) -> Any:
        version = value.get("lc")
        if any(isinstance(value.get(key), _Anything) for key in ("lc", "type")):
            names.add(("an object of JSON",))  # what it is would first be computed
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
