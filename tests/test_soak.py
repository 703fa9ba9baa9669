"""The soak tells that all is well where it is, and what is not where it is not."""

import asyncio
import importlib
import json
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from checkpointer import AsyncSQLAlchemySaver

pytestmark = pytest.mark.long

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"

SMALL = ["--quick", "--seconds=5", "--threads=24", "--agents=8", "--think=0.02"]

Soak = Callable[[], tuple[int, str, dict[str, Any]]]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks' modules import each other by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def soak(
    database_kind: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Soak:
    """Call it for the exit status, the output and the figures of a soak of some seconds."""
    if database_kind == "postgresql":
        url = request.getfixturevalue("postgres_url")
        monkeypatch.setenv("CHECKPOINTER_TEST_POSTGRES_URL", url)

    module: Any = importlib.import_module("soak")

    def run() -> tuple[int, str, dict[str, Any]]:
        file = tmp_path / "figures.json"
        arguments = [*SMALL, f"--databases={database_kind}", f"--json={file}"]
        # In a thread of its own: this one's event loop is pytest's.
        with ThreadPoolExecutor(1) as executor:
            status: int = executor.submit(module.main, arguments).result()
        [figures] = json.loads(file.read_text())
        return status, capsys.readouterr().out, figures

    return run


@pytest.fixture
def change(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Call it with a method's name and what is called in its place, with the method first."""

    def replace(name: str, changed: Callable[..., Any]) -> None:
        method = getattr(AsyncSQLAlchemySaver, name)

        @wraps(method)
        async def instead(*args: Any, **kwargs: Any) -> Any:
            return await changed(method, *args, **kwargs)

        monkeypatch.setattr(AsyncSQLAlchemySaver, name, instead)

    return replace


# What is told is the same on each database.
on_one_database = pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)


def missed(figures: dict[str, Any]) -> set[str]:
    return {one["what"] for one in figures["verdicts"] if not one["reached"]}


def test_a_sound_saver_falls_short_of_nothing(soak: Soak, database_kind: str) -> None:
    status, output, figures = soak()

    assert missed(figures) == set(), output
    assert status == 0
    assert figures["database"] == database_kind
    assert figures["turns"] > 24
    for name in ("aput", "aput_writes", "aget_tuple", "alist", "aprune", "acopy_thread"):
        operation = figures["operations"][name]
        assert operation["calls"] > 0
        assert 0 < operation["p50"] <= operation["p99"] <= operation["longest"]
        assert f"│ {name} " in output
    assert len(figures["rests"]) == 5
    assert figures["stored"][0]["rows"] > 24
    assert "fell short" not in output


