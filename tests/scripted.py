"""A scripted chat model, graphs of every shape that matters to checkpoints, and steps to play.

Nothing here is random and nothing leaves the process: the same steps give the same thread, apart
from the ids and times that LangGraph makes up (see `Normaliser`).
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NotRequired, TypeAlias, TypedDict

from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command, Interrupt, Send, interrupt

Graph: TypeAlias = CompiledStateGraph[Any, Any, Any, Any]
Builder: TypeAlias = Callable[[BaseCheckpointSaver[Any]], Graph]
Durability: TypeAlias = Literal["sync", "async", "exit"]


class PlannedError(Exception):
    """A node fails because its step says so."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing done to a thread.

    Attributes:
        give: What to invoke the graph with; `None` goes on where the thread stopped.
        update: The values of an `update_state`, which is made instead of an invocation.
        as_node: The node in whose name the update is made.
        back: How many checkpoints before the thread's latest the step starts from.
        configurable: Further settings of the run.
    """

    give: Any = None
    update: Any = None
    as_node: str | None = None
    back: int = 0
    configurable: Mapping[str, Any] = field(default_factory=dict)


@tool
def look_up(topic: str) -> str:
    """Look a topic up."""
    return f"{topic}: " + "all that is known about it. " * 20


class ScriptedModel(BaseChatModel):
    """Calls a tool once or twice in each turn, then answers.

    What it says depends on nothing but the messages it is given.
    """

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **options: Any) -> "ScriptedModel":
        """The script knows its tools."""
        del tools, options
        return self

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **options: Any,
    ) -> ChatResult:
        del stop, run_manager, options
        turn = sum(isinstance(message, HumanMessage) for message in messages)
        if isinstance(messages[-1], HumanMessage):
            calls = [
                {"name": "look_up", "args": {"topic": f"topic {turn}-{n}"}, "id": f"{turn}-{n}"}
                for n in range(1 + turn % 2)
            ]
            said = AIMessage(f"Let me look up what turn {turn} asks.", tool_calls=calls)
        else:
            said = AIMessage(f"The answer of turn {turn}: {messages[-1].text}")
        return ChatResult(generations=[ChatGeneration(message=said)])


def agent(saver: BaseCheckpointSaver[Any]) -> Graph:
    """LangChain's agent with one tool."""
    return create_agent(ScriptedModel(), [look_up], checkpointer=saver)


def approved_agent(saver: BaseCheckpointSaver[Any]) -> Graph:
    """The same agent, which asks a human before it calls its tool."""
    approval = HumanInTheLoopMiddleware(interrupt_on={"look_up": True})
    return create_agent(ScriptedModel(), [look_up], middleware=[approval], checkpointer=saver)


class Log(TypedDict):
    """A list that nodes append to."""

    items: Annotated[list[Any], operator.add]


def _append(name: str) -> Any:
    def node(state: Log) -> dict[str, Any]:
        return {"items": [f"{name} after {len(state['items'])}"]}

    return node


def _child() -> StateGraph[Any, Any, Any, Any]:
    """A graph of two nodes, the second of which asks a question."""

    def ask(state: Log) -> dict[str, Any]:
        return {"items": [f"told {interrupt({'seen': len(state['items'])})}"]}

    child = StateGraph(Log)
    child.add_node("prepare", _append("prepare"))
    child.add_node("ask", ask)
    child.add_edge(START, "prepare")
    child.add_edge("prepare", "ask")
    return child


def nested(saver: BaseCheckpointSaver[Any]) -> Graph:
    """A subgraph whose namespace is new with each call."""
    return _nested(saver, _child().compile())


def nested_with_memory(saver: BaseCheckpointSaver[Any]) -> Graph:
    """A subgraph with a namespace of its own that outlives each call."""
    return _nested(saver, _child().compile(checkpointer=True))


def _nested(saver: BaseCheckpointSaver[Any], child: Graph) -> Graph:
    parent = StateGraph(Log)
    parent.add_node("before", _append("before"))
    parent.add_node("child", child)
    parent.add_node("after", _append("after"))
    parent.add_edge(START, "before")
    parent.add_edge("before", "child")
    parent.add_edge("child", "after")
    return parent.compile(checkpointer=saver)


class Task(TypedDict):
    """What one of many tasks is given: an item to work on, or something to ask."""

    item: str
    asks: NotRequired[str]


def fan_out(saver: BaseCheckpointSaver[Any]) -> Graph:
    """As many tasks of one node as there are items, each started by `Send`."""

    def work(state: Task) -> dict[str, Any]:
        if "asks" in state:
            return {"items": [interrupt(state["asks"])]}
        return {"items": [f"worked on {state['item']}"]}

    def spread(state: Log) -> list[Send]:
        asking = {"asks": "how?"} if "ask" in state["items"] else {}
        plain = [Send("work", {"item": item}) for item in state["items"] if item != "ask"]
        return [*plain, Send("work", {"item": "last"} | asking)]

    graph = StateGraph(Log)
    graph.add_node("plan", _append("plan"))
    graph.add_node("work", work)
    graph.add_node("gather", _append("gather"))
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", spread, ["work"])
    graph.add_edge("work", "gather")
    return graph.compile(checkpointer=saver)


