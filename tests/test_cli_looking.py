"""`threads`, `stats`, `show`, `history`, `diff`, `export`: what is stored, read by people."""

import asyncio
import gc
import json
import sys
from dataclasses import make_dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import sqlalchemy as sa
from commanding import Run
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    RemoveMessage,
    messages_from_dict,
)
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from schemas import query
from scripted import agent, approved_agent, asks, delta, fan_out, nested, parallel
from storing import config, put
from test_cli_frame import OBEYED

from checkpointer import AsyncSQLAlchemySaver, create_saver
from checkpointer.commands import console
from checkpointer.commands.points import Point
from checkpointer.commands.values import Typed, Unread, loaded

ODD = "\x1b]0;title\x07\x9b31m\u202e[bold red]x[/] :smile: \ud800\r\n"
"""Text that a terminal, or rich, would act on."""


async def answer(run: Run, url: str, *arguments: str) -> str:
    """What a command prints that ends well."""
    code, out, err = await asyncio.to_thread(run, *arguments, "--url", url)
    assert (code, err) == (0, ""), err
    return out


async def document(run: Run, url: str, *arguments: str) -> Any:
    """The same as JSON."""
    return json.loads(await answer(run, url, *arguments, "--json"))


def checkpoint_id(named: RunnableConfig | None) -> str:
    """The id in a config."""
    return str((named or {}).get("configurable", {})["checkpoint_id"])


async def test_show_prints_messages_as_a_conversation(
    run: Run, saver: AsyncSQLAlchemySaver, migrated_url: str
) -> None:
    await agent(saver).ainvoke(asks("what?"), config("1"))
    shown = await answer(run, migrated_url, "show", "1")
    lines = [line.strip() for line in shown.splitlines()]
    for part in (
        "thread     1",
        "step       3, loop",
        "next       nothing",
        "messages (5)",
        "human  what?",
        "ai     Let me look up what turn 1 asks.",
        "→ look_up(topic=topic 1-0)",
    ):
        assert part in lines
    assert "tool   look_up: topic 1-0: all that is known" in shown
    assert "branch:to" not in shown


async def test_show_tells_the_same_as_json(
    run: Run, saver: AsyncSQLAlchemySaver, migrated_url: str
) -> None:
    graph = agent(saver)
    await graph.ainvoke(asks("what?"), config("1"))
    state = await graph.aget_state(config("1"))
    found = await document(run, migrated_url, "show", "1")
    assert messages_from_dict(found["values"]["messages"]) == state.values["messages"]
    assert found["metadata"] == state.metadata
    assert found["created_at"] == state.created_at
    assert found["checkpoint_id"] == checkpoint_id(state.config)
    parent = checkpoint_id(state.parent_config)
    assert found["parent_checkpoint_id"] == parent
    older = await document(run, migrated_url, "show", "1", parent)
    assert (older["checkpoint_id"], len(older["values"]["messages"])) == (parent, 4)
    assert older["next"] == ["model"]


async def test_what_waits_for_an_answer_and_what_failed_is_shown(
    run: Run, saver: AsyncSQLAlchemySaver, migrated_url: str
) -> None:
    await approved_agent(saver).ainvoke(asks("may I?"), config("asks"))
    broken = {"thread_id": "fails", "broken": True}
    with pytest.raises(Exception, match="broken"):
        await parallel(saver).ainvoke({"items": []}, {"configurable": broken})
    asked = await answer(run, migrated_url, "show", "asks")
    assert "interrupt  {" in asked
    assert "look_up" in asked
    assert "interrupt {" in await answer(run, migrated_url, "history", "asks")
    failed = await answer(run, migrated_url, "show", "fails")
    assert "error      PlannedError('broken')" in failed
    assert "next       first, second, third" in failed
    history = await document(run, migrated_url, "history", "fails")
    assert history["checkpoints"][-1]["errors"] == ["PlannedError('broken')"]
    assert history["checkpoints"][-1]["interrupts"] == []


