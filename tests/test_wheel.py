"""The wheel, in an empty environment away from the checkout."""

import os
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest
from schemas import catalog

from checkpointer.tables import metadata

CHECKOUT = Path(__file__).parent.parent

pytestmark = [pytest.mark.long, pytest.mark.timeout(900), pytest.mark.xdist_group("wheel")]

Run = Callable[..., tuple[int, str, str]]


def clean_environ() -> dict[str, str]:
    """The environment's variables without those that lead Python to the checkout."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MYPY"))}


def succeed(*command: str | Path, cwd: Path) -> None:
    done = subprocess.run(
        command, cwd=cwd, env=clean_environ(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from the source distribution."""
    output = tmp_path_factory.mktemp("dist")
    succeed(sys.executable, "-m", "build", "--no-isolation", "--outdir", output, cwd=CHECKOUT)
    (built,) = output.glob("*.whl")
    return built


def make_environment(directory: Path, *requirements: str | Path) -> Path:
    """Install the requirements in an environment of their own, and return its programs."""
    venv.create(directory, with_pip=True)
    programs = directory / ("Scripts" if os.name == "nt" else "bin")
    install = (programs / "python", "-m", "pip", "install", "--quiet")
    succeed(*install, *requirements, cwd=directory)
    return programs


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that has the wheel, with what it depends on, and no more."""
    return make_environment(tmp_path_factory.mktemp("environment"), wheel)


@pytest.fixture
def run(programs: Path, tmp_path: Path, database_url: str) -> Run:
    """Runs a program of that environment in a directory of its own, on the test's database."""
    environment = {**clean_environ(), "CHECKPOINTER_URL": database_url}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(program: str, *arguments: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [programs / program, *arguments],
            cwd=elsewhere,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    return run


def test_the_wheel_carries_the_migrations_and_the_type_marker(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    migrations = CHECKOUT / "migrations"
    shipped = {
        f"checkpointer/migrations/{path.relative_to(migrations).as_posix()}"
        for pattern in ("env.py", "script.py.mako", "README", "versions/*.py")
        for path in migrations.glob(pattern)
    }
    assert len(shipped) >= 4
    assert {"checkpointer/py.typed", "checkpointer/cli.py", *shipped} <= names
    assert not {name for name in names if "__pycache__" in name or name.startswith("tests")}
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"checkpointer", "langgraph"}


def test_the_wheel_adds_one_package_to_langgraphs_namespace(wheel: Path) -> None:
    """An `__init__.py` above it would hide LangGraph's own packages, or overwrite them."""
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if name.startswith("langgraph/")}
    package = "langgraph/checkpoint/sqlalchemy"
    assert names == {f"{package}/__init__.py", f"{package}/py.typed"}


@pytest.mark.parametrize("program", [("checkpointer",), ("python", "-m", "checkpointer")])
def test_its_command_upgrades_a_database(
    run: Run, database_url: str, program: tuple[str, ...]
) -> None:
    code, out, err = run(*program, "check")
    assert (code, out) == (1, "")
    assert "found no " in err
    assert run(*program, "current")[0] == 0
    code, out, err = run(*program, "upgrade", "--sql")
    assert (code, "CREATE TABLE checkpointer_threads" in out, err) == (0, True, "")
    code, out, err = run(*program, "upgrade")
    assert (code, out.endswith(": the schema is at revision 0001\n"), err) == (0, True, "")
    assert run(*program, "current")[1].endswith(": revision 0001\n")
    code, out, err = run(*program, "check")
    assert (code, out.endswith("expected revision 0001\n"), err) == (0, True, "")
    code, out, err = run(*program, "threads")
    assert (code, out) == (2, "")
    assert err.endswith("pip install 'langgraph-checkpoint-sqlalchemy[cli]'\n")
    assert set(metadata.tables) <= {str(row[1]) for row in catalog(database_url)}


USE = """
import asyncio
from pathlib import Path
from langgraph.checkpoint.base import empty_checkpoint
import checkpointer

async def use():
    async with checkpointer.create_saver() as saver:
        await saver.setup()
        config = {"configurable": {"thread_id": "1", "checkpoint_ns": ""}}
        config = await saver.aput(config, empty_checkpoint(), {"step": 1}, {})
        print((await saver.aget_tuple(config)).metadata)

asyncio.run(use())
assert "site-packages" in Path(checkpointer.__file__).parts, checkpointer.__file__
"""


def test_its_saver_sets_a_database_up_and_uses_it(run: Run) -> None:
    assert run("python", "-c", USE) == (0, "{'step': 1}\n", "")


ALIAS = """
from typing import assert_type

import langgraph.checkpoint.memory
import langgraph.checkpoint.sqlite.aio
import langgraph.graph
from langgraph.checkpoint import sqlalchemy as alias
from langgraph.checkpoint.sqlalchemy import AsyncSQLAlchemySaver, create_saver

import checkpointer

assert_type(create_saver("sqlite://"), AsyncSQLAlchemySaver)
assert_type(create_saver("sqlite://"), checkpointer.AsyncSQLAlchemySaver)
assert alias.__all__ == checkpointer.__all__
for name in alias.__all__:
    assert getattr(alias, name) is getattr(checkpointer, name), name
"""


@pytest.fixture(scope="module")
def neighbours(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that has the wheel, LangGraph, its SQLite saver and mypy."""
    environment = tmp_path_factory.mktemp("neighbours")
    return make_environment(environment, wheel, "langgraph", "langgraph-checkpoint-sqlite", "mypy")


@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
def test_it_is_a_package_beside_langgraphs_own_savers(
    wheel: Path, neighbours: Path, tmp_path: Path, *, editable: bool
) -> None:
    python = neighbours / "python"
    package = ("--editable", CHECKOUT) if editable else (wheel,)
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall")
    succeed(python, *install, *package, cwd=tmp_path)
    script = tmp_path / "script.py"
    script.write_text(ALIAS, "utf-8")
    succeed(python, script, cwd=tmp_path)
    succeed(python, "-m", "mypy", "--strict", script, cwd=tmp_path)
    # From the checkout's root, which pytest has on its path as well.
    succeed(python, "-c", ALIAS, cwd=CHECKOUT)
