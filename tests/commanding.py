"""The command `checkpointer`, run within the tests' process and in others."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from checkpointer.cli import main

CHECKOUT = Path(__file__).parent.parent

Run = Callable[..., tuple[int, str, str]]
"""Runs the command with arguments; its exit code, what it printed, and its messages."""


def runner(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in a thread, where its event loop does not replace pytest's."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with ThreadPoolExecutor(1) as thread:
            code = thread.submit(main, arguments).result()
        out, err = capsys.readouterr()
        return code, out, err

    return run


def environment(**changes: str) -> Mapping[str, str]:
    """The environment of a process that finds this package, and nothing that names a database."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith("CHECKPOINTER_")}
    return plain | {"PYTHONPATH": str(CHECKOUT)} | changes


def process(
    *arguments: str, cwd: Path = CHECKOUT, **changes: str
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "checkpointer", *arguments],
        cwd=cwd,
        env=environment(**changes),
        capture_output=True,
        text=True,
        check=False,
    )


def hidden(url: str) -> str:
    """A URL as commands show it."""
    return sa.make_url(url).render_as_string(hide_password=True)
