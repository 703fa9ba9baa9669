"""Several processes do everything to the same threads at once: nothing is lost, all stays whole.

What must be there is told from when operations began and ended, by all processes. Each took effect
at some moment in between.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

import pytest
from intensity import FULL, INTENSITY
from processes import (
    DESCRIBED,
    Acts,
    Operation,
    Race,
    Seen,
    Write,
    assert_whole,
    on_each_database,
    operations,
    seen_in,
    soon,
    started,
    take_part,
)
from storing import LARGE, Statement, checkpoint, config, put, statements

from checkpointer import AsyncSQLAlchemySaver, create_saver

pytestmark = pytest.mark.long

LEAD = 1.5
"""Seconds in which the processes start, before the race does."""

WORK: Acts = {"put": 8, "put with writes": 8, "write": 4, "read": 4, "list": 4}

RACING: Sequence[Acts] = (
    {**WORK, "copy": 2, "keep latest": 2, "delete runs": 1, "prune all": 1, "delete": 1},
    {**WORK, "copy": 2, "keep latest": 2, "delete runs": 1},
    {**WORK, "copy": 2, "delete runs": 2},
)
"""Not all is done to every thread: where much is deleted, little must be there in the end."""

SHARING: Sequence[Acts] = ({**WORK, "keep latest": 1}, WORK, WORK)

Key = tuple[str, str]
"""Namespace and id of a checkpoint. Ids sort by the time of their puts, and none is put twice."""


@dataclass(frozen=True)
class Arrival:
    """A checkpoint came into a thread, by a put or by a copy.

    Attributes:
        run: The run that made it.
        since: When the operation began.
        until: When it had ended.
    """

    thread: str
    key: Key
    run: str
    since: float
    until: float


@dataclass(frozen=True)
class Taker:
    """An operation that deletes checkpoints of a thread or of a run.

    Attributes:
        since: When it began.
        until: When it had ended.
        latest: For a prune that keeps the latest: the highest id of each namespace that may have
            been there.
    """

    since: float
    until: float
    latest: Mapping[str, str] | None = None

    def may_take(self, one: Arrival) -> bool:
        """Whether the checkpoint may have been there before, and not after."""
        namespace, checkpoint_id = one.key
        kept = self.latest is not None and self.latest.get(namespace, "") <= checkpoint_id
        return self.until > one.since and not kept

    def must_take(self, one: Arrival) -> bool:
        """Whether the checkpoint cannot be there after."""
        return self.latest is None and self.since > one.until


class History:
    """What happened to the threads of a race, and what must have come of it.

    Attributes:
        of: All operations, by name.
        puts: The checkpoints that were put.
        digests: Of each checkpoint that was put.
        written: All writes to each checkpoint.
        possible: For each thread, the checkpoints that may ever have been there: since the earliest
            moment, and until the latest moment at which one came.

    Args:
        done: The operations of all processes.
    """

    def __init__(self, done: Iterable[Operation]) -> None:
        self.of = defaultdict[str, list[Operation]](list)
        for one in done:
            self.of[one.name].append(one)
        self.digests = {key_of(one): one.given["digest"] for one in self.of["aput"]}
        self.puts = [
            Arrival(one.given["thread"], key_of(one), one.given["run"], one.started, one.ended)
            for one in self.of["aput"]
        ]
        self.written = defaultdict[Key, set[Write]](set)
        for one in self.of["aput_writes"]:
            self.written[key_of(one)] |= writes_of(one)
        self.possible = self._possible()
        self._takers = self._takers_of()

    def _possible(self) -> dict[str, dict[Key, Arrival]]:
        found = defaultdict[str, dict[Key, Arrival]](dict)
        for one in self.puts:
            found[one.thread][one.key] = one
        changed = True
        while changed:
            changed = False
            for copy in self.of["acopy_thread"]:
                target = found[copy.given["target"]]
                for one in list(found[copy.given["source"]].values()):
                    if one.since < copy.ended:
                        known = target.get(one.key)
                        new = copied(one, copy, known)
                        changed = changed or new != known
                        target[one.key] = new
        return found

    def _takers_of(self) -> dict[str, list[Taker]]:
        """The operations that delete of a thread, or of a run."""
        found = defaultdict[str, list[Taker]](list)
        for one in [*self.of["aprune"], *self.of["adelete_thread"], *self.of["adelete_for_runs"]]:
            for name in one.given.get("threads") or one.given["runs"]:
                latest = None
                if one.given.get("strategy") == "keep_latest":
                    there = (x.key for x in self.possible[name].values() if x.since < one.ended)
                    latest = dict(sorted(there))
                found[name].append(Taker(one.started, one.ended, latest))
        return found

    def takers(self, one: Arrival) -> list[Taker]:
        """The operations that may have been about a checkpoint."""
        return [*self._takers[one.thread], *self._takers[one.run]]

    def stays(self, one: Arrival, until: float = inf) -> bool:
        """Whether a checkpoint is there for certain from its arrival up to a moment."""
        return one.until < until and not any(
            taker.may_take(one) for taker in self.takers(one) if taker.since < until
        )

    def required(self) -> list[Arrival]:
        """The checkpoints that must be there in the end, in the threads of their puts or others."""
        of_thread = defaultdict[str, list[Arrival]](list)
        for one in self.puts:
            of_thread[one.thread].append(one)
        there = self.puts[:]
        for copy in self.of["acopy_thread"]:
            for one in of_thread[copy.given["source"]]:
                if one.until < copy.started and self.stays(one, copy.ended):
                    there.append(copied(one, copy, None))
        return [one for one in there if self.stays(one)]

    def required_writes(self) -> Iterator[tuple[Arrival, set[Write]]]:
        """The writes that must be there in the end, each with its checkpoint."""
        puts = {(one.thread, one.key): one for one in self.puts}
        for operation in self.of["aput_writes"]:
            put = puts[operation.given["thread"], key_of(operation)]
            one = replace(put, since=min(put.since, operation.started))
            if self.stays(one):
                yield one, writes_of(operation)

    def latest(self) -> Iterator[tuple[Arrival, list[Seen]]]:
        """What readers of the latest checkpoints found, each after one that was there then."""
        of_namespace = defaultdict[tuple[str, str], list[Arrival]](list)
        for one in self.puts:
            of_namespace[one.thread, one.key[0]].append(one)
        for read in [*self.of["aget_tuple"], *self.of["alist"]]:
            puts = of_namespace[read.given["thread"], read.given["ns"]]
            before = [one for one in puts if one.until < read.started]
            newest = max(before, key=lambda one: one.key, default=None)
            if newest is not None and self.stays(newest, read.ended):
                yield newest, [Seen.noted(parts) for parts in read.found.get("seen", ())]

    def is_gone(self, thread: str, key: Key) -> bool:
        """Whether a checkpoint cannot be in a thread in the end: it never came, or was deleted."""
        one = self.possible[thread].get(key)
        return one is None or any(taker.must_take(one) for taker in self.takers(one))


def key_of(operation: Operation) -> Key:
    return (operation.given["ns"], operation.given["id"])


def writes_of(operation: Operation) -> set[Write]:
    return {tuple(write) for write in operation.given["writes"]}


def copied(one: Arrival, copy: Operation, known: Arrival | None) -> Arrival:
    """A checkpoint in the target of a copy, where it may have come otherwise as well."""
    arrived = Arrival(
        thread=copy.given["target"],
        key=one.key,
        run=one.run,
        since=max(one.since, copy.started),
        until=copy.ended,
    )
    if known is None:
        return arrived
    return replace(
        arrived, since=min(arrived.since, known.since), until=max(arrived.until, known.until)
    )


@pytest.mark.timeout(600)
@on_each_database
async def test_nothing_is_lost_where_processes_race_on_the_same_threads(
    migrated_url: str, tmp_path: Path
) -> None:
    history = await run_race(migrated_url, tmp_path, 5, INTENSITY.race_seconds, RACING)
    required = await check(migrated_url, history)
    of_puts = {(one.thread, one.key) for one in history.puts}
    assert 0.1 * len(of_puts) < len(of_puts & required) < len(of_puts)
    assert required - of_puts, "no copy is known to be there"
    if INTENSITY is FULL:
        assert all(history.of[name] for name in DESCRIBED if name != "setup")


@pytest.mark.timeout(600)
@pytest.mark.xdist_group("processes on sqlite")
@pytest.mark.parametrize("database_kind", ["sqlite", "stepwise"], indirect=True)
async def test_eight_processes_write_the_same_sqlite_file(
    migrated_url: str, tmp_path: Path
) -> None:
    seconds = INTENSITY.shared_file_seconds
    history = await run_race(migrated_url, tmp_path, 8, seconds, SHARING, alone=WORK)
    required = await check(migrated_url, history)
    assert history.of["aprune"]
    assert len(required) > 0.5 * len(history.puts) > 5 * seconds


@pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)
@pytest.mark.parametrize("target", ["0: locked first", "z: locked last"])
async def test_a_copy_takes_nothing_of_a_thread_that_was_deleted_and_made_anew_meanwhile(
    saver: AsyncSQLAlchemySaver, migrated_url: str, target: str
) -> None:
    await put(saver, config(), "1", a=LARGE)

    def delete(other: AsyncSQLAlchemySaver) -> None:
        other.delete_thread("a thread")

    def make_anew(other: AsyncSQLAlchemySaver) -> None:
        other.put(config(), checkpoint("2", {"a": LARGE[::-1]}), {}, {})

    meanwhile = [("FOR UPDATE", delete), ("INSERT INTO checkpointer_checkpoints", make_anew)]

    def interfere(statement: Statement) -> None:
        """Act before the copy's statements that hold the source, and that copy its checkpoints."""
        if meanwhile and meanwhile[0][0] in statement.sql:
            _, act = meanwhile.pop(0)
            with create_saver(migrated_url) as other, ThreadPoolExecutor() as executor:
                executor.submit(act, other).result()

    with statements(interfere):
        await saver.acopy_thread("a thread", target)
    assert meanwhile[1:] == []
    assert await seen_in(saver, target) == set()
    await assert_whole(saver)


