"""The pages of the documentation, and what runs the blocks of code in them.

A page is one program: its blocks run one after the other, in a directory of its own, and a Python
block sees the names of those before it. What may stand in a block:

- `python`: run; `await` works outside of functions. With `title="x.py"`, written to that file.
- `bash`: one command a line, each of which must end well; see `COMMANDS`.
- `sql`: run where the page's database is PostgreSQL.
- `json`: parsed.
- `text`: what is not run. After a line that ends with "prints:", what the blocks before printed.

`CHECKPOINTER_URL` names the page's database, and so does `.../app` on the host `db.example.com`;
every other database of that host is one more, at the newest schema.
"""

import asyncio
import inspect
import json
import os
import re
import shlex
import sys
import tomllib
from ast import PyCF_ALLOW_TOP_LEVEL_AWAIT
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE, OutputChecker
from functools import partial
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest
import sqlalchemy as sa
from alembic.config import main as alembic
from packaging.requirements import Requirement
from schemas import execute

from checkpointer.cli import main as checkpointer

ROOT: Final = Path(__file__).resolve().parent.parent
PAGES: Final = {
    path.relative_to(ROOT).as_posix(): path
    for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]
}
PROJECT: Final[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())

_FENCE = re.compile(r"(?P<indent> *)(?P<ticks>`{3,})(?P<info>.*)")
_TITLE = re.compile(r'title="([^"]+)"')
_INCLUDE = re.compile(r"--8<--\n(\S+)\n--8<--\n")
_URL = re.compile(r"postgres(?:ql)?(?:\+asyncpg)?://(\w+):secret@db\.example\.com/(\w+)")


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code.

    Attributes:
        where: Page and line, for messages.
        language: What it says it is.
        title: The file that it shows, if it does.
        lead: The last line of text before it.
    """

    where: str
    line: int
    language: str
    title: str | None
    lead: str
    code: str


def blocks(page: str) -> Iterator[Block]:
    """The blocks of a page, from the top."""
    lines = PAGES[page].read_text().splitlines()
    lead, number = "", 0
    while number < len(lines):
        opened = _FENCE.fullmatch(lines[number])
        number += 1
        if opened is None:
            lead = lines[number - 1].strip() or lead
            continue
        start, end = number, opened["indent"] + opened["ticks"]
        while lines[number] != end:
            number += 1
        code = "".join(f"{line.removeprefix(opened['indent'])}\n" for line in lines[start:number])
        number += 1
        title = _TITLE.search(opened["info"])
        yield Block(
            where=f"{page}:{start}",
            line=start,
            language=opened["info"].partition(" ")[0],
            title=title and title[1],
            lead=lead,
            code=code,
        )


def included(block: Block) -> str | None:
    """The file that a block consists of, when the site is built."""
    found = _INCLUDE.fullmatch(block.code)
    return found and found[1]


class Program:
    """A page that runs.

    Args:
        url: The page's database.
        further_url: Makes one more.
        patch: Undoes what the page does to the process.
    """

    def __init__(
        self,
        url: str,
        further_url: Callable[[], str],
        patch: pytest.MonkeyPatch,
    ) -> None:
        self._urls = {"app": url}
        self._further_url = further_url
        self._patch = patch
        # A module, because dataclasses and the types of a graph's state look theirs up.
        self._module = ModuleType("page")
        patch.setitem(sys.modules, "page", self._module)
        patch.setenv("CHECKPOINTER_URL", url)
        self.printed = ""

    def run(self, block: Block, runner: asyncio.Runner) -> None:
        """Run one block."""
        code = _URL.sub(self._url, block.code)
        if block.title is not None:
            path = Path(block.title)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code)
        if block.language == "python":
            self._python(block, code, runner)
        elif block.language == "bash":
            for line in code.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                self._command([os.path.expandvars(word) for word in words], block.where)
        elif block.language == "sql":
            if self._urls["app"].startswith("postgresql"):
                execute(self._urls["app"], code)
        elif block.language == "json":
            json.loads(code)
        elif block.lead.endswith("prints:"):
            checker, options = OutputChecker(), ELLIPSIS | NORMALIZE_WHITESPACE
            assert checker.check_output(code, self.printed, options), (block.where, self.printed)

    def _url(self, match: re.Match[str]) -> str:
        user, database = match.groups()
        if database not in self._urls:
            self._urls[database] = self._further_url()
        url = sa.make_url(self._urls[database])
        if user != "app" and url.get_backend_name() == "postgresql":
            url = url.set(username=user)
        return url.render_as_string(hide_password=False)

    def _python(self, block: Block, code: str, runner: asyncio.Runner) -> None:
        # Errors tell the page's line.
        text = "\n" * block.line + code
        compiled = compile(text, block.where, "exec", flags=PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if block.title is not None:
            return
        result = eval(compiled, vars(self._module))  # noqa: S307 - the project's own pages
        if inspect.iscoroutine(result):
            runner.run(result)

    def _command(self, words: list[str], where: str) -> None:
        if not words:
            return
        if words[:3] == ["python", "-m", "checkpointer"]:
            words = words[2:]
        while "=" in words[0]:
            self._patch.setenv(*words.pop(0).split("=", 1))
        program, *arguments = words
        assert program in COMMANDS, f"{where}: cannot run {program}"
        if ">" in arguments:
            *arguments, _, target = arguments
            with Path(target).open("w") as file, self._patch.context() as patch:
                patch.setattr(sys, "stdout", file)
                COMMANDS[program](arguments, self._patch)
        else:
            COMMANDS[program](arguments, self._patch)


def _export(arguments: list[str], patch: pytest.MonkeyPatch) -> None:
    for argument in arguments:
        name, _, value = argument.partition("=")
        patch.setenv(name, value)


def _checkpointer(arguments: list[str], patch: pytest.MonkeyPatch) -> None:
    try:
        code: object = checkpointer(arguments)
    except SystemExit as exc:
        code = exc.code
    assert not code, f"checkpointer {shlex.join(arguments)} exited with {code}"


def _alembic(arguments: list[str], patch: pytest.MonkeyPatch) -> None:
    """The page's own Alembic, if it has one; otherwise a checkout of this project is meant."""
    with patch.context() as here:
        if arguments[0] != "init" and not Path("alembic.ini").exists():
            here.chdir(ROOT)
        alembic(arguments, prog="alembic")


