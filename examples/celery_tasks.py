"""Tasks that run a graph: one saver a worker process, opened after the fork.

    celery --workdir examples --app celery_tasks worker --concurrency 2
    python -c 'from celery_tasks import answer; print(answer.delay("1", "hello").get())'

`BROKER_URL` names Celery's broker, `CHECKPOINTER_URL` the database; both processes need a result
backend to hand answers over.
"""

import os
from typing import Any, Final, TypeAlias

from celery import Celery  # type: ignore[import-untyped]
from celery.signals import (  # type: ignore[import-untyped]
    worker_process_init,
    worker_process_shutdown,
)
from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph

from checkpointer import AsyncSQLAlchemySaver, create_saver

Graph: TypeAlias = CompiledStateGraph[Any, Any, Any, Any]

app = Celery(
    "celery_tasks", broker=os.environ.get("BROKER_URL", "redis://localhost"), backend="rpc://"
)


def reply(state: MessagesState) -> dict[str, Any]:
    """The graph's one node. Plain functions: a task of Celery is no coroutine."""
    return {"messages": [("ai", f"{len(state['messages'])}: {state['messages'][-1].content}")]}


builder = StateGraph(MessagesState)
builder.add_node("reply", reply)
builder.add_edge(START, "reply")


class Process:
    """What a worker process has for itself: connections do not outlive a fork."""

    saver: AsyncSQLAlchemySaver
    graph: Graph


process: Final = Process()


@worker_process_init.connect  # type: ignore[untyped-decorator]
def open_saver(**_: object) -> None:
    """In each process of the pool, before its first task."""
    process.saver = create_saver(os.environ.get("CHECKPOINTER_URL"))
    process.graph = builder.compile(checkpointer=process.saver)


@worker_process_shutdown.connect  # type: ignore[untyped-decorator]
def close_saver(**_: object) -> None:
    """When the process ends."""
    process.saver.close()


@app.task  # type: ignore[untyped-decorator]
def answer(thread_id: str, text: str) -> str:
    """Say something in a thread; what the graph answers."""
    thread = RunnableConfig(configurable={"thread_id": thread_id})
    state = process.graph.invoke({"messages": [("human", text)]}, thread)
    return str(state["messages"][-1].content)
