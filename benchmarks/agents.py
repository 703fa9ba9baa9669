"""Agents that work on threads at the same time, and what goes on beside them."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from random import Random
from typing import Any, Final

from kinds import KINDS, Graph, Kind, PlannedError
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from ledger import Ledger, Record
from savers import Saver
from watched import Stopwatch, WatchedSaver

PATIENCE: Final = 90.0
"""Seconds after a round's end within which everybody must have stopped."""

PRUNED_AT_ONCE: Final = 10
PRUNING: Final = 0.2
"""The pause between two prunes, as a part of a model's: 1,000 threads are pruned once in the time
that each takes for about one turn."""

COPIERS: Final = 4
LISTERS: Final = 4
LISTED: Final = 10
"""Checkpoints of a list at most."""

SHOWN: Final = 20
"""Faults that are kept: the first ones say most."""


@dataclass(slots=True)
class Thread:
    """One thread, which belongs to one agent at a time.

    Attributes:
        thread_id: Its id, the same in each of its lives.
        kind: What it does.
        lives: How many it has begun.
        turns: How many turns of this life have ended.
        spoiled: Whether it is unknown what it holds, after an error.
    """

    thread_id: str
    kind: Kind
    lives: int = 0
    turns: int = 0
    spoiled: bool = False

    @property
    def run_id(self) -> str:
        """The id of the next turn's run."""
        return f"{self.thread_id}, life {self.lives}, turn {self.turns}"


@dataclass(slots=True)
class Faults:
    """What went wrong: the first ones as text, and how often each came."""

    seen: Counter[str] = field(default_factory=Counter)
    count: int = 0

    def add(self, text: str) -> None:
        """Count one more."""
        self.count += 1
        if text in self.seen or len(self.seen) < SHOWN:
            self.seen[text] += 1


