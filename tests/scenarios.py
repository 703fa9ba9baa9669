"""Things done to threads of real graphs, and all that they leave behind, to be compared."""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.types import StateSnapshot
from scripted import (
    APPROVE,
    EDIT,
    Builder,
    Durability,
    Graph,
    Normaliser,
    PlannedError,
    Step,
    agent,
    answers,
    approved_agent,
    asks,
    delta,
    fan_out,
    nested,
    nested_with_memory,
    parallel,
)

THREAD: RunnableConfig = {"configurable": {"thread_id": "a thread"}}


@dataclass(frozen=True)
class Scenario:
    """A graph, and what is done to one thread of it."""

    builder: Builder
    steps: Sequence[Step]


SCENARIOS = {
    "conversation": Scenario(agent, [Step(give=asks(f"question {n}")) for n in range(6)]),
    "approval": Scenario(
        approved_agent,
        [
            Step(give=asks("first")),
            Step(give=EDIT),
            Step(give=asks("second")),
            Step(give=APPROVE),
        ],
    ),
    "subgraph": Scenario(
        nested,
        [
            Step(give={"items": ["one"]}),
            Step(give=answers("this")),
            Step(give={"items": ["two"]}),
            Step(update={"items": ["meanwhile"]}, as_node="before"),
            Step(),
            Step(give=answers("that")),
        ],
    ),
    "subgraph with memory": Scenario(
        nested_with_memory,
        [
            Step(give={"items": ["one"]}),
            Step(give=answers("this")),
            Step(give={"items": ["two"]}),
            Step(give=answers("that")),
        ],
    ),
    "fan-out": Scenario(
        fan_out,
        [
            Step(give={"items": [*"abcdefgh"]}),
            Step(give={"items": ["ask"]}),
            Step(give=answers("thus")),
        ],
    ),
    "failure": Scenario(
        parallel,
        [
            Step(give={"items": ["one"]}, configurable={"broken": True, "user": "someone"}),
            Step(configurable={"broken": True}),
            Step(),
            Step(give={"items": ["two"]}),
        ],
    ),
    "time travel": Scenario(
        agent,
        [
            Step(give=asks("one")),
            Step(give=asks("two")),
            Step(back=3),
            Step(update=asks("instead"), as_node="__start__", back=6),
            Step(),
            Step(give=asks("three"), back=4),
            Step(update=None, as_node="__copy__", back=2),
            Step(update=asks("four"), as_node="model"),
        ],
    ),
    "delta": Scenario(
        delta,
        [
            Step(give={"items": ["start"], "left": 7}),
            Step(give={"items": ["more"], "left": 3}),
            Step(update={"items": ["by hand"]}, as_node="check"),
            Step(give={"rare": ["seldom"], "left": 1}),
        ],
    ),
    "delta time travel": Scenario(
        delta,
        [
            Step(give={"items": ["start"], "left": 5}),
            Step(back=4),
            Step(update={"items": ["by hand"], "left": 2}, as_node="check", back=7),
            Step(),
            Step(update=None, as_node="__copy__", back=3),
            Step(give={"items": ["more"], "left": 2}, back=6),
        ],
    ),
}


def nth(history: Sequence[StateSnapshot], back: int) -> RunnableConfig:
    """The config of a checkpoint so many before the latest.

    `durability="exit"` leaves few checkpoints, of which the oldest can be one that was made before
    the graph had its input.
    """
    return history[max(0, min(back, len(history) - 2))].config


def own(given: Any) -> Any:
    """Return a copy of what a step gives, for one run alone.

    LangGraph gives a message its id in place: a second run on the same objects would put what has
    the ids of the first.
    """
    return deepcopy(given)


async def play(
    graph: Graph, steps: Iterable[Step], durability: Durability, thread: RunnableConfig = THREAD
) -> list[Any]:
    """Do the steps one after the other; what the invocations gave back."""
    outputs = []
    for step in steps:
        config = thread
        if step.back:
            config = nth([state async for state in graph.aget_state_history(thread)], step.back)
        if step.update is not None or step.as_node:
            await graph.aupdate_state(config, own(step.update), step.as_node)
            continue
        configurable = {**config.get("configurable", {}), **step.configurable}
        settings: RunnableConfig = {"configurable": configurable}
        try:
            outputs.append(await graph.ainvoke(own(step.give), settings, durability=durability))
        except PlannedError as exc:
            outputs.append(repr(exc))
    return outputs


def stored(tuples: Iterable[CheckpointTuple]) -> list[CheckpointTuple]:
    """All that a saver holds of a thread, the newest checkpoint first, without what may differ.

    A snapshot of a delta channel stays in force until the channel is written again. `InMemorySaver`
    repeats it in the checkpoints between, ours leaves it where it was put.
    """
    ordered = sorted(tuples, key=lambda found: found.checkpoint["id"], reverse=True)
    return [
        found._replace(
            checkpoint={
                **found.checkpoint,
                "channel_values": {
                    name: value
                    for name, value in found.checkpoint["channel_values"].items()
                    if not isinstance(value, _DeltaSnapshot)
                },
            }
        )
        for found in ordered
    ]


async def left_behind(graph: Graph, outputs: list[Any], thread: RunnableConfig = THREAD) -> Any:
    """All that a thread shows: outputs, state, history and rows, with made-up ids normalised."""
    saver = graph.checkpointer
    assert isinstance(saver, BaseCheckpointSaver)
    normalise = Normaliser()
    return [
        normalise(outputs),
        normalise(await graph.aget_state(thread, subgraphs=True)),
        normalise([state async for state in graph.aget_state_history(thread)]),
        normalise(stored([found async for found in saver.alist(thread)])),
    ]


async def expected_of(
    scenario: Scenario, durability: Durability, thread: RunnableConfig = THREAD
) -> Any:
    """What the scenario leaves on the reference."""
    graph = scenario.builder(InMemorySaver())
    outputs = await play(graph, scenario.steps, durability, thread)
    return await left_behind(graph, outputs, thread)
