"""A long run under load: agents on many threads, with prunes, copies, deletes and lists beside.

Nothing may fail, be lost or grow: errors, what is read against what was acknowledged, connections,
tasks, threads, open files, memory, rows. Ends with 1 if anything falls short, and says what.

Run it with `make soak`, `make soak-quick`, or `python benchmarks/soak.py --help`. PostgreSQL is the
server that `CHECKPOINTER_TEST_POSTGRES_URL` names, where a database is made and dropped, or one of
its own.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from agents import LISTED, PRUNED_AT_ONCE, Load
from report import NAMES, rounded, telling
from resources import Gauge, Held
from rich.console import Console
from rich.table import Table
from rows import DATABASES
from savers import databases
from verdicts import Soaked, Verdict, verdicts

import checkpointer

SECONDS: Final = 600.0
QUICK_SECONDS: Final = 40.0
THINK: Final = 2.0
QUICK_THINK: Final = 0.5
ROUNDS: Final = 10
QUICK_ROUNDS: Final = 5
LEAST_ROUND: Final = 0.5
"""Seconds of a round at least, however long it took to make the threads."""

LOOK: Final = 3.0
"""Seconds between two looks during a round."""

CACHE_BYTES: Final = 1 << 20
"""Bytes of values that are remembered: so few that these are there before growth is looked at, and
that many reads find nothing."""

WORKERS: Final = 4
"""Threads for what LangGraph runs in threads: so few that all are started soon."""

HELD: Final[Mapping[str, Callable[[Held], str]]] = {
    "connections": lambda held: f"{held.connections}",
    "tasks": lambda held: f"{held.tasks}",
    "threads": lambda held: f"{held.threads}",
    "open files": lambda held: f"{held.files}",
    "blocks of memory": lambda held: f"{held.blocks:,}",
    "memory, MB": lambda held: f"{held.memory / 1e6:.1f}",
}


class Soak:
    """The soak of one empty database.

    Args:
        database: Its kind.
        url: The database.
        options: The command line.
        say: Told what goes on.
    """

    def __init__(
        self, database: str, url: str, options: argparse.Namespace, say: Callable[[str], None]
    ) -> None:
        self.database = database
        self.url = url
        self.options = options
        self._say = say

    def say(self, text: str) -> None:
        """Tell how far it is."""
        self._say(f"{self.database}: {text}")

    async def run(self) -> Soaked:
        """Make threads, work on them in rounds, then read and verify all."""
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(WORKERS))
        options = self.options
        async with checkpointer.create_saver(self.url, cache_bytes=CACHE_BYTES) as saver:
            await saver.setup()
            load = Load(saver, threads=options.threads, agents=options.agents, think=options.think)
            gauge = Gauge(self.url, saver.engine, lambda: load.stopwatch.calls)
            before = gauge.look_at_rest()
            begun = perf_counter()
            self.say(f"{options.threads} threads are made")
            await load.stock()
            stored = gauge.stored()
            rests, most = await self._rounds(load, gauge, begun)
            seconds = perf_counter() - begun
            self.say("all threads are pruned, and read by another saver")
            await load.prune_all()
            async with checkpointer.create_saver(self.url) as another:
                await load.check_all(another)
            after = gauge.stored()
            self.say("the store is verified")
            verification = await saver.averify()
            return Soaked(
                database=self.database,
                seconds=seconds,
                turns=load.turns,
                operations=load.stopwatch.operations,
                before=before,
                rests=rests,
                most=most,
                stored=(stored, after),
                errors=load.errors,
                losses=load.losses,
                whole=verification.whole,
                problems=[str(one) for one in verification.problems],
            )

    async def _rounds(self, load: Load, gauge: Gauge, begun: float) -> tuple[list[Held], Held]:
        """Let the agents work until the time is over; what was held after each round, and most."""
        rests: list[Held] = []
        looks = [gauge.look()]
        for number in range(self.options.rounds):
            left = self.options.seconds - (perf_counter() - begun)
            async with self._looking(load, gauge, begun, looks):
                ended = await load.round(max(LEAST_ROUND, left / (self.options.rounds - number)))
            rests.append(gauge.look_at_rest())
            if not ended:
                break
        return rests, Held.most(looks)

    @asynccontextmanager
    async def _looking(
        self, load: Load, gauge: Gauge, begun: float, looks: list[Held]
    ) -> AsyncIterator[None]:
        """Look now and then, and tell how far it is."""

        async def look() -> None:
            while True:
                looks[:] = [Held.most([*looks, gauge.look()])]
                self.say(
                    f"{perf_counter() - begun:.0f} of {self.options.seconds:.0f} s, "
                    f"{load.stopwatch.calls:,} operations, {load.errors.count} errors, "
                    f"{load.losses.count} losses"
                )
                await asyncio.sleep(LOOK)

        looking = asyncio.create_task(look())
        try:
            yield
        finally:
            looking.cancel()
            with suppress(asyncio.CancelledError):
                await looking


def operations_table(soaked: Soaked) -> Table:
    """Throughput, errors and latencies of each operation."""
    table = Table(title=f"{NAMES[soaked.database]}: operations", title_justify="left")
    table.add_column("operation")
    for column in ("calls", "a second", "errors", "p50, ms", "p99, ms", "longest, ms"):
        table.add_column(column, justify="right")
    for name, one in sorted(soaked.operations.items()):
        seconds = (one.percentile(0.5), one.percentile(0.99), one.longest)
        table.add_row(
            name,
            f"{one.calls:,}",
            rounded(one.calls / soaked.seconds),
            f"{one.errors}",
            *(rounded(value * 1000) for value in seconds),
        )
    return table


def held_table(soaked: Soaked) -> Table:
    """What the process held, and what was stored."""
    table = Table(title=f"{NAMES[soaked.database]}: held and stored", title_justify="left")
    table.add_column("at rest")
    for column in ("before", "after the warm-up", "at the end", "at most, meanwhile"):
        table.add_column(column, justify="right")
    moments = (soaked.before, soaked.warm[0], soaked.warm[-1], soaked.most)
    for name, shown in HELD.items():
        table.add_row(name, *map(shown, moments))
    before, after = soaked.stored
    table.add_row("rows, pruned", f"{before.rows:,}", "", f"{after.rows:,}", "")
    table.add_row("store, MB", f"{before.size / 1e6:.1f}", "", f"{after.size / 1e6:.1f}", "")
    return table


def show(soaked: Soaked, console: Console) -> list[Verdict]:
    """Print everything; what fell short."""
    console.print(operations_table(soaked))
    console.print(f"aprune: {PRUNED_AT_ONCE} threads a call; alist: {LISTED} checkpoints at most.")
    console.print(held_table(soaked))
    console.print(f"{soaked.turns:,} turns of agents in {soaked.seconds:.0f} s")
    found = verdicts(soaked)
    for one in found:
        reached = "[green]reached[/]" if one.reached else "[bold red]missed [/]"
        console.print(f"{reached} {one.what}: {one.found:,.4g}, at most {one.allowed:,.4g}")
    for text, count in (soaked.errors.seen + soaked.losses.seen).items():
        console.print(f"{count} x {text}", markup=False)
    for problem in soaked.problems[:LISTED]:
        console.print(problem, markup=False)
    return [one for one in found if not one.reached]


def figures(soaked: Soaked) -> dict[str, Any]:
    """All figures, in seconds and bytes."""
    return {
        "database": soaked.database,
        "seconds": soaked.seconds,
        "turns": soaked.turns,
        "operations": {
            name: {
                "calls": one.calls,
                "errors": one.errors,
                "p50": one.percentile(0.5),
                "p99": one.percentile(0.99),
                "longest": one.longest,
            }
            for name, one in soaked.operations.items()
        },
        "before": asdict(soaked.before),
        "rests": [asdict(one) for one in soaked.rests],
        "most": asdict(soaked.most),
        "stored": [asdict(one) for one in soaked.stored],
        "errors": dict(soaked.errors.seen),
        "losses": dict(soaked.losses.seen),
        "problems": list(soaked.problems),
        "verdicts": [asdict(one) | {"reached": one.reached} for one in verdicts(soaked)],
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="A long run under load, in which nothing grows.")
    add = parser.add_argument
    add("--quick", action="store_true", help="the quick form: about a minute a database")
    add("--databases", default=",".join(DATABASES), help=f"of {','.join(DATABASES)}")
    add(
        "--seconds",
        type=float,
        help=f"a database; default: {SECONDS:.0f}, quick {QUICK_SECONDS:.0f}",
    )
    add("--threads", type=int, default=1000, help="threads of conversation; default: 1000")
    add("--agents", type=int, default=200, help="agents at the same time; default: 200")
    add("--think", type=float, help=f"seconds of a model; default: {THINK}, quick {QUICK_THINK}")
    add("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args(arguments)
    options.databases = options.databases.split(",")
    if unknown := set(options.databases) - set(DATABASES):
        parser.error(f"found {', '.join(sorted(unknown))}, expected some of {DATABASES}")
    options.rounds = QUICK_ROUNDS if options.quick else ROUNDS
    options.think = options.think or (QUICK_THINK if options.quick else THINK)
    options.seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak one database after the other; the exit status."""
    begun = perf_counter()
    options = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    savers = [f"ours-{database}" for database in options.databases]
    with databases(savers) as create, telling(begun) as say:
        found = [
            asyncio.run(Soak(database, create(saver), options, say).run())
            for database, saver in zip(options.databases, savers, strict=True)
        ]
    missed = {NAMES[one.database]: show(one, console) for one in found}
    if options.json:
        options.json.write_text(json.dumps([figures(one) for one in found], indent=2) + "\n")
    for database, some in missed.items():
        for one in some:
            console.print(f"{database} fell short: {one.what}")
    console.print(f"{perf_counter() - begun:.0f} s")
    return 1 if any(missed.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
