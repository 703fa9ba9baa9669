"""The JSON projection of checkpoint metadata: what metadata filters compare, and people read.

A projection always fits PostgreSQL's `jsonb`, and what does not fit is mapped as follows. The
lossless metadata stands in the checkpoint's manifest.

- Strings and keys: NUL, surrogates and U+E000 become U+E000 and four hexadecimal digits. A string
  of more than `MAX_STRING` characters becomes U+E000, `#` and its digest, so that it can still be
  compared.
- Floats: NaN and the infinities become the strings `nan`, `inf` and `-inf` after a U+E000.
- Subclasses of `str`, `int` and `float`, enums among them, become their plain value; tuples become
  lists; keys that are numbers, booleans or None become what `json.dumps` makes of them.
- All else is left out of objects and is null in lists: other types, integers of more than
  `MAX_DIGITS` digits, levels beyond `MAX_DEPTH`, and containers within themselves.

Different strings and floats have different projections, so a filter never finds too much.
"""

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from hashlib import blake2b
from math import isfinite
from typing import Any, Final, cast

from checkpointer.errors import InvalidFilterError

ESCAPE: Final = "\ue000"
"""Of the private use area: no text has it, so that nearly every string is its own projection."""

MAX_STRING: Final = 65_536
"""Characters that are kept. PostgreSQL refuses 256 MB, and a filter needs no more than equality."""

MAX_DIGITS: Final = 640
"""The lowest limit that `sys.set_int_max_str_digits` can set: such an integer always has a text."""

MAX_DEPTH: Final = 100
"""Levels of objects and lists: far from Python's recursion limit, even deep in a call stack."""

_EXPECTED: Final = "None, bool, int, float, str, list, tuple or a mapping"
_TOO_LARGE: Final = 10**MAX_DIGITS
_LEFT_OUT: Final = object()
_UNFIT: Final = re.compile(f"[\0\ud800-\udfff{ESCAPE}]")

# As Decimal, numbers compare by their text's exact value, as PostgreSQL's numeric does.
_decode = json.JSONDecoder(parse_float=Decimal).decode


