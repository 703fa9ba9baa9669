"""LangChain's plain messages, made in fewer steps than their classes take, and to the same objects.

A message's class makes it through four `__init__`, each of which hands all fields on to the next.
For a list of messages that is a third of the time of loading it. Here pydantic's validator, at
which the last of them arrives, is called at once.
"""

import importlib
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

PLAIN: Final[tuple[type[BaseMessage], ...]] = (AIMessage, HumanMessage, SystemMessage, ToolMessage)
"""The classes, none of their subclasses, of what a conversation consists of."""

# `content_blocks` is a parameter only since langchain-core 1, `tool_call_id` a field of one class.
_SAMPLE: Final[dict[str, Any]] = {
    "content": ["x", {"type": "text", "text": "x"}],
    "content_blocks": None,
    "additional_kwargs": {"x": [1]},
    "name": "x",
    "id": "1",
    "tool_call_id": "1",
    "tool_calls": [{"name": "x", "args": {}, "id": "1"}],
    "another": (),
}


def import_module(name: str) -> Any:
    """Return a module, those of the plain messages with `shortened` classes in place of theirs."""
    return _MODULES.get(name) or importlib.import_module(name)


def shortened(cls: type[BaseMessage]) -> Callable[..., BaseMessage]:
    """Return what makes the objects that a class makes, from the same arguments, in fewer steps.

    It has the class's `model_construct` and `construct`, which make an object unchecked. It is the
    class itself where that turns out to do more than is known of the plain messages.
    """

    def make(content: Any = None, content_blocks: Any = None, **fields: Any) -> Any:
        if content_blocks is not None or "self" in fields:  # a class refuses a field named so
            return cls(content, content_blocks, **fields)
        fields["content"] = content
        return cls.__pydantic_validator__.validate_python(fields, self_instance=cls.__new__(cls))

    try:
        vars(make).update(model_construct=cls.model_construct, construct=cls.construct)
        alike = make(**_SAMPLE).__getstate__() == cls(**_SAMPLE).__getstate__()
    except Exception:  # noqa: BLE001 - any sign of another class than the known ones
        alike = False
    return make if alike else cls


_MODULES: Final = {
    cls.__module__: SimpleNamespace(
        **vars(sys.modules[cls.__module__]) | {cls.__name__: shortened(cls)}
    )
    for cls in PLAIN
}
