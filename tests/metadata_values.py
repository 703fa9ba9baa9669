"""Values that a checkpoint's metadata can hold, for the tests of projections and filters."""

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum, IntEnum, StrEnum
from typing import Any

from hypothesis import strategies as st

from checkpointer.projection import MAX_DIGITS


class Color(StrEnum):
    RED = "red"


class Old(str, Enum):  # noqa: UP042 - its str() is not its value
    RED = "red"


class Level(IntEnum):
    HIGH = 3


def exact_types(value: Any) -> bool:
    if isinstance(value, dict):
        keys = all(type(key) is str for key in value)
        return type(value) is dict and keys and all(map(exact_types, value.values()))
    if isinstance(value, list):
        return type(value) is list and all(map(exact_types, value))
    return type(value) in {type(None), bool, int, float, str}


strange = st.one_of(st.characters(), st.sampled_from("\0\ud800\udbff\udc00\udfff\ue000#0anif-"))
texts = st.text(strange, max_size=6)
keys = st.one_of(st.sampled_from(["a", "b", "\0", "\ue000", ""]), texts)
floats = st.one_of(st.floats(), st.sampled_from([0.0, -0.0, 1.0, 1e23, 1e308, 5e-324]))
integers = st.one_of(
    st.integers(-2, 2),
    st.integers(),
    st.sampled_from([10**23, 2**53 + 1, 10**308, 10**MAX_DIGITS - 1]),
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    integers,
    floats,
    texts,
    st.sampled_from([Color.RED, Old.RED, Level.HIGH]),
)


def grow(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(children, max_size=4),
        st.tuples(children, children),
        st.dictionaries(st.one_of(keys, st.integers(0, 2), st.none()), children, max_size=4),
    )


values = st.recursive(scalars, grow, max_leaves=12)
unfit = st.sampled_from([b"x", datetime(2026, 1, 1, tzinfo=UTC), {1}, 10**MAX_DIGITS, object()])
anything = st.recursive(st.one_of(scalars, unfit), grow, max_leaves=12)


@st.composite
def parts(draw: st.DrawFn, value: Any) -> Any:
    """Something that the value contains, or nearly so."""
    if draw(st.integers(0, 19)) == 0:
        return draw(values)
    if isinstance(value, Mapping):
        chosen = draw(st.lists(st.sampled_from(list(value)), max_size=3)) if value else []
        return {key: draw(parts(value[key])) for key in chosen}
    if isinstance(value, list | tuple):
        chosen = draw(st.lists(st.sampled_from(value), max_size=3)) if value else []
        return [draw(parts(item)) for item in chosen]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1000:
        return draw(st.sampled_from([value, float(value)]))
    return value


@st.composite
def pairs(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata, and a filter that often finds it."""
    document = draw(st.dictionaries(keys, values, max_size=4))
    if not document or draw(st.booleans()):
        return document, draw(st.dictionaries(keys, values, max_size=2))
    chosen = draw(st.lists(st.sampled_from(list(document)), max_size=3))
    return document, {key: draw(parts(document[key])) for key in chosen}
