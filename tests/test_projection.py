import json
import math
import sys
from collections import OrderedDict
from datetime import UTC, datetime
from enum import Enum
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from metadata_values import Color, Level, Old, exact_types, floats, strange

from checkpointer.errors import InvalidFilterError
from checkpointer.projection import (
    ESCAPE,
    MAX_DEPTH,
    MAX_DIGITS,
    MAX_STRING,
    contains,
    contains_json,
    project,
    project_filter,
)


class Half(float, Enum):
    HALF = 0.5


class Point(NamedTuple):
    x: int
    y: int


class Shouting(str):
    """A subclass whose own text says something else."""

    __slots__ = ()

    def __str__(self) -> str:
        return self.upper()


def nested(levels: int) -> dict[str, Any]:
    """An object of so many levels, lists and objects in turn."""
    value: Any = "bottom"
    for level in range(levels - 1):
        value = [value] if level % 2 else {"in": value}
    return {"a": value}


CYCLE: list[Any] = ["before"]
CYCLE.append(CYCLE)

SAME = [
    None,
    True,
    False,
    0,
    -1,
    2**63,
    -(2**64),
    10**MAX_DIGITS - 1,
    1.5,
    -0.0,
    1e308,
    sys.float_info.max,
    5e-324,
    0.1 + 0.2,
    "",
    "text",
    "ÄÖ 漢字 😀",
    "\x01\t\n\\\"'\x7f\u2028\ufffe\uffff",
    "\ue001",
    "x" * MAX_STRING,
    [],
    {},
    [None, [True, [1, {}]]],
    {"a": {"b": {"": [None]}}},
]

CHANGED = [
    ("a\0b", "a\ue0000000b"),
    ("\ud800", "\ue000d800"),
    ("\udfffx", "\ue000dfffx"),
    ("\ud83d\ude00", "\ue000d83d\ue000de00"),  # not the emoji that its JSON escapes would spell
    ("\ue000", "\ue000e000"),
    ("\ue000nan", "\ue000e000nan"),
    (math.nan, "\ue000nan"),
    (-math.nan, "\ue000nan"),
    (math.inf, "\ue000inf"),
    (-math.inf, "\ue000-inf"),
    (Color.RED, "red"),
    (Old.RED, "red"),
    (Level.HIGH, 3),
    (Half.HALF, 0.5),
    (Shouting("quiet"), "quiet"),
    ((1, (2,)), [1, [2]]),
    (Point(1, 2), [1, 2]),
    (OrderedDict(b=1), {"b": 1}),
    (MappingProxyType({"b": 1}), {"b": 1}),
    ({Color.RED: 1, Shouting("key"): 2}, {"red": 1, "key": 2}),
    ({"\0": "\0"}, {"\ue0000000": "\ue0000000"}),
    ({1: "a", 2.5: "b", None: "c"}, {"1": "a", "2.5": "b", "null": "c"}),
    ({False: 0, math.nan: 1, -math.inf: 2}, {"false": 0, "NaN": 1, "-Infinity": 2}),
    ({Level.HIGH: 1, Half.HALF: 2}, {"3": 1, "0.5": 2}),
]

UNFIT = [
    b"bytes",
    bytearray(),
    datetime(2026, 1, 1, tzinfo=UTC),
    {1, 2},
    1j,
    object(),
    ValueError("x"),
    10**MAX_DIGITS,
    -(10**MAX_DIGITS),
    10**5000,
    iter([]),
    CYCLE,
]


def same(one: object, other: object) -> bool:
    """Equal, and of the same JSON types at every depth."""
    return json.dumps(one, allow_nan=False) == json.dumps(other, allow_nan=False)


@pytest.mark.parametrize("value", SAME, ids=lambda value: repr(value)[:20])
def test_json_is_its_own_projection(value: object) -> None:
    metadata = {"key": value, "list": [value]}
    assert same(project(metadata), metadata)
    assert same(project_filter(metadata), metadata)


@pytest.mark.parametrize(("value", "expected"), CHANGED, ids=lambda value: ascii(value)[:20])
def test_values_beyond_json_are_mapped(value: object, expected: object) -> None:
    for mapped in (project({"key": value}), project_filter({"key": value})):
        assert same(mapped, {"key": expected})
        assert exact_types(mapped)


@pytest.mark.parametrize("value", UNFIT, ids=lambda value: type(value).__name__)
def test_values_without_projection_are_left_out(value: object) -> None:
    projected = project({"a": 1, "out": value, "in": {"out": value, "b": [1, value, 2]}})
    in_list = ["before", None] if value is CYCLE else None
    expected: dict[str, Any] = {"a": 1, "in": {"b": [1, in_list, 2]}}
    if value is CYCLE:
        expected = {"a": 1, "out": in_list, "in": {"out": in_list, "b": [1, in_list, 2]}}
    assert same(projected, expected)


@pytest.mark.parametrize("key", [b"k", (1, 2), 10**MAX_DIGITS, object], ids=ascii)
def test_keys_without_projection_are_left_out(key: object) -> None:
    assert project({"a": {key: 1, "b": 2}}) == {"a": {"b": 2}}


def test_the_last_of_equal_keys_counts() -> None:
    assert project({"a": {1: "int", "1": "str"}}) == {"a": {"1": "str"}}


def test_one_object_may_stand_in_many_places() -> None:
    shared = {"b": [1]}
    assert project({"x": shared, "y": [shared, shared]}) == {"x": shared, "y": [shared, shared]}


