"""A plain script without `async`: it remembers the notes that it was given in earlier runs.

    python examples/sync_script.py "buy milk"
    python examples/sync_script.py "call Ada"

The notes are kept in the file `notes.db`, or in the database that `CHECKPOINTER_URL` names.
"""

import operator
import os
import sys
from typing import Annotated, Final, NotRequired, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, StateGraph

from checkpointer import create_saver

URL: Final = os.environ.get("CHECKPOINTER_URL") or "sqlite:///notes.db"
THREAD: Final[RunnableConfig] = {"configurable": {"thread_id": "my notes"}}


class Notes(TypedDict):
    """The graph's state; what a run puts in is added to what is there."""

    notes: Annotated[list[str], operator.add]
    count: NotRequired[int]


def count_notes(state: Notes) -> dict[str, int]:
    """The graph's one node."""
    return {"count": len(state["notes"])}


def main() -> None:
    """Add the notes on the command line, and print all of them."""
    builder = StateGraph(Notes)
    builder.add_node("count_notes", count_notes)
    builder.add_edge(START, "count_notes")

    # `with` in place of `async with`: the saver runs an event loop in a background thread.
    with create_saver(URL) as saver:
        saver.setup_sync()  # PostgreSQL needs it once per deploy; SQLite files upgrade themselves
        graph = builder.compile(checkpointer=saver)
        state = graph.invoke({"notes": sys.argv[1:]}, THREAD)

    print(f"{state['count']} notes:")
    for note in state["notes"]:
        print(f"- {note}")


if __name__ == "__main__":
    main()
