"""docs/guarantees.md names tests that are there."""

import ast
import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent
NAMED = re.findall(
    r"`(tests/\w+\.py)(?:::(\w+))?`", (CHECKOUT / "docs" / "guarantees.md").read_text("utf-8")
)


def test_the_page_names_tests() -> None:
    assert len(NAMED) > 30


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_named_test_is_there(file: str, name: str) -> None:
    tree = ast.parse((CHECKOUT / file).read_text("utf-8"))
    functions = [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert name in functions if name else any(one.startswith("test_") for one in functions)