def test_an_int_keeps_its_projection_under_every_limit_on_digits() -> None:
    metadata = {"a": 10**MAX_DIGITS - 1, "b": 10**MAX_DIGITS}
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(sys.int_info.str_digits_check_threshold)
    try:
        text = json.dumps(project(metadata))
        assert text == '{"a": ' + "9" * MAX_DIGITS + "}"
        assert contains_json(text, text)
    finally:
        sys.set_int_max_str_digits(before)


def test_long_strings_become_digests_that_still_compare() -> None:
    long = "x" * (MAX_STRING + 1)
    projected = project({"a": long, long: "b"})
    assert len(json.dumps(projected)) < 1000
    assert contains(projected, project_filter({"a": long}))
    assert contains(projected, project_filter({long: "b"}))
    assert not contains(projected, project_filter({"a": long + "x"}))
    assert not contains(projected, project_filter({"a": long[:-1]}))
    assert not contains(projected, project_filter({"a": projected["a"]}))
    assert not contains(project({"a": "\ud800" * 70_000}), project_filter({"a": "?" * 70_000}))


def test_levels_beyond_the_limit_are_left_out() -> None:
    assert same(project(nested(MAX_DEPTH)), nested(MAX_DEPTH))
    assert "bottom" not in json.dumps(project(nested(MAX_DEPTH + 1)))
    assert "bottom" not in json.dumps(project(nested(100_000)))


def test_the_deepest_filter_is_compared_from_deep_in_a_call_stack() -> None:
    def descend(frames: int) -> bool:
        if frames:
            return descend(frames - 1)
        text = json.dumps(project_filter(nested(MAX_DEPTH)))
        return contains_json(text, text)

    assert descend(400)


@pytest.mark.parametrize("value", [None, 1, "a", b"{}", [("a", 1)], {"a"}], ids=ascii)
def test_a_filter_that_is_no_mapping_is_refused(value: object) -> None:
    name = type(value).__name__
    with pytest.raises(InvalidFilterError, match=f"^found {name} as the metadata filter, expected"):
        project_filter(value)


@pytest.mark.parametrize("key", [None, 1, b"a", 1.5, True], ids=ascii)
def test_a_filter_key_that_is_no_str_is_refused(key: object) -> None:
    name = type(key).__name__
    with pytest.raises(InvalidFilterError, match=f"^found a key of type {name} .* expected str$"):
        project_filter({key: 1})


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"b": [], "a": b"x"}, 'bytes at filter["a"], expected None, bool, int, float, str, list,'),
        ({"a": [datetime(2026, 1, 1, tzinfo=UTC)]}, 'datetime at filter["a"][0], expected None'),
        ({"a": ({}, {"b\n": [0, {1}]})}, r'set at filter["a"][1]["b\n"][1], expected None'),
        ({"a": {1: object()}}, 'object at filter["a"][1], expected None'),
        ({"a": [{b"k": 1}]}, "a key of type bytes at filter[\"a\"][0][b'k'], expected str, int"),
        ({"a": 10**5000}, 'an int of more than 640 digits at filter["a"], expected one that is'),
        ({"a": CYCLE}, 'a list within itself at filter["a"][1], expected values that end'),
    ],
)
def test_a_filter_is_refused_with_the_place_of_the_fault(wanted: object, found: str) -> None:
    with pytest.raises(InvalidFilterError) as caught:
        project_filter(wanted)
    assert str(caught.value).startswith(f"found {found}")


def test_a_filter_key_that_is_too_long_an_int_is_refused() -> None:
    with pytest.raises(InvalidFilterError, match=r"^found an int of more than 640 digits"):
        project_filter({"a": {10**MAX_DIGITS: 1}})


def test_a_filter_with_too_many_levels_is_refused() -> None:
    with pytest.raises(InvalidFilterError, match=r"^found one more level at .*at most 100 levels"):
        project_filter(nested(MAX_DEPTH + 1))
    with pytest.raises(InvalidFilterError, match=r"^found one more level at "):
        project_filter(nested(100_000))


def unescape(value: str | float) -> str | float:
    """What a projected scalar was before, which shows that no two share a projection."""
    if not isinstance(value, str):
        return value
    if value.startswith(ESCAPE) and value[1:] in {"nan", "inf", "-inf"}:
        return float(value[1:])
    first, *others = value.split(ESCAPE)
    return first + "".join(chr(int(part[:4], 16)) + part[4:] for part in others)


@given(value=st.one_of(st.text(strange), floats))
@example(value="\ud83d\ude00")
@example(value="\ue000nan")
def test_escapes_can_be_undone(value: str | float) -> None:
    projected = project({"a": value, "b": {str(value): 1}})
    back = unescape(projected["a"])
    assert repr(back) == repr(value)
    assert [unescape(key) for key in projected["b"]] == [str(value)]


@given(
    one=st.dictionaries(st.just("a"), st.one_of(st.text(strange, max_size=3), floats), min_size=1),
    other=st.dictionaries(
        st.just("a"), st.one_of(st.text(strange, max_size=3), floats), min_size=1
    ),
)
def test_a_filter_finds_its_own_value_only(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert contains(project(one), project_filter(one))
    both_nan = all(isinstance(d["a"], float) and math.isnan(d["a"]) for d in (one, other))
    assert contains(project(one), project_filter(other)) is (one == other or both_nan)
