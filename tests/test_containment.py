import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from metadata_values import anything, exact_types, keys, pairs, parts, values

from checkpointer.projection import contains, contains_json, project, project_filter

# Document, pattern, and what PostgreSQL's documentation says of them, in its order.
DOCUMENTED = [
    ('"foo"', '"foo"', True),
    ("[1, 2, 3]", "[1, 3]", True),
    ("[1, 2, 3]", "[3, 1]", True),
    ("[1, 2, 3]", "[1, 2, 2]", True),
    ('{"product": "PostgreSQL", "version": 9.4, "jsonb": true}', '{"version": 9.4}', True),
    ("[1, 2, [1, 3]]", "[1, 3]", False),
    ("[1, 2, [1, 3]]", "[[1, 3]]", True),
    ('{"foo": {"bar": "baz"}}', '{"bar": "baz"}', False),
    ('{"foo": {"bar": "baz"}}', '{"foo": {}}', True),
    ('["foo", "bar"]', '"bar"', True),
    ('"bar"', '["bar"]', False),
]

EDGES = [
    ("{}", "{}", True),
    ("{}", "[]", False),
    ("[]", "{}", False),
    ("[]", "[]", True),
    ("[[1]]", "1", False),
    ('{"a": [1]}', '{"a": 1}', False),
    ('{"a": 1}', '{"a": [1]}', False),
    ('{"a": null}', '{"a": null}', True),
    ("{}", '{"a": null}', False),
    ("1", "1.0", True),
    ("1", "true", False),
    ("[0, false]", "[false, 0.0]", True),
    ("[0]", "[false]", False),
    ("[true]", "[1]", False),
    ('"1"', "1", False),
    ("null", "false", False),
    ("-0.0", "0", True),
    ("1e23", "1" + "0" * 23, True),
    ("1e308", "1" + "0" * 308, True),
    ("9007199254740993", "9007199254740992.0", False),
    ("5e-324", "0", False),
    ("0.1", "0.1000000000000000055511151231257827", False),
    ("0.30000000000000004", "0.3", False),
    ('[{"a": 1, "b": 2}, {"c": 3}]', '[{"b": 2}, {"a": 1}, {}]', True),
    ('[{"a": 1}, {"b": 2}]', '[{"a": 1, "b": 2}]', False),
    ('[[1, 2], "x"]', '[[2], [], "x"]', True),
]


@pytest.fixture(scope="module")
def postgres(postgres_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


def ask_postgres(postgres: psycopg.Connection, pairs: list[tuple[str, str]]) -> list[bool]:
    """What PostgreSQL answers to `document @> pattern`, for each pair."""
    rows = postgres.execute(
        "SELECT document::jsonb @> pattern::jsonb "
        "FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY AS pairs (document, pattern, place) "
        "ORDER BY place",
        [[document for document, _ in pairs], [pattern for _, pattern in pairs]],
    )
    return [bool(row[0]) for row in rows]


@pytest.mark.parametrize(("document", "pattern", "expected"), DOCUMENTED + EDGES)
def test_containment_is_that_of_postgresql(
    document: str, pattern: str, *, expected: bool, postgres: psycopg.Connection
) -> None:
    assert contains_json(document, pattern) is expected
    assert ask_postgres(postgres, [(document, pattern)]) == [expected]


@pytest.mark.parametrize(("document", "pattern"), [("1", "1.0"), ("1e23", "1" + "0" * 23)])
def test_parsed_numbers_compare_by_value_in_either_order(document: str, pattern: str) -> None:
    one, other = json.loads(document), json.loads(pattern)
    assert contains({"a": one}, {"a": other})
    assert contains({"a": other}, {"a": one})
    assert not contains({"a": one + 2.0**60}, {"a": other})
    assert not contains({"a": other}, {"a": one + 2.0**60})


def test_a_text_that_is_not_json_is_refused() -> None:
    with pytest.raises(ValueError, match="Expecting"):
        contains_json("{", "{}")
    with pytest.raises(ValueError, match="Expecting"):
        contains_json("{}", "{")


@given(batch=st.lists(pairs(), min_size=1, max_size=20))
def test_filters_find_what_postgresql_finds(
    batch: list[tuple[dict[str, Any], dict[str, Any]]], postgres: psycopg.Connection
) -> None:
    projected = [(project(document), project_filter(wanted)) for document, wanted in batch]
    as_text = [(json.dumps(document), json.dumps(wanted)) for document, wanted in projected]
    expected = ask_postgres(postgres, as_text)
    assert [contains(*pair) for pair in projected] == expected
    assert [contains_json(*pair) for pair in as_text] == expected


@st.composite
def plain_pairs(draw: st.DrawFn) -> tuple[Any, Any]:
    document = draw(values)
    return document, draw(st.one_of(values, parts(document)))


@given(batch=st.lists(plain_pairs(), min_size=1, max_size=20))
def test_containment_of_any_json_is_that_of_postgresql(
    batch: list[tuple[Any, Any]], postgres: psycopg.Connection
) -> None:
    projected = [(project({"": one})[""], project({"": other})[""]) for one, other in batch]
    as_text = [(json.dumps(one), json.dumps(other)) for one, other in projected]
    expected = ask_postgres(postgres, as_text)
    assert [contains(*pair) for pair in projected] == expected
    assert [contains_json(*pair) for pair in as_text] == expected


@given(batch=st.lists(st.dictionaries(keys, anything, max_size=4), min_size=1, max_size=20))
def test_postgresql_holds_every_projection_exactly(
    batch: list[dict[str, Any]], postgres: psycopg.Connection
) -> None:
    projected = [project(metadata) for metadata in batch]
    assert all(map(exact_types, projected))
    sent = [json.dumps(document, allow_nan=False) for document in projected]
    rows = postgres.execute("SELECT unnest(%s::text[])::jsonb::text", [sent])
    exactly = json.JSONDecoder(parse_float=Decimal).decode
    assert [exactly(row[0]) for row in rows] == [exactly(text) for text in sent]
