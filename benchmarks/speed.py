"""Time, memory, bytes and round trips of savers, ours beside the official ones.

Run it with `make bench`, `make bench-quick`, or `python benchmarks/speed.py --help`. The full form
writes `docs/benchmarks.md` with its pictures; all others only print. PostgreSQL is the server that
`CHECKPOINTER_TEST_POSTGRES_URL` names, where databases are made and dropped, or one of its own.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Final

import growth
import memory
import report
from catalog import GROUPS, WORKLOADS
from machine import machine
from proxy import proxy
from rich.console import Console
from rounds import run
from rows import DATABASES, POSTGRESQL, Group, Result
from savers import FLOOR, SAVERS, databases

ROUNDS: Final = 7
QUICK_ROUNDS: Final = 3

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
PICTURES: Final = "benchmarks"

Create = Callable[[str], str]


class Bench:
    """One run of the program.

    Args:
        options: The command line.
        savers: Those to measure.
        create: Makes an empty database for a saver.
        say: Told what goes on.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        savers: Sequence[str],
        create: Create,
        say: Callable[[str], None],
    ) -> None:
        self.options = options
        self.savers = savers
        self.create = create
        self.say = say

    def group(self, group: Group, rounds: int) -> list[Result]:
        """Measure a group's workloads, through proxies if they are for those."""
        takers = [s for s in self.savers if any(one.takes(s) for one in group.workloads)]
        urls = {name: self.create(name) for name in takers}
        counters = {}
        with ExitStack() as stack:
            if any(one.proxied for one in group.workloads):
                proxies = {name: stack.enter_context(proxy(url)) for name, url in urls.items()}
                urls = {name: one.url for name, one in proxies.items()}
                counters = {name: one.round_trips for name, one in proxies.items()}
            quick = self.options.quick
            running = run(
                group, urls, rounds=rounds, quick=quick, counters=counters, report=self.say
            )
            return asyncio.run(running) if urls else []

    def table(self) -> list[Result]:
        """All rows that were asked for."""
        results: list[Result] = []
        for group in merged(GROUPS) if self.options.quick else GROUPS:
            wanted = [one for one in group.workloads if one.name in self.options.only]
            timed = [one for one in wanted if not one.peak_only]
            if timed:
                results += self.group(replace(group, workloads=timed), self.options.rounds)
            if self.options.memory:
                results += [Result(one, {}) for one in wanted if one.peak_only]
        if self.options.memory:
            results = self._with_memory(results)
        return results

    def _with_memory(self, results: Sequence[Result]) -> list[Result]:
        workloads = [one.workload for one in results if one.workload.memory]
        urls = {name: self.create(name) for name in self.savers}
        peaks = memory.peaks(workloads, urls, quick=self.options.quick, report=self.say)
        found = []
        for result in results:
            name = result.workload.name
            own = {saver: peak for (workload, saver), peak in peaks.items() if workload == name}
            values = result.values
            if result.workload.peak_only:
                values = {saver: [peak] for saver, peak in own.items()}
            found.append(replace(result, values=values, peaks=own))
        return found

    def curves(self, results: Sequence[Result]) -> list[growth.Curve]:
        """All curves: those of the series, and the one that the table's storage row noted."""
        curves = [
            growth.curve_of(series, self.group(series.group, growth.ROUNDS))
            for series in growth.SERIES
        ]
        for result in results:
            if any(result.points.values()):
                curves.insert(0, growth.storage_curve(result))
        return curves


def merged(groups: Sequence[Group]) -> list[Group]:
    """The same workloads, with one database for all those that can share it."""
    shared = [group for group in groups if group.shares]
    workloads = [one for group in shared for one in group.workloads]
    return [Group("shared", workloads), *(group for group in groups if not group.shares)]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""

    def some_of(known: Sequence[str]) -> Callable[[str], list[str]]:
        def parsed(text: str) -> list[str]:
            if unknown := set(text.split(",")) - set(known):
                found = ", ".join(sorted(unknown))
                raise argparse.ArgumentTypeError(f"found {found}, expected some of {list(known)}")
            return text.split(",")

        return parsed

    everyone = (*SAVERS, FLOOR)
    parser = argparse.ArgumentParser(description="Time, memory, bytes and round trips of savers.")
    add = parser.add_argument
    add("--only", type=some_of(list(WORKLOADS)), help=f"rows, of {','.join(WORKLOADS)}")
    add("--savers", type=some_of(everyone), default=list(everyone), help=",".join(everyone))
    add("--databases", type=some_of(DATABASES), default=list(DATABASES), help=",".join(DATABASES))
    add("--rounds", type=int, help=f"default: {ROUNDS}, or {QUICK_ROUNDS} of the quick form")
    add("--quick", action="store_true", help="the quick form: fewer rounds, less of everything")
    add("--memory", action=argparse.BooleanOptionalAction, help="whether to measure peak memory")
    add("--write", action=argparse.BooleanOptionalAction, help=f"whether to write {PAGE.name}")
    add("--json", type=Path, help="write the figures to this file too")
    add("--check", action="store_true", help="end with 1 if a target is missed")
    options = parser.parse_args(arguments)
    if options.quick and options.write:
        parser.error("found --quick with --write, expected figures of the full form in the page")
    whole = options.only is None and not options.quick
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    options.memory = whole if options.memory is None else options.memory
    options.write = whole if options.write is None else options.write
    options.only = options.only or list(WORKLOADS)
    return options


def to_json(results: Sequence[Result], curves: Sequence[growth.Curve]) -> str:
    """All figures: rows in seconds, bytes and round trips, curves as they are drawn."""
    rows = [
        {"workload": one.workload.name, "values": dict(one.values), "peaks": one.peaks}
        for one in results
    ]
    return json.dumps({"rows": rows, "curves": [asdict(one) for one in curves]}, indent=2) + "\n"


def write(
    results: Sequence[Result],
    facts: Mapping[str, str],
    curves: Sequence[growth.Curve],
    rounds: int,
) -> None:
    """Write the page and its pictures."""
    # Only here: the processes that measure memory have no need of it.
    from charts import draw  # noqa: PLC0415

    drawn = {draw(curve, PAGE.parent / PICTURES): curve.title for curve in curves}
    pictures = {f"{PICTURES}/{path.name}": title for path, title in drawn.items()}
    report.write_page(PAGE, report.page(results, facts, pictures, rounds))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit status."""
    begun = perf_counter()
    options = parse(arguments)
    savers = [
        name
        for name in options.savers
        if name == FLOOR or name.rpartition("-")[2] in options.databases
    ]
    console = Console(width=None if sys.stdout.isatty() else 160)
    if options.quick:
        console.print(
            f"The quick form: {options.rounds} rounds of sizes smaller than the titles say; ratios "
            f"and targets are a hint at most. The full form is make bench."
        )
    with databases(savers) as create, report.telling(begun) as say:
        bench = Bench(options, savers, create, say)
        results = bench.table()
        servers = [create(name) for name in savers if name.endswith(POSTGRESQL)]
        facts = machine(servers[0] if servers else None)
        curves = bench.curves(results) if options.write else []
    if options.write:
        write(results, facts, curves, options.rounds)
    if options.json:
        options.json.write_text(to_json(results, curves))
    report.show(console, results, facts)
    console.print(f"{perf_counter() - begun:.0f} s")
    reached, targets = report.summary(results)
    return 1 if options.check and reached < targets else 0


if __name__ == "__main__":
    sys.exit(main())
