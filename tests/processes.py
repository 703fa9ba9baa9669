"""What child processes do to a database, and the journals in which they say what they did.

A journal has one line before each operation and one after it has returned. Each line is handed to
the kernel at once, so that a kill loses none.
"""

import asyncio
import inspect
import itertools
import json
import multiprocessing
import os
import time
import traceback
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, wraps
from hashlib import blake2b
from math import inf
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from random import Random
from typing import Any, Literal

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from scripted import Builder, agent, asks, delta, fan_out
from storing import checkpoint, config

from checkpointer import AsyncSQLAlchemySaver, copy_store, create_saver, intake, transfer

LIMIT = 120.0
"""Seconds after which a child ends by itself: nobody may be left who could kill it."""

PRELOADED = (
    "aiosqlite",
    "alembic.command",
    "alembic.ddl.postgresql",
    "alembic.ddl.sqlite",
    "asyncpg",
    "checkpointer",
    "langchain.agents.middleware",
    "langgraph.channels.delta",
    "langgraph.graph",
    "psycopg",
    "pytest",
    "sqlalchemy.dialects.postgresql.asyncpg",
    "sqlalchemy.dialects.sqlite.aiosqlite",
)
"""What children use: imported once, in the process that they are forked from."""

on_each_database = pytest.mark.parametrize(
    "database_kind",
    [
        pytest.param(kind, marks=pytest.mark.xdist_group(f"processes on {kind}"))
        for kind in ("sqlite", "postgresql")
    ],
    indirect=True,
)
"""Runs a test on each kind of database; the kinds beside each other, where there are workers."""


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED])
    first = context.Process(target=int)
    first.start()  # returns once all is imported, which takes seconds
    first.join()
    first.close()
    return context


