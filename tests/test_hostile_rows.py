"""Rows that are whole by their checksums and digests, and yet are not what was ever written.

Reading them ends in the damage error, in time and within bounds, and leaves the rest readable.
"""

import asyncio
import contextlib
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator, Awaitable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fuzz_manifest
import ormsgpack
import pytest
from damages import CHECKPOINTS, CHUNKS, WRITES, Stored, noise, store
from hostile import deep_objects, mostly
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from intensity import INTENSITY
from storing import config, row_counts

from checkpointer import (
    AsyncSQLAlchemySaver,
    CheckpointerError,
    DamagedDataError,
    SerializationError,
    create_saver,
    nesting,
)
from checkpointer.chunking import (
    DIGEST_SIZE,
    HEAD_SIZE,
    MAX_DEPTH,
    MAX_SIZE,
    ChunkError,
    Tree,
    digest_of,
    join,
)
from checkpointer.manifest import FORMAT, seal
from checkpointer.serde import LosslessSerializer

Saver = AsyncSQLAlchemySaver

IN_TIME = 20
"""Seconds that no operation here may take."""

VICTIM = "a copy"
SECOND = config(VICTIM, "2")
OF_SECOND = f"thread_id = '{VICTIM}' AND checkpoint_id = '2'"


@pytest.fixture
async def stored(migrated_url: str) -> Stored:
    return await store(migrated_url)


@contextlib.asynccontextmanager
async def copied(stored: Stored) -> AsyncIterator[Saver]:
    """A saver that has read nothing yet, and a copy of the thread to damage."""
    async with create_saver(stored.rows.url, cache_bytes=0) as saver:
        await saver.acopy_thread("a thread", VICTIM)
        try:
            yield saver
        finally:
            await saver.adelete_thread(VICTIM)


@contextlib.asynccontextmanager
async def altered(
    stored: Stored, table: str, column: str, where: str, data: bytes
) -> AsyncIterator[Saver]:
    """The same; one row of the copy holds other bytes."""
    async with copied(stored) as saver:
        stored.rows.alter(table, column, where, lambda _: data)
        yield saver


def packed(value: Any) -> list[Any]:
    """A value that stands inline, as the serde dumps it."""
    return list(LosslessSerializer().dumps_typed(value))


CHECKPOINT = {"v": 4, "id": "2", "ts": "", "channel_versions": {}, "versions_seen": {}}


def manifest(**parts: Any) -> list[Any]:
    """The body of a manifest of the second checkpoint, with other parts."""
    usual = {"version": 4, "checkpoint": packed(CHECKPOINT), "metadata": packed({}), "channels": {}}
    return list((usual | parts).values())


def checkpoint(**parts: Any) -> list[Any]:
    """One whose checkpoint has other parts."""
    return manifest(checkpoint=packed(CHECKPOINT | parts))


def channel(value: Any) -> list[Any]:
    """One that holds a channel `messages`."""
    return manifest(channels={"messages": value})


HEAD, DIGEST = bytes(HEAD_SIZE), bytes(DIGEST_SIZE)


def tree(size: Any = 1000, depth: Any = 0, head: Any = HEAD, digests: Any = DIGEST) -> list[Any]:
    """One whose channel `messages` is a tree."""
    return channel(["msgpack", [size, depth, head, digests]])


DEEP = "stands for a list in a list in a list"


def pack(body: Any) -> bytes:
    """A body as MessagePack, deeper in places than ormsgpack packs by itself."""
    return ormsgpack.packb(body).replace(ormsgpack.packb(DEEP), b"\x91" * 900 + b"\x90")


