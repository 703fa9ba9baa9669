"""How commands are parsed, how they end, and what their errors show."""

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from commanding import CHECKOUT, Run, environment, process
from hypothesis import given
from hypothesis import strategies as st
from storing import config, put

from checkpointer import DatabaseError, create_saver
from checkpointer.commands import harmless, revisions
from checkpointer.commands.fallback import INSTALL, WITH, WITHOUT
from checkpointer.commands.output import EXIT_CODES

ARGUMENTS = {
    "show": ["x"],
    "history": ["x"],
    "diff": ["x", "1", "2"],
    "export": ["x"],
    "delete": ["x", "--yes"],
    "prune": ["x", "--yes"],
}
"""What else than a URL the commands have to be told."""

MOVES = {"copy", "import"}
"""The commands that take two URLs."""


def arguments(command: str, url: str) -> list[str]:
    """The arguments that have a command work on a database."""
    if command in MOVES:
        return [command, url, "sqlite://"]
    return [command, *ARGUMENTS.get(command, []), "--url", url]


@pytest.mark.parametrize("command", sorted(WITH | WITHOUT.keys()))
def test_a_server_that_is_not_there_is_named_without_password(run: Run, command: str) -> None:
    code, out, err = run(*arguments(command, "postgresql://app:secret@127.0.0.1:1/app"))
    assert (code, out) == (1, "")
    assert "app:***@127.0.0.1" in err
    assert "secret" not in err
    assert "Traceback" not in err


@pytest.mark.parametrize("command", sorted(WITH | WITHOUT.keys()))
@pytest.mark.parametrize("url", ["nosuch://host/app", "sqlite+pysqlite:///x.db", "no url"])
def test_a_url_that_cannot_work_is_refused(run: Run, command: str, url: str) -> None:
    code, out, err = run(*arguments(command, url))
    assert (code, out) == (2, "")
    assert err.startswith("checkpointer: ")
    assert "expected" in err or "use sqlite+aiosqlite://" in err


@pytest.mark.parametrize("command", sorted(WITH - MOVES))
def test_a_missing_schema_is_told(run: Run, database_url: str, command: str) -> None:
    code, out, err = run(*arguments(command, database_url))
    assert (code, out) == (1, "")
    assert err.startswith("checkpointer: found no ")
    assert "checkpointer upgrade" in err


@pytest.mark.parametrize(
    "wrong",
    [
        ["nosuch"],
        ["check", "--nosuch"],
        ["upgrade", "0001"],
        ["check", "--repair"],
        ["verify", "a thread"],
        ["verify", "--thread"],
        ["show"],
        ["threads", "--limit", "0"],
        ["threads", "--order", "size"],
        ["threads", "--after", "nonsense"],
        ["threads", "--updated-before", "yesterday"],
        ["threads", "--metadata", "[]"],
        ["threads", "--metadata", "{"],
        ["prune"],
        ["prune", "x", "--all"],
        ["prune", "--all"],
        ["prune", "x", "--max-age", "30d"],
        ["prune", "--all", "--max-age", "30 days"],
        ["prune", "--all", "--max-age", "999999999w"],
        ["prune", "--all", "--keep-last", "0"],
        ["threads", "--updated-before", "100000000d"],
        ["threads", "--metadata", "[" * 100_000],
        ["threads", "--url", "postgresql://app@127.0.0.1:99999/app"],
        ["history", "x", "--limit", "many"],
        ["copy", "sqlite:///x.db"],
    ],
)
@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_wrong_usage_exits_with_2(
    run: Run, migrated_url: str, monkeypatch: pytest.MonkeyPatch, wrong: list[str]
) -> None:
    monkeypatch.setenv("CHECKPOINTER_URL", migrated_url)
    code, out, err = run(*wrong)
    assert (code, out) == (2, "")
    assert "checkpointer: " in err
    assert "Traceback" not in err


def test_a_slip_is_named_with_what_may_be_meant(run: Run) -> None:
    for wrong, parts in {
        ("verify", "--thred", "x"): ("No such option: --thred", "Did you mean --thread?"),
        ("verfy",): ("No such command 'verfy'", "Did you mean 'verify'?"),
        ("check", "--url"): ("Option '--url' requires an argument",),
        ("threads", "--limit", "x"): ("--limit", "Usage: checkpointer threads"),
    }.items():
        code, _, err = run(*wrong)
        assert code == 2
        for part in parts:
            assert part in err


def test_without_a_command_there_is_help(run: Run) -> None:
    code, out, err = run()
    assert (code, err) == (2, "")
    assert "Usage: checkpointer" in out
    assert run("--help") == (0, out, "")
    assert run("-h") == (0, out, "")


