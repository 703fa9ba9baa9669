"""What a soak must show, and why each bound is where it is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import linear_regression
from typing import Final

from agents import Faults
from resources import Held, Stored
from watched import Latencies

OPERATIONS: Final = (
    "aget_tuple",
    "aput",
    "aput_writes",
    "alist",
    "aprune",
    "aprune, delete",
    "acopy_thread",
    "adelete_thread",
    "adelete_for_runs",
    "aget_delta_channel_history",
)
"""All that a saver can do. Each must have been done, or nothing is shown."""

STARTED_LATE: Final = 4
"""Threads and files that may still come: those of the event loop's executor, which starts its
threads when it first needs them."""

BLOCKS: Final = 0.25
"""Blocks of memory an operation. A leak of one object an operation is a growth by 1 at least. Sound
runs showed 0.1: subgraphs' namespaces, which a saver remembers up to a bound."""
BLOCKS_NOISE: Final = 30_000
"""Blocks that come late, however many operations there are: each of 20 connections prepares each of
40 statements when it first needs it, 60 blocks a time. Sound runs showed 3,000 to 18,000."""

BYTES: Final = 128
"""Bytes of memory an operation. Python gives out up to 512 bytes as a block, so that a leak of one
object an operation that is no block is a growth by more than four times as much."""
BYTES_NOISE: Final = 24_000_000
"""Bytes that come late: SQLite's page caches, 2 MB for each of its connections, and what the
allocator keeps for each thread. Sound runs showed up to 16 MB."""

ROWS: Final = 1.25
ROWS_NOISE: Final = 1_000
"""Rows in the pruned store, as a part of those before: threads are of the same ages before and
after, give or take what chance does to their mean, which is more where they are few."""


@dataclass(frozen=True, slots=True)
class Soaked:
    """What one database's soak found.

    Attributes:
        database: Its kind.
        seconds: How long agents worked.
        turns: What they did, in turns of threads.
        operations: The latencies, by operation.
        before: What was held before anything was done.
        rests: What was held after each round, when nothing was under way.
        most: The most that was held on the way.
        stored: What the pruned store held before and after the rounds.
        errors: What was raised, and how often.
        losses: What was read and was not what had been acknowledged.
        whole: Whether the store verified at the end.
        problems: What the verification found.
    """

    database: str
    seconds: float
    turns: int
    operations: Mapping[str, Latencies]
    before: Held
    rests: Sequence[Held]
    most: Held
    stored: tuple[Stored, Stored]
    errors: Faults
    losses: Faults
    whole: bool
    problems: Sequence[str]

    @property
    def warm(self) -> Sequence[Held]:
        """The rests after the warm-up, which is the first fifth of the rounds, or one."""
        return self.rests[max(1, len(self.rests) // 5) - 1 :]

    def growth(self, figure: Callable[[Held], int]) -> float:
        """By how much a figure has grown since the warm-up, by the line through all rests.

        Nothing where no operation was done between them, so that there is no line: a round that did
        not end is an error of its own.
        """
        operations = [one.operations for one in self.warm]
        if operations[0] == operations[-1]:
            return 0.0
        line = linear_regression(operations, [figure(one) for one in self.warm])
        return line.slope * (operations[-1] - operations[0])


@dataclass(frozen=True, slots=True)
class Verdict:
    """One figure that a soak is held against.

    Attributes:
        what: The figure.
        found: Its value.
        allowed: What it may be at most.
    """

    what: str
    found: float
    allowed: float

    @property
    def reached(self) -> bool:
        """Whether it is within the bound."""
        return self.found <= self.allowed


def verdicts(soaked: Soaked) -> list[Verdict]:
    """All that a soak is held against."""
    rests, warm = soaked.rests, soaked.warm
    operations = warm[-1].operations - warm[0].operations
    missing = [name for name in OPERATIONS if name not in soaked.operations]
    before, after = soaked.stored
    blocks = BLOCKS_NOISE + BLOCKS * operations
    return [
        Verdict("errors", soaked.errors.count, 0),
        Verdict("lost or altered", soaked.losses.count, 0),
        Verdict("stores that are not whole", not soaked.whole, 0),
        Verdict(f"operations never done{_named(missing)}", len(missing), 0),
        Verdict("tasks at rest", max(one.tasks for one in rests), soaked.before.tasks),
        Verdict("connections outside the pool at rest", max(one.stray for one in rests), 0),
        Verdict("growth of threads", soaked.growth(lambda one: one.threads), STARTED_LATE),
        Verdict("growth of open files", soaked.growth(lambda one: one.files), STARTED_LATE),
        Verdict("growth of blocks of memory", soaked.growth(lambda one: one.blocks), blocks),
        Verdict(
            "growth of memory, bytes",
            soaked.growth(lambda one: one.memory),
            BYTES_NOISE + BYTES * operations,
        ),
        Verdict("rows stored, pruned", after.rows, ROWS_NOISE + ROWS * before.rows),
    ]


def _named(names: Sequence[str]) -> str:
    return f" ({', '.join(names)})" if names else ""
