"""The layout of docs/design.md: who may import whom, how long things are, what is public."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import checkpointer

PACKAGE = Path(checkpointer.__file__).parent

ORDER = (
    "errors",
    "quoting",
    "tables",
    "projection",
    "sealing",
    "slices",
    "sharing",
    "manifest",
    "memory",
    "limits",
    "execution",
    "figures",
    "owners",
    "underlying",
    "stepwise",
    "worker",
    "joining",
    "pooler",
    "renewal",
    "wire",
    "readers",
    "dialect",
    "predicates",
    "rereading",
    "postgresql",
    "sqlite",
    "dialects",
    "engine",
    "faults",
    "retrying",
    "database",
    "upserts",
    "arrays",
    "queries",
    "records",
    "basis",
    "gathering",
    "store",
    "puts",
    "history",
    "planning",
    "threads",
    "reports",
    "inventory",
    "surveying",
    "retention",
    "copying",
    "problems",
    "holdings",
    "soundness",
    "verification",
    "moving",
    "official",
    "layouts",
    "writer",
    "schema",
    "bridge",
    "backend",
    "borrowed",
    "intake",
    "listing",
    "messages",
    "nesting",
    "calls",
    "allowlist",
    "lossless",
    "serde",
    "identifiers",
    "configs",
    "drafts",
    "encoder",
    "decoder",
    "arguments",
    "adopting",
    "anysaver",
    "twins",
    "housekeeping",
    "maintenance",
    "saver",
    "tracing",
    "transfer",
    "importing",
    "factory",
    "agent_server",
    "commands",
    "commands.harmless",
    "commands.output",
    "commands.usage",
    "commands.target",
    "commands.revisions",
    "commands.fallback",
    "commands.values",
    "commands.points",
    "commands.options",
    "commands.console",
    "commands.looking",
    "commands.forks",
    "commands.differences",
    "commands.inspection",
    "commands.removal",
    "commands.transfers",
    "commands.checking",
    "commands.frame",
    "commands.looks",
    "commands.changes",
    "commands.app",
    "cli",
)
"""A module may import only those above it."""

LANGGRAPH = {
    "messages",
    "calls",
    "lossless",
    "serde",
    "configs",
    "drafts",
    "encoder",
    "decoder",
    "adopting",
    "anysaver",
    "twins",
    "housekeeping",
    "maintenance",
    "saver",
    "transfer",
    "importing",
    "factory",
    "agent_server",
    "commands.target",
    "commands.values",
    "commands.points",
}
"""The modules that know LangGraph and LangChain; the others know bytes and strings."""

PURE = {
    "errors",
    "problems",
    "planning",
    "reports",
    "quoting",
    "tables",
    "projection",
    "sealing",
    "slices",
    "sharing",
    "manifest",
    "memory",
    "basis",
}
"""The modules that do no input or output, and know no event loop."""


def _name(path: Path) -> str:
    """A module as `ORDER` names it."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


PATHS = {_name(path): path for path in PACKAGE.rglob("*.py") if "migrations" not in path.parts}
MODULES = sorted(PATHS)
INNER = [name for name in MODULES if name not in {"__init__", "__main__"}]


def tree_of(module: str) -> ast.Module:
    return ast.parse(PATHS[module].read_text("utf-8"))


