"""The machine and the software that figures come from."""

import os
import platform
import sqlite3
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final

import psycopg
from sizes import libpq_of

PACKAGES: Final = (
    "langgraph",
    "langgraph-checkpoint",
    "langgraph-checkpoint-sqlite",
    "langgraph-checkpoint-postgres",
    "langchain",
    "sqlalchemy",
    "aiosqlite",
    "asyncpg",
    "psycopg",
    "psycopg-pool",
    "ormsgpack",
)
_CPUINFO: Final = Path("/proc/cpuinfo")
_SYNCS: Final = 50


def machine(postgresql: str | None) -> dict[str, str]:
    """What is known of the machine.

    Args:
        postgresql: A URL of the PostgreSQL server, if there is one.
    """
    facts = {
        "CPU": f"{_cpu()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
    }
    if postgresql is not None:
        facts["PostgreSQL"] = _postgresql(postgresql)
    facts["fsync of 4 KB where databases are"] = f"{fsync_seconds() * 1000:.2f} ms (median)"
    facts["packages"] = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return facts


def _cpu() -> str:
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _postgresql(url: str) -> str:
    with psycopg.connect(libpq_of(url)) as connection:
        found = [
            connection.execute(f"SHOW {name}").fetchone()
            for name in ("server_version", "fsync", "synchronous_commit")
        ]
    number, fsync, commit = (row[0] if row else "?" for row in found)
    return f"{number}, fsync {fsync}, synchronous_commit {commit}"


def fsync_seconds() -> float:
    """Seconds until 4 KB more of a file are on disk, in the directory for temporary files."""
    times = []
    with tempfile.TemporaryFile() as file:
        for _ in range(_SYNCS):
            file.write(bytes(4096))
            file.flush()
            begun = perf_counter()
            os.fsync(file.fileno())
            times.append(perf_counter() - begun)
    return median(times)
