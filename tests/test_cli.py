"""The commands: `checkpointer` of the package, and `alembic` in a checkout."""

import asyncio
import io
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from damages import Rows, noise
from schemas import catalog, empty_databases, execute, query, stamp
from storing import config, put, row_counts, stored_rows

from checkpointer import Problem, create_saver
from checkpointer.cli import EXIT_CODES, main
from checkpointer.tables import VERSION_TABLE, metadata

CHECKOUT = Path(__file__).parent.parent
VERSION_ROWS = f"SELECT version_num FROM {VERSION_TABLE}"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command in a thread, where its event loop does not replace pytest's."""
    monkeypatch.delenv("CHECKPOINTER_URL", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        with ThreadPoolExecutor(1) as thread:
            code = thread.submit(main, arguments).result()
        out, err = capsys.readouterr()
        return code, out, err

    return run


def alembic(
    *arguments: str, environment_url: str | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "CHECKPOINTER_URL"}
    if environment_url is not None:
        environment["CHECKPOINTER_URL"] = environment_url
    return subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def hidden(url: str) -> str:
    return sa.make_url(url).render_as_string(hide_password=True)


def test_upgrade_then_current_and_check_name_the_revision(run: Run, database_url: str) -> None:
    at_head = (0, "the schema is at revision 0001\n", "")
    assert run("upgrade", "--url", database_url) == at_head
    assert run("current", "--url", database_url) == (0, "0001\n", "")
    checked = (0, "found revision 0001, expected revision 0001\n", "")
    assert run("check", "--url", database_url) == checked
    assert run("upgrade", "--url", database_url) == at_head
    assert set(metadata.tables) <= {str(row[1]) for row in catalog(database_url)}


def test_looking_at_a_database_without_schema_changes_nothing(run: Run, database_url: str) -> None:
    code, out, err = run("check", "--url", database_url)
    assert (code, out) == (1, "")
    for part in ("found no schema in", hidden(database_url), "expected revision 0001"):
        assert part in err
    assert "run: checkpointer upgrade" in err
    assert run("current", "--url", database_url) == (0, "none\n", "")
    if database_url.startswith("sqlite"):
        assert not Path(sa.make_url(database_url).database or "").exists()
    assert catalog(database_url) == []


def test_looking_at_an_applications_sqlite_file_leaves_every_byte(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "application.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER)")
    before = path.read_bytes()
    assert run("current", "--url", f"sqlite:///{path}")[0] == 0
    assert run("check", "--url", f"sqlite:///{path}")[0] == 1
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_check_names_a_newer_revision_and_leaves_it(run: Run, database_url: str) -> None:
    run("upgrade", "--url", database_url)
    stamp(database_url, "9999")
    before = catalog(database_url)
    for command in ("check", "upgrade"):
        code, out, err = run(command, "--url", database_url)
        assert (code, out) == (1, "")
        assert "found revision 9999" in err
        assert "expected revision 0001" in err
        assert "pip install --upgrade langgraph-checkpoint-sqlalchemy" in err
    assert run("current", "--url", database_url) == (0, "9999\n", "")
    assert catalog(database_url) == before


def test_check_names_an_older_revision(
    run: Run, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("upgrade", "--url", database_url)
    monkeypatch.setattr("checkpointer.schema.REVISIONS", ("0001", "0002"))
    monkeypatch.setattr("checkpointer.schema.EXPECTED_REVISION", "0002")
    code, out, err = run("check", "--url", database_url)
    assert (code, out) == (1, "")
    assert "found revision 0001" in err
    assert "expected revision 0002" in err
    assert "run: checkpointer upgrade" in err


def test_the_environment_names_the_database_and_the_option_goes_first(
    run: Run, new_database_url: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    named, other = empty_databases(new_database_url, 2)
    monkeypatch.setenv("CHECKPOINTER_URL", named)
    assert run("upgrade")[0] == 0
    assert run("current")[1] == "0001\n"
    assert run("current", "--url", other)[1] == "none\n"


def test_without_a_url_the_file_checkpoints_db_is_taken(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("upgrade")[0] == 0
    assert query(f"sqlite:///{tmp_path}/checkpoints.db", VERSION_ROWS) == [("0001",)]


@pytest.mark.parametrize("command", ["upgrade", "current", "check", "verify"])
def test_a_server_that_is_not_there_is_named_without_password(run: Run, command: str) -> None:
    code, out, err = run(command, "--url", "postgresql://app:secret@127.0.0.1:1/app")
    assert (code, out) == (1, "")
    assert "app:***@127.0.0.1" in err
    assert "secret" not in err
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["upgrade", "current", "check", "verify"])
@pytest.mark.parametrize("url", ["nosuch://host/app", "sqlite+pysqlite:///x.db", "no url"])
def test_a_url_that_cannot_work_is_refused(run: Run, command: str, url: str) -> None:
    code, out, err = run(command, "--url", url)
    assert (code, out) == (1, "")
    assert err.startswith("checkpointer: ")
    assert "expected" in err or "use sqlite+aiosqlite://" in err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nosuch"],
        ["check", "--nosuch"],
        ["upgrade", "0001"],
        ["check", "--repair"],
        ["verify", "a thread"],
        ["verify", "--thread"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: checkpointer" in capsys.readouterr().err


def test_help_says_what_each_command_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for part in (
        "upgrade Bring the schema",
        "current Print the revision",
        "check Fail unless",
        "verify Read everything",
        EXIT_CODES,
    ):
        assert part in shown


def test_help_of_verify_says_what_its_exit_codes_mean(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["verify", "--help"])
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for part in ("--url", "--thread", "--repair", "1 if", "damage was found", EXIT_CODES):
        assert part in shown


async def fill(url: str) -> None:
    """Store two threads; a checkpoint of one is replaced."""
    async with create_saver(url) as saver:
        for thread in ("a", "b"):
            await put(saver, config(thread), "1", messages=noise(thread))
        await put(saver, config("a"), "2", messages=noise("more"))
        await put(saver, config("b"), "1", messages=noise("instead"))


async def test_verify_finds_a_whole_store_whole_and_leaves_it(run: Run, migrated_url: str) -> None:
    await fill(migrated_url)
    before = stored_rows(migrated_url)
    garbage = len(await unreferenced(migrated_url))

    code, out, err = await asyncio.to_thread(run, "verify", "--url", migrated_url)

    counts = row_counts(migrated_url)
    assert (code, err) == (0, "")
    summary = out.splitlines()[-1]
    assert summary.startswith(f"{hidden(migrated_url)} is whole: read 2 threads, 3 checkpoints, ")
    assert f"0 writes and {counts['checkpointer_chunks']} chunks of " in summary
    assert summary.endswith(f"; {garbage} chunks were unreferenced, 0 removed")
    assert out.count("unreferenced chunk: thread 'b', chunk ") == garbage
    assert stored_rows(migrated_url) == before


async def unreferenced(url: str) -> tuple[Problem, ...]:
    async with create_saver(url) as saver:
        return (await saver.averify()).problems


async def test_repair_removes_the_unreferenced_chunks_of_the_thread_that_is_named(
    run: Run, migrated_url: str
) -> None:
    await fill(migrated_url)
    garbage = len(await unreferenced(migrated_url))
    assert garbage > 3

    def repair(thread: str) -> tuple[int, str]:
        code, out, _ = run("verify", "--url", migrated_url, "--thread", thread, "--repair")
        return code, out.splitlines()[-1]

    code, summary = await asyncio.to_thread(repair, "a")
    assert (code, summary.partition("; ")[2]) == (0, "0 chunks were unreferenced, 0 removed")
    assert "read 1 threads, 2 checkpoints" in summary
    code, summary = await asyncio.to_thread(repair, "b")
    assert code == 0
    assert summary.endswith(f"; {garbage} chunks were unreferenced, {garbage} removed")
    assert await unreferenced(migrated_url) == ()


async def test_verify_names_what_is_damaged_and_exits_with_1(run: Run, migrated_url: str) -> None:
    await fill(migrated_url)
    [[digest]] = query(
        migrated_url, "SELECT MIN(digest) FROM checkpointer_chunks WHERE thread_id = 'a'"
    )
    assert isinstance(digest, bytes)
    Rows(migrated_url).lose({digest})
    before = stored_rows(migrated_url)

    code, out, err = await asyncio.to_thread(
        run, "verify", "--url", migrated_url, "--thread", "a", "--repair"
    )

    assert (code, err) == (1, "")
    problem, summary = out.splitlines()
    [checkpoint] = {"1", "2"} & set(re.findall(r"checkpoint '(\d)'", problem))
    assert problem == (
        f"missing chunk: thread 'a', namespace '', checkpoint '{checkpoint}', channel 'messages', "
        f"chunk {digest.hex()}: the channel's value: no row has this digest"
    )
    assert summary.startswith(f"{hidden(migrated_url)} is damaged, 1 problems: read 1 threads")
    assert "from a backup" in summary
    assert stored_rows(migrated_url) == before


async def test_verify_says_when_there_is_no_such_thread(run: Run, migrated_url: str) -> None:
    code, out, err = await asyncio.to_thread(
        run, "verify", "--url", migrated_url, "--thread", "nosuch"
    )
    assert (code, out) == (1, "")
    assert "found no thread 'nosuch' in" in err
    assert hidden(migrated_url) in err


def test_verify_makes_no_schema_and_no_file(run: Run, database_url: str) -> None:
    code, out, err = run("verify", "--url", database_url)
    assert (code, out) == (1, "")
    assert "found no schema in" in err
    if database_url.startswith("sqlite"):
        assert not Path(sa.make_url(database_url).database or "").exists()
    assert catalog(database_url) == []


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
async def test_verify_leaves_every_byte_of_a_file(run: Run, migrated_url: str) -> None:
    """Also of one whose journal is not the one that a saver would choose."""
    await fill(migrated_url)
    path = Path(sa.make_url(migrated_url).database or "")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    before, files = path.read_bytes(), sorted(path.parent.iterdir())
    code, _, _ = await asyncio.to_thread(run, "verify", "--url", migrated_url)
    assert code == 0
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == files


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize("with_rich", [True, False])
async def test_verify_draws_a_bar_on_a_terminal(
    run: Run, migrated_url: str, monkeypatch: pytest.MonkeyPatch, *, with_rich: bool
) -> None:
    await fill(migrated_url)
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    if not with_rich:
        monkeypatch.setattr("checkpointer.cli.find_spec", lambda name: None)

    code, out, _ = await asyncio.to_thread(run, "verify", "--url", migrated_url)

    assert code == 0
    assert " is whole: " in out.splitlines()[-1]
    drawn = terminal.getvalue()
    assert ("threads" in drawn, "2/2" in drawn) == (with_rich, with_rich)
    assert with_rich or not drawn


def test_the_package_runs_as_a_module(database_url: str) -> None:
    def run_module(command: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "checkpointer", command, "--url", database_url],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    assert run_module("check")[0] == 1
    assert run_module("upgrade") == (0, "the schema is at revision 0001\n")
    assert run_module("check")[0] == 0


async def test_setup_of_a_saver_does_what_the_commands_do(run: Run, database_url: str) -> None:
    async with create_saver(database_url) as saver:
        await saver.setup()
        await saver.setup()
    checked = await asyncio.to_thread(run, "check", "--url", database_url)
    assert checked == (0, "found revision 0001, expected revision 0001\n", "")


def test_alembic_upgrades_checks_and_downgrades(database_url: str) -> None:
    """All its commands, the URL from the environment."""

    def succeeds(*arguments: str) -> str:
        done = alembic(*arguments, environment_url=database_url)
        assert done.returncode == 0, done.stderr
        return done.stdout

    empty = catalog(database_url)
    assert empty == []
    succeeds("upgrade", "head")
    migrated = catalog(database_url)
    assert set(metadata.tables) <= {str(row[1]) for row in migrated}
    assert "No new upgrade operations" in succeeds("check")
    assert "0001 (head)" in succeeds("current")
    succeeds("downgrade", "base")
    left = {str(row[1]) for row in catalog(database_url)}
    assert left.isdisjoint(metadata.tables)
    assert query(database_url, VERSION_ROWS) == []
    succeeds("upgrade", "head")
    assert catalog(database_url) == migrated


def test_alembic_takes_the_url_from_its_option_before_the_environment(
    new_database_url: Callable[[], str],
) -> None:
    named, other = empty_databases(new_database_url, 2)
    done = alembic("-x", f"url={named}", "upgrade", "head", environment_url=other)
    assert done.returncode == 0, done.stderr
    assert query(named, VERSION_ROWS) == [("0001",)]
    assert catalog(other) == []


def test_alembic_check_sees_a_difference(run: Run, database_url: str) -> None:
    run("upgrade", "--url", database_url)
    execute(database_url, "ALTER TABLE checkpointer_writes ADD COLUMN more INTEGER")
    done = alembic("check", environment_url=database_url)
    assert done.returncode != 0
    assert "remove_column" in done.stderr + done.stdout


def test_the_sql_that_alembic_prints_makes_the_same_schema(
    run: Run, new_database_url: Callable[[], str]
) -> None:
    by_hand, migrated = empty_databases(new_database_url, 2)
    printed = alembic("upgrade", "head", "--sql", environment_url=by_hand)
    assert printed.returncode == 0, printed.stderr
    assert catalog(by_hand) == []
    execute(by_hand, printed.stdout)
    assert run("check", "--url", by_hand)[0] == 0
    assert "No new upgrade operations" in alembic("check", environment_url=by_hand).stdout
    run("upgrade", "--url", migrated)
    assert catalog(by_hand) == catalog(migrated)
    undo = alembic("downgrade", "head:base", "--sql", environment_url=by_hand)
    execute(by_hand, undo.stdout)
    assert run("current", "--url", by_hand) == (0, "none\n", "")


def test_alembic_says_what_is_wrong_with_a_url() -> None:
    done = alembic("-x", "url=nosuch://host/app", "upgrade", "head")
    assert done.returncode != 0
    assert "FAILED: found a database of the kind 'nosuch'" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
