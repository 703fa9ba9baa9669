"""Processes are killed while they write: all that they were told is stored is there, and whole."""

import asyncio
import signal
from collections import Counter
from collections.abc import Callable, Container, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
from intensity import FULL, INTENSITY
from langgraph.checkpoint.memory import InMemorySaver
from processes import (
    SCRIPTS,
    Operation,
    Seen,
    Write,
    assert_whole,
    on_each_database,
    operations,
    seen_in,
    started,
    write_until_killed,
)
from schemas import Catalog, catalog, open_database, query
from scripted import Normaliser
from storing import config

from checkpointer import AsyncSQLAlchemySaver, create_saver, schema

pytestmark = pytest.mark.long

KILLS_A_DATABASE = 5
"""Then the next process begins with an empty database, and may be killed while it migrates it."""

MOST_NOTES = 150
"""A process is killed after so many notes at the latest: before and after its operations."""

LONGEST = 0.1
"""Seconds that it goes on then, at most."""

CUT_OFF = {
    "setup",
    "aput",
    "aput_writes",
    "aprune",
    "acopy_thread",
    "adelete_thread",
    "adelete_for_runs",
    "turn",
}
"""Operations that are under way at one kill or the other."""

WRITE_ROWS = """
SELECT thread_id, checkpoint_ns, checkpoint_id, task_id, channel FROM checkpointer_writes
"""

OTHER_BACKENDS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""

Key = tuple[str, str]
"""Namespace and id of a checkpoint."""


@dataclass
class Thread:
    """What one thread holds.

    Attributes:
        checkpoints: Digest and run of each.
        writes: Those to each checkpoint, also to one that is not there.
    """

    checkpoints: dict[Key, tuple[str, str]] = field(default_factory=dict)
    writes: dict[Key, set[Write]] = field(default_factory=dict)

    def drop(self, keys: Iterable[Key]) -> None:
        """Delete checkpoints, each with its writes."""
        for key in keys:
            del self.checkpoints[key]
            self.writes.pop(key, None)

    def keep_latest(self) -> None:
        """Keep the latest checkpoint of each namespace."""
        latest = dict(sorted(self.checkpoints))
        self.drop([key for key in self.checkpoints if latest[key[0]] != key[1]])

    def seen(self) -> set[Seen]:
        """What a reader finds."""
        return {
            Seen(*key, digest, tuple(sorted(self.writes.get(key, ()))))
            for key, (digest, _) in self.checkpoints.items()
        }


class Threads(dict[str, Thread]):
    """What threads hold after operations of which none ran beside another."""

    def __missing__(self, thread: str) -> Thread:
        return self.setdefault(thread, Thread())

    def apply(self, operation: Operation) -> None:
        """Do what an operation does."""
        given = operation.given
        match operation.name:
            case "aput":
                key = (given["ns"], given["id"])
                self[given["thread"]].checkpoints[key] = (given["digest"], given["run"])
            case "aput_writes":
                written = self[given["thread"]].writes.setdefault((given["ns"], given["id"]), set())
                written.update(map(tuple, given["writes"]))
            case "aprune" if given["strategy"] == "keep_latest":
                for thread in given["threads"]:
                    self[thread].keep_latest()
            case "aprune" | "adelete_thread":
                for thread in given["threads"]:
                    self[thread] = Thread()
            case "acopy_thread":
                self._copy(self[given["source"]], self[given["target"]])
            case "adelete_for_runs":
                for one in self.values():
                    found = one.checkpoints.items()
                    one.drop([key for key, (_, run) in found if run in given["runs"]])

    @staticmethod
    def _copy(source: Thread, target: Thread) -> None:
        target.checkpoints |= source.checkpoints
        for key, writes in source.writes.items():
            target.writes.setdefault(key, set()).update(writes)


@dataclass
class Victim:
    """A process that was killed.

    Attributes:
        done: What it noted.
        turns: The last turn that it began on each of the threads on which it ran graphs.
    """

    done: list[Operation]
    turns: dict[str, Operation] = field(init=False)

    def __post_init__(self) -> None:
        turns = (one for one in self.done if one.name == "turn")
        self.turns = {one.given["thread"]: one for one in turns}

    def threads(self) -> tuple[Threads, Threads]:
        """The authors' threads: by what was acknowledged, and with what was under way besides."""
        mine = [one for one in self.done if one.given.get("thread") not in self.turns]
        found = Threads()
        for one in mine:
            if one.acknowledged:
                found.apply(one)
        acknowledged = deepcopy(found)
        for one in mine:
            if not one.acknowledged:
                found.apply(one)
        return acknowledged, found

    def puts(self, thread: str, name: str) -> list[Operation]:
        """The checkpoints, or the writes, that graphs put into a thread."""
        return [one for one in self.done if one.name == name and one.given["thread"] == thread]


@pytest.fixture
def seed() -> int:
    """Of all that a test makes up; pytest shows it where the test fails."""
    chosen = Random().randrange(1 << 32)  # noqa: S311 - a test's data, not a secret
    print(f"the seed is {chosen}")  # noqa: T201 - captured
    return chosen


@pytest.fixture
async def outcomes() -> dict[str, list[Any]]:
    """What the graph of each script returns after each turn, where nobody kills it."""
    found = {}
    for name, script in SCRIPTS.items():
        graph = script.builder(InMemorySaver())
        results = [await graph.ainvoke(turn, config()) for turn in script.turns]
        found[name] = [Normaliser()(result) for result in results]
    return found