@contextmanager
def started(run: Callable[..., None], *args: Any) -> Iterator[ForkServerProcess]:
    """A child process that runs `run(*args)`. At the end it is killed, if it has not ended."""
    process = _context().Process(target=run, args=args, daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()
        process.close()


def soon(seconds: float) -> float:
    """A moment so many seconds after now, or after children can be started if that comes later."""
    _context()
    return time.monotonic() + seconds


@dataclass(frozen=True)
class Operation:
    """One operation, as its process noted it.

    Attributes:
        name: The saver's method, or what the process calls it.
        given: What it was given.
        started: Before the call, in nanoseconds of the system's monotonic clock.
        ended: After it has returned; infinite where it has not.
        found: What it returned.
    """

    name: str
    given: Mapping[str, Any]
    started: float
    ended: float = inf
    found: Mapping[str, Any] = field(default_factory=dict)

    @property
    def acknowledged(self) -> bool:
        """Whether it has returned."""
        return self.ended < inf


class Journal:
    """Appends lines to a file."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._numbers = itertools.count()

    @contextmanager
    def operation(self, name: str, **given: Any) -> Iterator[dict[str, Any]]:
        """Note that an operation starts, and if it does not raise, that it has returned.

        Yields:
            Where to say what it returned.
        """
        number = next(self._numbers)
        self._append(number, time.monotonic_ns(), name, given)
        found: dict[str, Any] = {}
        yield found
        self._append(number, time.monotonic_ns(), found)

    def _append(self, *parts: Any) -> None:
        line = json.dumps(parts).encode() + b"\n"
        assert os.write(self._file, line) == len(line)


def operations(path: Path) -> list[Operation]:
    """The operations of a journal, in the order of their starts."""
    begun: dict[int, Operation] = {}
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        if not line.endswith(b"\n"):
            break  # the process was killed while it wrote this
        number, at, *rest = json.loads(line)
        if number in begun:
            one = begun[number]
            begun[number] = Operation(one.name, one.given, one.started, at, rest[0])
        else:
            name, given = rest
            begun[number] = Operation(name, given, at)
    return list(begun.values())


def digest_of(value: Any) -> str:
    """Tells values apart, whatever process made or read them."""
    text = json.dumps(value, sort_keys=True, default=repr)
    return blake2b(text.encode(), digest_size=12).hexdigest()


Write = tuple[str, ...]
"""Task, channel and the value's digest of one pending write."""


@dataclass(frozen=True, order=True)
class Seen:
    """A checkpoint as a reader finds it, without the thread.

    Attributes:
        writes: Its pending writes, sorted.
    """

    namespace: str
    id: str
    digest: str
    writes: tuple[Write, ...]

    @classmethod
    def of(cls, found: CheckpointTuple) -> "Seen":
        """What a saver returned."""
        writes = [
            (task, name, digest_of(value)) for task, name, value in found.pending_writes or ()
        ]
        return cls(
            namespace=_place(found.config)["ns"],
            id=found.checkpoint["id"],
            digest=digest_of(found.checkpoint),
            writes=tuple(sorted(writes)),
        )

    @classmethod
    def noted(cls, parts: Sequence[Any]) -> "Seen":
        """What stands in a journal."""
        namespace, checkpoint_id, digest, writes = parts
        return cls(namespace, checkpoint_id, digest, tuple(map(tuple, writes)))

    def parts(self) -> list[Any]:
        """What is noted in a journal."""
        return [self.namespace, self.id, self.digest, self.writes]


async def seen_in(saver: AsyncSQLAlchemySaver, thread: str) -> set[Seen]:
    """All checkpoints of a thread."""
    where: RunnableConfig = {"configurable": {"thread_id": thread}}
    return {Seen.of(found) async for found in saver.alist(where)}


async def assert_whole(saver: AsyncSQLAlchemySaver) -> None:
    """All that is stored can be read, and is what was written."""
    found = await saver.averify()
    assert found.whole, found.problems


def _place(at: RunnableConfig) -> dict[str, str]:
    configurable = at.get("configurable", {})
    return {"thread": configurable["thread_id"], "ns": configurable.get("checkpoint_ns", "")}


def _describe_aput(config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
    run = metadata.get("run_id")
    return {**_place(config), "id": checkpoint["id"], "run": run, "digest": digest_of(checkpoint)}


def _describe_aput_writes(config: Any, writes: Any, task_id: str, task_path: str) -> Any:
    digests = [(task_id, channel, digest_of(value)) for channel, value in writes]
    return {**_place(config), "id": config["configurable"]["checkpoint_id"], "writes": digests}


DESCRIBED: dict[str, Callable[..., Mapping[str, Any]]] = {
    "setup": dict,
    "aput": _describe_aput,
    "aput_writes": _describe_aput_writes,
    "aget_tuple": _place,
    "aprune": lambda thread_ids, strategy, *_: {"threads": thread_ids, "strategy": strategy},
    "adelete_thread": lambda thread_id: {"threads": [thread_id], "strategy": "delete"},
    "acopy_thread": lambda source_thread_id, target_thread_id, _: {
        "source": source_thread_id,
        "target": target_thread_id,
    },
    "adelete_for_runs": lambda run_ids: {"runs": run_ids},
}
"""The operations that are noted, and what of their arguments."""


def note(saver: AsyncSQLAlchemySaver, journal: Journal) -> None:
    """Have all that is done with a saver noted from now on."""
    for name, describe in DESCRIBED.items():
        setattr(saver, name, _noting(name, getattr(saver, name), describe, journal))


def _noting(
    name: str,
    method: Callable[..., Coroutine[Any, Any, Any]],
    describe: Callable[..., Mapping[str, Any]],
    journal: Journal,
) -> Callable[..., Coroutine[Any, Any, Any]]:
    signature = inspect.signature(method)

    @wraps(method)  # LangGraph looks at the parameters of aput_writes
    async def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        with journal.operation(name, **describe(*bound.arguments.values())) as found:
            result = await method(*args, **kwargs)
            if isinstance(result, CheckpointTuple):
                found["seen"] = [Seen.of(result).parts()]
        return result

    return call


Act = Literal[
    "put",
    "put with writes",
    "write",
    "read",
    "list",
    "keep latest",
    "prune all",
    "delete",
    "copy",
    "delete runs",
]
"""What an author does in one go."""

Acts = Mapping[Act, int]
"""What is done, and how often beside the rest."""

RUNS = 8
"""Runs by which the checkpoints of a thread are made."""

Line = tuple[RunnableConfig, dict[str, Any], dict[str, Any]]
"""The checkpoint that was put last into a namespace, its values, and their versions."""


class Author:
    """Puts lines of checkpoints into threads, one at a time, and does all else to them.

    Each line's list grows, and a long value stays as it is, so that checkpoints share bytes. Ids
    sort by the time at which they were made up, over all processes.

    Args:
        saver: What it works with.
        journal: Where lists are noted, which `note` does not see.
        name: Tells it from all others; seeds all that is random.
    """

    def __init__(self, saver: AsyncSQLAlchemySaver, journal: Journal, name: str) -> None:
        self.name = name
        self.random = Random(name)  # noqa: S311 - a test's data, not a secret
        self._saver = saver
        self._journal = journal
        self._tasks = itertools.count()
        self._lines: dict[tuple[str, str], Line] = {}

    async def act(self, acts: Acts, thread: str, others: Sequence[str]) -> None:
        """Do one of these things to a thread; `others` are those that may be copied to it."""
        saver, namespace = self._saver, self._namespace()
        calls: dict[Act, Callable[[], Awaitable[object]]] = {
            "put": lambda: self._put(thread, namespace),
            "put with writes": lambda: self._put(thread, namespace, with_writes=True),
            "write": lambda: self._write(thread, namespace),
            "read": lambda: saver.aget_tuple(config(thread, checkpoint_ns=namespace)),
            "list": lambda: self._list(thread, namespace),
            "keep latest": lambda: saver.aprune([thread]),
            "prune all": lambda: saver.aprune([thread], strategy="delete"),
            "delete": lambda: saver.adelete_thread(thread),
            "copy": lambda: saver.acopy_thread(self.random.choice(others), thread),
            "delete runs": lambda: saver.adelete_for_runs([self._run(thread)]),
        }
        [act] = self.random.choices(list(acts), list(acts.values()))
        await calls[act]()

    async def _put(self, thread: str, namespace: str, *, with_writes: bool = False) -> None:
        parent, values, versions = await self._grown(thread, namespace)
        checkpoint_id = f"{time.monotonic_ns():020}-{self.name}"
        stored = checkpoint(checkpoint_id, values)
        new = {name: stored["channel_versions"][name] for name in values if name not in versions}
        stored["channel_versions"] = versions | new
        putting = self._saver.aput(parent, stored, {"run_id": self._run(thread)}, new)
        at = config(thread, checkpoint_id, checkpoint_ns=namespace)
        if with_writes:
            await asyncio.gather(putting, self._write_to(at))
        else:
            await putting
        self._lines[thread, namespace] = (at, values, dict(stored["channel_versions"]))

    async def _grown(self, thread: str, namespace: str) -> Line:
        """The parent, the values of a child, and the versions of those that stay the same."""
        known = self._lines.get((thread, namespace))
        if known is None or self.random.random() < 0.2:  # go on from what others have put
            found = await self._saver.aget_tuple(config(thread, checkpoint_ns=namespace))
            if found is not None:
                known = (
                    found.config,
                    found.checkpoint["channel_values"],
                    dict(found.checkpoint["channel_versions"]),
                )
        if known is None or self.random.random() < 0.05:
            values: dict[str, Any] = {"log": self._noise(60), "kept": self._noise(60), "number": 0}
            return config(thread, checkpoint_ns=namespace), values, {}
        parent, values, versions = known
        log = values["log"] + self._noise(self.random.randrange(4))
        values = {**values, "log": log, "number": values["number"] + 1}
        return parent, values, {"kept": versions["kept"]}

    async def _write(self, thread: str, namespace: str) -> None:
        """Write to the checkpoint that this author put last there."""
        known = self._lines.get((thread, namespace))
        if known is not None:
            await self._write_to(known[0])

    async def _write_to(self, at: RunnableConfig) -> None:
        task = f"{self.name}-{next(self._tasks)}"
        log = self._noise(self.random.choice([1, 40]))
        writes: list[tuple[str, Any]] = [("log", log), ("number", len(task))]
        await self._saver.aput_writes(at, writes, task)

    async def _list(self, thread: str, namespace: str) -> None:
        at = config(thread, checkpoint_ns=namespace)
        with self._journal.operation("alist", **_place(at)) as found:
            listed = [Seen.of(one) async for one in self._saver.alist(at, limit=5)]
            found["seen"] = [one.parts() for one in listed]

    def _namespace(self) -> str:
        return self.random.choice(["", "", "inner"])

    def _run(self, thread: str) -> str:
        return f"{thread}/run {self.random.randrange(RUNS)}"

    def _noise(self, count: int) -> list[str]:
        return [self.random.randbytes(100).hex() for _ in range(count)]


@dataclass(frozen=True)
class Script:
    """A graph, and what it is given, turn by turn."""

    builder: Builder
    turns: Sequence[Any]


SCRIPTS = {
    "conversation": Script(agent, [asks("one"), asks("two"), asks("three")]),
    "delta": Script(delta, [{"items": ["start"], "left": 7}, {"items": ["more"], "left": 3}]),
    "fan-out": Script(fan_out, [{"items": [*"abcdef"]}, {"items": ["g"]}]),
}

KILLED_ACTS: Acts = {
    "put": 8,
    "write": 4,
    "read": 1,
    "copy": 2,
    "keep latest": 2,
    "delete runs": 2,
    "prune all": 1,
    "delete": 2,
}

Run = Callable[[AsyncSQLAlchemySaver, Journal], Coroutine[Any, Any, None]]


def write_until_killed(url: str, journal: Path, name: str) -> None:
    """Run graphs, and do all else that a saver can do, until the process is killed.

    Two authors each have two threads to themselves, which bear their names and a letter.
    """

    async def write(saver: AsyncSQLAlchemySaver, journal: Journal) -> None:
        await saver.setup()
        async with asyncio.TaskGroup() as group:
            for durability in ("sync", "async"):
                group.create_task(_converse(saver, journal, f"{name} {durability}", durability))
            for number in range(2):
                group.create_task(_keep_acting(Author(saver, journal, f"{name} {number}")))

    _run(write, url, journal)


async def _converse(
    saver: AsyncSQLAlchemySaver, journal: Journal, name: str, durability: Any
) -> None:
    random = Random(name)  # noqa: S311 - a test's data, not a secret
    for number in itertools.count():
        which = random.choice([*SCRIPTS])
        graph = SCRIPTS[which].builder(saver)
        thread = f"{name} {number}"
        for index, given in enumerate(SCRIPTS[which].turns):
            with journal.operation("turn", thread=thread, script=which, index=index):
                await graph.ainvoke(given, config(thread), durability=durability)


async def _keep_acting(author: Author) -> None:
    threads = [f"{author.name}{letter}" for letter in "ab"]
    while True:
        await author.act(KILLED_ACTS, author.random.choice(threads), threads)


@dataclass(frozen=True, kw_only=True)
class Race:
    """What several processes do at once.

    Attributes:
        start: When, in seconds of the system's monotonic clock.
        seconds: For how long.
        shared: What is done to each of the threads that they share at a time.
        alone: What each author also does, to a thread of its own.
        period: Seconds after which they go on to other threads.
        least: How often each author acts at least, however long that takes.
    """

    start: float
    seconds: float
    shared: Sequence[Acts]
    alone: Acts | None = None
    period: float = 1
    least: int = 60


AUTHORS = 3
"""Authors in each of the processes that race: their puts share transactions."""


def take_part(url: str, journal: Path, name: str, race: Race) -> None:
    """Take part in a race, to its end."""

    async def act(saver: AsyncSQLAlchemySaver, journal: Journal) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(AUTHORS):
                group.create_task(_race(Author(saver, journal, f"{name} {number}"), race))

    _run(act, url, journal)


async def _race(author: Author, race: Race) -> None:
    await asyncio.sleep(race.start - time.monotonic())
    for number in itertools.count():
        passed = time.monotonic() - race.start
        if passed >= race.seconds and number >= race.least:
            break
        period = int(passed / race.period)
        shared = {f"{period}-{n}": acts for n, acts in enumerate(race.shared)}
        threads = shared | ({f"{period}-{author.name}": race.alone} if race.alone else {})
        thread = author.random.choice([*threads])
        await author.act(threads[thread], thread, [*shared])


def copy_all(source_url: str, target_url: str) -> None:
    """Copy one store into another, a small piece at a time, until the process is killed."""
    warnings.simplefilter("error")

    async def run() -> None:
        async with (
            asyncio.timeout(LIMIT),
            create_saver(source_url) as source,
            create_saver(target_url) as target,
        ):
            await copy_store(source, target)

    add = intake.Intake.add_segments

    async def add_slowly(self: intake.Intake, segments: Any) -> None:
        await asyncio.sleep(0.05)  # so that whoever kills the process comes in time
        await add(self, segments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "PAGE", 8)
        patch.setattr(intake, "AHEAD", 4096)
        patch.setattr(intake.Intake, "add_segments", add_slowly)
        asyncio.run(run())


def _run(work: Run, url: str, path: Path) -> None:
    """Work with a saver whose operations are noted. An error is noted too, and ends the process."""
    warnings.simplefilter("error")
    journal = Journal(path)

    async def run() -> None:
        async with asyncio.timeout(LIMIT), create_saver(url) as saver:
            note(saver, journal)
            await work(saver, journal)

    try:
        asyncio.run(run())
    except BaseException:
        with journal.operation("error", traceback=traceback.format_exc()):
            raise
