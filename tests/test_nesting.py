"""Objects within objects come back however deep they are, and never overrun the stack."""

import threading
from dataclasses import dataclass
from typing import Any

import ormsgpack
import pytest
from hostile import deep_objects
from langgraph.checkpoint.serde import jsonplus

from checkpointer import nesting
from checkpointer.nesting import LEVELS_A_THREAD, SHALLOW
from checkpointer.serde import LosslessSerializer, StrictSerializer

pytestmark = pytest.mark.usefixtures("way")

EXTENSIONS = {name: code for name, code in vars(jsonplus).items() if name.startswith("EXT_")}
"""LangGraph's extension types, all of which hold objects."""


@dataclass
class Node:
    text: str
    below: Any


def nodes(levels: int, lists: int = 0, text: str = "") -> Any:
    """Nodes within nodes, with so many lists round each."""
    value: Any = None
    for level in range(levels):
        value = Node(f"{level}{text}", value)
        for _ in range(lists):
            value = [value]
    return value


LONG = "x" * SHALLOW

DEEP = {
    "many short ones": nodes(150),
    "fewer than go to a thread": nodes(LEVELS_A_THREAD - 1, text=LONG),
    "as many as go to a thread": nodes(LEVELS_A_THREAD, text=LONG),
    "many long ones": nodes(150, text=LONG),
    "in many lists": nodes(150, 100),
    "side by side": [nodes(20, text=LONG), nodes(20, text=LONG)],
}


@pytest.mark.parametrize("value", DEEP.values(), ids=DEEP)
def test_deep_objects_come_back(value: Any, way: str) -> None:
    serde = LosslessSerializer(allowed_msgpack_modules=[("test_nesting", "Node")])
    threads = threading.active_count()
    dumped = serde.dumps_typed(value)
    if way == "public" and value is DEEP["in many lists"]:  # too many for one stack
        with pytest.raises(ValueError, match="150 levels of up to 103 lists and dicts"):
            serde.loads_typed(dumped)
    else:
        assert serde.dumps_typed(serde.loads_typed(dumped)) == dumped
    assert threading.active_count() == threads


@pytest.mark.parametrize("code", EXTENSIONS.values(), ids=EXTENSIONS)
def test_objects_too_deep_are_refused_each_time(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many levels that the process would end, if they stood on one stack.

    Some of LangGraph's extensions answer an error within them with nothing, others with an error.
    """
    serde = LosslessSerializer()
    deep = deep_objects(100, code)
    outer = ormsgpack.packb(ormsgpack.Ext(jsonplus.EXT_CONSTRUCTOR_SINGLE_ARG, deep))
    for levels in (80, 81):
        monkeypatch.setattr(nesting, "MAX_LEVELS", levels)
        with pytest.raises(ValueError, match=rf"nested in more than {levels} levels"):
            serde.loads_typed(("msgpack", outer))
        assert serde.loads_typed(serde.dumps_typed([1])) == [1]


def test_what_does_not_fit_on_one_stack_is_refused_in_the_public_way(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fewer levels than in truth: how many fit into Python's limit depends on what traces it.
    monkeypatch.setattr(nesting, "MAX_ON_ONE_STACK", (40, nesting.MAX_ON_ONE_STACK[1]))
    nested = ormsgpack.packb(None)
    for _ in range(nesting.MAX_ON_ONE_STACK[0] + 1):
        nested = ormsgpack.packb(ormsgpack.Ext(jsonplus.EXT_DELTA_SNAPSHOT, nested))
    serde = LosslessSerializer()
    for packed in (deep_objects(10, jsonplus.EXT_DELTA_SNAPSHOT), nested):
        if way == "private":
            assert serde.loads_typed(("msgpack", packed)) is not None
        else:
            with pytest.raises(ValueError, match=r"levels of up to .* lists and dicts, expected"):
                serde.loads_typed(("msgpack", packed))


def test_a_strict_serializer_refuses_objects_too_deep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nesting, "MAX_LEVELS", 80)
    with pytest.raises(ValueError, match="nested in more than 80 levels"):
        StrictSerializer().loads_typed(("msgpack", deep_objects(100)))


def test_where_no_thread_can_be_started_nothing_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serde = LosslessSerializer(allowed_msgpack_modules=[("test_nesting", "Node")])
    dumped = serde.dumps_typed(nodes(LEVELS_A_THREAD, text=LONG))

    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(ValueError, match="levels"):
            serde.loads_typed(dumped)
    assert serde.dumps_typed(serde.loads_typed(dumped)) == dumped
