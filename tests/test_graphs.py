"""Real graphs on our saver leave exactly what they leave on LangGraph's own `InMemorySaver`."""

from collections.abc import Iterable
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Overwrite
from scenarios import SCENARIOS, THREAD, Scenario, expected_of, left_behind, nth, own, play, stored
from scripted import Durability, Graph, Normaliser, Step, agent, asks, delta

from checkpointer import AsyncSQLAlchemySaver, create_saver

pytestmark = pytest.mark.everywhere

COPY: RunnableConfig = {"configurable": {"thread_id": "its copy"}}

every_scenario = pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS.keys())
straight_scenario = pytest.mark.parametrize(
    "scenario",
    [scenario for name, scenario in SCENARIOS.items() if "travel" not in name],
    ids=[name for name in SCENARIOS if "travel" not in name],
)
every_durability = pytest.mark.parametrize("durability", ["sync", "async", "exit"])


async def values_after(graph: Graph, thread: RunnableConfig = THREAD) -> Any:
    """The state's values and what comes next, made-up ids normalised."""
    state = await graph.aget_state(thread)
    return Normaliser()([state.values, state.next, state.interrupts])


@every_durability
@every_scenario
async def test_a_graph_leaves_what_it_leaves_in_memory(
    saver: AsyncSQLAlchemySaver, scenario: Scenario, durability: Durability
) -> None:
    graph = scenario.builder(saver)

    outputs = await play(graph, scenario.steps, durability)

    assert await left_behind(graph, outputs) == await expected_of(scenario, durability)


async def test_a_long_conversation_leaves_what_it_leaves_in_memory(
    saver: AsyncSQLAlchemySaver,
) -> None:
    long = Scenario(agent, [Step(give=asks(f"question {n}")) for n in range(30)])
    graph = agent(saver)

    outputs = await play(graph, long.steps, "async")

    assert await left_behind(graph, outputs) == await expected_of(long, "async")


@every_scenario
async def test_each_step_can_be_a_process_of_its_own(migrated_url: str, scenario: Scenario) -> None:
    outputs = []
    for step in scenario.steps:
        async with create_saver(migrated_url) as saver:
            outputs += await play(scenario.builder(saver), [step], "sync")

    async with create_saver(migrated_url) as saver:
        left = await left_behind(scenario.builder(saver), outputs)
    assert left == await expected_of(scenario, "sync")


@every_durability
@straight_scenario
async def test_pruning_between_steps_changes_no_state(
    saver: AsyncSQLAlchemySaver, scenario: Scenario, durability: Durability
) -> None:
    graph, reference = scenario.builder(saver), scenario.builder(InMemorySaver())
    for step in scenario.steps:
        outputs = await play(graph, [step], durability)
        await saver.aprune(["a thread"], strategy="keep_latest")

        assert Normaliser()(outputs) == Normaliser()(await play(reference, [step], durability))
        assert await values_after(graph) == await values_after(reference)


@pytest.mark.parametrize("rounds", range(1, 10))
@every_durability
async def test_a_delta_thread_pruned_at_any_distance_from_its_snapshot_goes_on(
    saver: AsyncSQLAlchemySaver, rounds: int, durability: Durability
) -> None:
    graph, reference = delta(saver), delta(InMemorySaver())
    for step in [
        Step(give={"items": ["start"], "left": rounds}),
        Step(give={"items": ["more"], "left": 1}),
    ]:
        await play(graph, [step], durability)
        await play(reference, [step], durability)
        await saver.aprune(["a thread"], strategy="keep_latest")

        assert await values_after(graph) == await values_after(reference)


async def test_pruning_a_delta_thread_drops_what_is_older_than_its_snapshots(
    saver: AsyncSQLAlchemySaver,
) -> None:
    graph = delta(saver)
    for n in range(4):
        await play(graph, [Step(give={"items": [f"start {n}"], "left": 9})], "sync")
        # A forced snapshot of the rarely snapshotted channel bounds how far back it must be read.
        await graph.aupdate_state(THREAD, {"rare": Overwrite([n])}, "check")
    before = [state async for state in graph.aget_state_history(THREAD)]

    await saver.aprune(["a thread"], strategy="keep_latest")

    after = [state async for state in graph.aget_state_history(THREAD)]
    assert len(after) < len(before) / 4
    assert (after[0].config, after[0].values) == (before[0].config, before[0].values)


@straight_scenario
async def test_a_copied_thread_goes_on_like_its_original(
    saver: AsyncSQLAlchemySaver, scenario: Scenario
) -> None:
    graph, reference = scenario.builder(saver), scenario.builder(InMemorySaver())
    half = len(scenario.steps) // 2
    await play(graph, scenario.steps[:half], "async")
    untouched = await left_behind(graph, [])

    await saver.acopy_thread("a thread", "its copy")
    await play(graph, scenario.steps[half:8], "async", COPY)

    await play(reference, scenario.steps, "async")
    assert await values_after(graph, COPY) == await values_after(reference)
    assert await left_behind(graph, []) == untouched


def with_ids(given: Any) -> Any:
    """Return input of its own for a sync run, with an id for each message.

    Without one, a message is given its id in place by the run, while a thread puts the message:
    which comes first is luck, on every saver.
    """
    given = own(given)
    if isinstance(given, dict):
        for message in given.get("messages", []):
            message.id = message.text
    return given


def play_sync(graph: Graph, steps: Iterable[Step]) -> Any:
    """As `play` and `left_behind`, with the sync methods alone."""
    outputs = []
    for step in steps:
        config = THREAD
        if step.back:
            config = nth(list(graph.get_state_history(THREAD)), step.back)
        if step.update is not None or step.as_node:
            graph.update_state(config, own(step.update), step.as_node)
        else:
            # Otherwise puts run in threads, beside the run that still changes what they put.
            outputs.append(graph.invoke(with_ids(step.give), config, durability="sync"))
    saver = graph.checkpointer
    assert isinstance(saver, BaseCheckpointSaver)
    normalise = Normaliser()
    return [
        normalise(outputs),
        normalise(graph.get_state(THREAD, subgraphs=True)),
        normalise(list(graph.get_state_history(THREAD))),
        normalise(stored(saver.list(THREAD))),
    ]


@pytest.mark.parametrize("name", ["approval", "subgraph", "fan-out", "time travel", "delta"])
def test_a_sync_script_leaves_what_it_leaves_in_memory(migrated_url: str, name: str) -> None:
    scenario = SCENARIOS[name]
    with create_saver(migrated_url) as saver:
        left = play_sync(scenario.builder(saver), scenario.steps)

    assert left == play_sync(scenario.builder(InMemorySaver()), scenario.steps)
