"""Bytes that a growing conversation takes in the database, beside the official savers.

The conversation is that of `workloads.agent`: one thread, a real `ainvoke` for each turn, four
messages of 1 KB a turn. Sizes are taken on the way, without closing anything:

- SQLite: the file and its WAL after `PRAGMA wal_checkpoint(TRUNCATE)`;
- PostgreSQL: `pg_total_relation_size` of the saver's tables, indexes and TOAST included.

Run it with `python benchmarks/storage.py`, or `--help`. PostgreSQL is the server that
`CHECKPOINTER_TEST_POSTGRES_URL` names, where a database is made and dropped, or one of its own.
Ends with 1 if a target is missed.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.table import Table
from savers import SAVERS, databases, open_saver
from sizes import Relation, measure
from workloads import MESSAGE_BYTES, MESSAGES_PER_TURN, agent, question

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

TURNS: Final = (50, 200, 400)

MEGABYTE: Final = 1_000_000
TARGET_TURNS: Final = 200
TARGET_BYTES: Final = 8 * MEGABYTE
"""What our saver may take at `TARGET_TURNS`."""
TARGET_GROWTH: Final = 2.2
"""How many times that it may take at twice as many turns: linear growth is 2, quadratic is 4."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a saver's tables take after some turns."""

    saver: str
    turns: int
    size: int
    seconds: float
    relations: Sequence[Relation]


async def converse(
    name: str, url: str, turns: Sequence[int], report: Callable[[str], None]
) -> list[Measured]:
    """Hold one conversation on a saver and measure it after each of `turns`."""
    measured: list[Measured] = []
    thread: RunnableConfig = {"configurable": {"thread_id": "a conversation"}}
    begun = perf_counter()
    async with open_saver(name, url) as saver:
        graph = agent(saver)
        for turn in range(1, max(turns) + 1):
            state = await graph.ainvoke(question(turn), thread)
            report(f"{name}: turn {turn} of {max(turns)}")
            if turn in turns:
                expected = turn * MESSAGES_PER_TURN
                if len(state["messages"]) != expected:
                    raise RuntimeError(f"{name} holds {len(state['messages'])}, not {expected}")
                seconds = perf_counter() - begun
                size, relations = await asyncio.to_thread(measure, url)
                measured.append(Measured(name, turn, size, seconds, relations))
    return measured


def size_table(measured: Sequence[Measured], turns: Sequence[int]) -> Table:
    """MB by saver and turns, the ratio to the official saver, and the growth."""
    sizes = {(one.saver, one.turns): one.size for one in measured}
    seconds = {one.saver: one.seconds for one in measured if one.turns == max(turns)}
    table = Table(title="MB in the database", title_justify="left")
    table.add_column("saver")
    for count in turns:
        table.add_column(f"{count} turns", justify="right")
    table.add_column(f"ours / official at {turns[-1]}", justify="right")
    growing = [(a, b) for a, b in pairwise(turns) if b == 2 * a]
    for few, many in growing:
        table.add_column(f"{many} turns / {few} turns", justify="right")
    table.add_column("seconds", justify="right")
    for name in dict.fromkeys(one.saver for one in measured):
        cells = [f"{sizes[name, count] / MEGABYTE:.2f}" for count in turns]
        official = sizes.get((name.replace("ours", "official"), turns[-1]))
        ours = name.startswith("ours") and official
        cells.append(f"{sizes[name, turns[-1]] / official:.4f}" if ours and official else "")
        cells += [f"{sizes[name, many] / sizes[name, few]:.2f}" for few, many in growing]
        table.add_row(name, *cells, f"{seconds[name]:.0f}")
    return table


def relation_table(one: Measured) -> Table:
    """Rows and bytes of each table and index."""
    table = Table(title=f"{one.saver}, {one.turns} turns", title_justify="left")
    table.add_column("table or index")
    for column in ("rows", "bytes", "share"):
        table.add_column(column, justify="right")
    for relation in sorted(one.relations, key=lambda r: -(r.size or 0)):
        if relation.size is None:
            size = share = "?"
        else:
            size, share = f"{relation.size:,}", f"{relation.size / one.size:.1%}"
        rows = "" if relation.rows is None else f"{relation.rows:,}"
        table.add_row(relation.name, rows, size, share)
    return table


def check_targets(measured: Sequence[Measured]) -> list[tuple[str, bool]]:
    """What our savers had to reach, and whether they did; only what was measured."""
    sizes = {(one.saver, one.turns): one.size for one in measured}
    checks: list[tuple[str, bool]] = []
    for name in (name for name in SAVERS if name.startswith("ours")):
        size, twice = sizes.get((name, TARGET_TURNS)), sizes.get((name, 2 * TARGET_TURNS))
        if size is not None:
            limit = f"{TARGET_BYTES / MEGABYTE:.0f} MB"
            text = f"{name}: {size / MEGABYTE:.2f} MB at {TARGET_TURNS} turns, at most {limit}"
            checks.append((text, size <= TARGET_BYTES))
        if size is not None and twice is not None:
            text = (
                f"{name}: {twice / size:.2f} times that at twice as many, at most {TARGET_GROWTH}"
            )
            checks.append((text, twice <= TARGET_GROWTH * size))
    return checks


def show(measured: Sequence[Measured], turns: Sequence[int], console: Console) -> bool:
    """Print everything; whether all targets were reached."""
    logical = turns[-1] * MESSAGES_PER_TURN * MESSAGE_BYTES
    console.print(
        f"One thread of create_agent, {MESSAGES_PER_TURN} messages of {MESSAGE_BYTES} bytes a turn"
        f": {turns[-1]} turns say {logical / MEGABYTE:.2f} MB.\n"
    )
    console.print(size_table(measured, turns))
    for one in measured:
        if one.saver.startswith("ours") and one.turns == turns[-1]:
            console.print(relation_table(one))
    checks = check_targets(measured)
    for text, reached in checks:
        console.print(f"{'[green]reached' if reached else '[red]missed '}[/] {text}")
    if not checks:
        console.print(f"Targets are held against {TARGET_TURNS} turns, which were not measured.")
    return all(reached for _, reached in checks)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Bytes that a conversation takes in the database.")
    parser.add_argument(
        "--turns",
        type=lambda text: tuple(sorted({int(count) for count in text.split(",")})),
        default=TURNS,
        help="after how many turns to measure, such as 50,200,400",
    )
    parser.add_argument(
        "--savers",
        type=lambda text: tuple(text.split(",")),
        default=tuple(SAVERS),
        help=f"which savers, of {','.join(SAVERS)}",
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args(arguments)
    if unknown := set(options.savers) - set(SAVERS):
        parser.error(f"found the savers {', '.join(sorted(unknown))}, expected some of {SAVERS}")
    if min(options.turns) < 1:
        parser.error("found a number of turns below 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit status."""
    options = parse(arguments)
    console = Console()
    measured: list[Measured] = []
    status = Console(stderr=True).status("starting")
    with databases(options.savers) as create, status:
        for name in options.savers:
            measured += asyncio.run(converse(name, create(name), options.turns, status.update))
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in measured], indent=2) + "\n")
    return 0 if show(measured, options.turns, console) else 1


if __name__ == "__main__":
    sys.exit(main())
