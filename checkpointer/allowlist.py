"""Which types a strict serializer takes: LangGraph's safe ones, and the caller's."""

import sys
from collections.abc import Container, Iterable, Sequence
from importlib import import_module
from typing import Any, Final, TypeAlias

from checkpointer.calls import Name
from checkpointer.errors import ConfigurationError, SerializationError
from checkpointer.quoting import quoted

AllowedTypes: TypeAlias = Iterable[type | tuple[str, str]]
"""Classes, and pairs of a module's name and a class's name in it."""

_EXPECTED: Final = "expected classes and pairs of module and name, such as ('app.models', 'Order')"


def langgraphs(attribute: str, known: frozenset[Name]) -> frozenset[Name]:
    """Return a list that LangGraph keeps under private names, or what is known of it."""
    try:
        names = getattr(import_module("langgraph.checkpoint.serde._msgpack"), attribute, None)
    except ImportError:
        return known
    parts = {len(name) for name in known}
    like_known = isinstance(names, frozenset) and all(
        isinstance(name, tuple) and {len(name)} == parts and all(isinstance(n, str) for n in name)
        for name in names
    )
    return names if like_known and names else known


KNOWN_TYPES: Final[frozenset[Name]] = frozenset(
    (module, name)
    for module, *names in map(
        str.split,
        """
        builtins set frozenset
        collections deque
        datetime datetime date time timedelta timezone
        decimal Decimal
        ipaddress IPv4Address IPv4Interface IPv4Network IPv6Address IPv6Interface IPv6Network
        langchain_core.documents.base Document
        langchain_core.messages.ai AIMessage AIMessageChunk
        langchain_core.messages.base BaseMessage BaseMessageChunk
        langchain_core.messages.chat ChatMessage ChatMessageChunk
        langchain_core.messages.function FunctionMessage FunctionMessageChunk
        langchain_core.messages.human HumanMessage HumanMessageChunk
        langchain_core.messages.modifier RemoveMessage
        langchain_core.messages.system SystemMessage SystemMessageChunk
        langchain_core.messages.tool ToolMessage ToolMessageChunk
        langgraph.store.base Item GetOp
        langgraph.types Command Interrupt Overwrite PregelTask Send StateSnapshot TimeoutPolicy
        pathlib Path PosixPath WindowsPath
        pathlib._local Path PosixPath WindowsPath
        re compile
        uuid UUID
        zoneinfo ZoneInfo
        """.strip().splitlines(),
    )
    for name in names
)
"""LangGraph's safe types as of langgraph-checkpoint 4.3."""

ESCAPES: Final = frozenset({("builtins", "dict"), ("builtins", "str"), ("builtins", "tuple")})
"""The calls by which surrogates are packed."""

SAFE: Final = ESCAPES | langgraphs("SAFE_MSGPACK_TYPES", KNOWN_TYPES)
"""LangGraph's safe types, and our escapes: these pass every allowlist, and nobody is warned of
them."""

METHODS: Final = langgraphs(
    "SAFE_MSGPACK_METHODS", frozenset({("datetime", "datetime", "fromisoformat")})
)
"""Methods of them that are called to load a value."""

MAX_NAMED: Final = 20
"""Refused types that an error names."""


def refused(names: Iterable[Name], allowed: Container[Name]) -> list[Name]:
    """Return those names that are neither allowed nor safe."""
    return sorted(n for n in names if n not in SAFE and n not in METHODS and n not in allowed)


def raise_refused(refused: Sequence[Name]) -> None:
    """Raise an error that names what is refused, if anything is.

    Raises:
        SerializationError: Something is.
    """
    if refused:
        names = [f"({', '.join(map(quoted, name))})" for name in refused]
        others = f" and {len(names) - MAX_NAMED} others" if len(names) > MAX_NAMED else ""
        raise SerializationError(
            f"found {', '.join(names[:MAX_NAMED])}{others}, expected LangGraph's safe types or "
            f"those of allowed_types; if you trust it, add it: "
            f"create_saver(allowed_types=[...])"
        )


def names_of(allowed_types: AllowedTypes) -> frozenset[tuple[str, str]]:
    """The names by which values of these types are stored: module and class.

    Raises:
        ConfigurationError: One is no class and no pair of names, or a class that cannot be found
            by its name, so that its values could not be loaded.
    """
    if isinstance(allowed_types, str | type) or not isinstance(allowed_types, Iterable):
        raise ConfigurationError(
            f"found allowed_types={allowed_types!r}, {_EXPECTED}, in a list; pass "
            f"allowed_types=[...], and an empty one for LangGraph's safe types alone"
        )
    return frozenset(map(_name_of, allowed_types))


def _name_of(one: Any) -> tuple[str, str]:
    if isinstance(one, type):
        module, name = one.__module__, one.__name__
        if getattr(sys.modules.get(module), name, None) is not one:
            raise ConfigurationError(
                f"found the class {module}.{one.__qualname__} in allowed_types, expected one that "
                f"its module has under the name {name}, by which its values are loaded; move it to "
                f"the top level of {module}"
            )
        return module, name
    if isinstance(one, tuple) and len(one) == 2 and all(isinstance(part, str) for part in one):  # noqa: PLR2004
        return one
    raise ConfigurationError(f"found {one!r} in allowed_types, {_EXPECTED}")
