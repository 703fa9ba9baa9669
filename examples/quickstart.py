"""An agent that outlives its process: killed in the middle, resumed, looked back on, forked.

    python examples/quickstart.py

It needs no key and no network: the chat model follows a script. Its checkpoints go into the file
`demo.db` in the working directory, or into the database that `CHECKPOINTER_URL` names, such as
`postgresql+asyncpg://user:password@host/database`.

Read it from the top: the agent, the two processes, what is looked at afterwards, and how it runs.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias
from uuid import uuid4

import sqlalchemy as sa
from langchain.agents import create_agent
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command, StateSnapshot, interrupt
from rich import box
from rich.console import Console
from rich.table import Table

from checkpointer import AsyncSQLAlchemySaver, create_saver

FILE: Final = Path("demo.db")
ENVIRONMENT_URL: Final = os.environ.get("CHECKPOINTER_URL")
URL: Final = ENVIRONMENT_URL or f"sqlite:///{FILE}"

ROLE: Final = sys.argv[1] if len(sys.argv) > 1 else "demo"
QUESTIONS: Final = 40

console: Final = Console()

Graph: TypeAlias = CompiledStateGraph[Any, Any, Any, Any]


# --- The agent: three tools, one of which asks a human first ------------------------------------


def tell_run(call: str) -> None:
    """Say on the terminal that a tool runs, and in which process."""
    say(f"process {os.getpid()} runs {call}")


def say(text: str) -> None:
    """Print one line of the story."""
    console.print(f"  {text}", highlight=False, soft_wrap=True)


@tool
async def find_trains(city: str) -> str:
    """Find the trains to a city."""
    tell_run(f"find_trains({city!r})")
    trains = [f"{hour:02}:12 to {city}, seats left, 2 h 10 min" for hour in range(6, 22)]
    return "\n".join(trains)


@tool
async def check_weather(city: str) -> str:
    """Check the weather in a city."""
    tell_run(f"check_weather({city!r})")
    if ROLE == "first":
        say(f"process {os.getpid()} kills itself in the middle of check_weather")
        os.kill(os.getpid(), signal.SIGKILL)  # no exception: nothing can tidy up after this
    return f"Sun in {city}, 24 degrees."


@tool
async def book_train(train: str) -> str:
    """Book a seat on a train, once a human has approved it."""
    # The graph stops here and is stored; it runs this tool again with the answer.
    if interrupt(f"Book the {train}?") != "yes":
        return f"Not booked: {train}."
    tell_run(f"book_train({train!r})")
    return f"Booked: {train}, seat 42."


class ScriptedModel(BaseChatModel):
    """Plays a chat model: looks at the last message and says what comes next in the script."""

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
        last = messages[-1]
        topic = last.text.split()[-1]
        if last.text.startswith("Tell me"):
            said = AIMessage("\n".join(f"Fact {n} about {topic}: it is true." for n in range(30)))
        else:
            city = messages[0].text.split()[-1]
            calls: dict[str | None, tuple[str, dict[str, str]]] = {
                None: ("find_trains", {"city": city}),
                "find_trains": ("check_weather", {"city": city}),
                "check_weather": ("book_train", {"train": f"07:12 to {city}"}),
            }
            if last.name in calls:
                name, args = calls[last.name]
                call = {"name": name, "args": args, "id": f"call-{len(messages)}"}
                said = AIMessage(f"I call {name}.", tool_calls=[call])
            else:
                said = AIMessage(f"Done. {last.text}")
        return ChatResult(generations=[ChatGeneration(message=said)])


def build_agent(saver: AsyncSQLAlchemySaver) -> Graph:
    """LangChain's agent; all that makes it durable is its `checkpointer`."""
    return create_agent(
        ScriptedModel(), [find_trains, check_weather, book_train], checkpointer=saver
    )


# --- The two processes: one that dies, one that goes on -----------------------------------------


async def first_process(thread: RunnableConfig) -> None:
    """Ask the agent for a trip. This process does not live to see the answer."""
    async with create_saver(URL) as saver:
        graph = build_agent(saver)
        question = HumanMessage("Take me to Lyon", id="question")
        # With durability="sync" each step is committed before the next one starts.
        await graph.ainvoke({"messages": [question]}, thread, durability="sync")


async def second_process(thread: RunnableConfig) -> None:
    """Go on where the first process died, and approve what the agent asks for."""
    async with create_saver(URL) as saver:
        graph = build_agent(saver)
        found = await graph.aget_state(thread)
        count = len(found.values["messages"])
        say(f"process {os.getpid()} finds {count} messages; next: {', '.join(found.next)}")
        stopped = await graph.ainvoke(None, thread, durability="sync")  # no new input: go on
        await answer(graph, thread, stopped, "yes")


async def answer(graph: Graph, thread: RunnableConfig, stopped: Any, text: str) -> None:
    """Answer what the agent asks a human, and let it go on to its end."""
    say(f"the agent asks a human: {stopped['__interrupt__'][0].value} We say {text}.")
    go_on: Command[Any] = Command(resume=text)
    state = await graph.ainvoke(go_on, thread, durability="sync")
    say(f"the agent's answer: {state['messages'][-1].text}")


# --- Afterwards: the history, a fork, the bytes -------------------------------------------------


