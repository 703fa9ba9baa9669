"""Writes docs/cli.md from what the commands say of themselves.

Run `make cli-reference`.
"""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from typer.main import get_command

from checkpointer.commands.app import app
from checkpointer.commands.fallback import INSTALL, WITHOUT
from checkpointer.commands.output import EXIT_CODES

PAGE: Final = Path(__file__).parent.parent / "docs" / "cli.md"

ORDER: Final = (
    *("upgrade", "current", "check", "threads", "show", "history", "diff", "stats", "export"),
    *("prune", "delete", "copy", "import", "verify"),
)

HEAD: Final = f"""# Command line

<!-- Written by `make cli-reference`. -->

`checkpointer`, or `python -m checkpointer`, looks at a store, cleans it up and moves it. Its
commands come with `{INSTALL}`; {", ".join(f"`{name}`" for name in WITHOUT)} work without.

`--url` names the database, else `CHECKPOINTER_URL` does, else it is `checkpoints.db` in the
working directory. `--schema` names the PostgreSQL schema of the tables, else
`CHECKPOINTER_SCHEMA` does. A thread whose id begins with `-` goes after `--`. `checkpointer
--install-completion` completes commands and options in your shell. What only looks leaves a
SQLite file as it is, and makes none.

{EXIT_CODES} With `--json`, exactly one JSON document goes to stdout, which is
`{{"error": {{"type": ..., "message": ...}}}}` where a command cannot do its work; after Ctrl-C
there is none. Messages and bars go to stderr, and the exit codes are the same. Times are in UTC. No
password is shown, and stored text cannot act on your terminal: control characters are shown as
escapes.

Nothing stored is imported or called: a value of a class is shown as its class's name and what it
was made from. What an `EncryptedSerializer` or a serde of your own wrote can be listed, pruned,
deleted, copied and verified, but not shown.
"""

VALUES: Final = """## Values as JSON

`show`, `diff` and `export` write values so that nothing is lost:

| value | JSON |
|---|---|
| text, whole numbers, true, false, null, lists, tuples | the same |
| a dict with text keys | an object; another one: `{"type": "dict", "items": [[key, value], ...]}` |
| a message | LangChain's: `{"type": "human", "data": {...}}`, which `messages_from_dict` reads |
| bytes | `{"type": "bytes", "base64": "..."}` |
| `nan`, `inf`, `-inf` | `{"type": "float", "value": "nan"}` |
| of any other class | `{"type": "module.Class", "value": ...}` |

Channels of `DeltaChannel` are put together from their writes: lists are joined, and messages
replace by their id.
"""

_CHECKPOINT: Final = (
    "`thread_id`, `checkpoint_ns`, `checkpoint_id`, `parent_checkpoint_id`, `created_at`, "
    "`metadata`, `values` (by channel), `next` (nodes), `writes` (`task_id`, `channel`, `value`)"
)
_THREADS: Final = "`thread_id`, `created_at`, `updated_at`, `checkpoints`, `stored_bytes`"
_PRUNED: Final = (
    "`dry_run`, `examined`, `checkpoints`, `writes`, `segments`, `bytes`, `deleted_threads`, "
    "`threads` (`thread_id`, `deleted`, `checkpoints` by namespace, `writes`, `segments`, "
    "`bytes`), `damaged`, `skipped` (reasons by thread)"
)
_MOVED: Final = (
    "`source`, `target` (`database`, `schema`), `threads`, `skipped`, `checkpoints`, `writes`, "
    "`bytes`, `failed` (reasons by thread)"
)