async def test_history_draws_forks_beside_a_line_that_stays_flat(
    run: Run, saver: AsyncSQLAlchemySaver, migrated_url: str
) -> None:
    graph = agent(saver)
    for turn in range(2):
        await graph.ainvoke(asks(f"question {turn}"), config("1"))
    states = [state async for state in graph.aget_state_history(config("1"))]
    root = states[-2]
    forked = checkpoint_id(root.config)
    await graph.ainvoke(None, root.config)
    lines = (await answer(run, migrated_url, "history", "1")).splitlines()
    assert lines[0].startswith("thread 1")
    assert {line.index("── ") for line in lines[1:]} == {1, 5, 9}
    [fork] = [line for line in lines if line.endswith("fork")]
    assert forked in lines[lines.index(fork) - 1]
    first = lines[2]
    assert "   0 loop " in first
    assert "next model" in first
    assert any("ran model  next tools x2" in line for line in lines)

    found = await document(run, migrated_url, "history", "1")
    stored = [one async for one in saver.alist(config("1"))]
    assert [one["checkpoint_id"] for one in found["checkpoints"]] == [
        checkpoint_id(one.config) for one in reversed(stored)
    ]
    by_id = {one["checkpoint_id"]: one for one in found["checkpoints"]}
    for state in states:
        one = by_id[checkpoint_id(state.config)]
        assert sorted(one["next"]) == sorted(state.next)
        described = state.metadata or {}
        assert (one["step"], one["source"]) == (described.get("step"), described.get("source"))
        if state.parent_config is not None and one["source"] == "loop":
            parent = by_id[checkpoint_id(state.parent_config)]
            ran = {node for node in parent["next"] if not node.startswith("__")}
            assert set(one["nodes"]) == ran


async def test_history_shows_subgraphs_where_they_started(
    run: Run, saver: AsyncSQLAlchemySaver, migrated_url: str
) -> None:
    await nested(saver).ainvoke({"items": []}, config("1"))
    lines = (await answer(run, migrated_url, "history", "1")).splitlines()
    [place] = [number for number, line in enumerate(lines) if "subgraph child:" in line]
    assert "next child  interrupt" in lines[place - 1]
    assert "next ask  interrupt" in lines[-1]
    root = await document(run, migrated_url, "history", "1", "--namespace", "")
    assert {one["checkpoint_ns"] for one in root["checkpoints"]} == {""}
    inner = lines[place].partition("subgraph ")[2]
    shown = await answer(run, migrated_url, "show", "1", "--namespace", inner)
    assert f" in {inner}" in shown


async def test_history_of_tasks_that_were_sent(
    run: Run, saver: AsyncSQLAlchemySaver, migrated_url: str
) -> None:
    await fan_out(saver).ainvoke({"items": ["a", "b"]}, config("1"))
    lines = (await answer(run, migrated_url, "history", "1")).splitlines()
    assert any("ran plan  next work x4" in line for line in lines)
    assert any("ran work  next gather" in line for line in lines)
    await saver.aprune(["1"])
    [alone] = (await document(run, migrated_url, "history", "1"))["checkpoints"]
    assert alone["nodes"] == []


async def test_a_limit_says_that_there_is_more(
    run: Run, saver: AsyncSQLAlchemySaver, migrated_url: str
) -> None:
    parent = config("1")
    for number in range(5):
        parent = await put(saver, parent, f"00{number}", {"step": number})
    drawn = await answer(run, migrated_url, "history", "1", "--limit", "3")
    assert "older checkpoints than these 3" in drawn
    assert [number for number in range(5) if f"00{number}" in drawn] == [2, 3, 4]
    assert (await document(run, migrated_url, "history", "1", "--limit", "3"))["more"] is True
    assert "older" not in await answer(run, migrated_url, "history", "1", "--limit", "5")


async def test_a_line_of_checkpoints_may_be_long_and_its_parents_damaged(
    run: Run, saver: AsyncSQLAlchemySaver, migrated_url: str
) -> None:
    parent = config("1")
    for number in range(60):
        parent = await put(saver, parent, f"{number:03}", {"step": number})
    last = config("1", "059")
    await put(saver, last, "020", {"step": 20})  # one that comes from itself, round about
    lines = (await answer(run, migrated_url, "history", "1")).splitlines()
    assert len(lines) == 61
    assert {line.index("── ") for line in lines[1:]} == {1}


async def test_delta_channels_are_put_together(
    run: Run, saver: AsyncSQLAlchemySaver, migrated_url: str
) -> None:
    graph = delta(saver)
    await graph.ainvoke({"items": ["a"], "rare": [], "left": 4}, config("1"))
    async for state in graph.aget_state_history(config("1")):
        name = checkpoint_id(state.config)
        found = await document(run, migrated_url, "show", "1", name)
        for channel in ("items", "rare"):
            assert found["values"].get(channel, []) == state.values.get(channel, [])


