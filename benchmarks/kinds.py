"""The kinds of threads that a soak works on: graphs, and what each turn gives them."""

import runpy
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.outputs import ChatResult
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph.state import CompiledStateGraph
from workloads import MESSAGES_PER_TURN, TalkativeModel, agent, prose

Graph: TypeAlias = CompiledStateGraph[Any, Any, Any, Any]
Think: TypeAlias = Callable[[], Awaitable[None]]

SCRIPTED: Final = runpy.run_path(
    str(Path(__file__).resolve().parent.parent / "tests" / "scripted.py")
)
"""The graphs that the tests play."""

PlannedError: Final[type[Exception]] = SCRIPTED["PlannedError"]


class ThinkingModel(TalkativeModel):
    """Says the same, but takes its time."""

    think: Think

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **options: Any,
    ) -> ChatResult:
        del run_manager
        await self.think()
        return self._generate(messages, stop, **options)


@dataclass(frozen=True, slots=True)
class Kind:
    """What threads of one kind do.

    Attributes:
        name: The kind.
        build: Makes the graph, from its saver and what lets a model think.
        give: The input of a turn, from a text and the turn's number, which starts at 0.
        life: Turns after which a thread of the kind is deleted and begun anew.
        breaks: Whether each even turn fails, as planned.
        grown: The messages that there are after so many turns, where that is known.
    """

    name: str
    build: Callable[[BaseCheckpointSaver[Any], Think], Graph]
    give: Callable[[str, int], Any]
    life: int = 8
    breaks: bool = False
    grown: int | None = None


def _scripted(name: str) -> Callable[[BaseCheckpointSaver[Any], Think], Graph]:
    def build(saver: BaseCheckpointSaver[Any], _: Think) -> Graph:
        graph: Graph = SCRIPTED[name](saver)
        return graph

    return build


def _talking(saver: BaseCheckpointSaver[Any], think: Think) -> Graph:
    return agent(saver, ThinkingModel(think=think))


def _talk(text: str, _: int) -> Any:
    return {"messages": [HumanMessage(prose(text))]}


def _ask_or_approve(text: str, turn: int) -> Any:
    """A question; then the approval of the tool calls that it leads to, of two where it is odd."""
    if turn % 2 == 0:
        return SCRIPTED["asks"](prose(text))
    return SCRIPTED["EDIT"] if turn % 4 == 1 else SCRIPTED["APPROVE"]


def _ask_or_answer(text: str, turn: int) -> Any:
    return {"items": [text]} if turn % 2 == 0 else SCRIPTED["answers"](text)


def _count(text: str, _: int) -> Any:
    return {"items": [prose(text)], "rare": [text], "left": 2}


def _begin_or_go_on(text: str, turn: int) -> Any:
    return {"items": [prose(text)]} if turn % 2 == 0 else None


def _spread(text: str, _: int) -> Any:
    return {"items": [f"{text}, {item}" for item in range(3)]}


TALK: Final = Kind("agent", _talking, _talk, grown=MESSAGES_PER_TURN)
KINDS: Final[Sequence[Kind]] = (
    TALK,
    Kind("agent that asks", _scripted("approved_agent"), _ask_or_approve),
    TALK,
    Kind("subgraph", _scripted("nested"), _ask_or_answer),
    TALK,
    Kind("subgraph with memory", _scripted("nested_with_memory"), _ask_or_answer),
    TALK,
    Kind("delta channels", _scripted("delta"), _count),
    TALK,
    Kind("failing node", _scripted("parallel"), _begin_or_go_on, breaks=True),
    TALK,
    # All tasks of all turns so far are sent anew in each, so that it must not live long.
    Kind("many tasks", _scripted("fan_out"), _spread, life=2),
)
"""Threads take them in turn: every other one is a plain agent."""