KEYS: Final = {
    "upgrade": "`database`, `schema`, `before`, `revision`",
    "current": "`database`, `schema`, `revision`",
    "check": "`database`, `schema`, `ok`, `found`, `expected`, `message`",
    "threads": f"`threads` ({_THREADS}), `after`",
    "show": _CHECKPOINT,
    "history": (
        "`thread_id`, `more`, `checkpoints` (`checkpoint_ns`, `checkpoint_id`, "
        "`parent_checkpoint_id`, `created_at`, `step`, `source`, `run_id`, `nodes` that ran before "
        "it, `next`, `interrupts`, `errors`, `writes`)"
    ),
    "diff": (
        "`thread_id`, `checkpoint_ns`, `before`, `after`, `changes` by channel: `change` (added, "
        "removed, changed) with `before` and `after`, or of lists and dicts `added`, `removed`, "
        "`changed`"
    ),
    "stats": (
        "`threads`, `tables` (`rows`, `bytes`), `logical_bytes`, `stored_bytes`, `saving`, "
        f"`largest` ({_THREADS})"
    ),
    "export": f"{_CHECKPOINT}: one line a checkpoint",
    "prune": _PRUNED,
    "delete": _PRUNED,
    "copy": _MOVED,
    "import": _MOVED,
    "verify": (
        "`database`, `schema`, `whole`, `damaged`, `threads`, `checkpoints`, `writes`, `segments`, "
        "`bytes`, `unreferenced`, `removed`, `problems` (`kind`, `thread_id`, `checkpoint_ns`, "
        "`checkpoint_id`, `channel`, `segment`, `detail`)"
    ),
}
"""The keys of each command's JSON."""

_FAILURES: Final = (
    "Threads that cannot be moved are named, and all others are moved. "
    "See [Moving over](moving.md)."
)

NOTES: Final = {
    "upgrade": "Any number may run at once. `--sql` is for administrators who run SQL by hand.",
    "check": "For deploys: run it before the application starts.",
    "show": "![show](screenshots/show.svg)",
    "history": (
        "A line of checkpoints stays at one level; forks and the namespaces of subgraphs go "
        "deeper. Which nodes ran and run next is told by the versions and channels that a "
        "`StateGraph` stores; the graph itself is not needed.\n\n"
        "![history](screenshots/history.svg)"
    ),
    "diff": "![diff](screenshots/diff.svg)",
    "prune": (
        "See [Retention](retention.md). Durations are such as `45s`, `90m`, `12h`, `30d`, `2w`, "
        "counted from before the plan is made. Where there is no terminal to ask on, it takes "
        "`--yes`. Only of the threads that were shown anything goes; where one is put to "
        "meanwhile, the latest checkpoints are those that it has by then. What has gone is printed "
        "at the end.\n\n![prune](screenshots/prune.svg)"
    ),
    "delete": (
        "Where one of the threads is not there, none is deleted. What is put to them while it asks "
        "goes as well; what has gone is printed at the end."
    ),
    "copy": _FAILURES,
    "import": _FAILURES,
    "verify": (
        "`--repair` asks before it reads; where there is no terminal to ask on, it takes `--yes`. "
        "See [Guarantees](guarantees.md)."
    ),
}

SHARED: Final = {"--url", "--schema", "--json", "--help"}


def page() -> str:
    """The page."""
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    if set(commands) != set(ORDER):
        raise SystemExit(f"found the commands {sorted(commands)}, expected {sorted(ORDER)}")
    sections = [_section(name, commands[name]) for name in ORDER]
    return "\n".join([HEAD, *sections, VALUES])


def _section(name: str, command: Any) -> str:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if not SHARED & set(one.opts)]
    usage = " ".join(["checkpointer", name, *map(_usage, arguments)])
    rows = [f"| {_named(one)} | {one.help} |" for one in options if one.help]
    shown = ["| | |", "|---|---|", *rows, ""] if rows else []
    parts = [
        f"## {name}\n",
        f"`{usage}`\n",
        f"{inspect.cleandoc(command.help)}\n",
        *shown,
        *([f"{NOTES[name]}\n"] if name in NOTES else []),
        f"JSON: {KEYS[name]}.\n",
    ]
    return "\n".join(parts)


def _usage(argument: Any) -> str:
    name = f"{argument.metavar}..." if argument.nargs == -1 else str(argument.metavar)
    return name if argument.required else f"[{name}]"


def _named(one: Any) -> str:
    """An argument or an option, with what it takes."""
    if one.param_type_name == "argument":
        return f"`{one.metavar}`"
    value = "" if one.is_flag else f" {one.metavar or _kind(one)}"
    default = f" = {one.default}" if isinstance(one.default, int) and not one.is_flag else ""
    return ", ".join(f"`{name}{value}{default}`" for name in one.opts)


def _kind(one: Any) -> str:
    return "N" if isinstance(one.default, int) or one.name == "keep_last" else "TEXT"


def known_keys(name: str) -> Iterator[str]:
    """The keys that the page tells of a command's JSON."""
    yield from KEYS[name].split("`")[1::2]


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