@pytest.mark.timeout(1800)
@on_each_database
async def test_what_was_acknowledged_outlives_kill_9_and_threads_resume(
    new_database_url: Callable[[], str],
    new_migrated_url: Callable[[], str],
    tmp_path: Path,
    seed: int,
    outcomes: dict[str, list[Any]],
) -> None:
    random = Random(seed)  # noqa: S311 - a test's data, not a secret
    tally = Counter[str]()
    whole_catalog = catalog(new_migrated_url())
    url = ""
    for number in range(INTENSITY.kills):
        name, journal = f"{seed}.{number}", tmp_path / str(number)
        migrates = number % KILLS_A_DATABASE == 0
        if migrates:
            url = new_database_url()
        notes = 1 if migrates else random.randrange(MOST_NOTES)  # the first is that it migrates
        await kill_while_writing(url, journal, name, notes, random.uniform(0, LONGEST))
        victim = Victim(operations(journal))
        if migrates:
            await check_schema(url, victim, whole_catalog)
        async with create_saver(url) as saver:
            await saver.setup()
            await check_authors(saver, victim)
            rows = set(query(url, WRITE_ROWS))
            for thread in victim.turns:
                await check_graphs(saver, victim, thread, rows)
            turns = victim.turns.values()
            await asyncio.gather(*(resume(saver, turn, outcomes) for turn in turns))
            await assert_whole(saver)
        tally.update(one.name for one in victim.done if not one.acknowledged)
        tally["acknowledged"] += sum(one.acknowledged for one in victim.done)
    assert tally["acknowledged"] > 10 * INTENSITY.kills
    assert tally["aput"] > INTENSITY.kills / 2, f"cut off were {tally}"
    enough = len(CUT_OFF) - 1 if INTENSITY is FULL else 4
    assert len(tally.keys() & CUT_OFF) >= enough, f"cut off were {tally}"


async def kill_while_writing(url: str, journal: Path, name: str, notes: int, delay: float) -> None:
    """Start a process, and kill it `delay` seconds after it has made so many notes.

    Returns when nothing of it is under way any more.
    """
    with started(write_until_killed, url, journal, name) as process:
        await until(lambda: not process.is_alive() or lines_of(journal) >= notes)
        await asyncio.sleep(delay)
        process.kill()
        process.join()
        errors = [one.given["traceback"] for one in operations(journal) if one.name == "error"]
        assert process.exitcode == -signal.SIGKILL, "".join(errors)
    # A server goes on with a statement that it was sent.
    if url.startswith("postgresql"):
        await until(lambda: query(url, OTHER_BACKENDS) == [(0,)])


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - it is another process that makes it so
        await asyncio.sleep(0.003)


def lines_of(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


async def check_schema(url: str, victim: Victim, whole_catalog: Catalog) -> None:
    """The schema is whole or absent, and not absent where the process was told that it is there."""
    database = open_database(url)
    revision = await schema.current(database)
    await database.dispose()
    told = any(one.name == "setup" and one.acknowledged for one in victim.done)
    assert revision == schema.EXPECTED_REVISION or (revision is None and not told)
    assert catalog(url) == (whole_catalog if revision else [])


async def check_authors(saver: AsyncSQLAlchemySaver, victim: Victim) -> None:
    """What authors were told is so, and what they had under way is whole or absent."""
    acknowledged, tried = victim.threads()
    for thread in tried:
        assert await seen_in(saver, thread) in (acknowledged[thread].seen(), tried[thread].seen())


async def check_graphs(
    saver: AsyncSQLAlchemySaver, victim: Victim, thread: str, rows: Container[tuple[object, ...]]
) -> None:
    """All that graphs were told is stored is there, and nothing else than what they put."""
    found = {(one.namespace, one.id): one for one in await seen_in(saver, thread)}
    put: dict[Key, str] = {}
    for one in victim.puts(thread, "aput"):
        key = (one.given["ns"], one.given["id"])
        put[key] = one.given["digest"]
        assert key in found or not one.acknowledged
    assert {key: one.digest for key, one in found.items()}.items() <= put.items()
    for one in victim.puts(thread, "aput_writes"):
        if one.acknowledged:
            key = (one.given["ns"], one.given["id"])
            written = set(map(tuple, one.given["writes"]))
            # Writes may be stored before their checkpoint; no reader finds them then.
            assert all((thread, *key, task, channel) in rows for task, channel, _ in written)
            assert key not in found or written <= set(found[key].writes)


async def resume(
    saver: AsyncSQLAlchemySaver, turn: Operation, outcomes: dict[str, list[Any]]
) -> None:
    """The thread goes on where it stopped, and ends as if nobody had killed it."""
    where, index = config(turn.given["thread"]), turn.given["index"]
    script, expected = SCRIPTS[turn.given["script"]], outcomes[turn.given["script"]]
    graph, reached = script.builder(saver), -1
    if await saver.aget_tuple(where) is not None:
        reached = expected.index(Normaliser()(await graph.ainvoke(None, where)))
    # Of a turn that was cut off, not even what it was given may be stored yet.
    assert reached == index or (reached == index - 1 and not turn.acknowledged)
    for given, outcome in list(zip(script.turns, expected, strict=True))[reached + 1 :]:
        assert Normaliser()(await graph.ainvoke(given, where)) == outcome
