"""Objects within objects come back however deep they are, and never overrun the stack."""

import threading
from dataclasses import dataclass
from typing import Any

import pytest
from hostile import deep_objects
from langgraph.checkpoint.serde import jsonplus

from checkpointer import nesting
from checkpointer.nesting import LEVELS_A_THREAD, SHALLOW
from checkpointer.serde import LosslessSerializer

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
def test_deep_objects_come_back(value: Any) -> None:
    serde = LosslessSerializer(allowed_msgpack_modules=[("test_nesting", "Node")])
    threads = threading.active_count()
    dumped = serde.dumps_typed(value)
    assert serde.dumps_typed(serde.loads_typed(dumped)) == dumped
    assert threading.active_count() == threads


@pytest.mark.parametrize("code", sorted(EXTENSIONS.values()), ids=sorted(EXTENSIONS))
def test_objects_too_deep_are_refused_each_time(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many levels that the process would end, if they stood on one stack."""
    monkeypatch.setattr(nesting, "MAX_LEVELS", 80)
    serde = LosslessSerializer()
    packed = "msgpack", deep_objects(100, code)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"nested in more than 80 levels|ext_hook failed"):
            serde.loads_typed(packed)
    assert serde.loads_typed(serde.dumps_typed([1])) == [1]


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
