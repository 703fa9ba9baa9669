"""Private names of other packages: each stands in the list of docs/design.md, and no other does."""

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
MODULES: Final = sorted((*ROOT.glob("checkpointer/**/*.py"), *ROOT.glob("migrations/**/*.py")))

HEADING: Final = "\n### Private names of other packages\n"

NAMED_TUPLES: Final = {"_asdict", "_fields", "_make", "_replace"}
"""Public, with an underscore because of the fields' names."""


def is_private(name: str) -> bool:
    """Whether a name is private, or of pydantic's own that only look as if all classes had them."""
    return bool(re.match(r"_[^_]|__pydantic_", name))


def attributes(tree: ast.AST) -> Iterator[str]:
    """The names of attributes, those of our own objects among them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr


def names_asked_for(tree: ast.AST) -> Iterator[str]:
    """The names that code imports, or asks for by text: these are of others."""
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=module, names=imported) if module:
                yield from module.split(".")
                if not module.startswith("checkpointer"):
                    yield from (one.name for one in imported)
            case ast.Import(names=imported):
                yield from (part for one in imported for part in one.name.split("."))
            case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=str(name)), *_]):
                yield name
            case ast.Call(args=[*_, ast.Constant(value=str(name))]) if "." in name:
                yield from (part for part in name.split(".") if part.isidentifier())


def names_defined(tree: ast.AST) -> Iterator[str]:
    """The private names that code gives to what is its own."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.ClassDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name


def used_of_others(trees: Sequence[ast.AST]) -> set[str]:
    """The private names of other packages that code uses."""
    own = {name for tree in trees for name in names_defined(tree)} | NAMED_TUPLES
    used = {name for tree in trees for name in attributes(tree)} - own
    asked = {name for tree in trees for name in names_asked_for(tree)}
    return {name for name in used | asked if is_private(name)}


def listed() -> set[str]:
    section = (ROOT / "docs" / "design.md").read_text().partition(HEADING)[2]
    rows = re.findall(r"^\| [^|]+\|([^|]+)\|", section.partition("\n### ")[0], re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(?:\w+\.)*(_\w+)", row)}


def test_the_list_is_complete_and_holds_no_other() -> None:
    assert used_of_others([ast.parse(path.read_text()) for path in MODULES]) == listed()


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("pool._invalidate(None)", {"_invalidate"}),
        ("from sqlalchemy.pool.base import _ConnectionFairy", {"_ConnectionFairy"}),
        ("from langgraph.checkpoint.serde import _msgpack", {"_msgpack"}),
        ("import langgraph._internal", {"_internal"}),
        ("getattr(pool, '_max_overflow', None)", {"_max_overflow"}),
        ("import_module('langgraph.checkpoint.serde._msgpack')", {"_msgpack"}),
        ("cls.__pydantic_validator__", {"__pydantic_validator__"}),
        ("self._one = 1\nother._one", set[str]()),
        ("self._one = 1\ngetattr(other, '_one')", {"_one"}),
        ("cls.__init__\ncls.name\nfrom checkpointer.x import _y", set[str]()),
    ],
)
def test_such_a_name_is_found(code: str, found: set[str]) -> None:
    assert used_of_others([ast.parse(code)]) == found