BODIES: dict[str, Any] = {
    "nothing": None,
    "a number": 7,
    "text": "text",
    "a list of nothing": [],
    "a dict": {},
    "a part too few": manifest()[:3],
    "a part too many": [*manifest(), None],
    "a negative version": manifest(version=-1),
    "a version that is text": manifest(version="4"),
    "a version that is a truth": manifest(version=True),
    "a version that is deep": manifest(version=DEEP),
    "channels that are a list": manifest(channels=[["a", packed(1)]]),
    "channels that are text": manifest(channels="messages"),
    "no channels": manifest(channels=None),
    "a channel that is nothing": channel(None),
    "a channel that is text": channel("xy"),
    "a channel without a value": channel(["msgpack"]),
    "a type tag that is a number": channel([7, b""]),
    "a type tag that is deep": channel([DEEP, b""]),
    "a value that is text": channel(["msgpack", "text"]),
    "a value that is a number": channel(["msgpack", 7]),
    "a value that is deep": channel(["msgpack", DEEP]),
    "a tree without a size": tree(size=None),
    "a tree of no size": tree(size=0),
    "a tree of a negative size": tree(size=-1000),
    "a tree of a size that is deep": tree(size=DEEP),
    "a tree larger than any": tree(size=MAX_SIZE + 1),
    "a tree of 64 bits": tree(size=2**64 - 1),
    "a tree of a negative depth": tree(depth=-1),
    "a tree too deep": tree(depth=MAX_DEPTH + 1),
    "a tree of a depth of 64 bits": tree(depth=2**64 - 1),
    "a tree of half a level": tree(depth=0.5),
    "a tree without a head": tree(head=None),
    "a tree of a long head": tree(head=HEAD * 2),
    "a tree of digests that are text": tree(digests="x" * DIGEST_SIZE),
    "a tree of half a digest": tree(digests=DIGEST[1:]),
    "a tree of no digests": tree(digests=b""),
    "a tree of no chunks": tree(digests=DIGEST * 100),
    "a tree of no nodes": tree(depth=MAX_DEPTH),
    "a checkpoint that is a list": manifest(checkpoint=packed([CHECKPOINT])),
    "a checkpoint that is text": manifest(checkpoint=packed("checkpoint")),
    "a checkpoint that is nothing": manifest(checkpoint=packed(None)),
    "a checkpoint without an id": manifest(checkpoint=packed({"v": 4})),
    "a checkpoint of another id": checkpoint(id="1"),
    "a checkpoint of a long id": checkpoint(id="2" * 1_000_000),
    "a checkpoint whose id is a list": checkpoint(id=["2"]),
    "versions that are a list": checkpoint(channel_versions=["1"]),
    "versions that are nothing": checkpoint(channel_versions=None),
    "metadata that is a list": manifest(metadata=packed([1])),
    "metadata that is nothing": manifest(metadata=packed(None)),
}

FORMATTED = {name: bytes([FORMAT]) + pack(body) for name, body in BODIES.items()}

SEALED: dict[str, bytes] = FORMATTED | {
    "no bytes": b"",
    "a format alone": bytes([FORMAT]),
    "another format": bytes([FORMAT + 1]) + ormsgpack.packb(manifest()),
    "a channel whose name is a number": FORMATTED["a channel that is nothing"].replace(
        b"\x81\xa8messages\xc0", b"\x81\x07" + ormsgpack.packb(packed(1))
    ),
    "a list that claims four billion items": bytes([FORMAT]) + b"\xdd\xff\xff\xff\xff",
    "bytes that claim four billion": bytes([FORMAT]) + b"\xc6\xff\xff\xff\xff",
    "a million levels": bytes([FORMAT]) + b"\x91" * 1_000_000,
    "an extension": bytes([FORMAT]) + ormsgpack.packb(ormsgpack.Ext(5, b"")),
}


async def assert_damaged(saver: Saver, error: type[CheckpointerError] = DamagedDataError) -> None:
    """Reading raises the error, and names the checkpoint, briefly; the rest is readable."""
    for read in (saver.aget_tuple(SECOND), anext(saver.alist(SECOND))):
        with pytest.raises(error, match=r"thread 'a copy'.*checkpoint '2'") as caught:
            await asyncio.wait_for(read, IN_TIME)
        assert len(str(caught.value)) < 2_000
    for seed in (1, 3):
        found = await saver.aget_tuple(config(VICTIM, str(seed)))
        assert found is not None
        assert found.checkpoint["channel_values"]["messages"] == noise(seed)