@on_one_database
def test_errors_losses_and_alterations_are_told(
    soak: Soak, change: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Plain agents, and graphs that ask.
    failing = {f"thread {number}" for number in (0, 2, 4)}
    losing = {f"thread {number}" for number in (6, 8, 10, 12)}
    altering = {f"thread {number}" for number in (14, 16, 18, 20, 22)}
    forgetting = {f"thread {number}" for number in (1, 3, 5, 13, 15, 17)}

    async def put(method: Any, self: Any, config: Any, checkpoint: Any, *rest: Any) -> Any:
        configurable = config["configurable"]
        thread_id, values = configurable["thread_id"], checkpoint["channel_values"]
        if thread_id in failing:
            raise OSError("the disk is gone")
        if thread_id in losing:
            return {"configurable": {**configurable, "checkpoint_id": checkpoint["id"]}}
        if thread_id in altering and "messages" in values:
            values = {**values, "messages": values["messages"][:-1]}
        return await method(self, config, {**checkpoint, "channel_values": values}, *rest)

    async def put_writes(method: Any, self: Any, config: Any, writes: Any, *rest: Any) -> None:
        asks = any(channel == "__interrupt__" for channel, _ in writes)
        if not asks or config["configurable"]["thread_id"] not in forgetting:
            await method(self, config, writes, *rest)

    change("aput", put)
    change("aput_writes", put_writes)
    monkeypatch.setattr(importlib.import_module("agents"), "SHOWN", 1000)

    status, output, figures = soak()

    assert status == 1
    assert missed(figures) == {"errors", "lost or altered"}
    assert "fell short: errors" in output
    assert "fell short: lost or altered" in output
    assert figures["errors"].keys() == {"agent: a turn: OSError: the disk is gone"}
    losses = "\n".join(figures["losses"])
    assert "other than acknowledged: channel 'messages'" in losses
    assert "other than acknowledged: write to '__interrupt__'" in losses
    told = set(re.findall(r"^thread \d+", losses, re.MULTILINE))
    assert told & losing
    assert told & altering
    assert told & forgetting
    assert told <= losing | altering | forgetting


@on_one_database
def test_whatever_leaks_is_told(
    soak: Soak, change: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept: list[Any] = []
    end = threading.Event()
    connections: list[Any] = []

    async def copy(method: Any, self: Any, *args: Any) -> None:
        await method(self, *args)
        if args[1].startswith("copy"):
            kept.append(asyncio.create_task(asyncio.sleep(3600)))
            # So many, because a slow disk leaves time for a few copies only.
            for _ in range(10):
                thread = threading.Thread(target=end.wait)
                thread.start()
                kept.append((thread, (tmp_path / "leak").open("w")))
        elif not connections:
            connections.append(await self.engine.connect())

    async def put(method: Any, *args: Any) -> Any:
        kept.extend(([object() for _ in range(3000)], b"x" * 500_000))
        return await method(*args)

    async def close(method: Any, self: Any) -> None:
        while connections:
            await connections.pop().close()
        await method(self)

    change("acopy_thread", copy)
    change("aput", put)
    change("aclose", close)
    monkeypatch.setattr(importlib.import_module("verdicts"), "BYTES_NOISE", 4_000_000)

    try:
        status, _, figures = soak()
    finally:
        end.set()
        for one in kept:
            if isinstance(one, tuple):
                one[0].join()
                one[1].close()

    assert status == 1
    assert missed(figures) == {
        "tasks at rest",
        "connections outside the pool at rest",
        "growth of threads",
        "growth of open files",
        "growth of blocks of memory",
        "growth of memory, bytes",
    }


@on_one_database
def test_what_is_not_pruned_not_deleted_not_whole_or_not_done_is_told(
    soak: Soak, change: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    prunes: list[object] = []

    async def prune(method: Any, self: Any, threads: Any, *, strategy: str = "keep_latest") -> None:
        prunes.append(threads)
        # The first three are those of the threads as they are made.
        if strategy != "keep_latest" or len(prunes) <= 3:
            await method(self, threads, strategy=strategy)

    async def delete_for_runs(method: Any, *args: Any) -> None:
        del method, args

    async def verify(method: Any, self: Any, **options: Any) -> Any:
        async with self.engine.begin() as connection:
            await connection.execute(sa.text("DELETE FROM checkpointer_segments"))
        return await method(self, **options)

    change("aprune", prune)
    change("adelete_for_runs", delete_for_runs)
    change("averify", verify)
    monkeypatch.setattr(importlib.import_module("agents"), "LISTERS", 0)
    monkeypatch.setattr(importlib.import_module("verdicts"), "ROWS", 1)
    monkeypatch.setattr(importlib.import_module("verdicts"), "ROWS_NOISE", 0)

    status, output, figures = soak()

    assert status == 1
    assert missed(figures) == {
        "lost or altered",
        "stores that are not whole",
        "operations never done (alist)",
        "rows stored, pruned",
    }
    assert "missing bytes: thread " in output
    assert any("taken back: found checkpoint" in loss for loss in figures["losses"])


@on_one_database
def test_a_call_that_never_returns_is_told(
    soak: Soak, change: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def copy(method: Any, self: Any, source: str, target: str) -> None:
        if target.startswith("copy"):
            await asyncio.Event().wait()
        await method(self, source, target)

    change("acopy_thread", copy)
    monkeypatch.setattr(importlib.import_module("agents"), "PATIENCE", 0.2)

    status, _, figures = soak()

    assert status == 1
    assert "errors" in missed(figures)
    assert figures["errors"] == {"a round did not end: some of its calls never returned": 1}
    assert len(figures["rests"]) == 1
