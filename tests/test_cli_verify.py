"""`checkpointer verify`."""

import asyncio
import io
import json
import re
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from commanding import Run, hidden
from damages import SEGMENTS, Rows, called, noise, where
from schemas import catalog
from storing import config, put, row_counts, stored_rows

from checkpointer import Problem, create_saver
from checkpointer.commands import console
from checkpointer.sealing import FORMAT, seal


async def fill(url: str) -> None:
    """Store two threads; a checkpoint of one is replaced."""
    async with create_saver(url) as saver:
        for thread in ("a", "b"):
            await put(saver, config(thread), "1", messages=noise(thread))
        await put(saver, config("a"), "2", messages=noise("more"))
        for number in range(4):
            await put(saver, config("b"), "1", messages=noise(f"instead {number}"))


async def test_verify_finds_a_whole_store_whole_and_leaves_it(run: Run, migrated_url: str) -> None:
    await fill(migrated_url)
    before = stored_rows(migrated_url)
    garbage = len(await unreferenced(migrated_url))

    code, out, err = await asyncio.to_thread(run, "verify", "--url", migrated_url)

    counts = row_counts(migrated_url)
    assert (code, err) == (0, "")
    summary = out.splitlines()[-1]
    assert summary.startswith(f"{hidden(migrated_url)} is whole: read 2 threads, 3 checkpoints, ")
    assert f"0 writes and {counts['checkpointer_segments']} segments of " in summary
    assert summary.endswith(f"; {garbage} segments that nothing names (--repair removes them)")
    assert out.count("unreferenced segment: thread 'b', stream ") == garbage
    assert stored_rows(migrated_url) == before


async def unreferenced(url: str) -> tuple[Problem, ...]:
    async with create_saver(url) as saver:
        return (await saver.averify()).problems


async def test_repair_removes_the_unreferenced_segments_of_the_thread_that_is_named(
    run: Run, migrated_url: str
) -> None:
    await fill(migrated_url)
    garbage = len(await unreferenced(migrated_url))
    assert garbage > 3

    def repair(thread: str) -> tuple[int, str]:
        code, out, _ = run("verify", "--url", migrated_url, "--thread", thread, "--repair", "--yes")
        return code, out.splitlines()[-1]

    code, summary = await asyncio.to_thread(repair, "a")
    assert (code, summary.partition("; ")[2]) == (0, "")
    assert "read 1 thread, 2 checkpoints" in summary
    code, summary = await asyncio.to_thread(repair, "b")
    assert code == 0
    assert summary.endswith(f"; {garbage} segments that nothing names, {garbage} removed")
    assert await unreferenced(migrated_url) == ()


async def test_repair_asks_before_it_removes(
    run: Run, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(migrated_url)
    before = stored_rows(migrated_url)
    arguments = ("verify", "--url", migrated_url, "--thread", "b", "--repair")
    code, out, err = await asyncio.to_thread(run, *arguments)
    assert (code, out) == (2, "")
    assert "expected --yes: Bytes that nothing names go from thread 'b' of " in err
    monkeypatch.setattr(console, "confirmed", lambda *_, **__: False)
    code, out, err = await asyncio.to_thread(run, *arguments)
    assert (code, " is whole: " in out) == (1, True)
    assert err == "checkpointer: nothing is removed\n"
    assert stored_rows(migrated_url) == before


async def test_verify_names_what_is_damaged_and_exits_with_1(run: Run, migrated_url: str) -> None:
    await fill(migrated_url)
    key = min(Rows(migrated_url).held("a"))
    Rows(migrated_url).lose([key], "a")
    before = stored_rows(migrated_url)

    code, out, err = await asyncio.to_thread(
        run, "verify", "--url", migrated_url, "--thread", "a", "--repair", "--yes"
    )

    assert (code, err) == (1, "")
    problem, summary = out.splitlines()
    [checkpoint] = {"1", "2"} & set(re.findall(r"checkpoint '(\d)'", problem))
    assert problem == (
        f"missing bytes: thread 'a', namespace '', checkpoint '{checkpoint}', channel 'messages', "
        f"{called(key)}: the channel's value: no segment holds them"
    )
    assert summary.startswith(f"{hidden(migrated_url)} is damaged, 1 problem: read 1 thread,")
    assert "from a backup" in summary
    assert stored_rows(migrated_url) == before


async def test_verify_tells_what_a_newer_version_has_written_from_damage(
    run: Run, migrated_url: str
) -> None:
    await fill(migrated_url)
    rows = Rows(migrated_url)
    newer = seal(bytes([FORMAT + 1, 0]) + b"whatever that is")
    rows.alter(SEGMENTS, "data", where(min(rows.held("a")), "a"), lambda _: newer)
    code, out, err = await asyncio.to_thread(
        run, "verify", "--url", migrated_url, "--thread", "a", "--repair", "--yes"
    )
    assert (code, err) == (1, "")
    problem, summary = out.splitlines()
    assert problem.startswith("too new: thread 'a', namespace '', checkpoint ")
    assert " cannot all be read, 1 problem: read 1 thread, " in summary
    assert "damage" not in out


async def test_verify_says_when_there_is_no_such_thread(run: Run, migrated_url: str) -> None:
    code, out, err = await asyncio.to_thread(
        run, "verify", "--url", migrated_url, "--thread", "nosuch"
    )
    assert (code, out) == (2, "")
    assert "found no thread 'nosuch'" in err


def test_verify_makes_no_schema_and_no_file(run: Run, database_url: str) -> None:
    code, out, err = run("verify", "--url", database_url)
    assert (code, out) == (1, "")
    assert "found no " in err
    if database_url.startswith("sqlite"):
        assert not Path(sa.make_url(database_url).database or "").exists()
    assert catalog(database_url) == []


async def test_verify_tells_the_same_as_json(run: Run, migrated_url: str) -> None:
    await fill(migrated_url)
    key = min(Rows(migrated_url).held("a"))
    Rows(migrated_url).lose([key], "a")
    garbage = len(await unreferenced(migrated_url)) - 1
    assert garbage > 3

    code, out, err = await asyncio.to_thread(run, "verify", "--url", migrated_url, "--json")

    assert (code, err) == (1, "")
    found = json.loads(out)
    assert (found["database"], found["whole"]) == (hidden(migrated_url), False)
    assert found["damaged"] is True
    assert (found["threads"], found["checkpoints"], found["removed"]) == (2, 3, 0)
    assert found["unreferenced"] == garbage
    [missing] = [one for one in found["problems"] if one["kind"] == "missing bytes"]
    assert (missing["thread_id"], missing["segment"]) == ("a", called(key))
    assert len(found["problems"]) == garbage + 1


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
async def test_verify_leaves_every_byte_of_a_file(run: Run, migrated_url: str) -> None:
    """Also of one whose journal is not the one that a saver would choose."""
    await fill(migrated_url)
    path = Path(sa.make_url(migrated_url).database or "")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    before, files = path.read_bytes(), sorted(path.parent.iterdir())
    code, _, _ = await asyncio.to_thread(run, "verify", "--url", migrated_url)
    assert code == 0
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == files


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
async def test_verify_draws_a_bar_on_a_terminal(
    run: Run, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(migrated_url)
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)

    code, out, _ = await asyncio.to_thread(run, "verify", "--url", migrated_url)

    assert code == 0
    assert " is whole: " in out.splitlines()[-1]
    drawn = terminal.getvalue()
    assert ("threads" in drawn, "2/2" in drawn) == (True, True)