async def run_race(  # noqa: PLR0913 - the figures of a race
    url: str,
    directory: Path,
    processes: int,
    seconds: float,
    shared: Sequence[Acts],
    *,
    alone: Acts | None = None,
) -> History:
    """Let processes race. None of them may raise anything."""
    race = Race(start=soon(LEAD), seconds=seconds, shared=shared, alone=alone)
    journals = [directory / str(number) for number in range(processes)]
    with ExitStack() as stack:
        running = [
            stack.enter_context(started(take_part, url, journal, journal.name, race))
            for journal in journals
        ]
        for process in running:
            await asyncio.to_thread(process.join)
        done = [one for journal in journals for one in operations(journal)]
        errors = [one.given["traceback"] for one in done if one.name == "error"]
        assert not errors, "".join(errors)
        assert [process.exitcode for process in running] == [0] * processes
    return History(done)


async def check(url: str, history: History) -> set[tuple[str, Key]]:
    """The store is whole, and holds what it must; whoever read, found what was put.

    Returns:
        The thread and the key of each checkpoint that had to be there.
    """
    async with create_saver(url) as saver:
        await assert_whole(saver)
        found = {
            (thread, (one.namespace, one.id)): one
            for thread in history.possible
            for one in await seen_in(saver, thread)
        }
    for (thread, key), one in found.items():
        assert not history.is_gone(thread, key)
        check_seen(history, one)
    required = {(one.thread, one.key) for one in history.required()}
    missing = required - found.keys()
    assert not missing
    for arrival, writes in history.required_writes():
        assert writes <= set(found[arrival.thread, arrival.key].writes)
    for arrival, seen in history.latest():
        assert seen
        assert seen[0].id >= arrival.key[1]
        for one in seen:
            check_seen(history, one)
    return required


def check_seen(history: History, one: Seen) -> None:
    """A checkpoint is as it was put, and its writes are as they were written."""
    key = (one.namespace, one.id)
    assert one.digest == history.digests[key]
    assert set(one.writes) <= history.written[key]
