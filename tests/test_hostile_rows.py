"""Rows that are whole by their checksums, and yet are not what was ever written.

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
from damages import CHECKPOINTS, SEGMENTS, WRITES, Stored, noise, store
from hostile import deep_objects, mostly
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from intensity import INTENSITY
from storing import config, row_counts

from checkpointer import (
    AsyncSQLAlchemySaver,
    CheckpointerError,
    DamagedDataError,
    SchemaTooNewError,
    SerializationError,
    create_saver,
    nesting,
)
from checkpointer.sealing import FORMAT, RAW, ZSTD, FormatError, seal
from checkpointer.serde import LosslessSerializer
from checkpointer.slices import (
    CHECKSUM_SIZE,
    HEAD_SIZE,
    MAX_PARTS,
    MAX_SEGMENT,
    MAX_SIZE,
    MAX_STREAM,
    Layout,
    Part,
    Segment,
    Segments,
    Slice,
    hash_of,
    pack_layout,
    segments_of,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

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


HEAD, CHECKSUM = bytes(HEAD_SIZE), bytes(CHECKSUM_SIZE)


def layout(*parts: Any, checksum: Any = CHECKSUM) -> list[Any]:
    """One whose channel `messages` is a layout."""
    return channel(["msgpack", [checksum, list(parts)]])


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
    "a layout without a checksum": layout(HEAD, checksum=None),
    "a layout of a short checksum": layout(HEAD, checksum=CHECKSUM[1:]),
    "a layout of a long checksum": layout(HEAD, checksum=CHECKSUM * 2),
    "a layout of a checksum that is text": layout(HEAD, checksum="x" * CHECKSUM_SIZE),
    "a layout of a checksum that is deep": layout(HEAD, checksum=DEEP),
    "a layout of nothing": layout(),
    "a layout of no bytes": layout(b""),
    "a layout of parts that are nothing": channel(["msgpack", [CHECKSUM, None]]),
    "a layout of parts that are text": channel(["msgpack", [CHECKSUM, "abc"]]),
    "a layout of parts that are a number": channel(["msgpack", [CHECKSUM, 7]]),
    "a layout of parts that are a dict": channel(["msgpack", [CHECKSUM, {"abc": 1}]]),
    "a layout of parts that are deep": channel(["msgpack", [CHECKSUM, DEEP]]),
    "a layout of three": channel(["msgpack", [CHECKSUM, [HEAD], None]]),
    "a layout with nothing in it": layout(HEAD, None),
    "a layout with text in it": layout(HEAD, "abc"),
    "a layout with a number in it": layout(HEAD, 7),
    "a layout with a deep part": layout(HEAD, DEEP),
    "a layout that does not have its checksum": layout(HEAD),
    "a layout of too many parts": layout(*[b"x"] * (MAX_PARTS + 1)),
    "a slice of two": layout(HEAD, [1, 0]),
    "a slice of four": layout(HEAD, [1, 0, 9, 9]),
    "a slice of text": layout(HEAD, ["1", "0", "9"]),
    "a slice of truths": layout(HEAD, [1, False, True]),
    "a slice of halves": layout(HEAD, [1, 0.5, 1.5]),
    "a slice of deep numbers": layout(HEAD, [DEEP, 0, 9]),
    "a slice of nothing": layout(HEAD, [1, 9, 9]),
    "a slice that goes backwards": layout(HEAD, [1, 9, 0]),
    "a slice before all": layout(HEAD, [1, -9, 9]),
    "a slice after all": layout(HEAD, [1, MAX_STREAM, MAX_STREAM + 1]),
    "a slice of a negative stream": layout(HEAD, [-1, 0, 9]),
    "a slice of a stream of 64 bits": layout(HEAD, [2**64 - 1, 0, 9]),
    "a slice of a stream that is not there": layout(HEAD, [1, 0, 9]),
    "a slice at the end of a stream that is not there": layout(
        HEAD, [MAX_STREAM, MAX_STREAM - 9, MAX_STREAM]
    ),
    "a slice larger than any": layout(HEAD, [1, 0, MAX_STREAM]),
    "slices larger than any": layout(*[[1, 0, MAX_SEGMENT]] * 512, b"x"),
    "slices as large as any, that are not there": layout(*[[1, 0, MAX_SEGMENT]] * 512),
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

FORMATTED = {name: bytes([FORMAT, RAW]) + pack(body) for name, body in BODIES.items()}


def frame(size: int) -> bytes:
    """A Zstandard frame of so many zeros: 30 KB for a GB."""
    return zstd.compress(bytes(size))


def claiming(size: int) -> bytes:
    """A frame that says that it holds so many bytes, and holds one."""
    return b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little") + b"\x09\0\0x"


FRAMES = {
    "no frame": b"",
    "half a frame": zstd.compress(pack(manifest()))[:-1],
    "two frames": zstd.compress(pack(manifest())) * 2,
    "a frame that claims more than any": claiming(MAX_SIZE + 1),
    "a frame that claims 64 bits": claiming(2**64 - 1),
    "a frame that claims 500 MB": claiming(500 << 20),
    "a frame of 50 MB": frame(50 << 20),
    "a frame of nothing": frame(0),
}

SEALED: dict[str, bytes] = (
    FORMATTED
    | {name: bytes([FORMAT, ZSTD]) + body for name, body in FRAMES.items()}
    | {
        "no bytes": b"",
        "a format alone": bytes([FORMAT]),
        "a format and a codec alone": bytes([FORMAT, RAW]),
        "a channel whose name is a number": FORMATTED["a channel that is nothing"].replace(
            b"\x81\xa8messages\xc0", b"\x81\x07" + ormsgpack.packb(packed(1))
        ),
        "a list that claims four billion items": bytes([FORMAT, RAW]) + b"\xdd\xff\xff\xff\xff",
        "bytes that claim four billion": bytes([FORMAT, RAW]) + b"\xc6\xff\xff\xff\xff",
        "a million levels": bytes([FORMAT, RAW]) + b"\x91" * 1_000_000,
        "an extension": bytes([FORMAT, RAW]) + ormsgpack.packb(ormsgpack.Ext(5, b"")),
    }
)

NEWER = {
    "another format": bytes([FORMAT + 1, RAW]) + ormsgpack.packb(manifest()),
    "another codec": bytes([FORMAT, ZSTD + 1]) + ormsgpack.packb(manifest()),
    "the last of all": b"\xff\xff",
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


async def test_what_a_newer_version_has_sealed_is_no_damage(
    stored: Stored, subtests: pytest.Subtests
) -> None:
    segment = stored.segments[1]
    of_segment = (
        f"thread_id = '{VICTIM}' AND stream_id = {segment.stream} AND start = {segment.start}"
    )
    for name, body in NEWER.items():
        for table, column, where in (
            (CHECKPOINTS, "manifest", OF_SECOND),
            (WRITES, "data", f"{OF_SECOND} AND channel = 'brief'"),
            (SEGMENTS, "data", of_segment),
        ):
            with subtests.test(f"{name} in {table}"):
                async with altered(stored, table, column, where, seal(body)) as saver:
                    await assert_damaged(saver, SchemaTooNewError)
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
            body = bytes([FORMAT, RAW]) + pack(value)
            async with altered(stored, WRITES, "data", where, seal(body)) as saver:
                await assert_damaged(saver)
                await use_all(saver, stored.rows.url)


DATA = noise("stream", 3_000)
STREAM = 7


def laid_out(*parts: Part, data: bytes | None = None) -> Layout:
    """A layout with the checksum of `data`, or of nothing."""
    data = data or b""
    return Layout(hash_of(data).checksum(data[:HEAD_SIZE]), parts)


def row(start: int, stop: int, codec: int, body: bytes) -> Segment:
    """A segment of our own making, under a seal that is right."""
    return Segment(STREAM, start, stop, seal(bytes([FORMAT, codec]) + body))


ALL = Slice(STREAM, 0, len(DATA))
TRUE = laid_out(HEAD, ALL, data=HEAD + DATA)

CONTRADICTIONS: dict[str, tuple[Layout, list[Segment]]] = {
    "a byte too few": (TRUE, [row(0, 3_000, RAW, DATA[1:])]),
    "a byte too many": (TRUE, [row(0, 3_000, RAW, DATA + b"x")]),
    "no bytes": (TRUE, [row(0, 3_000, RAW, b"")]),
    "other bytes": (TRUE, [row(0, 3_000, RAW, DATA[::-1])]),
    "too many bytes": (TRUE, [row(0, MAX_SEGMENT + 1, RAW, bytes(MAX_SEGMENT + 1))]),
    "a stop before the start": (TRUE, [row(0, -1, RAW, DATA)]),
    "a start before all": (TRUE, [row(-1, 2_999, RAW, DATA)]),
    "a stop in another place": (TRUE, [row(0, MAX_STREAM, RAW, DATA)]),
    "200 MB in 6 KB": (TRUE, [row(0, 3_000, ZSTD, frame(200 << 20))]),
    "a frame of 1 MB": (TRUE, [row(0, 3_000, ZSTD, frame(1 << 20))]),
    "a frame that claims 3,000 bytes": (TRUE, [row(0, 3_000, ZSTD, claiming(3_000))]),
    "a frame that claims 64 bits": (TRUE, [row(0, 3_000, ZSTD, claiming(2**64 - 1))]),
    "bytes as a frame": (TRUE, [row(0, 3_000, ZSTD, DATA)]),
    "a frame as bytes": (TRUE, [row(0, 3_000, RAW, zstd.compress(DATA))]),
    "two frames": (TRUE, [row(0, 3_000, ZSTD, zstd.compress(DATA[:9]) + zstd.compress(DATA[9:]))]),
    "the wrong checksum": (laid_out(HEAD, ALL), segments_of(STREAM, 0, DATA)),
    "another head": (
        laid_out(HEAD[1:] + b"x", ALL, data=HEAD + DATA),
        segments_of(STREAM, 0, DATA),
    ),
    "slices in another order": (
        laid_out(HEAD, Slice(STREAM, 9, 3_000), Slice(STREAM, 0, 9), data=HEAD + DATA),
        segments_of(STREAM, 0, DATA),
    ),
    "a gap": (
        TRUE,
        [*segments_of(STREAM, 0, DATA[:999]), *segments_of(STREAM, 1_000, DATA[1_000:])],
    ),
    "the end is missing": (TRUE, segments_of(STREAM, 0, DATA[:-1])),
    "rows that overlap, one of them other bytes": (
        TRUE,
        [*segments_of(STREAM, 0, DATA[:1_500]), row(1_000, 3_000, RAW, bytes(2_000))],
    ),
    "the same 1 MB again and again": (
        laid_out(*[Slice(STREAM, 0, MAX_SEGMENT)] * 64),
        [row(0, MAX_SEGMENT, ZSTD, frame(MAX_SEGMENT))],
    ),
    "more than any value has": (
        laid_out(*[Slice(STREAM, 0, MAX_SEGMENT)] * 512, b"x"),
        [row(0, MAX_SEGMENT, ZSTD, frame(MAX_SEGMENT))],
    ),
}


@pytest.mark.parametrize(("value", "rows"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_layout_that_contradicts_its_rows_is_put_together_in_no_memory(
    value: Layout, rows: list[Segment]
) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            Segments(rows).join(value)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # As large as the value, and as its bytes while these are joined.
    assert peak < (160 << 20 if value.size == 64 << 20 else 16 << 20)


def naming(value: Layout) -> bytes:
    """A manifest, sealed, of which a channel names a value."""
    return seal(bytes([FORMAT, RAW]) + pack(channel(["bytes", pack_layout(value)])))


async def test_a_stored_layout_that_contradicts_its_rows_is_damage(
    stored: Stored, subtests: pytest.Subtests
) -> None:
    for name, (value, rows) in CONTRADICTIONS.items():
        with subtests.test(name):
            async with altered(stored, CHECKPOINTS, "manifest", OF_SECOND, naming(value)) as saver:
                stored.rows.insert(*rows, thread=VICTIM)
                await assert_damaged(saver)
                await use_all(saver, stored.rows.url)


async def test_a_stored_layout_that_repeats_its_slices_is_read(stored: Stored) -> None:
    parts = [Slice(STREAM, start, start + 2_000) for start in range(0, 1_000, 100)] * 400
    data = HEAD + b"".join(DATA[one.start : one.stop] for one in parts)
    value = laid_out(HEAD, *parts, data=data)
    async with altered(stored, CHECKPOINTS, "manifest", OF_SECOND, naming(value)) as saver:
        stored.rows.insert(*segments_of(STREAM, 0, DATA), thread=VICTIM)
        found = await saver.aget_tuple(SECOND)
        assert found is not None
        assert found.checkpoint["channel_values"] == {"messages": data}
        assert not (await saver.averify(VICTIM)).damaged


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
        body = bytes([FORMAT, RAW]) + pack(channel(value))
        with subtests.test(name):
            async with altered(stored, CHECKPOINTS, "manifest", OF_SECOND, seal(body)) as saver:
                await assert_damaged(saver, SerializationError)
                await use_all(saver, stored.rows.url)


@pytest.mark.parametrize("database_kind", ["sqlite", "stepwise"], indirect=True)
@pytest.mark.parametrize("literal", ["'text'", "CAST(X'6A80FF' AS TEXT)", "7", "1.5", "X''"])
async def test_columns_of_another_type_are_damage(stored: Stored, literal: str) -> None:
    """SQLite stores anything in any column."""
    of_segment = stored.segment().replace("a thread", VICTIM)
    for update in (
        f"UPDATE {CHECKPOINTS} SET manifest = {literal} WHERE {OF_SECOND}",
        f"UPDATE {WRITES} SET data = {literal} WHERE {OF_SECOND}",
        f"UPDATE {SEGMENTS} SET data = {literal} WHERE {of_segment}",
        f"UPDATE {SEGMENTS} SET stop = {literal} WHERE {of_segment}",
        f"UPDATE {SEGMENTS} SET start = {literal} WHERE {of_segment}",
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
    streams = st.sampled_from([0, 1, STREAM, MAX_STREAM, *{one.stream for one in stored.segments}])
    numbers = st.sampled_from([0, 1, 9_999, 10_000, 20_000, 59_999, 60_000, MAX_STREAM])
    slices = st.tuples(streams, numbers, numbers)
    layouts = st.tuples(st.just(CHECKSUM), st.lists(slices | st.binary(max_size=20), max_size=20))
    values = mostly(st.tuples(encodings, st.binary(max_size=20) | layouts), plain)
    parts: dict[str, Any] = {
        "version": mostly(st.integers(0, 5), plain),
        "checkpoint": mostly(st.just(packed(CHECKPOINT)), plain.map(packed) | values),
        "metadata": mostly(plain.map(packed), values),
        "channels": mostly(st.dictionaries(text | st.just("messages"), values), plain),
    }
    body = bytes([FORMAT, RAW]) + pack([data.draw(part, name) for name, part in parts.items()])
    async with altered(stored, CHECKPOINTS, "manifest", OF_SECOND, seal(body)) as saver:
        for read in (saver.aget_tuple(SECOND), anext(saver.alist(SECOND))):
            with contextlib.suppress(CheckpointerError):
                await asyncio.wait_for(read, IN_TIME)
        await use_all(saver, stored.rows.url)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_are_what_they_say(data: bytes) -> None:
    for check in fuzz_manifest.CHECKS:
        check(data)


step = st.tuples(*[st.integers(0, 255)] * 4).map(bytes)


@given(st.integers(0, 5), st.lists(step, min_size=1, max_size=12).map(b"".join))
def test_any_layout_is_refused_or_is_what_it_says(wrong: int, steps: bytes) -> None:
    fuzz_manifest.check_layout(bytes([wrong]) + steps)


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