async def test_diff_shows_which_channels_changed_and_how(
    run: Run, saver: AsyncSQLAlchemySaver, migrated_url: str
) -> None:
    said: list[BaseMessage] = [HumanMessage("one", id="1"), AIMessage("two", id="2")]
    text = "".join(f"line {number}\n" for number in range(20))
    before: dict[str, Any] = {
        "same": 1,
        "gone": 1,
        "text": text,
        "n": 1,
        "list": [1, 2],
        "d": {"a": 1, "b": 2},
    }
    after = before | {"text": text.replace("line 7\n", "line seven\n"), "n": 2, "new": 1}
    after |= {"list": [1, 2, 3], "d": {"a": 3, "c": 4}}
    del after["gone"]
    more = [said[0], AIMessage("zwei", id="2"), HumanMessage("three", id="3")]
    first = await put(saver, config("1"), "1", messages=said, **before)
    await put(saver, first, "2", messages=more, **after)

    found = await document(run, migrated_url, "diff", "1", "1")

    assert (found["before"], found["after"]) == ("1", "2")
    changes = found["changes"]
    assert changes.keys() == {"gone", "text", "n", "list", "d", "new", "messages"}
    assert changes["gone"] == {"change": "removed", "before": 1}
    assert changes["new"] == {"change": "added", "after": 1}
    assert changes["n"] == {"change": "changed", "before": 1, "after": 2}
    assert changes["list"] == {"change": "changed", "added": [3], "removed": [], "changed": []}
    assert changes["d"]["added"] == {"c": 4}
    assert changes["d"]["removed"] == {"b": 2}
    assert changes["d"]["changed"] == {"a": {"before": 1, "after": 3}}
    [added], [changed] = changes["messages"]["added"], changes["messages"]["changed"]
    assert messages_from_dict([added]) == [more[2]]
    assert messages_from_dict([changed["before"], changed["after"]]) == [said[1], more[1]]

    shown = await answer(run, migrated_url, "diff", "1", "1", "2")
    for part in ("+ human  three", "~ an item", "- line 7", "+ line seven", "~ a:", "+ c: 4"):
        assert part in shown
    assert "line 3" not in shown
    back = await document(run, migrated_url, "diff", "1", "2", "1")
    assert back["changes"]["new"] == {"change": "removed", "before": 1}
    assert "no channel differs" in await answer(run, migrated_url, "diff", "1", "1", "1")


async def test_export_writes_a_thread_as_json_lines(
    run: Run, saver: AsyncSQLAlchemySaver, migrated_url: str
) -> None:
    await nested(saver).ainvoke({"items": []}, config("1"))
    await put(saver, config("other"), "1")
    lines = (await answer(run, migrated_url, "export", "1")).splitlines()
    exported = [json.loads(line) for line in lines]
    stored = [one async for one in saver.alist({"configurable": {"thread_id": "1"}})]
    assert len(exported) == len(stored)
    for line, one in zip(exported, reversed(stored), strict=True):
        where = one.config.get("configurable", {})
        assert {name: line[name] for name in where} == where
        assert line["metadata"] == one.metadata
        assert line["values"].get("items") == one.checkpoint["channel_values"].get("items")
        assert [(w["task_id"], w["channel"]) for w in line["writes"]] == [
            (task, channel) for task, channel, _ in one.pending_writes or ()
        ]
    found = await document(run, migrated_url, "show", "1", exported[0]["checkpoint_id"])
    assert found == exported[0]


