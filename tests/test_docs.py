"""What the README and the pages of the documentation tell to run, runs."""

import asyncio
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.util._once import Once
from pages import EXAMPLES, PAGES, ROOT, Program, blocks, included
from schemas import execute, query

import checkpointer
from checkpointer.errors import CheckpointerError

LANGUAGES = {"python", "bash", "sql", "json", "text"}

POSTGRESQL_ONLY = {"docs/application.md", "docs/pooling.md", "docs/scaling.md"}
"""Pages on what SQLite does not have."""

STARTS_EMPTY = {"README.md", "docs/deploy.md"}
"""Pages that bring their database to the newest schema themselves."""

ROLES = "SELECT rolname FROM pg_roles"

PROGRAMS = [
    pytest.param(page, kind, id=f"{Path(page).stem}-{kind}")
    for page in PAGES
    for kind in ("sqlite", "postgresql")
    if any(block.language != "text" for block in blocks(page))
    if kind == "postgresql" or page not in POSTGRESQL_ONLY
]


@pytest.fixture
def new_roles(database_kind: str, request: pytest.FixtureRequest) -> Iterator[None]:
    """Roles belong to the whole server: those that a page makes are dropped after its databases."""
    if database_kind == "sqlite":
        yield
        return
    url: str = request.getfixturevalue("postgres_url")
    before = set(query(url, ROLES))
    yield
    execute(url, *(f"DROP ROLE {name}" for (name,) in set(query(url, ROLES)) - before))


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a page works. What it imports from there is forgotten afterwards."""
    directory = tmp_path / "page"
    directory.mkdir()
    monkeypatch.chdir(directory)
    monkeypatch.syspath_prepend(str(directory))
    yield directory
    for name, module in tuple(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").is_relative_to(directory):
            del sys.modules[name]


@pytest.fixture
def program(
    page: str,
    new_migrated_url: Callable[[], str],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Program:
    """The page, on a database of its own."""
    factory = "new_database_url" if page in STARTS_EMPTY else "new_migrated_url"
    create: Callable[[], str] = request.getfixturevalue(factory)
    return Program(create(), new_migrated_url, monkeypatch)


@pytest.fixture
def own_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where spans go can be set once a process: each page may."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER_SET_ONCE", Once())


@pytest.mark.usefixtures("new_roles", "directory", "own_tracing")
@pytest.mark.parametrize(("page", "database_kind"), PROGRAMS, indirect=["database_kind"])
def test_what_a_page_tells_to_run_runs(
    page: str, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        for block in blocks(page):
            if included(block) is None:
                capsys.readouterr()
                program.run(block, runner)
                program.printed = capsys.readouterr().out or program.printed


def test_each_block_is_of_a_kind_that_is_checked() -> None:
    unknown = [b.where for page in PAGES for b in blocks(page) if b.language not in LANGUAGES]
    assert not unknown


def test_output_is_all_that_is_not_run() -> None:
    """So that no block escapes by its language."""
    program = re.compile(
        r"^\s*(import |from \w+ import|await |async |checkpointer |\$ )", re.MULTILINE
    )
    texts = [b for page in PAGES for b in blocks(page) if b.language == "text"]
    assert not [block.where for block in texts if program.search(block.code)]
    assert any(block.lead.endswith("prints:") for block in texts)


def test_what_pages_include_are_examples() -> None:
    """`test_examples.py` runs them."""
    shown = {name for page in PAGES for b in blocks(page) if (name := included(b))}
    assert shown <= set(EXAMPLES)


@pytest.mark.parametrize("example", EXAMPLES)
def test_each_example_is_told_of_and_run(example: str) -> None:
    """Those in a directory of their own by its name."""
    alone = Path(example).parent == Path("examples")
    told = example if alone else str(Path(example).parent)
    assert any(told in path.read_text() for path in PAGES.values())
    others = set(ROOT.glob("tests/test_*.py")) - {Path(__file__)}
    assert any(Path(told).stem in path.read_text() for path in others)


def test_the_site_has_each_page() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES:
        if page != "README.md":
            assert f": {page.removeprefix('docs/')}\n" in navigation


def test_the_reference_has_all_that_is_public() -> None:
    reference = PAGES["docs/api.md"].read_text()
    for name in checkpointer.__all__:
        error = isinstance(getattr(checkpointer, name), type) and issubclass(
            getattr(checkpointer, name), CheckpointerError
        )
        shown = "checkpointer.errors" if error else f"checkpointer.{name}"
        assert f"\n::: {shown}\n" in reference, name


def test_the_options_are_those_of_the_function() -> None:
    options = PAGES["docs/options.md"].read_text()
    parameters = inspect.signature(checkpointer.create_saver).parameters
    headings = re.findall(r"^## `(\w+)`", options, re.MULTILINE)
    expected = [name for name in parameters if name != "url_or_engine"]
    assert headings == expected
    assert re.findall(r"^\| `(\w+)` \|", PAGES["README.md"].read_text(), re.MULTILINE) == expected


def test_the_links_of_the_readme_lead_somewhere() -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", PAGES["README.md"].read_text()):
        assert (ROOT / link).exists(), link


def test_the_readme_is_an_entry() -> None:
    assert len(PAGES["README.md"].read_text().splitlines()) <= 250


def test_continuous_integration_runs_the_readmes_commands_before_anything_is_installed() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    commands = re.findall(r"^(?:in_clone|step make) (\S+)", script, re.MULTILINE)
    readme = PAGES["README.md"].read_text()
    (development,) = re.findall(r"\n## Development\n\n```bash\n(.*?)```", readme, re.DOTALL)
    assert [f"make {command}" for command in commands[:2]] == development.splitlines()
    assert {"docs", "lint", "test-long", "test-oldest", "test-newest"} <= set(commands)