def _pip(arguments: list[str], patch: pytest.MonkeyPatch) -> None:
    """What is to be installed is this project, or what it declares."""
    verb, *wanted = arguments
    assert verb == "install"
    groups = PROJECT["dependency-groups"].values()
    extras = PROJECT["project"]["optional-dependencies"]
    declared = [*PROJECT["project"]["dependencies"], *chain(*extras.values())]
    declared += [one for group in groups for one in group if isinstance(one, str)]
    names = {Requirement(one).name for one in declared}
    name = PROJECT["project"]["name"]
    for one in wanted:
        requirement = Requirement(re.sub(r"^\.", name, one))
        if requirement.name == name:
            assert requirement.extras <= extras.keys()
        else:
            assert requirement.name in names


def _make(arguments: list[str], patch: pytest.MonkeyPatch) -> None:
    target = arguments[0]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


def _python(arguments: list[str], patch: pytest.MonkeyPatch) -> None:
    """An example; `test_examples.py` runs it."""
    assert arguments[0] in EXAMPLES


def _cd(arguments: list[str], patch: pytest.MonkeyPatch) -> None:
    """Into a directory of a checkout; what is run there, its own test runs."""
    assert (ROOT / arguments[0]).is_dir()


def _served(program: str, arguments: list[str], patch: pytest.MonkeyPatch) -> None:
    """A server does not end by itself: what it is told to run, a test runs, too."""
    test = (ROOT / SERVERS[program]).read_text()
    named = {word.partition(":")[0] for word in arguments} & {Path(one).stem for one in EXAMPLES}
    assert all(word in test for word in (program, *named))


EXAMPLES: Final = tuple(
    sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("examples/**/*.py"))
)

SERVERS: Final = {
    "celery": "tests/test_example_services.py",
    "langgraph": "tests/test_agent_server.py",
    "uvicorn": "tests/test_example_services.py",
}
"""Programs that do not end by themselves, and the test that runs each of them."""

COMMANDS: Final[Mapping[str, Callable[[list[str], pytest.MonkeyPatch], None]]] = {
    "alembic": _alembic,
    "cd": _cd,
    "checkpointer": _checkpointer,
    "export": _export,
    "make": _make,
    "pip": _pip,
    "python": _python,
} | {program: partial(_served, program) for program in SERVERS}
"""The programs that pages tell to run."""
