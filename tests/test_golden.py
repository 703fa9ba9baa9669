"""Golden vectors of the storage format: it stays the same byte by byte, and old rows stay readable.

The vectors stand in `golden/`, one file for each version of the format. They change only together
with that version, and are then written by

    PYTHONPATH=. python tests/test_golden.py --write

Files of older versions are never written again: their rows must stay readable.
"""

import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from storing import checkpoint, config

from checkpointer import AsyncSQLAlchemySaver, create_saver, tables
from checkpointer.chunking import Tree, join, split, split_digests
from checkpointer.manifest import (
    FORMAT,
    Manifest,
    Value,
    decode_manifest,
    decode_value,
    encode_manifest,
    encode_value,
)

GOLDEN = Path(__file__).parent / "golden"


def path_of(version: int) -> Path:
    return GOLDEN / f"format-{version}.json"


def stream(seed: str, size: int) -> bytes:
    """BLAKE2b over a counter, keyed by the seed: the same bytes everywhere and for ever."""
    blocks = (
        blake2b(n.to_bytes(8, "big"), key=seed.encode()).digest() for n in range(size // 64 + 1)
    )
    return b"".join(blocks)[:size]


def lines(count: int) -> bytes:
    """Text as a conversation has it: much of it repeats."""
    rows = (
        f'{{"type": "human", "content": "line {n} of many", "id": "{n}"}}\n' for n in range(count)
    )
    return "".join(rows).encode()


def inputs() -> dict[str, bytes]:
    """What is cut, by name."""
    return {
        "17 bytes": stream("a", 17),
        "no longer than the least chunk": stream("b", 16 + 256),
        "one byte longer": stream("b", 16 + 257),
        "5,000 bytes": stream("c", 5_000),
        "100,000 bytes": stream("d", 100_000),
        "1,000,000 bytes": stream("e", 1_000_000),
        "zeros": bytes(50_000),
        "lines": lines(2_000),
        "lines, one more": lines(2_001),
    }


def pack_tree(tree: Tree) -> dict[str, Any]:
    return {
        "head": tree.head.hex(),
        "size": tree.size,
        "depth": tree.depth,
        "root": [digest.hex() for digest in split_digests(tree.digests)],
    }


def cut(data: bytes) -> dict[str, Any]:
    """All that the format says of some bytes: where they are cut, and how the pieces are named."""
    tree, chunks = split(data)
    digests = split_digests(tree.digests)
    levels = [digests]
    for _ in range(tree.depth):
        digests = [one for node in digests for one in split_digests(bytes(chunks[node]))]
        levels.append(digests)
    return {
        "input": blake2b(data, digest_size=20).hexdigest(),
        "tree": pack_tree(tree),
        "levels": [len(level) for level in levels],
        "lengths": " ".join(str(len(chunks[digest])) for digest in digests),
        "digests": blake2b(b"".join(digests), digest_size=20).hexdigest(),
    }


def manifests() -> dict[str, Manifest]:
    """Manifests that have a part of each kind."""
    inline = Value("msgpack", bytes.fromhex("82a16101a16202"))
    channels = {
        "inline": inline,
        "none": Value("null", b""),
        "ünicode": Value("bytes+aes", bytes(range(256))),
        "shallow": Value("msgpack", split(stream("c", 5_000))[0]),
        "deep": Value("msgpack", split(stream("e", 1_000_000))[0]),
    }
    return {
        "least": Manifest(0, inline, inline, {}),
        "with channels": Manifest(4, inline, Value("json", b"{}"), channels),
        "large body": Manifest(3, Value("msgpack", split(lines(500))[0]), inline, channels),
    }


def values() -> dict[str, Value]:
    """Values as they are stored by themselves."""
    return {
        "inline": Value("msgpack", b"\xa1x"),
        "empty": Value("null", b""),
        "tree": Value("msgpack", split(stream("d", 100_000))[0]),
    }


THREAD = "a golden thread"
VALUES: dict[str, Any] = {
    "text": "a\0b",
    "number": -7,
    "nothing": None,
    "bytes": bytes(range(256)) * 4,
    "messages": [{"role": "user", "content": stream(f"{n}", 300).hex()} for n in range(50)],
}
WRITES: list[tuple[str, Any]] = [
    ("messages", [{"role": "assistant", "content": stream("w", 5_000).hex()}]),
    ("__error__", "a\0b"),
    ("text", "short"),
]
METADATA: dict[str, Any] = {"source": "loop", "step": 1, "run_id": "a run", "odd": "\0\ue000"}


async def store(saver: AsyncSQLAlchemySaver) -> None:
    """Store the golden checkpoints."""
    first = checkpoint("1", VALUES)
    where = await saver.aput(config(THREAD), first, METADATA, first["channel_versions"])  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    await saver.aput_writes(where, WRITES, "a task", "a path")
    second = checkpoint("2", VALUES | {"messages": [*VALUES["messages"], "one more"]})
    await saver.aput(where, second, {"source": "loop"}, second["channel_versions"])


async def assert_stored(saver: AsyncSQLAlchemySaver) -> None:
    """The golden checkpoints read as they were put."""
    second, first = [one async for one in saver.alist(config(THREAD))]
    assert first.checkpoint == checkpoint("1", VALUES)
    assert first.metadata == METADATA
    assert first.parent_config is None
    assert first.pending_writes == [
        ("a task", "__error__", "a\0b"),
        ("a task", "messages", WRITES[0][1]),
        ("a task", "text", "short"),
    ]
    assert second.checkpoint["channel_values"]["messages"] == [*VALUES["messages"], "one more"]
    assert second.parent_config == first.config


ROWS = (tables.threads, tables.checkpoints, tables.writes, tables.chunks)
CHANGING = {
    "epoch": 7,
    "created_at": "2025-01-01T00:00:00+00:00",
    "updated_at": "2025-01-01T00:00:00+00:00",
}


async def stored_rows(saver: AsyncSQLAlchemySaver) -> dict[str, list[dict[str, Any]]]:
    """The rows of all tables in the order of their keys, bytes in hexadecimal."""
    found: dict[str, list[dict[str, Any]]] = {}
    async with saver.engine.connect() as connection:
        for table in ROWS:
            result = await connection.execute(sa.select(table).order_by(*table.primary_key))
            found[table.name] = [
                {name: _to_json(name, value) for name, value in row.items()}
                for row in result.mappings()
            ]
    return found


def _to_json(name: str, value: Any) -> Any:
    if name in CHANGING:
        return CHANGING[name]
    return {"hex": value.hex()} if isinstance(value, bytes) else value


def _from_json(name: str, value: Any) -> Any:
    if name.endswith("_at"):
        return datetime.fromisoformat(value).astimezone(UTC)
    is_bytes = isinstance(value, dict) and value.keys() == {"hex"}
    return bytes.fromhex(value["hex"]) if is_bytes else value


async def rows_of_a_new_database() -> dict[str, list[dict[str, Any]]]:
    """The rows of the golden checkpoints, freshly stored."""
    with tempfile.TemporaryDirectory() as directory:
        async with create_saver(f"sqlite:///{directory}/golden.db") as saver:
            await store(saver)
            return await stored_rows(saver)


def vectors(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """All vectors, as they are written to the file."""
    return {
        "cuts": {name: cut(data) for name, data in inputs().items()},
        "manifests": {name: encode_manifest(one).hex() for name, one in manifests().items()},
        "values": {name: encode_value(one).hex() for name, one in values().items()},
        "rows": rows,
    }


def golden(version: int) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path_of(version).read_text("utf-8"))
    return loaded


def versions() -> list[int]:
    return sorted(int(path.stem.removeprefix("format-")) for path in GOLDEN.glob("format-*.json"))


CURRENT = golden(FORMAT) if path_of(FORMAT).exists() else {"cuts": {}}


def test_there_are_vectors_of_this_format() -> None:
    assert FORMAT in versions()
    assert CURRENT["cuts"].keys() == inputs().keys()


@pytest.mark.parametrize("name", inputs())
def test_bytes_are_cut_and_named_as_ever(name: str) -> None:
    assert cut(inputs()[name]) == CURRENT["cuts"][name]


def test_the_vectors_add_up() -> None:
    for name, data in inputs().items():
        vector = CURRENT["cuts"][name]
        lengths = [int(length) for length in vector["lengths"].split()]
        assert sum(lengths) + 16 == len(data) == vector["tree"]["size"]
        start = 16
        digests = []
        for length in lengths:
            digests.append(blake2b(data[start : start + length], digest_size=20).digest())
            start += length
        joined = b"".join(digests)
        assert blake2b(joined, digest_size=20).hexdigest() == vector["digests"]
        if vector["tree"]["depth"] == 0:
            assert [digest.hex() for digest in digests] == vector["tree"]["root"]


def test_manifests_are_encoded_as_ever() -> None:
    for name, manifest in manifests().items():
        assert encode_manifest(manifest).hex() == CURRENT["manifests"][name]
        assert decode_manifest(bytes.fromhex(CURRENT["manifests"][name])) == manifest


def test_values_are_encoded_as_ever() -> None:
    for name, value in values().items():
        assert encode_value(value).hex() == CURRENT["values"][name]
        assert decode_value(bytes.fromhex(CURRENT["values"][name])) == value


async def test_checkpoints_are_stored_as_ever(saver: AsyncSQLAlchemySaver) -> None:
    await store(saver)
    assert await stored_rows(saver) == CURRENT["rows"]
    await assert_stored(saver)


@pytest.mark.parametrize("version", versions())
async def test_rows_of_every_version_stay_readable(
    saver: AsyncSQLAlchemySaver, version: int
) -> None:
    rows = golden(version)["rows"]
    async with saver.engine.begin() as connection:
        for table in ROWS:
            given = [{n: _from_json(n, v) for n, v in row.items()} for row in rows[table.name]]
            await connection.execute(sa.insert(table), given)
    await assert_stored(saver)
    found = await saver.aget_tuple(config(THREAD))
    assert found is not None
    await saver.aput(found.config, checkpoint("3", {"text": "on"}), {}, {})
    await saver.aprune([THREAD])
    assert [one.checkpoint["id"] async for one in saver.alist(None)] == ["3"]


@pytest.mark.parametrize("version", versions())
def test_chunks_of_every_version_can_be_joined(version: int) -> None:
    rows = golden(version)["rows"]
    chunks = {
        bytes.fromhex(row["digest"]["hex"]): bytes.fromhex(row["data"]["hex"])
        for row in rows["checkpointer_chunks"]
    }
    for row in rows["checkpointer_checkpoints"]:
        for tree in decode_manifest(bytes.fromhex(row["manifest"]["hex"])).trees():
            assert len(join(tree, chunks)) == tree.size


def main(arguments: Sequence[str]) -> int:
    """Write the vectors of this version."""
    if list(arguments) != ["--write"]:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    GOLDEN.mkdir(exist_ok=True)
    written = json.dumps(vectors(asyncio.run(rows_of_a_new_database())), indent=1)
    path_of(FORMAT).write_text(f"{written}\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
