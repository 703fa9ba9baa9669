"""LangGraph's private names: where they are not what is expected, the saver does without them."""

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from langgraph.checkpoint import serde as langgraphs
from langgraph.checkpoint.serde import _msgpack, jsonplus

import checkpointer
from checkpointer import allowlist, lossless, serde

SETS = """frozenset, deque)):
        return ormsgpack.Ext(
            EXT_CONSTRUCTOR_SINGLE_ARG,
            """

RELEASES: dict[str, tuple[str, str]] = {
    "the encoder's hook has another name": ("_msgpack_default", "_default"),
    "the decoder's hook has another name": ("_create_msgpack_ext_hook", "_make_hook"),
    "the options have another name": ("_option", "_options"),
    "the encoder has another name": ("_msgpack_enc", "_encode"),
    "the list of types has another name": ("_lg_msgpack", "_lists"),
    "the allowlist has another name": ("_allowed_msgpack_modules", "_allowed"),
    "the mark of a caller's hook has another name": ("_custom_unpack_ext_hook", "_custom"),
    "the decoder's hook takes other arguments": (
        "def ext_hook(code: int, data: bytes)",
        "def ext_hook(data: bytes, code: int)",
    ),
    "the decoder's hook is no plain function": (
        "def _create_msgpack_ext_hook",
        "from functools import cache\n@cache\ndef _create_msgpack_ext_hook",
    ),
    "sets are packed by another function": (f"{SETS}_msgpack_enc(", f"{SETS}ormsgpack.packb("),
    "an extension is unpacked by another function": (
        "return _DeltaSnapshot(\n                ormsgpack.unpackb(",
        "return _DeltaSnapshot(\n                unpack(",
    ),
    "arrays are unpacked by another function": (
        "dtype_str, shape, order, buf = ormsgpack.unpackb(",
        "dtype_str, shape, order, buf = unpack(",
    ),
    "the attribute is always the same": (
        "self._custom_unpack_ext_hook = __unpack_ext_hook__ is not None",
        "self._custom_unpack_ext_hook = False",
    ),
    "clones keep their allowlist elsewhere": (
        "clone._allowed_msgpack_modules = ",
        "clone._allowed_modules = ",
    ),
    "a module is imported otherwise": ("importlib.import_module", "__import__"),
}
"""What another release of LangGraph might have in place of what is there: text of `jsonplus`."""


def another_release(old: str, new: str) -> ModuleType:
    """`jsonplus` with another text."""
    spec = jsonplus.__spec__
    assert spec is not None
    assert jsonplus.__file__ is not None
    source = Path(jsonplus.__file__).read_text("utf-8")
    assert old in source
    module = importlib.util.module_from_spec(spec)
    text = "from ormsgpack import unpackb as unpack\n"
    source = source.replace("import ormsgpack\n", "import ormsgpack\n" + text).replace(old, new)
    exec(compile(source, jsonplus.__file__, "exec"), vars(module))  # noqa: S102
    return module


@pytest.fixture
def with_jsonplus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it with a module for what `private_way` answers with it in the place of `jsonplus`."""

    def find(module: ModuleType) -> ModuleType | None:
        monkeypatch.setitem(sys.modules, jsonplus.__name__, module)
        monkeypatch.setattr(langgraphs, "jsonplus", module)
        monkeypatch.delitem(sys.modules, lossless.__name__)
        monkeypatch.delattr(checkpointer, "lossless")
        return serde.private_way.__wrapped__()

    return find


def test_the_private_way_is_taken_with_the_release_that_is_installed(
    with_jsonplus: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert with_jsonplus(another_release("# --- msgpack ---", "# another release")) is not None
    assert caplog.records == []


@pytest.mark.parametrize("release", RELEASES)
def test_the_public_way_is_taken_with_another_release(
    with_jsonplus: Any, caplog: pytest.LogCaptureFixture, release: str
) -> None:
    with caplog.at_level(logging.WARNING, "checkpointer"):
        assert with_jsonplus(another_release(*RELEASES[release])) is None
    assert "private names" in caplog.text


@pytest.mark.parametrize("found", [None, frozenset(), {"a"}, frozenset({"a"}), frozenset({("a",)})])
def test_lists_that_are_none_are_replaced_by_those_that_are_known(
    monkeypatch: pytest.MonkeyPatch, found: Any
) -> None:
    monkeypatch.setattr(_msgpack, "SAFE_MSGPACK_TYPES", found)
    known = allowlist.KNOWN_TYPES
    assert allowlist.langgraphs("SAFE_MSGPACK_TYPES", known) is known
    monkeypatch.setitem(sys.modules, _msgpack.__name__, None)
    assert allowlist.langgraphs("SAFE_MSGPACK_TYPES", known) is known


PROGRAM = r"""
import asyncio, importlib.util, sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

name = "langgraph.checkpoint.serde.jsonplus"
spec = importlib.util.find_spec(name)
source = Path(spec.origin).read_text("utf-8")
for old, new in zip(sys.argv[2::2], sys.argv[3::2]):
    assert old in source
    source = source.replace(old, new)
sys.modules[name] = importlib.util.module_from_spec(spec)
exec(compile(source, spec.origin, "exec"), vars(sys.modules[name]))

from langchain_core.messages import HumanMessage
from langgraph.channels import DeltaChannel
from langgraph.graph import START, StateGraph
from checkpointer import SerializationError, create_saver
from checkpointer.serde import private_way

@dataclass
class Point:
    x: int

def joined(value, writes):
    return [*value, *(one for some in writes for one in some)]

class State(TypedDict, total=False):
    texts: Annotated[list, DeltaChannel(joined, snapshot_frequency=2)]
    other: Any

def graph_of(saver, other):
    builder = StateGraph(State)
    builder.add_node("node", lambda state: {"texts": [HumanMessage("x\ud800")], "other": other})
    builder.add_edge(START, "node")
    return builder.compile(checkpointer=saver)

async def main(url):
    assert private_way() is None
    where = {"configurable": {"thread_id": "1"}}
    async with create_saver(url) as saver:
        for _ in range(3):
            await graph_of(saver, {1, 2}).ainvoke({}, where)
    async with create_saver(url, allowed_types=()) as saver:
        values = (await graph_of(saver, None).aget_state(where)).values
        print([message.content for message in values["texts"]], values["other"])
        try:
            await graph_of(saver, Point(1)).ainvoke({}, where, durability="sync")
        except SerializationError as exc:
            print("refused", "'Point'" in str(exc))

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize(
    "releases",
    [list(RELEASES)[:7], ["the attribute is always the same"]],
    ids=["names are gone", "names mean something else"],
)
def test_a_graph_runs_with_another_release(migrated_url: str, releases: list[str]) -> None:
    texts = [part for release in releases for part in RELEASES[release]]
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, migrated_url, *texts],
        env=os.environ | {"LANGGRAPH_STRICT_MSGPACK": ""},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == ["['x?', 'x?', 'x?'] {1, 2}", "refused True"]