async def look_back(graph: Graph, thread: RunnableConfig, start: int = 1) -> list[StateSnapshot]:
    """Print the checkpoints of the thread, oldest first, from number `start` on."""
    history = [state async for state in graph.aget_state_history(thread)][::-1]
    numbers = {checkpoint_id(state.config): n for n, state in enumerate(history, start=1)}
    table = Table(box=box.SIMPLE, pad_edge=False)
    for column in ("", "checkpoint", "parent", "step", "source", "next", "messages: the last"):
        table.add_column(column)
    for state in history[start - 1 :]:
        messages = state.values.get("messages", [])
        own_id, metadata = checkpoint_id(state.config), state.metadata or {}
        table.add_row(
            str(numbers[own_id]),
            f"...{own_id[-6:]}",
            str(numbers[checkpoint_id(state.parent_config)]) if state.parent_config else "",
            str(metadata.get("step")),
            metadata.get("source"),
            ", ".join(state.next) or "(end)",
            f"{len(messages)}: {shortened(messages[-1].text)}" if messages else "0",
        )
    console.print(table)
    return history


def shortened(text: str) -> str:
    """As much of a text's first line as the terminal has room for."""
    room = max(console.width - 60, 12)
    line = text.splitlines()[0]
    return line if len(line) <= room else f"{line[: room - 3]}..."


def checkpoint_id(config: RunnableConfig) -> str:
    """The id of the checkpoint that a config names."""
    own_id: str = config.get("configurable", {})["checkpoint_id"]
    return own_id


async def make_fork(graph: Graph, thread: RunnableConfig, history: Sequence[StateSnapshot]) -> None:
    """Change the question in an early checkpoint and let the agent answer that one."""
    number, asked = next(
        (n, state) for n, state in enumerate(history, start=1) if state.next == ("model",)
    )
    # A message with the id of an old one takes its place.
    question = HumanMessage("Take me to Turin", id="question")
    fork = await graph.aupdate_state(asked.config, {"messages": [question]}, as_node="__start__")
    say(f"checkpoint {number} with another question: {question.text}")
    stopped = await graph.ainvoke(None, fork, durability="sync")
    await answer(graph, thread, stopped, "no")


async def chat(graph: Graph, thread: RunnableConfig, questions: int) -> None:
    """Talk on, as people do, so that there is something to store."""
    for n in range(questions):
        question = HumanMessage(f"Tell me about sight-{n}")
        await graph.ainvoke({"messages": [question]}, thread)


async def show_bytes(saver: AsyncSQLAlchemySaver, thread_id: str) -> None:
    """Print what the thread takes in each table, beside its values written out in full."""
    stats = await saver.astats(thread_id)
    shown = Table(box=box.SIMPLE)
    shown.add_column("table", min_width=36)
    shown.add_column("rows", justify="right", min_width=6)
    shown.add_column("bytes", justify="right", min_width=10)
    for name, size in stats.tables.items():
        shown.add_row(f"checkpointer_{name}", f"{size.rows:,}", f"{size.bytes:,}")
    shown.add_section()
    shown.add_row("stored, indexes left out", "", f"{stats.stored_bytes:,}")
    shown.add_row("the same, each value written out in full", "", f"{stats.logical_bytes:,}")
    console.print(shown)


# --- How it runs --------------------------------------------------------------------------------


def run_process(role: str, thread_id: str) -> int:
    """Run this script again, in a process of its own; the status that it ended with."""
    sys.stdout.flush()
    return subprocess.run([sys.executable, __file__, role, thread_id], check=False).returncode  # noqa: S603


async def prepare() -> None:
    """An empty file; or, on a server, the newest schema, which is otherwise the deploy's work."""
    if ENVIRONMENT_URL is None:
        for suffix in ("", "-wal", "-shm"):
            FILE.with_name(FILE.name + suffix).unlink(missing_ok=True)
    else:
        async with create_saver(URL) as saver:
            await saver.setup()


async def look_at(thread_id: str) -> None:
    """Everything that the demo shows after the two processes."""
    thread: RunnableConfig = {"configurable": {"thread_id": thread_id}}
    async with create_saver(URL) as saver:
        graph = build_agent(saver)
        head("3. The history of the thread")
        history = await look_back(graph, thread)
        head("4. A fork: the same thread, as if another question had been asked")
        await make_fork(graph, thread, history)
        await look_back(graph, thread, start=len(history) + 1)
        head("5. The bytes stored")
        say(f"after {QUESTIONS} more questions:")
        await chat(graph, thread, QUESTIONS)
        await show_bytes(saver, thread_id)


def head(title: str) -> None:
    """Print the title of a part."""
    console.rule(title, align="left")


def demo() -> None:
    """Run all of it."""
    asyncio.run(prepare())
    thread_id = f"trip-{uuid4().hex[:8]}"
    where = sa.make_url(URL).render_as_string(hide_password=True)
    console.print(f"Thread {thread_id} in {where}", highlight=False, soft_wrap=True)
    console.print("The model is scripted: no key, no network.")

    head("1. A first process asks the agent for a trip, and is killed")
    status = run_process("first", thread_id)
    if status != -signal.SIGKILL:
        raise SystemExit(f"the first process ended with {status}, expected to be killed")
    say("the process is gone: killed by SIGKILL")

    head("2. A second process resumes the same thread")
    status = run_process("second", thread_id)
    if status != 0:
        raise SystemExit(f"the second process ended with {status}")
    asyncio.run(look_at(thread_id))


if __name__ == "__main__":
    if ROLE == "demo":
        demo()
    else:
        part = {"first": first_process, "second": second_process}[ROLE]
        asyncio.run(part({"configurable": {"thread_id": sys.argv[2]}}))
