"""What a workload is: a row of the table, with its targets; and what was measured of it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final, TypeAlias

from savers import FLOOR, Subject

Slice: TypeAlias = Callable[[], Awaitable[float]]
"""Does a part of a round, on fresh threads; returns what one operation took, in its unit."""

Prepare: TypeAlias = Callable[[Subject], Awaitable[Slice]]
"""Does what is not measured, once, and returns what is."""

SQLITE: Final = "sqlite"
POSTGRESQL: Final = "postgresql"
DATABASES: Final = (SQLITE, POSTGRESQL)

MILLISECONDS: Final = "ms"
MEGABYTES: Final = "MB"
ROUND_TRIPS: Final = "round trips"
SCALES: Final = {MILLISECONDS: 1e3, MEGABYTES: 1e-6, ROUND_TRIPS: 1.0}
"""From what is measured (seconds, bytes, round trips) to what is shown."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A row of the table.

    Attributes:
        name: For the command line.
        title: For the table.
        description: What exactly is measured, for the page.
        prepare: Prepares one saver.
        targets: By database, what ours/official may be at most, as a median of all rounds.
        floor_target: What ours/`InMemorySaver` may be at most.
        at_most: What ours may be at most by itself, in the row's unit.
        slices: Parts of a round, between which the savers take turns.
        rounds: How many rounds there are at most, where more would show nothing else.
        warm: Whether one slice goes before the first round, unmeasured.
        unit: Of what is measured.
        floor: Whether `InMemorySaver` takes part.
        official: Whether the official savers take part.
        databases: Where it is measured.
        proxied: Whether a proxy with a delay stands before the database.
        memory: Whether its peak memory is measured.
        peak_only: Whether its peak memory is all that is measured.
    """

    name: str
    title: str
    description: str
    prepare: Prepare
    targets: Mapping[str, float] = field(default_factory=dict)
    floor_target: float | None = None
    at_most: float | None = None
    slices: int = 1
    rounds: int | None = None
    warm: bool = True
    unit: str = MILLISECONDS
    floor: bool = True
    official: bool = True
    databases: Sequence[str] = DATABASES
    proxied: bool = False
    memory: bool = True
    peak_only: bool = False

    def takes(self, saver: str) -> bool:
        """Whether a saver takes part."""
        if saver == FLOOR:
            return self.floor
        ours, _, database = saver.partition("-")
        return database in self.databases and (self.official or ours == "ours")


@dataclass(frozen=True, slots=True)
class Group:
    """Workloads that share an open saver and a database for each saver, in their order.

    Attributes:
        name: The group.
        workloads: The workloads.
        warmed: Whether the savers do other work first. Without it the databases stay empty.
    """

    name: str
    workloads: Sequence[Workload]
    warmed: bool = True

    @property
    def shares(self) -> bool:
        """Whether the workloads may share a database with those of other groups."""
        return self.warmed and not any(one.proxied for one in self.workloads)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A figure that is held against a target.

    Attributes:
        values: One a round: the ratio to the other saver, or ours itself.
        target: What their median may be at most.
        absolute: Whether it is ours itself.
    """

    values: Sequence[float]
    target: float | None
    absolute: bool = False

    @property
    def typical(self) -> float:
        """The median."""
        return median(self.values)

    @property
    def reached(self) -> bool | None:
        """Whether the target was reached; `None` where there is none."""
        return None if self.target is None else self.typical <= self.target


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured of a workload.

    Attributes:
        workload: The workload.
        values: By saver, one figure a round, in seconds, bytes or round trips.
        peaks: By saver, the bytes by which the process grew at most.
        points: By saver, what was noted on the way for a curve.
    """

    workload: Workload
    values: Mapping[str, Sequence[float]]
    peaks: dict[str, int] = field(default_factory=dict)
    points: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)

    def shown(self, saver: str) -> float | None:
        """The median of a saver's figures, in the row's unit; `None` if it was not measured."""
        values = self.values.get(saver)
        return median(values) * SCALES[self.workload.unit] if values else None

    def against_official(self, database: str) -> Comparison | None:
        """Ours against the official saver on a database; `None` if either was not measured."""
        target = self.workload.targets.get(database)
        return self._ratio(f"ours-{database}", f"official-{database}", target)

    def against_floor(self, database: str) -> Comparison | None:
        """Ours on a database against `InMemorySaver`."""
        return self._ratio(f"ours-{database}", FLOOR, self.workload.floor_target)

    def by_itself(self, database: str) -> Comparison | None:
        """Ours on a database against a figure of the workload, if it has one."""
        values = self.values.get(f"ours-{database}")
        if self.workload.at_most is None or not values:
            return None
        scale = SCALES[self.workload.unit]
        return Comparison([one * scale for one in values], self.workload.at_most, absolute=True)

    def comparisons(self) -> list[Comparison]:
        """All that a target was set for."""
        found = [
            comparison
            for database in DATABASES
            for comparison in (
                self.against_official(database),
                self.against_floor(database),
                self.by_itself(database),
            )
        ]
        return [one for one in found if one is not None and one.target is not None]

    def _ratio(self, one: str, other: str, target: float | None) -> Comparison | None:
        absolute = self.workload.at_most is not None
        if absolute or not self.values.get(one) or not self.values.get(other):
            return None
        pairs = zip(self.values[one], self.values[other], strict=True)
        return Comparison([a / b for a, b in pairs], target)
