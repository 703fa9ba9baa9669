"""Random operations on our saver and on a model made of LangGraph's `InMemorySaver` agree."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias, TypeVar, cast

import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    CheckpointMetadata,
    CheckpointTuple,
)
from langgraph.checkpoint.serde.types import TASKS
from langgraph.types import Send
from model import (
    ABSENT,
    THREADS,
    Model,
    PutCheckpoint,
    PutWrites,
    Removal,
    config,
    conversation,
    filters,
    garbage,
    id_of,
    ids,
    listed,
    namespaces,
    new_checkpoint,
    put_writes,
    puts,
    removals,
    rows_of,
    runs,
    segments_of,
    threads,
    where,
)

from checkpointer import AsyncSQLAlchemySaver, PruneReport, RetentionPolicy, create_saver
from checkpointer.tables import checkpoints, segments, writes

pytestmark = pytest.mark.everywhere

T = TypeVar("T")
Work: TypeAlias = Callable[[BaseCheckpointSaver[str]], Awaitable[Any]]
Operation: TypeAlias = PutCheckpoint | PutWrites | Removal


class Agreement(RuleBasedStateMachine):
    """Does everything twice: with our saver and with the model."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.model = Model()
        self.version = 0
        self.runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self.saver = self.run(self._opened())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for work on our saver."""
        return self.runner.run(work)

    async def _opened(self) -> AsyncSQLAlchemySaver:
        return await create_saver(self.url).__aenter__()

    @initialize()
    def remove_what_a_failed_example_left(self) -> None:
        self.run(self._delete_all())

    def teardown(self) -> None:
        try:
            assert self.run(self.saver.averify()).whole
            self.run(self._delete_all())
            for table in (checkpoints, writes, segments):
                assert self._count(table) == 0
        finally:
            self.run(self.saver.aclose())
            self.runner.close()

    async def _delete_all(self) -> None:
        for thread in THREADS:
            await self.saver.adelete_thread(thread)

    @rule(
        operations=st.lists(puts | put_writes, min_size=1, max_size=6, unique_by=lambda op: op.key),
        times=st.integers(1, 2),
    )
    def put(self, operations: list[PutCheckpoint | PutWrites], times: int) -> None:
        """Put checkpoints anywhere, new or again, and writes with or without their checkpoint."""
        works = [self._work(operation) for operation in operations] * times
        for work in works:
            self.run(self._all([work(self.model)]))
        self.run(self._all(work(self.saver) for work in works))

    @rule(thread=threads, ns=namespaces, written=st.lists(put_writes, min_size=2, max_size=3))
    def write_again(self, thread: str, ns: str, written: list[PutWrites]) -> None:
        """Let one task write to the latest checkpoint again."""
        latest = self.model.get_tuple(config(thread, ns))
        checkpoint_id = id_of(latest) if latest else "000"
        for one in written:
            work = self._work(
                replace(one, thread=thread, ns=ns, id=checkpoint_id, task=written[0].task)
            )
            self.run(self._all([work(self.model)]))
            self.run(self._all([work(self.saver)]))

    @rule(
        thread=threads,
        ns=namespaces,
        steps=st.lists(st.tuples(puts, put_writes), min_size=1, max_size=5),
        other=threads,
    )
    def go_on(
        self, thread: str, ns: str, steps: list[tuple[PutCheckpoint, PutWrites]], other: str
    ) -> None:
        """Put a chain on top of the latest checkpoint, all at once, while a thread is read."""
        works: list[Work] = []
        for put, written in steps:
            latest = self.model.get_tuple(config(thread, ns))
            parent = id_of(latest) if latest else None
            place: dict[str, Any] = {
                "thread": thread,
                "ns": ns,
                "id": f"{int(parent or 0) + 1:03}",
            }
            for operation in (replace(put, parent=parent, **place), replace(written, **place)):
                work = self._work(operation)
                self.run(self._all([work(self.model)]))
                works.append(work)
        reads = [listed(self.saver, config(other)) for _ in range(3)]
        self.run(self._all([*(work(self.saver) for work in works), *reads]))

    @rule(put=puts, length=st.integers(20, 60), how=st.sampled_from(["run", "prune", "thread"]))
    def put_again_what_was_deleted(self, put: PutCheckpoint, length: int, how: str) -> None:
        """Put a value whose bytes the saver has stored, and deleted since."""
        # Its id makes it the oldest, which a prune does not keep.
        metadata = put.metadata | {"run_id": "a run of its own"}
        put = replace(put, id="-01", parent=None, metadata=metadata)
        self.put([replace(put, changes={"messages": conversation(length)})], 1)
        if how == "run":
            self.delete_for_runs(["a run of its own"])
        elif how == "prune":
            self.keep_latest([put.thread], None)
        else:
            self.delete(put.thread, whole_thread=True)
        self.put([replace(put, changes={"messages": conversation(length + 1)})], 1)

    @rule(thread=threads, whole_thread=st.booleans())
    def delete(self, thread: str, *, whole_thread: bool) -> None:
        self.model.delete_thread(thread)
        if whole_thread:
            self.run(self.saver.adelete_thread(thread))
        else:
            self.run(self.saver.aprune([thread], strategy="delete"))
        assert self.run(segments_of(self.saver, thread)) == set()

    @rule(source=threads, to=threads)
    def copy(self, source: str, to: str) -> None:
        self.model.copy_all(source, to)
        self.run(self.saver.acopy_thread(source, to))

    @rule(
        pruned=st.lists(threads, unique=True, min_size=1, max_size=2),
        put=st.none() | puts,
        keep_last=st.none() | st.integers(1, 3),
    )
    def keep_latest(
        self, pruned: list[str], put: PutCheckpoint | None, keep_last: int | None = None
    ) -> None:
        """Prune threads, while a checkpoint is put in another."""
        works = [self._work(put)] if put and put.thread not in pruned else []
        for work in works:
            self.run(self._all([work(self.model)]))
        for thread in pruned:
            self.model.keep(thread, keep_last)
        planned = self.run(self.saver.aprune(pruned, keep_last=keep_last, dry_run=True))
        prune = self.saver.aprune(pruned, keep_last=keep_last)
        self.run(self._all([self._reported(prune, planned), *(work(self.saver) for work in works)]))
        for thread in pruned:
            assert not self.run(garbage(self.saver, thread))

    @rule(
        keep_last=st.integers(1, 3),
        protected_threads=st.sets(threads, max_size=2),
        protected=st.sets(ids, max_size=3),
    )
    def retain(self, keep_last: int, protected_threads: set[str], protected: set[str]) -> None:
        """Prune all threads, but for what is protected."""
        policy = RetentionPolicy(
            keep_last=keep_last,
            protected_threads=protected_threads,
            protected_checkpoints=protected,
        )
        for thread in {*THREADS} - protected_threads:
            self.model.keep(thread, keep_last, protected)
        planned = self.run(self.saver.aretain(policy, dry_run=True))
        self.run(self._reported(self.saver.aretain(policy), planned))

    async def _reported(self, prune: Awaitable[PruneReport], planned: PruneReport) -> None:
        """What was planned is what is done."""
        assert replace(planned, dry_run=False) == await prune

    @rule(run_ids=st.lists(runs, max_size=2))
    def delete_for_runs(self, run_ids: list[str]) -> None:
        self.model.drop_runs(run_ids)
        self.run(self.saver.adelete_for_runs(run_ids))

    @rule(
        parts=st.lists(
            st.tuples(st.lists(puts | put_writes | removals, max_size=3), st.booleans()),
            min_size=1,
            max_size=3,
        ),
        commit=st.booleans(),
    )
    def use_a_connection(self, parts: list[tuple[list[Operation], bool]], *, commit: bool) -> None:
        """Do things in an application's transaction; each part in a savepoint, undone or not.

        What was undone is done once more.
        """
        again = [(one, done) for one, kept in parts for done in ([True] if kept else [False, True])]
        self.run(self._use_a_connection(again, commit=commit))

    async def _use_a_connection(
        self, parts: list[tuple[list[Operation], bool]], *, commit: bool
    ) -> None:
        async with self.saver.engine.connect() as connection:
            mine = self.saver.using(connection)
            begun = self.model.state()
            for operations, kept in parts:
                savepoint, before = await connection.begin_nested(), self.model.state()
                for operation in operations:
                    work = self._change(operation)
                    await work(self.model)
                    await work(mine)
                assert await listed(mine, None) == self._expected(None)
                if kept:
                    await savepoint.commit()
                else:
                    await savepoint.rollback()
                    self.model.restore(before)
            await (connection.commit() if commit else connection.rollback())
            if not commit:
                self.model.restore(begun)

    @rule(repair=st.booleans())
    def verify(self, *, repair: bool) -> None:
        """Find nothing damaged, and tell exactly which bytes nothing names."""
        unnamed = {thread: self.run(garbage(self.saver, thread)) for thread in THREADS}
        found = self.run(self.saver.averify(repair=repair))
        expected = {
            (thread, f"stream {stream}, bytes {start} to {stop}")
            for thread, some in unnamed.items()
            for stream, start, stop in some
        }
        assert found.whole
        assert {(one.thread_id, one.segment) for one in found.problems} == expected
        assert found.removed == (len(expected) if repair else 0)

    @rule()
    def reopen(self) -> None:
        """Go on in a process that remembers nothing."""
        self.run(self.saver.aclose())
        self.saver = self.run(self._opened())

    @rule(
        at=st.none()
        | st.builds(config, threads, st.none() | namespaces, st.none() | st.none() | ids),
        filter_=st.none() | filters,
        before=st.none() | ids,
        limit=st.none() | st.integers(0, 5),
    )
    def list_some(
        self,
        at: RunnableConfig | None,
        filter_: dict[str, Any] | None,
        before: str | None,
        limit: int | None,
    ) -> None:
        earlier = config("any", None, before) if before else None
        found = self.run(listed(self.saver, at, filter=filter_, before=earlier, limit=limit))
        assert found == self._expected(at, filter=filter_, before=earlier)[:limit]

    @rule(thread=threads, ns=namespaces, checkpoint_id=st.none() | ids)
    def get(self, thread: str, ns: str, checkpoint_id: str | None) -> None:
        at, channels = config(thread, ns, checkpoint_id), ["delta", "messages"]
        assert self.run(self.saver.aget_tuple(at)) == self.model.get_tuple(at)
        history = self.run(self._history(at, channels))
        assert history == self.model.get_delta_channel_history(config=at, channels=channels)

    @invariant()
    def all_is_equal(self) -> None:
        assert self.run(listed(self.saver, None)) == self._expected(None)
        assert self._count(writes) == sum(map(len, self.model.writes.values()))

    def _change(self, operation: Operation) -> Work:
        """Any operation, to be done by any saver."""
        return operation.run if isinstance(operation, Removal) else self._work(operation)

    def _work(self, operation: PutCheckpoint | PutWrites) -> Work:
        """The operation, to be done by any saver."""
        if isinstance(operation, PutWrites):
            at = config(operation.thread, operation.ns, operation.id)
            given = (operation.writes, operation.task, operation.path)
            return lambda saver: saver.aput_writes(at, *given)
        at = config(operation.thread, operation.ns, operation.parent)
        found = self.model.get_tuple(at) if operation.parent else None
        values = dict(found.checkpoint["channel_values"]) if found else {}
        self.version += 1
        new: ChannelVersions = dict.fromkeys(operation.changes, f"{self.version:032}.0")
        for channel, value in operation.changes.items():
            values.pop(channel, None)
            if value is not ABSENT:
                values[channel] = value
        versions = {**(found.checkpoint["channel_versions"] if found else {}), **new}
        checkpoint = new_checkpoint(operation.id, values, versions)
        metadata = cast("CheckpointMetadata", operation.metadata)
        at.get("configurable", {}).update(operation.extra)
        return lambda saver: saver.aput(at, checkpoint, metadata, new)

    def _expected(self, at: RunnableConfig | None, **conditions: Any) -> list[CheckpointTuple]:
        return sorted(self.model.list(at, **conditions), key=where, reverse=True)

    async def _all(self, works: Iterable[Awaitable[Any]]) -> None:
        await asyncio.gather(*works)

    async def _history(self, at: RunnableConfig, channels: list[str]) -> Any:
        return await self.saver.aget_delta_channel_history(config=at, channels=channels)

    def _count(self, table: sa.Table) -> int:
        [[count]] = self.run(rows_of(self.saver, sa.select(sa.func.count()).select_from(table)))
        assert isinstance(count, int)
        return count


def test_our_saver_and_the_model_agree_on_random_operations(migrated_url: str) -> None:
    run_state_machine_as_test(
        cast("type[Agreement]", partial(Agreement, migrated_url)),
        settings=settings(max_examples=min(settings().max_examples, 40), stateful_step_count=25),
    )


@pytest.mark.parametrize("reopened", [False, True])
async def test_a_channel_keeps_the_value_of_its_version(
    migrated_url: str, *, reopened: bool
) -> None:
    """With `durability="async"` the next superstep may change a value before its put's turn comes.

    LangGraph hands out its live objects. Where the version has not changed, the value is the one
    that was put under that version.
    """
    versions: ChannelVersions = {"seen": "1", "long": "1"}
    values: dict[str, Any] = {"seen": {"a"}, "long": [*range(5_000)]}
    async with create_saver(migrated_url) as first, create_saver(migrated_url) as second:
        at, checkpoint = config("a", ""), new_checkpoint("1", values, versions)
        parent = await first.aput(at, checkpoint, {}, versions)
        saver = second if reopened else first
        loaded = await second.aget_tuple(parent)
        assert loaded is not None
        live = loaded.checkpoint["channel_values"] if reopened else values
        put = saver.aput(parent, new_checkpoint("2", live, versions), {}, {})
        live["seen"].add("b")
        live["long"].append("more")

        found = await saver.aget_tuple(await put)

    assert found is not None
    assert found.checkpoint["channel_values"] == {"seen": {"a"}, "long": [*range(5_000)]}


@pytest.mark.parametrize("v", [1, 3, 4])
async def test_a_checkpoint_of_an_old_format_gets_its_pending_sends_from_its_parent(
    saver: AsyncSQLAlchemySaver, v: int
) -> None:
    versions: ChannelVersions = {"a": "1", "b": "2"}
    parent = await saver.aput(config("a", ""), new_checkpoint("1", {}, versions, v), {}, {})
    child = await saver.aput(parent, new_checkpoint("2", {}, versions, v), {}, {})
    await saver.aput_writes(parent, [(TASKS, Send("n", 2)), ("a", 0)], "task 2", "~b")
    await saver.aput_writes(parent, [("b", 0), (TASKS, Send("n", 1))], "task 9", "~a")
    await saver.aput_writes(child, [(TASKS, Send("n", 3))], "task 1")
    expected = {TASKS: [Send("n", 1), Send("n", 2)]} if v < 4 else {}

    for found in (await saver.aget_tuple(child), (await listed(saver, child))[0]):
        assert found is not None
        assert found.checkpoint["channel_values"] == expected
        assert found.checkpoint["channel_versions"].get(TASKS) == ("2" if v < 4 else None)
        assert found.pending_writes == [("task 1", TASKS, Send("n", 3))]

    await saver.aprune(["a"])
    pruned = await listed(saver, None)
    assert [id_of(one) for one in pruned] == (["2", "1"] if v < 4 else ["2"])
    assert pruned[0].checkpoint["channel_values"] == expected


async def test_an_old_checkpoint_whose_parent_holds_no_pending_sends_is_kept_alone(
    saver: AsyncSQLAlchemySaver,
) -> None:
    parent = await saver.aput(config("a", ""), new_checkpoint("1", {}, {}, 1), {}, {})
    await saver.aput(parent, new_checkpoint("2", {}, {}, 1), {}, {})
    await saver.aput_writes(parent, [("a", 0)], "task")

    await saver.aprune(["a"])

    [found] = await listed(saver, None)
    assert (id_of(found), found.parent_config) == ("2", None)