def parallel(saver: BaseCheckpointSaver[Any]) -> Graph:
    """Three nodes at once, one of which fails where the run's settings say `broken`."""

    # Coroutines that never wait run in the order of their nodes' names, so the two others have
    # always ended when the last one fails.
    async def fragile(state: Log, config: RunnableConfig) -> dict[str, Any]:
        if config.get("configurable", {}).get("broken"):
            raise PlannedError("broken")
        return {"items": [f"fragile after {len(state['items'])}"]}

    async def steady(state: Log) -> dict[str, Any]:
        return {"items": [f"steady after {len(state['items'])}"]}

    graph = StateGraph(Log)
    started: dict[str, Any] = {"first": steady, "second": steady, "third": fragile}
    for name, node in started.items():
        graph.add_node(name, node)
        graph.add_edge(START, name)
    graph.add_node("join", _append("join"))
    graph.add_edge(list(started), "join")
    return graph.compile(checkpointer=saver)


def _extend(state: list[Any], writes: Sequence[list[Any]]) -> list[Any]:
    return [*state, *(item for write in writes for item in write)]


class DeltaLog(TypedDict):
    """Lists of which checkpoints hold the difference only, and one number that they hold whole."""

    items: Annotated[list[Any], DeltaChannel(_extend, snapshot_frequency=3)]
    rare: Annotated[list[Any], DeltaChannel(_extend, snapshot_frequency=1000)]
    left: int


def delta(saver: BaseCheckpointSaver[Any]) -> Graph:
    """A loop of two parallel nodes over delta channels, as many rounds as `left` says."""

    def count(state: DeltaLog) -> dict[str, Any]:
        left = state["left"] - 1
        rare = [f"rare at {left}"] if left % 4 == 0 else []
        return {"items": [f"count {left} " + "x" * 50], "left": left} | (
            {"rare": rare} if rare else {}
        )

    def echo(state: DeltaLog) -> dict[str, Any]:
        return {"items": [f"echo after {len(state['items'])}"]}

    def check(state: DeltaLog) -> dict[str, Any]:
        del state
        return {}

    def again(state: DeltaLog) -> list[str]:
        return ["count", "echo"] if state["left"] > 0 else [END]

    graph = StateGraph(DeltaLog)
    graph.add_node("count", count)
    graph.add_node("echo", echo)
    graph.add_node("check", check)
    graph.add_edge(START, "check")
    graph.add_conditional_edges("check", again, ["count", "echo", END])
    # No barrier edge from both: LangGraph changes a barrier's value in place, so in a loop with
    # durability="async" every saver that does I/O stores what the next superstep made of it.
    graph.add_edge("count", "check")
    graph.add_edge("echo", "check")
    return graph.compile(checkpointer=saver)


def asks(*texts: str) -> dict[str, Any]:
    """Input of the agents: what the human says."""
    return {"messages": [HumanMessage(text) for text in texts]}


def answers(value: Any) -> Command[Any]:
    """Input that answers an interrupt."""
    return Command(resume=value)


APPROVE = answers({"decisions": [{"type": "approve"}]})
EDIT = answers(
    {
        "decisions": [
            {"type": "reject", "message": "no"},
            {"type": "edit", "edited_action": {"name": "look_up", "args": {"topic": "another"}}},
        ]
    }
)


class Normaliser:
    """Makes what two runs of the same steps left equal, where only made-up ids and times differ.

    Each id is replaced by its number in the order of appearance: values must be given to both
    normalisers in the same order.
    """

    _MADE_UP = re.compile(
        # a UUID, a digest that LangGraph makes of one, or the random part of a channel's version
        r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|\b[0-9a-f]{32}\b|(?<=^\d{32}\.)[\d.e-]+"
    )
    _TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+\+00:00$")

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __call__(self, value: Any) -> Any:
        """`value`, with containers, messages and named tuples taken apart."""
        if isinstance(value, str):
            return self._MADE_UP.sub(self._number, self._TIME.sub("(a time)", value))
        if isinstance(value, int | float | bytes | None):
            return value
        if isinstance(value, list | tuple) and not hasattr(value, "_asdict"):
            return [self(item) for item in value]
        parts = self._parts(value)
        return repr(value) if parts is None else self._sorted(parts)

    def _sorted(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        ordered = sorted(parts.items(), key=lambda item: self._MADE_UP.sub("", str(item[0])))
        return {self(key): self(item) for key, item in ordered}

    @staticmethod
    def _parts(value: Any) -> Mapping[str, Any] | None:
        if isinstance(value, Mapping):
            return value
        if isinstance(value, BaseMessage):
            return value.model_dump()
        if isinstance(value, Interrupt | Send):
            return {
                "": type(value).__name__,
                **{name: getattr(value, name) for name in value.__slots__},
            }
        if hasattr(value, "_asdict"):
            return {"": type(value).__name__, **value._asdict()}
        return None

    def _number(self, match: re.Match[str]) -> str:
        return f"({self._numbers.setdefault(match[0], len(self._numbers))})"