async def use_all(saver: Saver, url: str) -> None:
    """Everything else that meets rows: it ends in time, and where it raises, it changes nothing."""
    head = config(VICTIM, "3")
    before = row_counts(url)
    calls: list[Awaitable[object]] = [
        saver.aget_delta_channel_history(config=head, channels=["messages", "never"]),
        saver.averify(VICTIM),
        saver.aprune([VICTIM]),
    ]
    for call in calls:
        try:
            await asyncio.wait_for(call, IN_TIME)
        except CheckpointerError:
            assert row_counts(url) == before


async def test_a_sealed_manifest_that_is_none_is_damage(
    stored: Stored, subtests: pytest.Subtests
) -> None:
    for name, body in SEALED.items():
        with subtests.test(name):
            async with altered(stored, CHECKPOINTS, "manifest", OF_SECOND, seal(body)) as saver:
                await assert_damaged(saver)
                await use_all(saver, stored.rows.url)


VALUES: dict[str, Any] = {
    name: body[3]["messages"]
    for name, body in BODIES.items()
    if isinstance(body, list) and len(body) == 4 and isinstance(body[3], dict) and body[3]
}


@pytest.mark.parametrize("channel", ["brief", "long"])
async def test_a_sealed_write_that_is_none_is_damage(
    stored: Stored, subtests: pytest.Subtests, channel: str
) -> None:
    where = f"{OF_SECOND} AND channel = '{channel}'"
    for name, value in VALUES.items():
        with subtests.test(name):
            async with altered(stored, WRITES, "data", where, seal(pack(value))) as saver:
                await assert_damaged(saver)
                await use_all(saver, stored.rows.url)


Chunks = dict[bytes, bytes]
LEAF = b"x" * 300


def named(*chunks: bytes, size: int, depth: int = 0) -> tuple[Tree, Chunks]:
    """A tree whose root names these chunks."""
    stored = {digest_of(chunk): chunk for chunk in chunks}
    return Tree(HEAD, size, depth, b"".join(map(digest_of, chunks))), stored


def repeated(leaf: bytes, *widths: int, size: int) -> tuple[Tree, Chunks]:
    """A tree of one chunk, which a node names so many times, which a node names as often, ..."""
    chunks, below = {digest_of(leaf): leaf}, digest_of(leaf)
    for width in widths:
        node = below * width
        below = digest_of(node)
        chunks[below] = node
    return Tree(HEAD, size, len(widths), below), chunks


def together(size: int, *parts: tuple[Tree, Chunks]) -> tuple[Tree, Chunks]:
    """One tree of several of the same depth."""
    digests = b"".join(tree.digests for tree, _ in parts)
    chunks = {digest: chunk for _, stored in parts for digest, chunk in stored.items()}
    return Tree(HEAD, size, parts[0][0].depth, digests), chunks


TREES: dict[str, tuple[Tree, Chunks]] = {
    "a byte too many": named(LEAF, size=HEAD_SIZE + 299),
    "a byte too few": named(LEAF, size=HEAD_SIZE + 301),
    "a chunk as a node": named(LEAF + b"x", size=1000, depth=1),
    "a chunk as a node of digests": named(LEAF, size=1000, depth=1),
    "a chunk as a node of nodes": named(LEAF, size=1000, depth=MAX_DEPTH),
    "a node that names itself": (Tree(HEAD, 1000, MAX_DEPTH, DIGEST), {DIGEST: DIGEST * 3}),
    "two nodes that name each other": (
        Tree(HEAD, 1000, MAX_DEPTH, DIGEST),
        {DIGEST: b"\1" * DIGEST_SIZE, b"\1" * DIGEST_SIZE: DIGEST},
    ),
    "short chunks": named(b"a" * 200, b"b" * 200, size=HEAD_SIZE + 400),
    "short nodes": together(
        HEAD_SIZE + 600,
        repeated(LEAF, 1, size=0),
        repeated(LEAF[::-1] + b"y", 1, size=0),
    ),
    "a bomb": repeated(LEAF, *[64] * MAX_DEPTH, size=MAX_SIZE),
    "a bomb of few levels": repeated(LEAF, 64, 64, 64, 64, size=MAX_SIZE),
    "a bomb of one wide level": repeated(LEAF, 64, 64, 60_000, size=MAX_SIZE),
    "a bomb of nothing": repeated(b"", *[64] * MAX_DEPTH, size=HEAD_SIZE),
    "a bomb of single bytes": repeated(b"x", 64, 64, 64, size=HEAD_SIZE + 64**3),
}


