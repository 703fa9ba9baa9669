"""The examples and the benchmark of storage do what they say."""

import importlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.base import CheckpointTuple

from checkpointer import create_saver

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = ROOT / "examples" / "quickstart.py"
SYNC_SCRIPT = ROOT / "examples" / "sync_script.py"
STORAGE = ROOT / "benchmarks" / "storage.py"
SAVERS = ("ours-sqlite", "official-sqlite", "ours-postgresql", "official-postgresql")


def run(script: Path, *arguments: str, cwd: Path, **environment: str) -> str:
    """Run a script in a process of its own; its output. It must end well and warn of nothing."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("CHECKPOINTER_")}
    ended = subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=cwd,
        env=inherited | {"COLUMNS": "120", "NO_COLOR": "1"} | environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stderr == ""
    return ended.stdout


@pytest.fixture
def quickstart_url(database_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the quickstart's checkpoints go: SQLite is what it takes without being told."""
    if database_kind == "sqlite":
        return f"sqlite:///{tmp_path / 'demo.db'}"
    url: str = request.getfixturevalue("database_url")
    return url


async def checkpoints_of(url: str, thread_id: str) -> list[CheckpointTuple]:
    """The thread's checkpoints, oldest first."""
    async with create_saver(url) as saver:
        return [item async for item in saver.alist({"configurable": {"thread_id": thread_id}})][
            ::-1
        ]


def texts(item: CheckpointTuple) -> list[str]:
    """What the messages of a checkpoint say."""
    return [m.text for m in item.checkpoint["channel_values"].get("messages", [])]


async def test_quickstart_survives_a_kill_and_forks(
    database_kind: str, quickstart_url: str, tmp_path: Path
) -> None:
    environment = {} if database_kind == "sqlite" else {"CHECKPOINTER_URL": quickstart_url}
    (tmp_path / "demo.db").write_text("left over from an earlier run")

    output = run(QUICKSTART, cwd=tmp_path, **environment)

    thread = re.search(r"Thread (\S+) in (sqlite|postgresql)", output)
    assert thread is not None
    assert thread[2] == database_kind
    assert_killed_and_resumed(output)
    assert_tables_printed(output)
    history = await checkpoints_of(quickstart_url, thread[1])
    assert_nothing_lost(history)


def assert_killed_and_resumed(output: str) -> None:
    """The first process died in its second tool; the second one ran that again, not the first."""
    runs = re.findall(r"process (\d+) runs (\w+)\('([^']+)'\)", output)
    (first, *_), (second, *_) = runs[0], runs[2]
    assert first != second
    assert [one for one in runs if "Lyon" in one[2]] == [
        (first, "find_trains", "Lyon"),
        (first, "check_weather", "Lyon"),
        (second, "check_weather", "Lyon"),
        (second, "book_train", "07:12 to Lyon"),
    ]
    assert f"process {first} kills itself in the middle of check_weather" in output
    assert "the process is gone: killed by SIGKILL" in output
    assert f"process {second} finds 4 messages; next: tools" in output
    assert "the agent's answer: Done. Booked: 07:12 to Lyon, seat 42." in output


def assert_tables_printed(output: str) -> None:
    """The history, the fork, and the bytes by table."""
    assert re.search(r"^ 2 .* 1 +0 +loop +model +1: Take me to Lyon *$", output, re.MULTILINE)
    assert re.search(r"^ 9 .* 8 +7 +loop +\(end\) +8: Done. Booked: 07:12", output, re.MULTILINE)
    assert re.search(r"^ 10 .* 2 +1 +update +model +1: Take me to Turin", output, re.MULTILINE)
    assert "the agent's answer: Done. Not booked: 07:12 to Turin." in output
    for table in ("checkpoints", "segments", "threads", "writes"):
        sizes = re.findall(rf"checkpointer_{table} +([\d,]+) +([\d,]+)", output)
        assert len(sizes) == 1, table
        assert sizes[0][0] != "0", table
    [stored], [in_full] = (
        [int(size.replace(",", "")) for size in re.findall(rf"{row}.* ([\d,]+)", output)]
        for row in ("stored, indexes left out", "written out in full")
    )
    assert stored < in_full / 5


def assert_nothing_lost(history: list[CheckpointTuple]) -> None:
    """The trip stands whole in the database beside its fork, and each tool gave one result."""
    trips = [item for item in history if any("ooked:" in text for text in texts(item)[-1:])]
    ends = {texts(item)[0]: item for item in trips if texts(item)[-1].startswith("Done.")}
    assert set(ends) == {"Take me to Lyon", "Take me to Turin"}
    for item in ends.values():
        messages = item.checkpoint["channel_values"]["messages"]
        assert Counter(m.name for m in messages if m.type == "tool") == {
            "find_trains": 1,
            "check_weather": 1,
            "book_train": 1,
        }
    parents = Counter(
        (item.parent_config or {}).get("configurable", {}).get("checkpoint_id") for item in history
    )
    assert parents.pop(None) == 1
    assert sorted(parents.values())[-2:] == [1, 2], "one fork was expected"


def test_a_sync_script_remembers_what_earlier_runs_were_given(
    database_url: str, tmp_path: Path
) -> None:
    url = {"CHECKPOINTER_URL": database_url}

    assert run(SYNC_SCRIPT, "buy milk", cwd=tmp_path, **url) == "1 notes:\n- buy milk\n"
    assert run(SYNC_SCRIPT, "call Ada", cwd=tmp_path, **url) == (
        "2 notes:\n- buy milk\n- call Ada\n"
    )


@pytest.mark.long
def test_the_storage_benchmark_measures_every_saver(postgres_url: str, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"

    output = run(
        STORAGE,
        "--turns=2,4",
        f"--json={figures}",
        cwd=tmp_path,
        CHECKPOINTER_TEST_POSTGRES_URL=postgres_url,
    )

    for saver in SAVERS:
        assert re.search(rf"^│ {saver} +│ +\d+\.\d\d │ +\d+\.\d\d │", output, re.MULTILINE), saver
    assert "Targets are held against 200 turns, which were not measured." in output
    measured = json.loads(figures.read_text())
    assert [(one["saver"], one["turns"]) for one in measured] == [
        (saver, turns) for saver in SAVERS for turns in (2, 4)
    ]
    for one in measured:
        parts = sum(relation["size"] or 0 for relation in one["relations"])
        exact = "postgresql" in one["saver"]
        assert parts == one["size"] if exact else parts <= one["size"], one["saver"]
        assert any(relation["rows"] for relation in one["relations"]), one["saver"]


@pytest.mark.parametrize(
    ("sizes", "reached"),
    [
        ((8_000_000, 17_600_000), [True, True]),
        ((8_000_001, 17_600_000), [False, True]),
        ((8_000_000, 17_600_001), [True, False]),
    ],
)
def test_the_storage_benchmark_tells_a_missed_target(
    sizes: tuple[int, int], reached: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(STORAGE.parent))
    storage: Any = importlib.import_module("storage")
    measured = [
        storage.Measured("ours-sqlite", turns, size, 1.0, [])
        for turns, size in zip((200, 400), sizes, strict=True)
    ]

    assert [kept for _, kept in storage.check_targets(measured)] == reached
    assert storage.show(measured, (200, 400), storage.Console(quiet=True)) is all(reached)
