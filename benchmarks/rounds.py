"""Rounds in which savers take turns."""

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack

from rows import Group, Result, Slice, Workload
from savers import WARMING, Saver, Subject, open_saver
from small import run_thread

Report = Callable[[str], None]


async def run(  # noqa: PLR0913 - what a run needs, each by name
    group: Group,
    urls: Mapping[str, str],
    *,
    rounds: int,
    quick: bool = False,
    counters: Mapping[str, Callable[[], int]] | None = None,
    report: Report = print,
) -> list[Result]:
    """Measure a group's workloads, one after the other.

    Args:
        group: The workloads.
        urls: By saver, an empty database.
        rounds: How many rounds, unless a workload takes fewer.
        quick: Whether workloads keep to their small form.
        counters: By saver, what tells the round trips on the wire.
        report: Told what goes on.
    """
    results = []
    async with AsyncExitStack() as stack:
        savers: dict[str, Saver] = {}
        for name, url in urls.items():
            savers[name] = await stack.enter_async_context(open_saver(name, url))
            if group.warmed:
                await warm_up(savers[name])
        for workload in group.workloads:
            report(workload.title)
            subjects = [
                Subject(name, urls[name], saver, workload.name, quick, (counters or {}).get(name))
                for name, saver in savers.items()
                if workload.takes(name)
            ]
            results.append(await measure(workload, subjects, rounds, quick=quick))
    return results


async def measure(
    workload: Workload, subjects: Sequence[Subject], rounds: int, *, quick: bool
) -> Result:
    """Measure a workload: in each slice of each round, one saver after the other."""
    parts = max(1, workload.slices // 2) if quick else workload.slices
    slices: dict[str, Slice] = {}
    for subject in subjects:
        slices[subject.name] = await workload.prepare(subject)
    if workload.warm and not quick:
        for one in slices.values():
            await one()
    values: dict[str, list[float]] = {name: [] for name in slices}
    # What is there by now is no garbage; the collections below look at what came after.
    gc.collect()
    gc.freeze()
    try:
        for _ in range(min(rounds, workload.rounds or rounds)):
            totals = dict.fromkeys(slices, 0.0)
            for _ in range(parts):
                for name, one in slices.items():
                    gc.collect()
                    totals[name] += await one()
            for name, total in totals.items():
                values[name].append(total / parts)
    finally:
        gc.unfreeze()
    return Result(workload, values, points={one.name: one.points for one in subjects})


async def warm_up(saver: Saver) -> None:
    """Let each connection of a pool open and prepare its statements."""
    for index in range(WARMING):
        thread = await run_thread(saver, f"warming {index}", 2)
        await saver.aget_tuple(thread.config)
        await saver.aget_tuple({"configurable": {"thread_id": thread.thread_id}})
        [_ async for _ in saver.alist({"configurable": {"thread_id": thread.thread_id}}, limit=2)]
        await saver.adelete_thread(thread.thread_id)