@pytest.mark.parametrize(("tree", "chunks"), TREES.values(), ids=TREES)
def test_a_tree_that_contradicts_its_chunks_is_put_together_in_no_memory(
    tree: Tree, chunks: Chunks
) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ChunkError):
            join(tree, chunks)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20


def content(tree: Tree) -> list[Any]:
    return ["bytes", [tree.size, tree.depth, tree.head, tree.digests]]


def insert(stored: Stored, chunks: Chunks) -> None:
    """Store chunks of the copy."""
    literal = stored.rows.literal
    for digest, data in chunks.items():
        values = f"'{VICTIM}', {literal(digest)}, {literal(data)}"
        stored.rows.execute(f"INSERT INTO {CHUNKS} (thread_id, digest, data) VALUES ({values})")


async def test_a_stored_tree_that_contradicts_its_chunks_is_damage(
    stored: Stored, subtests: pytest.Subtests
) -> None:
    for name, (tree, chunks) in TREES.items():
        body = bytes([FORMAT]) + pack(channel(content(tree)))
        with subtests.test(name):
            async with altered(stored, CHECKPOINTS, "manifest", OF_SECOND, seal(body)) as saver:
                insert(stored, chunks)
                await assert_damaged(saver)
                await use_all(saver, stored.rows.url)


async def test_a_stored_tree_that_repeats_its_chunks_is_read(stored: Stored) -> None:
    tree, chunks = repeated(LEAF, 64, 64, size=HEAD_SIZE + 64 * 64 * len(LEAF))
    body = bytes([FORMAT]) + pack(channel(content(tree)))
    async with altered(stored, CHECKPOINTS, "manifest", OF_SECOND, seal(body)) as saver:
        insert(stored, chunks)
        found = await saver.aget_tuple(SECOND)
        assert found is not None
        assert found.checkpoint["channel_values"] == {"messages": HEAD + LEAF * 64 * 64}


UNLOADABLE: dict[str, list[Any]] = {
    "no such encoding": ["no such encoding", b""],
    "a pickle": ["pickle", b"cos\nsystem\n(S'true'\ntR."],
    "broken JSON": ["json", b"{"],
    "deep JSON": ["json", b"[" * 100_000],
    "broken MessagePack": ["msgpack", b"\xdd\xff\xff\xff\xff"],
    "deep MessagePack": ["msgpack", b"\x91" * 100_000],
    "deep objects": ["msgpack", deep_objects(100)],
}


@pytest.mark.usefixtures("way")
async def test_values_that_cannot_be_loaded_are_named(
    stored: Stored, subtests: pytest.Subtests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nesting, "MAX_LEVELS", 80)
    for name, value in UNLOADABLE.items():
        body = bytes([FORMAT]) + pack(channel(value))
        with subtests.test(name):
            async with altered(stored, CHECKPOINTS, "manifest", OF_SECOND, seal(body)) as saver:
                await assert_damaged(saver, SerializationError)
                await use_all(saver, stored.rows.url)


@pytest.mark.parametrize("database_kind", ["sqlite", "stepwise"], indirect=True)
@pytest.mark.parametrize("literal", ["'text'", "CAST(X'6A80FF' AS TEXT)", "7", "1.5", "X''"])
async def test_columns_of_another_type_are_damage(stored: Stored, literal: str) -> None:
    """SQLite stores anything in any column."""
    of_chunk, of_node = (
        where.replace("a thread", VICTIM) for where in (stored.chunk(), stored.node())
    )
    for update in (
        f"UPDATE {CHECKPOINTS} SET manifest = {literal} WHERE {OF_SECOND}",
        f"UPDATE {WRITES} SET data = {literal} WHERE {OF_SECOND}",
        f"UPDATE {CHUNKS} SET data = {literal} WHERE {of_chunk}",
        f"UPDATE {CHUNKS} SET data = {literal} WHERE {of_node}",
    ):
        async with copied(stored) as saver:
            stored.rows.execute(update)
            await assert_damaged(saver)
            await use_all(saver, stored.rows.url)