def imports(tree: ast.AST) -> Iterator[str]:
    """The dotted names that a tree imports, wherever it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(module: str) -> set[str]:
    """The modules of this package that a module imports."""
    names = [name.split(".") for name in imports(tree_of(module))]
    within = [name[1:] for name in names if name[0] == "checkpointer"]
    return {dotted if (dotted := ".".join(name[:2])) in PATHS else name[0] for name in within}


def others(module: str) -> set[str]:
    """The packages that a module imports besides."""
    return {name.split(".")[0] for name in imports(tree_of(module))} - {"checkpointer"}


def test_every_module_has_its_place() -> None:
    assert sorted(ORDER) == INNER


def test_the_design_tells_what_each_module_owns() -> None:
    """In the order of imports, by the first sentence of its docstring."""
    summaries = {name: str(ast.get_docstring(tree_of(name))).split("\n\n")[0] for name in ORDER}
    rows = [
        f"| `{name}` | {' '.join(text.split()).rstrip('.')} |" for name, text in summaries.items()
    ]
    design = Path(__file__).parent.parent / "docs" / "design.md"
    assert "\n".join(["|---|---|", *rows, ""]) in design.read_text("utf-8")


@pytest.mark.parametrize("module", INNER)
def test_imports_go_downward_only(module: str) -> None:
    assert ours(module) <= set(ORDER[: ORDER.index(module)])


@pytest.mark.parametrize("module", INNER)
def test_only_some_modules_know_langgraph(module: str) -> None:
    known = others(module) & {"langgraph", "langchain", "langchain_core"}
    assert not known or module in LANGGRAPH


@pytest.mark.parametrize("module", INNER)
def test_only_one_module_imports_private_names_of_langgraph(module: str) -> None:
    names = [name.split(".") for name in imports(tree_of(module))]
    private = {
        name[-1]
        for name in names
        if name[0] in {"langgraph", "langchain_core", "ormsgpack", "pydantic"}
        and any(part.startswith("_") for part in name)
    }
    expected = {"_msgpack", "_create_msgpack_ext_hook", "_msgpack_default", "_option"}
    assert private == (expected if module == "lossless" else set())


@pytest.mark.parametrize("module", MODULES)
def test_alembic_is_imported_only_when_there_is_something_to_upgrade(module: str) -> None:
    tree = tree_of(module)
    if module != "schema":
        assert "alembic" not in others(module)
        return
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    inside = [name for function in functions for name in imports(function)]
    anywhere = [name for name in imports(tree) if name.startswith("alembic")]
    assert sorted(anywhere) == sorted(name for name in inside if name.startswith("alembic"))


@pytest.mark.parametrize("module", sorted(PURE))
def test_pure_modules_do_no_input_or_output(module: str) -> None:
    assert not others(module) & {"asyncio", "os", "pathlib", "socket", "sqlite3", "time"}


@pytest.mark.parametrize("module", INNER)
def test_only_dialects_asks_for_the_name_of_a_dialect(module: str) -> None:
    asked = [
        ast.unparse(node)
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Attribute)
        and node.attr == "name"
        and ast.unparse(node.value).endswith("dialect")
    ]
    compared = [
        ast.unparse(node)
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Compare)
        and any(
            isinstance(part, ast.Constant) and part.value in {"sqlite", "postgresql"}
            for part in (node.left, *node.comparators)
        )
    ]
    if module == "backend":
        # Hands it on to the cache of statements, which has one entry a kind of database.
        assert asked == ["database.dialect.name"]
    elif module != "dialects":
        assert asked == []
    assert compared == [] or module == "dialects"


@pytest.mark.parametrize("module", MODULES)
def test_no_module_is_long(module: str) -> None:
    lines = PATHS[module].read_text("utf-8").splitlines()
    assert len(lines) <= 350


@pytest.mark.parametrize("module", MODULES)
def test_no_function_is_long(module: str) -> None:
    long = {
        f"{node.name}: {length} lines"
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := _body_lines(node)) > 40
    }
    assert long == set()


def _body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function without its docstring."""
    assert function.end_lineno is not None
    length = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None:
        assert first.end_lineno is not None
        length -= first.end_lineno - first.lineno + 1
    return length


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_owns(module: str) -> None:
    docstring = ast.get_docstring(tree_of(module))
    assert docstring
    assert docstring.splitlines()[0].endswith((".", ":"))


def test_the_public_names_are_sorted_and_complete() -> None:
    assert checkpointer.__all__ == sorted(checkpointer.__all__)
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree_of("__init__"))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(checkpointer.__all__) == imported
    for name in checkpointer.__all__:
        assert getattr(checkpointer, name).__module__.startswith("checkpointer")


def test_every_error_is_public_and_drawn() -> None:
    tree = tree_of("errors")
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    drawing = ast.get_docstring(tree) or ""
    for node in classes:
        assert node.name in checkpointer.__all__
        assert node.name in drawing
        assert ast.get_docstring(node)
        error = getattr(checkpointer, node.name)
        assert issubclass(error, checkpointer.CheckpointerError)