def test_help_says_what_each_command_does_and_how_it_ends(run: Run) -> None:
    shown = run("--help")[1]
    for command in WITH | WITHOUT.keys():
        assert f" {command} " in shown
        code, out, _ = run(command, "--help")
        assert code == 0
        assert EXIT_CODES in " ".join(out.split())
        assert command in MOVES or "--url" in out
        assert command == "export" or "--json" in out


def test_the_version(run: Run) -> None:
    code, out, err = run("--version")
    assert (code, err) == (0, "")
    assert out.startswith("langgraph-checkpoint-sqlalchemy ")


WITHOUT_THE_EXTRA = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("typer", "rich"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from checkpointer.cli import main
for line in sys.stdin.read().splitlines():
    print(main(line.split()), flush=True)
    print("end", file=sys.stderr, flush=True)
"""


def test_without_the_extra_the_schema_is_looked_after(database_url: str) -> None:
    """And all other commands say how to install it."""
    lines = [
        *("check", "upgrade", "current", "check --json", "upgrade --sql", "--version", "--help"),
        *("check --nosuch", f"chek {database_url}", ""),
        *sorted(WITH),
    ]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_EXTRA],
        env=environment(CHECKPOINTER_URL=database_url),
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Traceback" not in done.stderr
    codes = [int(line) for line in done.stdout.splitlines() if line in {"0", "1", "2"}]
    assert codes == [1, 0, 0, 0, 0, 0, 0, 2, 2, 2, *(2 for _ in WITH)]
    shown = " ".join(done.stdout.split())
    for part in ("revision 0001", '"ok": true', "CREATE TABLE", EXIT_CODES, INSTALL):
        assert part in shown
    assert database_url not in done.stderr.partition("chek")[2]
    for command, said in zip(sorted(WITH), done.stderr.split("end\n")[10:], strict=False):
        assert (
            said
            == f"checkpointer: `checkpointer {command}` needs the extra [cli]; run: {INSTALL}\n"
        )


def test_shells_complete_commands_and_options(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    script = run("--show-completion", "bash")[1]
    assert "_CHECKPOINTER_COMPLETE=complete_bash" in script

    def completed(words: str, number: int) -> list[str]:
        monkeypatch.setenv("_CHECKPOINTER_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(number))
        return run()[1].split()

    assert completed("checkpointer th", 1) == ["threads"]
    assert completed("checkpointer verify --r", 2) == ["--repair"]


def test_ctrl_c_ends_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(revisions, "current", interrupted)
    assert run("current", "--url", "sqlite://") == (130, "", "checkpointer: interrupted\n")


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_it_while_a_server_does_not_answer() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        url = f"postgresql://u@127.0.0.1:{server.getsockname()[1]}/d"
        with subprocess.Popen(
            [sys.executable, "-m", "checkpointer", "threads", "--url", url],
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        ) as started:
            connection, _ = server.accept()
            with connection:
                started.send_signal(signal.SIGINT)
                _, err = started.communicate()
    # asyncpg may leave a future behind whose error nobody asks for, of which asyncio tells.
    first, _, others = err.partition("\n")
    assert (started.returncode, first) == (130, "checkpointer: interrupted")
    assert not others or others.startswith("Future exception was never retrieved\nfuture: <Future ")
    assert "Traceback" not in others


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
async def test_the_end_of_who_reads_its_output_ends_it(migrated_url: str) -> None:
    async with create_saver(migrated_url) as saver:
        for number in range(20):
            await put(saver, config("t"), f"{number:03}", text="x" * 10_000)
    with subprocess.Popen(
        [sys.executable, "-m", "checkpointer", "export", "t", "--url", migrated_url],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as started:
        assert started.stdout is not None
        assert started.stderr is not None
        assert started.stdout.read(1) == b"{"
        started.stdout.close()
        err = started.stderr.read()
    assert (started.returncode, err) == (1, b"")


def test_a_file_that_cannot_be_opened_is_told_in_one_line(tmp_path: Path) -> None:
    done = process("upgrade", "--url", f"sqlite:///{tmp_path}/nosuch/x.db")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "unable to open database file" in done.stderr


@pytest.mark.skipif(
    not hasattr(aiosqlite.Connection, "stop"),
    reason="before aiosqlite 0.22, the thread is the connection",
)
async def test_no_thread_is_left_of_a_file_that_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would print a traceback, were the event loop closed before it ends."""
    stop = aiosqlite.Connection.stop

    def late(connection: Any) -> Any:
        connection._tx.put_nowait((None, partial(time.sleep, 0.2)))  # noqa: SLF001
        return stop(connection)

    monkeypatch.setattr(aiosqlite.Connection, "stop", late)
    async with create_saver(f"sqlite:///{tmp_path}/nosuch/x.db") as saver:
        with pytest.raises(DatabaseError, match="unable to open"):
            await saver.aget_tuple(config())
        names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if "_connection_worker_thread" in name]


ODD = "\x1b]0;title\x07\x1b[31m"