@pytest.mark.parametrize("text", ["[]", "null", "7", "[" * 3000 + "]" * 3000], ids=lambda t: t[:5])
async def test_a_projection_that_is_no_object_stops_a_prune(stored: Stored, text: str) -> None:
    async with create_saver(stored.rows.url) as saver:
        stored.rows.execute(
            f"UPDATE {CHECKPOINTS} SET metadata = '{text}' WHERE checkpoint_id = '2'"
        )
        before = row_counts(stored.rows.url)
        with pytest.raises(DamagedDataError, match=r"'a thread'.*checkpoint '2'.*nothing was"):
            await saver.aprune(["a thread"])
        with contextlib.suppress(CheckpointerError):  # SQLite's own parser may refuse it
            assert [one async for one in saver.alist(config(), filter={"run_id": "run 2"})] == []
        assert row_counts(stored.rows.url) == before
        assert await saver.aget_tuple(config(checkpoint_id="2")) is not None


text = st.text(st.characters(codec="utf-8"), max_size=5)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | text | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
encodings = st.sampled_from(["msgpack", "bytes", "null", "json", "pickle", ""])


@settings(
    max_examples=min(settings().max_examples, 60),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
async def test_any_sealed_manifest_is_read_or_is_damage(
    stored: Stored, data: st.DataObject
) -> None:
    digests = st.sampled_from(sorted(stored.chunks | stored.nodes | {DIGEST}))
    sizes = st.sampled_from([HEAD_SIZE, 1000, 60_000, 60_005, MAX_SIZE])
    roots = st.lists(digests, max_size=20).map(b"".join)
    trees = st.tuples(sizes, st.integers(0, 3), st.just(HEAD), roots)
    values = mostly(st.tuples(encodings, st.binary(max_size=20) | trees), plain)
    parts: dict[str, Any] = {
        "version": mostly(st.integers(0, 5), plain),
        "checkpoint": mostly(st.just(packed(CHECKPOINT)), plain.map(packed) | values),
        "metadata": mostly(plain.map(packed), values),
        "channels": mostly(st.dictionaries(text | st.just("messages"), values), plain),
    }
    body = bytes([FORMAT]) + pack([data.draw(part, name) for name, part in parts.items()])
    async with altered(stored, CHECKPOINTS, "manifest", OF_SECOND, seal(body)) as saver:
        for read in (saver.aget_tuple(SECOND), anext(saver.alist(SECOND))):
            with contextlib.suppress(CheckpointerError):
                await asyncio.wait_for(read, IN_TIME)
        await use_all(saver, stored.rows.url)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_are_what_they_say(data: bytes) -> None:
    for check in fuzz_manifest.CHECKS:
        check(data)


step = st.tuples(st.integers(0, 3), *[st.integers(0, 255)] * 3).map(bytes)


@given(st.lists(step, min_size=1, max_size=12).map(b"".join))
def test_any_tree_is_refused_or_is_what_it_says(program: bytes) -> None:
    fuzz_manifest.check_tree(program)


@pytest.mark.long
@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris has no wheel for this system")
def test_atheris_finds_no_bytes_that_are_read_otherwise(tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    options = [
        f"-runs={INTENSITY.fuzz_runs}",
        "-max_len=2048",
        "-rss_limit_mb=1024",
        "-timeout=20",
        f"-artifact_prefix={tmp_path}/",
    ]
    command = [sys.executable, fuzz_manifest.__file__, *options, str(inputs)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5_000:]
    assert f"Done {INTENSITY.fuzz_runs} runs" in done.stderr