class Load:
    """Agents over threads of one saver, in rounds, between which nothing is under way.

    Args:
        saver: The saver.
        threads: How many threads.
        agents: How many agents work at the same time.
        think: Seconds that a model, or a human, thinks on average.
    """

    def __init__(self, saver: Saver, *, threads: int, agents: int, think: float) -> None:
        self.stopwatch = Stopwatch()
        self.ledger = Ledger()
        self.errors = Faults()
        self.losses = Faults()
        self.agents = agents
        self.think = think
        self.turns = 0
        self.saver = WatchedSaver(saver, self.stopwatch, self.ledger)
        self._random = Random(threads)
        self._graphs: dict[str, Graph] = {
            kind.name: kind.build(self.saver, self._thought) for kind in KINDS
        }
        self.threads = [
            Thread(f"thread {number}", kind)
            for number, kind in enumerate(islice(cycle(KINDS), threads))
        ]
        self._idle = list(self.threads)
        self._pruned = cycle(range(0, threads, PRUNED_AT_ONCE))
        self._by_prune = cycle((False, True))
        self._over = asyncio.Event()

    async def stock(self) -> None:
        """Begin with threads of all ages, so that what is stored does not grow as they do.

        One thread of each kind grows up, and the others are its copies.
        """
        self._over.set()  # nobody thinks
        async with asyncio.TaskGroup() as group:
            for kind in dict.fromkeys(KINDS):
                group.create_task(self._stock(kind))
        await self.prune_all()

    async def round(self, seconds: float) -> bool:
        """Work for a while; whether everybody has stopped after it, as they should."""
        self._over.clear()
        asyncio.get_running_loop().call_later(seconds, self._over.set)
        try:
            async with asyncio.timeout(seconds + PATIENCE), asyncio.TaskGroup() as group:
                for _ in range(self.agents):
                    group.create_task(self._until_over(2 * self.think, self._work))
                for number in range(COPIERS):
                    copy = partial(self._copy, f"copy {number}")
                    group.create_task(self._until_over(self.think, copy))
                for _ in range(LISTERS):
                    group.create_task(self._until_over(self.think, self._list))
                group.create_task(self._until_over(PRUNING * self.think, self._prune))
        except TimeoutError:
            self.errors.add("a round did not end: some of its calls never returned")
            return False
        return True

    async def prune_all(self) -> None:
        """Prune each thread once more."""
        for _ in range(0, len(self.threads), PRUNED_AT_ONCE):
            await self._prune()

    async def check_all(self, saver: Saver) -> None:
        """Hold each thread, as another saver reads it, against what was acknowledged last."""
        for thread in self.threads:
            with self._watched("the last look"):
                for namespace in {"", *self.ledger.namespaces(thread.thread_id)}:
                    # That of a subgraph's call goes once the call has ended.
                    if ":" not in namespace:
                        config = config_of(thread.thread_id, namespace)
                        self._compare(thread, await saver.aget_tuple(config), namespace)

    async def _until_over(self, pause: float, work: Callable[[], Awaitable[None]]) -> None:
        """Work once at least, so that each round does everything, however slow the disk is."""
        while True:
            await self._pause(pause)
            await work()
            if self._over.is_set():
                return

    async def _pause(self, seconds: float) -> None:
        """Wait, so long on average; not after the round's end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._random.uniform(0, 2 * seconds)):
                await self._over.wait()

    async def _thought(self) -> None:
        await self._pause(self.think)

    @contextmanager
    def _watched(self, what: str, thread: Thread | None = None) -> Iterator[None]:
        """Note an error instead of raising it."""
        try:
            yield
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is what is looked for
            self.errors.add(f"{what}: {type(exc).__name__}: {exc}")
            if thread is not None:
                thread.spoiled = True

    @contextmanager
    def _taken(self) -> Iterator[Thread | None]:
        """An idle thread, which belongs to the caller meanwhile; `None` if there is none."""
        if not self._idle:
            yield None
            return
        number = self._random.randrange(len(self._idle))
        self._idle[number], self._idle[-1] = self._idle[-1], self._idle[number]
        thread = self._idle.pop()
        try:
            yield thread
        finally:
            self._idle.append(thread)

    async def _work(self) -> None:
        """Take a thread one turn further, from what it should hold."""
        with self._taken() as thread:
            if thread is None:
                return
            with self._watched(f"{thread.kind.name}: a turn", thread):
                if thread.spoiled:
                    await self._begin_anew(thread)
                self._compare(thread, await self.saver.aget_tuple(config_of(thread.thread_id)))
                await self._live(thread)

    async def _stock(self, kind: Kind) -> None:
        ageing = Thread(f"ageing {kind.name}", kind)
        threads = [thread for thread in self.threads if thread.kind is kind]
        with self._watched(f"{kind.name}: stocking"):
            for age in range(kind.life):
                for thread in threads[age :: kind.life] if age else ():
                    await self.saver.acopy_thread(ageing.thread_id, thread.thread_id)
                    self.ledger.copy(ageing.thread_id, thread.thread_id)
                    thread.turns = age
                    self._compare(thread, await self.saver.aget_tuple(config_of(thread.thread_id)))
                await self._live(ageing)

    async def _live(self, thread: Thread) -> None:
        """Do a thread's next turn. The last of a life is taken back, and the thread begins anew."""
        before, run_id = self.ledger.last(thread.thread_id), thread.run_id
        await self._turn(thread)
        if thread.turns >= thread.kind.life:
            await self._take_back(thread, run_id, before)
            await self._begin_anew(thread)

    async def _turn(self, thread: Thread) -> None:
        kind, run_id = thread.kind, thread.run_id
        given = kind.give(run_id, thread.turns)
        broken = kind.breaks and thread.turns % 2 == 0
        config = config_of(thread.thread_id, run_id=run_id, broken=broken)
        state: dict[str, Any] = {}
        with suppress(PlannedError):
            state = await self._graphs[kind.name].ainvoke(given, config)
        thread.turns += 1
        self.turns += 1
        if kind.grown and (count := len(state["messages"])) != kind.grown * thread.turns:
            self.losses.add(f"{run_id}: ends with {count} messages")

    async def _take_back(self, thread: Thread, run_id: str, before: Record | None) -> None:
        """Delete a thread's last run. What was there before it is there again, unless pruned."""
        await self.saver.adelete_for_runs([run_id])
        found = await self.saver.aget_tuple(config_of(thread.thread_id))
        if found is not None:
            differs = before.differs(found) if before else "found a checkpoint of a deleted run"
            if differs:
                self.losses.add(f"{run_id}, taken back: {differs}")

    async def _begin_anew(self, thread: Thread) -> None:
        """Delete a thread."""
        await self._delete(thread.thread_id)
        self.ledger.forget(thread.thread_id)
        thread.lives += 1
        thread.turns = 0
        thread.spoiled = False

    async def _delete(self, thread_id: str) -> None:
        if next(self._by_prune):
            await self.saver.aprune([thread_id], strategy="delete")
        else:
            await self.saver.adelete_thread(thread_id)
        if await self.saver.aget_tuple(config_of(thread_id)) is not None:
            self.losses.add(f"{thread_id}: found a checkpoint after the thread was deleted")

    async def _copy(self, copy: str) -> None:
        """Copy a thread, hold the copy against it, delete the copy."""
        with self._taken() as thread, self._watched("a copy"):
            if thread is not None and not thread.spoiled:
                await self.saver.acopy_thread(thread.thread_id, copy)
                self._compare(thread, await self.saver.aget_tuple(config_of(copy)))
                await self._delete(copy)

    async def _list(self) -> None:
        """List a thread, whoever works on it, and the inputs of all threads."""
        thread_id = self._random.choice(self.threads).thread_id
        with self._watched("a list"):
            listing = self.saver.alist({"configurable": {"thread_id": thread_id}}, limit=LISTED)
            found = [one.config.get("configurable", {}) async for one in listing]
            if any(one["thread_id"] != thread_id for one in found):
                self.losses.add(f"{thread_id}: its list holds checkpoints of other threads")
            ids = [one["checkpoint_id"] for one in found]
            listing = self.saver.alist(None, filter={"source": "input"}, limit=LISTED)
            ids_of_inputs = [one.checkpoint["id"] async for one in listing]
            for some in (ids, ids_of_inputs):
                if some != sorted(some, reverse=True):
                    self.losses.add("a list is out of order")

    async def _prune(self) -> None:
        """Prune the next threads, whoever works on them."""
        first = next(self._pruned)
        some = self.threads[first : first + PRUNED_AT_ONCE]
        with self._watched("a prune"):
            await self.saver.aprune([one.thread_id for one in some])

    def _compare(self, thread: Thread, found: CheckpointTuple | None, namespace: str = "") -> None:
        last = self.ledger.last(thread.thread_id, namespace)
        if last is not None:
            differs = last.differs(found)
        else:
            differs = "found a checkpoint, expected nothing" if found else None
        if differs and not thread.spoiled:
            self.losses.add(f"{thread.run_id}, namespace {namespace!r}: {differs}")


def config_of(thread_id: str, checkpoint_ns: str = "", **configurable: Any) -> RunnableConfig:
    """The config that names a thread's namespace."""
    return {
        "configurable": {"thread_id": thread_id, "checkpoint_ns": checkpoint_ns, **configurable}
    }