def test_no_terminal_obeys_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing(*_: object, **__: object) -> int:
        raise DatabaseError(f"found {ODD}")

    monkeypatch.setattr(revisions, "current", failing)
    assert run("current", "--url", "sqlite://")[2] == (
        "checkpointer: found \\x1b]0;title\\x07\\x1b[31m\n"
    )
    for wrong in (["show", f"--{ODD}"], [f"x{ODD}"], ["check", ODD]):
        code, _, err = run(*wrong)
        assert (code, "\x1b" in err, "\x07" in err) == (2, False, False)


def test_an_error_is_a_json_document(run: Run) -> None:
    for wrong, kind, message in (
        (["current", "--json", "--url", "no url"], "ConfigurationError", "is no database URL"),
        (["threads", "--json", "--limit", "0"], "BadParameter", "--limit"),
        (["show", "--json"], "MissingParameter", "THREAD"),
    ):
        code, out, err = run(*wrong)
        error = json.loads(out)["error"]
        assert (code, error["type"]) == (2, kind)
        assert message in error["message"]
        assert error["message"] in err
    assert run("show", "--", "--json", "x", "y")[1] == ""


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_an_output_that_cannot_be_written_is_told_in_one_line(migrated_url: str) -> None:
    command = [sys.executable, "-m", "checkpointer", "current", "--url", migrated_url]
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            command, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("checkpointer: found that the output cannot be written: ")
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    done = subprocess.run(closed, env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


OBEYED = frozenset(
    map(
        chr,
        (
            *(n for n in range(32) if chr(n) not in "\n\t"),
            *range(0x7F, 0xA0),
            *(0x200E, 0x200F, 0x2028, 0x2029, 0xFEFF),
            *range(0x202A, 0x202F),
            *range(0x2066, 0x206A),
            *range(0xD800, 0xE000),
            *range(0xE0000, 0xE0080),
        ),
    )
)
"""What terminals act on or cannot show: controls, turns of direction, surrogates, tags."""


@given(st.text(st.sampled_from(sorted(OBEYED)) | st.characters()))
def test_any_text_is_shown_harmlessly(text: str) -> None:
    shown = harmless.harmless(text)
    assert not set(shown) & OBEYED
    shown.encode()
    assert not set(harmless.line(text)) & {"\n", "\t"}
    if text.isascii() and text.isprintable():
        assert shown == text


def on_a_terminal(*arguments: str, typed: str = "", stopped_at: str = "") -> tuple[int, str]:
    """Run the command on a terminal of 80 columns; its exit code and what is drawn.

    Args:
        arguments: The command's.
        typed: What is typed ahead.
        stopped_at: Ctrl-C is pressed once this is drawn, and again whenever nothing more is drawn:
            Python misses a signal that comes just before it waits for a line.
    """
    ours, its = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "checkpointer", *arguments],
        env=environment(TERM="xterm", COLUMNS="80"),
        stdin=its,
        stdout=its,
        stderr=its,
        cwd=CHECKOUT,
    ) as started:
        os.close(its)
        os.write(ours, typed.encode())
        drawn, silent = b"", False
        pressed = not stopped_at
        try:
            while True:
                if stopped_at and stopped_at.encode() in drawn and (silent or not pressed):
                    pressed = True
                    started.send_signal(signal.SIGINT)
                silent = not select.select([ours], [], [], 15)[0]
                if silent:
                    continue
                if not (some := os.read(ours, 4096)):
                    break
                drawn += some
        except OSError:  # how the end of a terminal is told on Linux
            os.close(ours)
    return started.returncode, drawn.decode().replace("\r\n", "\n")


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
async def test_a_terminal_is_asked_and_drawn_on(migrated_url: str) -> None:
    odd = "\x1b]0;title\x07[bold]"
    async with create_saver(migrated_url) as saver:
        await put(saver, config("t"), "1", {"source": "input", "step": -1}, text=odd)
        code, drawn = on_a_terminal("show", "t", "--url", migrated_url)
        assert code == 0
        assert "\x1b[1m" in drawn
        assert "\\x1b]0;title\\x07[bold]" in drawn
        assert "\x1b]" not in drawn
        code, drawn = on_a_terminal("delete", "t", "--url", migrated_url, typed="n\n")
        assert (code, "1 checkpoint of 1 thread" in drawn) == (1, True)
        assert "nothing was removed" in drawn
        assert await saver.aget_tuple(config("t")) is not None
        code, drawn = on_a_terminal("delete", "t", "--url", migrated_url, stopped_at="[y/N]")
        assert (code, "Traceback" in drawn) == (130, False)
        assert drawn.endswith("checkpointer: interrupted\n")
        assert await saver.aget_tuple(config("t")) is not None
        code, _ = on_a_terminal("delete", "t", "--url", migrated_url, typed="y\n")
        assert code == 0
        assert await saver.aget_tuple(config("t")) is None
