"""`tools/read_thread.py` reads what a saver has stored, and nothing of the package."""

import ast
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from schemas import execute
from storing import LARGE, config, put

from checkpointer import AsyncSQLAlchemySaver

PROGRAM = Path(__file__).parent.parent / "tools" / "read_thread.py"

MESSAGES = [HumanMessage("long \N{SNOWMAN} " * 99, id="1"), AIMessage("short", id="2")]

VALUES: dict[str, Any] = {
    "messages": MESSAGES,
    "long": LARGE,
    "random": bytes(range(256)) * 9,
    "empty": None,
    "short": {"deep": [1, -2.5, True, b"\0", {"x": None}]},
    "keys": {1: "one", "two": 2},
    "when": datetime(2025, 1, 2, tzinfo=UTC),
    "id": UUID(int=7),
    "set": {"only one"},
}


def run(target: str, thread_id: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(PROGRAM), target, thread_id]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def target_of(saver: AsyncSQLAlchemySaver) -> str:
    url = saver.engine.url
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


CALLS: dict[type, tuple[int, Callable[[Any], Any], str | None]] = {
    BaseMessage: (5, BaseMessage.model_dump, "model_validate_json"),
    datetime: (3, datetime.isoformat, "fromisoformat"),
    UUID: (0, lambda value: value.hex, None),
    set: (0, list, None),
}
"""How LangGraph stores objects: code, what they are made from, and by which method."""


def as_json(value: Any) -> Any:
    """A value as the program prints it."""
    for kind, (code, content, method) in CALLS.items():
        if isinstance(value, kind):
            names = {"module": type(value).__module__, "name": type(value).__qualname__}
            made = {"ext": code, **names, "value": content(value)}
            return made if method is None else {**made, "method": method}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, Mapping):
        pairs = [[key, as_json(item)] for key, item in value.items()]
        return {"pairs": pairs} if any(not isinstance(key, str) for key in value) else dict(pairs)
    return {"bytes": value.hex()} if isinstance(value, bytes) else value


def configurable(where: RunnableConfig) -> dict[str, Any]:
    return where.get("configurable", {})


def expected(one: CheckpointTuple) -> dict[str, Any]:
    """A checkpoint that a saver has read, as the program prints it."""
    stored = cast("dict[str, Any]", dict(one.checkpoint))
    values = stored.pop("channel_values")
    where, parent = configurable(one.config), one.parent_config
    return {
        "checkpoint_ns": where["checkpoint_ns"],
        "checkpoint_id": where["checkpoint_id"],
        "parent_checkpoint_id": parent and configurable(parent)["checkpoint_id"],
        "checkpoint": as_json(stored),
        "metadata": as_json(one.metadata),
        "channel_values": as_json(values),
        "pending_writes": as_json(one.pending_writes),
    }


async def test_a_thread_is_read_as_the_saver_reads_it(saver: AsyncSQLAlchemySaver) -> None:
    first = await put(saver, config(), "1", {"source": "input", "step": -1}, **VALUES)
    await saver.aput_writes(first, [("long", LARGE[::-1]), ("short", b"x")], "a task", "path")
    await saver.aput_writes(first, [("__error__", "a\0b"), ("empty", None)], "another")
    more = {"messages": [*MESSAGES, HumanMessage("one more " * 99)], "long": [*LARGE[1:], "end"]}
    await put(saver, first, "2", {"run_id": "a run"}, **VALUES | more)
    await put(saver, config(checkpoint_ns="inner"), "3", {"parents": {"": "2"}}, long=LARGE)
    await put(saver, config("another thread"), "1", long=LARGE)
    found = run(target_of(saver), "a thread")
    assert not found.stderr
    wanted = [expected(one) async for one in saver.alist(config())]
    wanted += [expected(one) async for one in saver.alist(config(checkpoint_ns="inner"))]
    wanted.sort(key=lambda one: (one["checkpoint_ns"], one["checkpoint_id"]))
    assert [json.loads(line) for line in found.stdout.splitlines()] == wanted
    assert [one["checkpoint_id"] for one in wanted] == ["1", "2", "3"]


async def test_segments_that_were_cut_are_read(saver: AsyncSQLAlchemySaver) -> None:
    """A prune leaves of the first value's segment what the second names."""
    first = await put(saver, config(), "1", long=LARGE)
    await put(saver, first, "2", long=[*LARGE[:100], "new", *LARGE[200:]])
    await saver.aprune(["a thread"])
    found = run(target_of(saver), "a thread")
    assert [json.loads(line)["checkpoint_id"] for line in found.stdout.splitlines()] == ["2"]
    assert json.loads(found.stdout)["channel_values"]["long"] == [*LARGE[:100], "new", *LARGE[200:]]


async def test_damage_is_no_value(saver: AsyncSQLAlchemySaver) -> None:
    await put(saver, config(), "1", long=LARGE)
    url = saver.engine.url.render_as_string(hide_password=False)
    execute(url, "DELETE FROM checkpointer_segments")
    found = run(target_of(saver), "a thread")
    assert found.returncode == 1
    assert not found.stdout
    assert "damaged" in found.stderr
    altered = "X'00'" if saver.engine.dialect.name == "sqlite" else r"'\x00'"
    execute(url, f"UPDATE checkpointer_checkpoints SET manifest = {altered}")
    assert "a checksum does not match" in run(target_of(saver), "a thread").stderr


def test_it_stands_alone() -> None:
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(PROGRAM.read_text("utf-8")))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [str(node.module)]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported - sys.stdlib_module_names - {"compression"} == {
        "backports",
        "msgpack",
        "psycopg",
    }


def test_without_arguments_it_tells_what_it_takes() -> None:
    command = [sys.executable, str(PROGRAM)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "THREAD_ID" in found.stderr
    assert found.returncode == 1
