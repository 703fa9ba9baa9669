"""`prune`, `delete`, `copy`, `import`: what commands remove and move."""

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commanding import Run, hidden
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from schemas import execute
from scripted import agent, asks
from storing import config, put, row_counts, stored_rows
from test_cli_looking import checkpoint_id

from checkpointer import AsyncSQLAlchemySaver, PruneReport, create_saver
from checkpointer.commands import console


async def answer(run: Run, *arguments: str) -> str:
    """What a command prints that ends well."""
    code, out, err = await asyncio.to_thread(run, *arguments)
    assert (code, err) == (0, ""), err
    return out


async def fill(saver: AsyncSQLAlchemySaver, *threads: str) -> None:
    """Store threads of three checkpoints."""
    for thread in threads:
        parent = config(thread)
        for number in range(3):
            parent = await put(saver, parent, str(number), {"step": number}, text=str(number) * 999)
            await saver.aput_writes(parent, [("text", number)], "a task")


async def kept(saver: AsyncSQLAlchemySaver, thread: str) -> list[str]:
    """The ids of a thread's checkpoints, oldest first."""
    found = [one async for one in saver.alist(config(thread))]
    return [checkpoint_id(one.config) for one in reversed(found)]


async def test_prune_shows_what_goes_and_removes_it(
    run: Run, saver: AsyncSQLAlchemySaver, migrated_url: str
) -> None:
    await fill(saver, "a", "b")
    before = stored_rows(migrated_url)
    where = ("--url", migrated_url)
    planned = await answer(run, "prune", "a", "--keep-last", "2", "--dry-run", *where)
    assert planned.splitlines()[-1].startswith("would remove: 1 checkpoint of 1 thread; ")
    plan = json.loads(
        await answer(run, "prune", "a", "--keep-last", "2", "--dry-run", "--json", *where)
    )
    assert plan["dry_run"] is True
    assert (plan["checkpoints"], plan["writes"], plan["deleted_threads"]) == (1, 1, 0)
    assert [one["checkpoints"] for one in plan["threads"]] == [{"": ["0"]}]
    assert stored_rows(migrated_url) == before

    code, out, err = await asyncio.to_thread(run, "prune", "a", *where)
    assert (code, "in part" in out) == (2, True)
    assert "found no terminal to ask on, expected --yes: 2 checkpoints of 1 thread" in err
    assert stored_rows(migrated_url) == before

    done = await answer(run, "prune", "a", "--keep-last", "2", "--yes", *where)
    assert done.splitlines()[-1].startswith("removed: 1 checkpoint of 1 thread; ")
    assert await kept(saver, "a") == ["1", "2"]
    done = json.loads(await answer(run, "prune", "a", "--yes", "--json", *where))
    assert (done["dry_run"], done["checkpoints"]) == (False, 1)
    assert await kept(saver, "a") == ["2"]
    assert await kept(saver, "b") == ["0", "1", "2"]
    assert await answer(run, "prune", "a", *where) == "nothing to remove\n"
    done = json.loads(await answer(run, "prune", "a", "--yes", "--json", *where))
    assert (done["dry_run"], done["threads"]) == (False, [])


async def test_prune_of_all_threads_keeps_what_is_protected(
    run: Run, saver: AsyncSQLAlchemySaver, migrated_url: str
) -> None:
    await fill(saver, "a", "b", "c")
    protected = ("--protect-thread", "b", "--protect-checkpoint", "1")
    arguments = ("prune", "--all", "--keep-last", "1", *protected, "--yes", "--url", migrated_url)
    assert "removed: 2 checkpoints of 2 threads" in await answer(run, *arguments)
    assert [await kept(saver, name) for name in "abc"] == [["1", "2"], ["0", "1", "2"], ["1", "2"]]
    idle = ("prune", "--all", "--idle-for", "0s", "--protect-thread", "a", "--yes")
    gone = await answer(run, *idle, "--url", migrated_url)
    assert "2 threads whole" in gone
    assert [await kept(saver, name) for name in "abc"] == [["1", "2"], [], []]


async def test_prune_by_age(run: Run, saver: AsyncSQLAlchemySaver, migrated_url: str) -> None:
    graph = agent(saver)
    await graph.ainvoke(asks("what?"), config("1"))
    where = ("--url", migrated_url)
    young = await answer(run, "prune", "--all", "--max-age", "1d", "--dry-run", *where)
    assert young == "nothing to remove\n"
    old = await answer(run, "prune", "--all", "--max-age", "0s", "--dry-run", *where)
    assert "would remove: 4 checkpoints of 1 thread" in old


