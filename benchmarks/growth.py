"""How cost grows: workloads at several sizes, as curves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from long import append
from rows import Group, Result, Slice, Workload
from savers import Subject
from small import copy_thread, many_callers
from supersteps import Thread, small_superstep

ROUNDS: Final = 3

PUT_LENGTHS: Final = (10, 100, 300, 1000, 2000, 5000)
CALLERS: Final = {1: 100, 10: 30, 50: 10, 200: 4, 500: 2, 1000: 1}
"""How many callers at once, and how many supersteps each."""

FILLS: Final = (1, 10, 100)
FILL_CHECKPOINTS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Series:
    """A workload at several sizes.

    Attributes:
        name: Of the picture.
        title: Of the picture.
        x: What the sizes are.
        y: What is shown of each.
        group: The workloads.
        sizes: One a workload.
        shown: From the median that was measured to what is shown.
    """

    name: str
    title: str
    x: str
    y: str
    group: Group
    sizes: Sequence[float]
    shown: Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Curve:
    """A picture: a line for each saver, on logarithmic axes or on linear ones."""

    name: str
    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    logarithmic: bool = True


def curve_of(series: Series, results: Sequence[Result]) -> Curve:
    """A series as it was measured."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for size, result in zip(series.sizes, results, strict=True):
        for saver, values in result.values.items():
            middle = sorted(values)[len(values) // 2]
            lines.setdefault(saver, []).append((size, series.shown(middle)))
    return Curve(series.name, series.title, series.x, series.y, lines)


async def filled(subject: Subject, *, threads: int) -> Slice:
    """50 callers, after so many threads of 10,000 checkpoints stand in the tables.

    The first is put; the others are copies of it, made in the database.
    """
    first = "filling 0"
    if threads == 1:
        thread = Thread(subject.saver, first)
        await thread.put(thread.start())
        for index in range(FILL_CHECKPOINTS - 1):
            await thread.put(small_superstep(thread, index))
    there = max((fill for fill in FILLS if fill < threads), default=1)
    for number in range(there, threads):
        await copy_thread(subject, first, f"filling {number}")
    return await many_callers(subject, callers=50, supersteps=4)


def _milliseconds(seconds: float) -> float:
    return seconds * 1000


def _rate(seconds: float) -> float:
    return 1 / seconds


PUTS: Final = Series(
    "put-latency",
    "aput of one more message of 1 KB",
    "messages in the list",
    "ms",
    Group(
        "put-latency",
        [
            Workload(
                name=f"append-{length}",
                title=f"curve: append to {length} messages",
                description="",
                prepare=partial(append, length=length, appends=5),
            )
            for length in PUT_LENGTHS
        ],
    ),
    PUT_LENGTHS,
    _milliseconds,
)
THROUGHPUT: Final = Series(
    "throughput",
    "Supersteps by callers that work at once",
    "callers",
    "supersteps a second",
    Group(
        "throughput",
        [
            Workload(
                name=f"callers-{callers}",
                title=f"curve: {callers} callers",
                description="",
                prepare=partial(many_callers, callers=callers, supersteps=supersteps),
                floor=False,
            )
            for callers, supersteps in CALLERS.items()
        ],
    ),
    list(CALLERS),
    _rate,
)
FILLED: Final = Series(
    "filled",
    "Supersteps by 50 callers, with so much in the tables already",
    "checkpoints in the tables",
    "supersteps a second",
    Group(
        "filled",
        [
            Workload(
                name=f"filled-{threads}",
                title=f"curve: {threads} x {FILL_CHECKPOINTS:,} checkpoints",
                description="",
                prepare=partial(filled, threads=threads),
                floor=False,
            )
            for threads in FILLS
        ],
    ),
    [threads * FILL_CHECKPOINTS for threads in FILLS],
    _rate,
)
SERIES: Final = (PUTS, THROUGHPUT, FILLED)


def storage_curve(result: Result) -> Curve:
    """What a workload noted of the bytes stored on the way, in MB."""
    lines = {saver: [(x, y / 1e6) for x, y in points] for saver, points in result.points.items()}
    title = "Bytes stored, a checkpoint for each message of 1 KB"
    return Curve("storage", title, "messages", "MB", lines, logarithmic=False)
