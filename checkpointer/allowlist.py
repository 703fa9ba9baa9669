"""Which types a strict serializer takes, and what one call of it has refused.

LangGraph's decoder answers a type that it refuses with the bare payload, and neither way does
ormsgpack let an error of a hook through. So what is refused is noted while a value is packed or
unpacked, and raised after that, in place of the value.
"""

import sys
from collections.abc import Callable, Container, Iterable
from contextvars import ContextVar
from typing import Any, Final, TypeAlias, TypeVar

from langgraph.checkpoint.serde import _msgpack

from checkpointer.errors import ConfigurationError, SerializationError
from checkpointer.quoting import quoted

A = TypeVar("A")
T = TypeVar("T")

AllowedTypes: TypeAlias = Iterable[type | tuple[str, str]]
"""Classes, and pairs of a module's name and a class's name in it."""

_EXPECTED: Final = "expected classes and pairs of module and name, such as ('app.models', 'Order')"


SAFE: Final = _msgpack.SAFE_MSGPACK_TYPES | {
    ("builtins", "dict"),
    ("builtins", "str"),
    ("builtins", "tuple"),
}
"""LangGraph's safe types, and the calls by which surrogates are packed: these pass every allowlist,
and nobody is warned of them."""

MAX_NAMED: Final = 20
"""Refused types that an error names."""

_RESTORED: Final = SAFE | _msgpack.SAFE_MSGPACK_METHODS


class Watch:
    """Notes what is refused during one call of a serializer.

    Args:
        allowed: The names that are allowed besides the safe ones: module and class.
    """

    def __init__(self, allowed: Container[tuple[str, ...]]) -> None:
        self._allowed = allowed
        self._refused: dict[tuple[str, ...], None] = {}

    def check(self, *name: str) -> bool:
        """Whether a class, or with a third name a method of it, may be called; noted if not."""
        allowed = name in _RESTORED or name in self._allowed
        if not allowed:
            self.refuse(*name)
        return allowed

    def refuse(self, *name: str) -> None:
        """Note that something was refused."""
        self._refused[name] = None

    def raise_refused(self) -> None:
        """Raise what was noted.

        Raises:
            SerializationError: Something was.
        """
        if self._refused:
            names = [f"({', '.join(map(quoted, name))})" for name in self._refused]
            others = f" and {len(names) - MAX_NAMED} others" if len(names) > MAX_NAMED else ""
            raise SerializationError(
                f"found {', '.join(names[:MAX_NAMED])}{others}, expected LangGraph's safe types or "
                f"those of allowed_types; if you trust it, add it: "
                f"create_saver(allowed_types=[...])"
            )


_under_way: Final[ContextVar[Watch | None]] = ContextVar("checkpointer_watch", default=None)


def watch() -> Watch | None:
    """The watch over the call under way, if a strict serializer makes it."""
    return _under_way.get()


def watched(allowed: Container[tuple[str, ...]], function: Callable[[A], T], argument: A) -> T:
    """Call a function; what it returns, unless something was refused meanwhile.

    Raises:
        SerializationError: Something was refused, and is named.
    """
    watch = Watch(allowed)
    token = _under_way.set(watch)
    try:
        done = function(argument)
    finally:
        _under_way.reset(token)
    watch.raise_refused()
    return done


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