async def test_prune_names_the_threads_that_it_left(
    run: Run, saver: AsyncSQLAlchemySaver, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(saver, "a", "b", "c")
    left = {"damaged": {"b": "cannot be read"}, "skipped": {"c": "is held"}}
    found: dict[str, Any] = {**left}

    async def retained(
        called: AsyncSQLAlchemySaver, policy: object, *, dry_run: bool, progress: object
    ) -> PruneReport:
        return replace(await called.aprune(["a"], dry_run=dry_run), **found)

    monkeypatch.setattr(AsyncSQLAlchemySaver, "aretain", retained)
    arguments = ("prune", "--all", "--keep-last", "1", "--json", "--url", migrated_url)
    for how in ("--dry-run", "--yes"):
        code, out, err = await asyncio.to_thread(run, *arguments, how)
        assert code == 1
        assert json.loads(out).items() >= left.items()
        assert err.splitlines() == [
            "checkpointer: thread b was left as it is: cannot be read",
            "checkpointer: thread c was left as it is: is held",
        ]


async def test_prune_removes_no_more_than_of_what_it_has_shown(
    run: Run, saver: AsyncSQLAlchemySaver, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others put to the threads, and to new ones, while it waits for an answer."""

    async def put_more(url: str) -> None:
        async with create_saver(url) as other:
            for thread in ("shown", "new"):
                for _ in range(3):
                    await put(other, config(thread), str(uuid6()), {}, text="x")

    def confirmed(_: str, *, yes: bool) -> bool:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, put_more(migrated_url)).result()
        return not yes

    for _ in range(3):
        await put(saver, config("shown"), str(uuid6()), {}, text="x")
    shown = await kept(saver, "shown")
    monkeypatch.setattr(console, "confirmed", confirmed)
    arguments = ("prune", "--all", "--max-age", "0s", "--json", "--url", migrated_url)
    done = json.loads(await answer(run, *arguments))
    assert [one["thread_id"] for one in done["threads"]] == ["shown"]
    assert done["threads"][0]["checkpoints"] == {"": shown}
    assert len(await kept(saver, "shown")) == len(await kept(saver, "new")) == 3


async def test_what_is_refused_is_told_as_json(
    run: Run, saver: AsyncSQLAlchemySaver, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(saver, "a")
    monkeypatch.setattr(console, "confirmed", lambda *_, **__: False)
    code, out, err = await asyncio.to_thread(run, "delete", "a", "--json", "--url", migrated_url)
    assert (code, err) == (1, "checkpointer: nothing was removed\n")
    found = json.loads(out)
    assert (found["dry_run"], found["threads"]) == (False, [])
    assert len(await kept(saver, "a")) == 3


async def test_delete_shows_what_goes_and_that_more_may(
    run: Run, saver: AsyncSQLAlchemySaver, migrated_url: str
) -> None:
    await fill(saver, "a", "b")
    before = stored_rows(migrated_url)
    where = ("--url", migrated_url)
    planned = await answer(run, "delete", "a", "--dry-run", *where)
    assert planned.splitlines()[-1].startswith("would remove: 3 checkpoints of 1 thread, 1 thread")
    plan = json.loads(await answer(run, "delete", "a", "--dry-run", "--json", *where))
    assert (plan["dry_run"], plan["deleted_threads"]) == (True, 1)
    _, _, err = await asyncio.to_thread(run, "delete", "a", *where)
    assert ", and what is put to them meanwhile. This cannot be undone." in err
    assert stored_rows(migrated_url) == before


async def test_delete_removes_threads_and_refuses_unknown_ones(
    run: Run, saver: AsyncSQLAlchemySaver, migrated_url: str
) -> None:
    await fill(saver, "a", "b", "c")
    before = stored_rows(migrated_url)
    code, out, err = await asyncio.to_thread(
        run, "delete", "a", "nosuch", "--yes", "--url", migrated_url
    )
    assert (code, out, "found no thread 'nosuch'" in err) == (2, "", True)
    code, _, err = await asyncio.to_thread(run, "delete", "a", "--url", migrated_url)
    assert (code, "expected --yes" in err) == (2, True)
    assert stored_rows(migrated_url) == before
    out = await answer(run, "delete", "a", "--yes", "--url", migrated_url)
    assert "removed: 3 checkpoints of 1 thread, 1 thread whole" in out
    found = json.loads(await answer(run, "delete", "b", "--yes", "--json", "--url", migrated_url))
    assert (found["deleted_threads"], found["threads"][0]["thread_id"]) == (1, "b")
    assert row_counts(migrated_url)["checkpointer_threads"] == 1
    assert await kept(saver, "c") == ["0", "1", "2"]


@pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)
async def test_copy_and_back_gives_equal_stores(
    run: Run,
    saver: AsyncSQLAlchemySaver,
    migrated_url: str,
    new_migrated_url: Callable[[], str],
    tmp_path: Path,
) -> None:
    await fill(saver, "a", "b", "c")
    file, back = f"sqlite:///{tmp_path}/copy.db", new_migrated_url()
    said = await answer(run, "copy", migrated_url, file)
    assert said.startswith(f"{hidden(migrated_url)} -> sqlite+aiosqlite:///{tmp_path}/copy.db: ")
    assert "3 threads, 9 checkpoints and 9 writes, " in said
    again = json.loads(await answer(run, "copy", migrated_url, file, "--json"))
    assert (again["threads"], again["skipped"]) == (0, 3)
    assert again["source"] == {"database": hidden(migrated_url), "schema": None}
    chosen = await answer(run, "copy", file, back, "--threads", "a", "--threads", "c")
    assert "2 threads, 6 checkpoints" in chosen
    await answer(run, "copy", file, back)
    assert stored_rows(back) == stored_rows(migrated_url)


async def test_copy_says_what_is_not_there(run: Run, migrated_url: str, tmp_path: Path) -> None:
    nowhere = f"sqlite:///{tmp_path}/nosuch.db"
    code, _, err = await asyncio.to_thread(run, "copy", nowhere, migrated_url)
    assert (code, "found no such file" in err) == (1, True)
    code, _, err = await asyncio.to_thread(run, "import", nowhere, migrated_url)
    assert (code, "found no such file" in err) == (1, True)
    assert list(tmp_path.glob("nosuch*")) == []


async def test_threads_that_cannot_be_moved_are_named(
    run: Run, saver: AsyncSQLAlchemySaver, migrated_url: str, tmp_path: Path
) -> None:
    await fill(saver, "a", "b")
    move = ("copy", migrated_url, f"sqlite:///{tmp_path}/copy.db", "--json")
    code, out, err = await asyncio.to_thread(run, *move, "--threads", "a", "--threads", "nosuch")
    found = json.loads(out)
    assert (code, found["threads"], list(found["failed"])) == (2, 1, ["nosuch"])
    assert err.startswith("checkpointer: thread nosuch was not moved: found no ")
    execute(migrated_url, "UPDATE checkpointer_checkpoints SET manifest = '' WHERE thread_id = 'b'")
    code, out, err = await asyncio.to_thread(run, *move)
    found = json.loads(out)
    assert (code, found["skipped"], list(found["failed"])) == (1, 1, ["b"])
    assert json.loads((await asyncio.to_thread(run, *move[:3], "--json"))[1]) == found


async def test_a_schema_of_a_file_is_refused(run: Run, tmp_path: Path) -> None:
    urls = f"sqlite:///{tmp_path}/a.db", f"sqlite:///{tmp_path}/b.db"
    code, _, err = await asyncio.to_thread(run, "import", *urls, "--source-schema", "x")
    assert (code, "SQLite, which has no schemas" in err) == (2, True)


async def test_import_takes_threads_over(
    run: Run, saver: AsyncSQLAlchemySaver, migrated_url: str, tmp_path: Path
) -> None:
    path = tmp_path / "official.db"
    async with AsyncSqliteSaver.from_conn_string(str(path)) as official:
        graph = agent(official)
        await graph.ainvoke(asks("what?"), config("1"))
        states = [state async for state in graph.aget_state_history(config("1"))]
    before = path.read_bytes()
    said = await answer(run, "import", f"sqlite:///{path}", migrated_url)
    assert f"{len(states)} checkpoints" in said
    again = json.loads(await answer(run, "import", f"sqlite:///{path}", migrated_url, "--json"))
    assert (again["threads"], again["skipped"]) == (0, 1)
    assert [one async for one in agent(saver).aget_state_history(config("1"))] == states
    assert path.read_bytes() == before