def project(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object that stands for metadata; never refuses any."""
    return cast("dict[str, Any]", _Projection(strict=False).of(metadata))


def project_filter(wanted: Any) -> dict[str, Any]:
    """The JSON object that a projection has to contain, by `contains`, to pass a metadata filter.

    Raises:
        InvalidFilterError: It is not a mapping with string keys, or something in it has no exact
            projection and so could never be found.
    """
    if not isinstance(wanted, Mapping):
        raise InvalidFilterError(
            f"found {_type(wanted)} as the metadata filter, expected a mapping with str keys"
        )
    for key in wanted:
        if not isinstance(key, str):
            raise InvalidFilterError(
                f"found a key of type {_type(key)} in the metadata filter, expected str"
            )
    return cast("dict[str, Any]", _Projection(strict=True).of(wanted))


def contains(document: Any, pattern: Any) -> bool:
    """PostgreSQL's `document @> pattern`, on two parsed JSON values.

    An object contains an object if it has all its keys, with values that contain its values. A list
    contains a list if each element of that is contained in some element, in any order and number.
    Scalars contain their equals: numbers by value, and no boolean is a number. Only at the top
    level, a list also contains a scalar that is among its elements.

    See https://www.postgresql.org/docs/18/datatype-json.html#JSON-CONTAINMENT.
    """
    if isinstance(document, list) and not isinstance(pattern, dict | list):
        pattern = [pattern]
    return _contains(document, pattern)


def contains_json(document: str, pattern: str) -> bool:
    """PostgreSQL's `document @> pattern`, on two JSON texts. It is an SQL function on SQLite.

    Raises:
        ValueError: One of the texts is not JSON.
    """
    return contains(_decode(document), _decode_pattern(pattern))


class _Projection:
    """One walk over a value.

    Args:
        strict: Refuse what has no exact projection, instead of leaving it out.
    """

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._path: list[object] = []
        self._containers: list[int] = []

    def of(self, value: object) -> Any:
        """The projection of a value, or `_LEFT_OUT`."""
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return _text(value)
        if isinstance(value, int):
            return int.__index__(value) if _has_text(value) else self._refuse_int()
        if isinstance(value, float):
            return float.__float__(value) if isfinite(value) else f"{ESCAPE}{float.__repr__(value)}"
        # A dict first: asking whether something is a Mapping takes longer than all the rest.
        if isinstance(value, (dict, list, tuple)) or isinstance(value, Mapping):  # noqa: SIM101
            return self._container(value)
        return self._refuse(_type(value), _EXPECTED)

    def _container(self, value: Mapping[Any, Any] | list[Any] | tuple[Any, ...]) -> Any:
        if id(value) in self._containers:
            return self._refuse(f"a {_type(value)} within itself", "values that end")
        if len(self._containers) == MAX_DEPTH:
            return self._refuse("one more level", f"at most {MAX_DEPTH} levels")
        self._containers.append(id(value))
        projected = self._array(value) if isinstance(value, (list, tuple)) else self._object(value)
        self._containers.pop()
        return projected

    def _object(self, value: Mapping[Any, Any]) -> dict[str, Any]:
        projected = {}
        for key, item in value.items():
            self._path.append(key)
            name, content = self._key(key), self.of(item)
            if name is not None and content is not _LEFT_OUT:
                projected[name] = content
            self._path.pop()
        return projected

    def _array(self, value: list[Any] | tuple[Any, ...]) -> list[Any]:
        projected = []
        for index, item in enumerate(value):
            self._path.append(index)
            content = self.of(item)
            projected.append(None if content is _LEFT_OUT else content)
            self._path.pop()
        return projected

    def _key(self, key: object) -> str | None:
        if isinstance(key, str):
            return _text(key)
        if isinstance(key, int) and not _has_text(key):
            self._refuse_int()
        elif key is None or isinstance(key, int | float):
            return json.dumps(key)
        else:
            self._refuse(f"a key of type {_type(key)}", "str, int, float, bool or None")
        return None

    def _refuse_int(self) -> object:
        return self._refuse(f"an int of more than {MAX_DIGITS} digits", "one that is shorter")

    def _refuse(self, found: str, expected: str) -> object:
        if self._strict:
            place = "".join(
                f"[{json.dumps(step) if isinstance(step, str) else repr(step)}]"
                for step in self._path
            )
            raise InvalidFilterError(
                f"found {found} at filter{place}, expected {expected}: nothing else can be found "
                f"by a metadata filter"
            )
        return _LEFT_OUT


def _text(value: str) -> str:
    """The projection of a string or key."""
    plain = str.__str__(value)
    if len(plain) > MAX_STRING:
        digest = blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=32)
        return f"{ESCAPE}#{digest.hexdigest()}"
    if plain.isascii() and "\0" not in plain:
        return plain
    return _UNFIT.sub(lambda match: f"{ESCAPE}{ord(match[0]):04x}", plain)


def _has_text(value: int) -> bool:
    return -_TOO_LARGE < value < _TOO_LARGE


def _type(value: object) -> str:
    return type(value).__qualname__


@lru_cache(maxsize=16)
def _decode_pattern(pattern: str) -> Any:
    """Parse a pattern; cached, because one query compares it with many documents."""
    return _decode(pattern)


def _contains(document: Any, pattern: Any) -> bool:
    if isinstance(pattern, dict):
        return isinstance(document, dict) and all(
            key in document and _contains(document[key], item) for key, item in pattern.items()
        )
    if isinstance(pattern, list):
        return isinstance(document, list) and all(
            any(_contains(candidate, item) for candidate in document) for item in pattern
        )
    return _equal(document, pattern)


def _equal(one: Any, other: Any) -> bool:
    """Whether two JSON scalars are equal; objects and lists equal no scalar."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    # The text of a float is decimal: PostgreSQL holds 1e23 equal to 10**23, but Python does not.
    if isinstance(one, float) and isinstance(other, int | Decimal):
        return Decimal(repr(one)) == other
    if isinstance(other, float) and isinstance(one, int | Decimal):
        return Decimal(repr(other)) == one
    return bool(one == other)