async def test_values_of_every_kind_are_shown_and_no_class_is_imported(
    run: Run, saver: AsyncSQLAlchemySaver, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("a_module_of_the_application")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    item = make_dataclass("Item", ["n"])
    item.__module__ = module.__name__
    vars(module)["Item"] = item
    values = {
        "item": item(1),
        "when": datetime(2026, 1, 2, tzinfo=UTC),
        "bytes": b"\x00",
        "set": {1},
        "nan": float("nan"),
        "keys": {1: "a", "1": "b"},
        "surrogate": "\ud800",
        "nothing": None,
        "removed": [RemoveMessage("1")],
    }
    await put(saver, config("1"), "1", **values)
    monkeypatch.delitem(sys.modules, module.__name__)
    found = (await document(run, migrated_url, "show", "1"))["values"]
    assert found.pop("removed")[0]["type"] == "remove"
    assert found == {
        "item": {"type": "a_module_of_the_application.Item", "value": {"n": 1}},
        "when": {"type": "datetime.datetime", "value": "2026-01-02T00:00:00+00:00"},
        "bytes": {"type": "bytes", "base64": "AA=="},
        "set": {"type": "builtins.set", "value": [1]},
        "nan": {"type": "float", "value": "nan"},
        "keys": {"type": "dict", "items": [[1, "a"], ["1", "b"]]},
        "surrogate": "\ud800",
        "nothing": None,
    }
    shown = await answer(run, migrated_url, "show", "1")
    assert "a_module_of_the_application.Item" in shown
    assert "<datetime.datetime 2026-01-02T00:00:00+00:00>" in shown
    assert "\\ud800" in shown
    assert module.__name__ not in sys.modules


async def test_what_was_encrypted_is_told_and_not_guessed(run: Run, migrated_url: str) -> None:
    serde = EncryptedSerializer.from_pycryptodome_aes(key=b"0123456789abcdef")
    async with create_saver(migrated_url, serde=serde) as saver:
        await put(saver, config("1"), "1", text="x")
    for command in ("show", "history", "export"):
        code, out, err = await asyncio.to_thread(run, command, "1", "--url", migrated_url)
        assert (code, out) == (1, "")
        assert "expected LangGraph's own" in err
        assert "create_saver(serde=...)" in err


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
async def test_no_stored_text_is_obeyed(
    run: Run, saver: AsyncSQLAlchemySaver, migrated_url: str
) -> None:
    odd = ODD.replace("\ud800", "")
    called = {"name": ODD, "args": {ODD: ODD}, "id": ODD}
    said = [
        HumanMessage(ODD, id=ODD, name=ODD),
        AIMessage([{"type": "text", "text": ODD}, {"type": ODD, ODD: 1}], tool_calls=[called]),
    ]
    where = config(odd)
    described = {"source": ODD, "step": ODD, "run_id": odd, "parents": {"": odd}}
    first = await put(saver, where, f"1{odd}", described, **{odd: ODD, "m": said, "d": {ODD: {1}}})
    await saver.aput_writes(first, [("__interrupt__", ODD), ("__error__", ODD)], "task")
    await put(saver, first, f"2{odd}", described, **{odd: ODD * 9, "m": said[:1], "d": {ODD: 2}})
    inner = config(odd, checkpoint_ns=odd)
    await put(saver, inner, f"3{odd}", described)
    for arguments in (
        ["threads"],
        ["stats"],
        ["history", odd],
        ["show", odd, f"1{odd}"],
        ["diff", odd, f"1{odd}"],
        ["export", odd],
        ["prune", odd, "--keep-last", "1", "--dry-run"],
        ["show", odd, "--namespace", odd],
    ):
        out = await answer(run, migrated_url, *arguments)
        assert "title" in out or arguments == ["stats"]
        assert not set(out) & OBEYED, arguments
        assert "\N{SMILING FACE WITH OPEN MOUTH AND SMILING EYES}" not in out
        assert "[bold red]x[/] :smile:" in out or arguments == ["stats"]
    code, out, err = await asyncio.to_thread(run, "show", f"no{odd}", "--url", migrated_url)
    assert (code, out) == (2, "")
    assert not set(err) & OBEYED


async def test_a_thread_may_have_any_name(
    run: Run, saver: AsyncSQLAlchemySaver, migrated_url: str
) -> None:
    for name in ("--json", "-x", "a b", "ü", ""):
        await put(saver, config(name), "1", n=1)
        code, out, _ = await asyncio.to_thread(run, "show", "--url", migrated_url, "--", name)
        assert (code, f"thread     {name}".rstrip() in out) == (0, True)


async def test_threads_are_listed_page_by_page(
    run: Run, saver: AsyncSQLAlchemySaver, migrated_url: str
) -> None:
    for name in ("a", "b", "c"):
        await put(saver, config(name), "1", {"of": name}, text="x" * 5000)
    listed = await document(run, migrated_url, "threads", "--order", "thread_id", "--limit", "2")
    assert [one["thread_id"] for one in listed["threads"]] == ["a", "b"]
    assert {one["checkpoints"] for one in listed["threads"]} == {1}
    page = ("--order", "thread_id", "--after", listed["after"])
    rest = await document(run, migrated_url, "threads", *page)
    assert ([one["thread_id"] for one in rest["threads"]], rest["after"]) == (["c"], None)
    found = await document(run, migrated_url, "threads", "--metadata", '{"of": "b"}')
    assert [one["thread_id"] for one in found["threads"]] == ["b"]
    later = await document(run, migrated_url, "threads", "--updated-before", "2020-01-01")
    assert later["threads"] == []
    assert (
        len((await document(run, migrated_url, "threads", "--updated-after", "1h"))["threads"]) == 3
    )
    code, out, err = await asyncio.to_thread(
        run, "threads", "--order", "-thread_id", "--limit", "2", "--url", migrated_url
    )
    assert (code, [line.split()[0] for line in out.splitlines()]) == (0, ["thread", "c", "b"])
    assert err.startswith("more threads follow: --after ")


async def test_stats_tell_what_is_stored(
    run: Run, saver: AsyncSQLAlchemySaver, migrated_url: str
) -> None:
    parent = config("a")
    for number in range(3):
        parent = await put(saver, parent, str(number), text="x" * 5000)
    await put(saver, config("b"), "1", n=1)
    found = await document(run, migrated_url, "stats")
    assert found["threads"] == 2
    assert found["tables"]["checkpoints"]["rows"] == 4
    assert 0 < found["stored_bytes"] < found["logical_bytes"]
    assert found["saving"] == pytest.approx(1 - found["stored_bytes"] / found["logical_bytes"])
    assert [one["thread_id"] for one in found["largest"]] == ["a", "b"]
    assert (await document(run, migrated_url, "stats", "b"))["tables"]["checkpoints"]["rows"] == 1
    shown = await answer(run, migrated_url, "stats")
    assert f"{found['saving']:.0%} saved" in shown
    code, out, err = await asyncio.to_thread(run, "stats", "nosuch", "--url", migrated_url)
    assert (code, out, "found no thread 'nosuch'" in err) == (2, "", True)


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
async def test_looking_leaves_every_byte_of_a_file(run: Run, migrated_url: str) -> None:
    async with create_saver(migrated_url) as saver:
        await put(saver, config("1"), "1", text="x" * 5000)
        await put(saver, config("1", "1"), "2", text="y")
    path = Path(sa.make_url(migrated_url).database or "")
    query(migrated_url, "PRAGMA journal_mode = DELETE")
    before, files = path.read_bytes(), sorted(path.parent.iterdir())
    for arguments in (
        *(["threads"], ["stats"], ["history", "1"], ["show", "1"], ["diff", "1", "1"]),
        *(["export", "1"], ["prune", "1", "--dry-run"]),
    ):
        await answer(run, migrated_url, *arguments)
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == files


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "nosuch"],
        ["show", "1", "nosuch"],
        ["show", "1", "--namespace", "nosuch"],
        ["history", "nosuch"],
        ["export", "nosuch"],
        ["diff", "1", "nosuch"],
        ["diff", "1", "1", "nosuch"],
        ["diff", "1", "1"],
    ],
)
@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
async def test_what_is_not_there_is_told(
    run: Run, saver: AsyncSQLAlchemySaver, migrated_url: str, arguments: list[str]
) -> None:
    await put(saver, config("1"), "1")
    code, out, err = await asyncio.to_thread(run, *arguments, "--url", migrated_url)
    assert (code, out) == (2, "")
    assert err.startswith("checkpointer: found no ")


async def test_history_holds_no_values_of_checkpoints_that_it_has_read(
    run: Run, saver: AsyncSQLAlchemySaver, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        await put(saver, config("t"), str(number), {"step": number}, text="x")
    held: list[int] = []

    def draw(_: object) -> None:
        gc.collect()
        held.append(sum(isinstance(one, Point) for one in gc.get_objects()))

    monkeypatch.setattr(console, "put", draw)
    code, _, _ = await asyncio.to_thread(run, "history", "t", "--url", migrated_url)
    assert (code, held) == (0, [0])


def test_json_that_is_nested_too_deeply_is_unreadable() -> None:
    deep = Unread("json", b"[" * 100_000 + b"]" * 100_000)
    found = loaded(deep)
    assert isinstance(found, Typed)
    assert found.name == "unreadable"
    assert "nested too deeply" in found.value
