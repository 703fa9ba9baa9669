"""The table, the page and what they say."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final

from rich.box import ROUNDED
from rich.console import Console
from rich.table import Table
from rows import DATABASES, MILLISECONDS, POSTGRESQL, SQLITE, Comparison, Result
from savers import FLOOR

NAMES: Final = {SQLITE: "SQLite", POSTGRESQL: "PostgreSQL"}
LEGEND: Final = """\
Each row is a workload, each figure the median of all rounds; below it stands the memory by which a
fresh process grew at most. The ratio is ours / official, the median of those of all rounds, with
the least and the greatest below it: where these span 1, the savers are equal within the noise.
Lower is better throughout. Of many callers at once, a figure is the time that went by, divided by
the number of operations: throughput, not what one caller waits.\
"""
Line = list[list[str]]
"""A row: for each cell, its lines."""


@dataclass(frozen=True, slots=True)
class Lines:
    """The table: its heading, and its rows, of which each cell has lines."""

    heading: Sequence[str]
    rows: Sequence[Line]


def lines_of(results: Sequence[Result]) -> Lines:
    """A row for each workload, and one for each floor that is held against.

    Databases on which nothing was measured are left out.
    """
    measured = {saver for result in results for saver in result.values}
    shown = [d for d in DATABASES if {f"ours-{d}", f"official-{d}"} & measured]
    heading = ["workload"]
    for database in shown:
        columns = ("ours", "official", "ratio", "target")
        heading += [f"{NAMES[database]}: {column}" for column in columns]
    rows: list[Line] = []
    for result in results:
        rows.append(_line(result, shown))
        if result.workload.floor_target is not None and FLOOR in result.values:
            rows.append(_floor_line(result, shown))
    return Lines([*heading, "InMemorySaver"], rows)


def _line(result: Result, shown: Iterable[str]) -> Line:
    cells = [[result.workload.title]]
    for database in shown:
        cells += [_measured(result, f"{saver}-{database}") for saver in ("ours", "official")]
        ratio = result.against_official(database)
        cells += [_ratio(ratio), _target(ratio) or _target(result.by_itself(database))]
    return [*cells, _measured(result, FLOOR)]


def _floor_line(result: Result, shown: Iterable[str]) -> Line:
    cells = [["the same, but ours / `InMemorySaver`"]]
    for database in shown:
        ratio = result.against_floor(database)
        cells += [_measured(result, f"ours-{database}")[:1], [], _ratio(ratio), _target(ratio)]
    return [*cells, _measured(result, FLOOR)[:1]]


def _measured(result: Result, saver: str) -> list[str]:
    shown = result.shown(saver)
    unit = result.workload.unit
    lines = []
    if shown is not None:
        number = rounded(shown) if unit == MILLISECONDS else f"{shown:.4g}"
        lines.append(f"{number} {unit}" if unit in {MILLISECONDS, "MB"} else number)
    if saver in result.peaks and not result.workload.peak_only:
        lines.append(f"{result.peaks[saver] / 1e6:.0f} MB")
    return lines


def _ratio(comparison: Comparison | None) -> list[str]:
    if comparison is None:
        return []
    lines = [f"{comparison.typical:.3f}"]
    if len(comparison.values) > 1:
        lines.append(f"{min(comparison.values):.3f}-{max(comparison.values):.3f}")
    return lines


def _target(comparison: Comparison | None) -> list[str]:
    if comparison is None or comparison.target is None:
        return []
    of_what = "ours <= " if comparison.absolute else "<= "
    return [f"{of_what}{comparison.target:g}", "reached" if comparison.reached else "missed"]


def rounded(number: float) -> str:
    """Three digits that count, at most three after the point."""
    return f"{number:.{0 if number >= 100 else 1 if number >= 10 else 2 if number >= 1 else 3}f}"  # noqa: PLR2004


def rich_table(lines: Lines) -> Table:
    """The table for a terminal."""
    table = Table(box=ROUNDED, show_lines=True)
    table.add_column(lines.heading[0], min_width=22)
    for column in lines.heading[1:]:
        table.add_column(column.replace(": ", "\n"), justify="right")
    colours = {"reached": "[green]reached[/]", "missed": "[bold red]missed[/]"}
    for row in lines.rows:
        table.add_row(*("\n".join(colours.get(part, part) for part in cell) for cell in row))
    return table


def markdown_table(lines: Lines) -> str:
    """The table for the page."""
    marks = {"missed": "**missed**"}
    rows = [
        list(lines.heading),
        ["---", *["---:"] * (len(lines.heading) - 1)],
        *(
            ["<br>".join(marks.get(part, part) for part in cell) for cell in row]
            for row in lines.rows
        ),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def summary(results: Iterable[Result]) -> tuple[int, int]:
    """How many targets were reached, and how many there are."""
    verdicts = [one.reached for result in results for one in result.comparisons()]
    return sum(map(bool, verdicts)), len(verdicts)


def show(console: Console, results: Sequence[Result], facts: Mapping[str, str]) -> None:
    """Print the table, the machine and the workloads."""
    console.print(rich_table(lines_of(results)))
    console.print(LEGEND)
    for name, fact in facts.items():
        console.print(f"[bold]{name}[/]: {fact}")
    for result in results:
        console.print(f"[bold]{result.workload.title}[/]: {result.workload.description}")
    reached, targets = summary(results)
    console.print(f"{reached} of {targets} targets reached")


def page(
    results: Sequence[Result],
    facts: Mapping[str, str],
    pictures: Mapping[str, str],
    rounds: int,
) -> str:
    """The page of figures.

    Args:
        results: What was measured.
        facts: The machine.
        pictures: Titles by path, relative to the page.
        rounds: How many rounds there were.
    """
    reached, targets = summary(results)
    workloads = [one.workload for one in results]
    described = "\n".join(f"- **{one.title}**: {one.description}" for one in workloads)
    shown = "\n\n".join(f"![{title}]({path})" for path, title in pictures.items())
    return f"""\
# Benchmarks

Written by `make bench`; how it measures stands in `benchmarks/README.md`.

{LEGEND} There were {rounds} rounds, in which the savers took turns. {reached} of {targets} targets
were reached.

{markdown_table(lines_of(results))}

## Growth

Medians of three rounds, on logarithmic axes but for the first picture. They come from other runs
than the table; less than a factor of two is noise.

{shown}

## Machine

{chr(10).join(f"- {name}: {fact}" for name, fact in facts.items())}

## Workloads

{described}
"""


def write_page(path: Path, text: str) -> None:
    """Write the page, with its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@contextmanager
def telling(begun: float) -> Iterator[Callable[[str], None]]:
    """What goes on: one line that changes on a terminal, a line each with its second elsewhere."""
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status("starting") as status:
            yield status.update
    else:
        yield lambda text: print(f"{perf_counter() - begun:6.1f} s  {text}", file=sys.stderr)
