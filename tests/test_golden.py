"""Golden vectors of the storage format: bytes of rows mean what they meant, and stay readable.

The vectors stand in `golden/`, one file for each version of the format. They pin the meaning of
stored bytes, and not what a writer may choose: where values are cut, what is stored again, how hard
it is compressed. They change only together with the version, and are then written by

    PYTHONPATH=. python tests/test_golden.py --write

Files of older versions are never written again: their rows must stay readable.
"""

import asyncio
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ormsgpack
import pytest
import sqlalchemy as sa
from storing import checkpoint, config

from checkpointer import AsyncSQLAlchemySaver, create_saver, sharing, tables
from checkpointer.manifest import (
    Manifest,
    Value,
    decode_manifest,
    decode_value,
    encode_manifest,
    encode_value,
)
from checkpointer.sealing import FORMAT, RAW, ZSTD, FormatError, TooNewError, pack, seal, unpack
from checkpointer.sharing import Stream, lay_out
from checkpointer.slices import (
    HEAD_SIZE,
    MAX_SEGMENT,
    MAX_SIZE,
    Layout,
    Segment,
    Segments,
    Slice,
    hash_of,
    pack_layout,
    segments_of,
    unpack_layout,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

GOLDEN = Path(__file__).parent / "golden"


def path_of(version: int) -> Path:
    return GOLDEN / f"format-{version}.json"


def noise(seed: str, size: int) -> bytes:
    """BLAKE2b over a counter, keyed by the seed: the same bytes everywhere and for ever."""
    blocks = (
        blake2b(n.to_bytes(8, "big"), key=seed.encode()).digest() for n in range(size // 64 + 1)
    )
    return b"".join(blocks)[:size]


SIZES = (0, 1, 15, 16, 17, 100, 5_000)
"""Sizes of values whose checksums are pinned: about as long as their head, and longer."""

BODIES = {"empty": b"", "short": b"\xa1x", "text": b"said again and again, " * 40}


def envelopes() -> dict[str, tuple[bytes, bytes]]:
    """Stored bytes that must be read, with what they hold."""
    text = BODIES["text"]
    parameter = zstd.CompressionParameter
    frames = {
        "level 1": zstd.compress(text, 1),
        "level 19": zstd.compress(text, 19),
        "checksum": zstd.compress(text, options={parameter.checksum_flag: 1}),
        "many blocks": _in_blocks(text),
        "not compressible": zstd.compress(noise("z", 300)),
    }
    found = {name: (_sealed(RAW, body), body) for name, body in BODIES.items()}
    found |= {name: (_sealed(ZSTD, one), zstd.decompress(one)) for name, one in frames.items()}
    return found


def refused() -> dict[str, tuple[bytes, bool]]:
    """Stored bytes that must not be read, and whether they are merely too new."""
    text, frame = BODIES["text"], zstd.compress(BODIES["text"])
    without_size = zstd.ZstdCompressor()
    whole = _sealed(RAW, text)
    return {
        "no bytes": (b"", False),
        "no codec": (seal(b"\1"), False),
        "altered": (whole[:-1] + b"!", False),
        "cut": (whole[:-1], False),
        "another version": (seal(b"\2\0" + text), True),
        "another codec": (seal(b"\1\2" + text), True),
        "no frame": (_sealed(ZSTD, text), False),
        "a frame that is cut": (_sealed(ZSTD, frame[:-1]), False),
        "a frame and something": (_sealed(ZSTD, frame + b"\0"), False),
        "two frames": (_sealed(ZSTD, frame + frame), False),
        "a frame without its size": (
            _sealed(ZSTD, without_size.compress(text) + without_size.flush()),
            False,
        ),
        "more than a segment": (_sealed(ZSTD, zstd.compress(bytes(MAX_SEGMENT + 1))), False),
    }


def _in_blocks(text: bytes) -> bytes:
    compressor = zstd.ZstdCompressor()
    compressor.set_pledged_input_size(len(text))
    parts = [text[i : i + 100] for i in range(0, len(text), 100)]
    blocks = [compressor.compress(part, compressor.FLUSH_BLOCK) for part in parts]
    return b"".join([*blocks, compressor.flush()])


def _sealed(codec: int, body: bytes) -> bytes:
    return seal(bytes([FORMAT, codec]) + body)


def checksum_of(data: bytes) -> bytes:
    """The checksum of a value, by the words of docs/format.md."""
    rest = blake2b(data[16:], digest_size=32).digest()
    return blake2b(rest + data[:16], digest_size=16).digest()


LAYOUTS = {
    "only literal bytes": Layout(checksum_of(b"x"), (b"x",)),
    "only a slice": Layout(checksum_of(b"y"), (Slice(0, 0, 1),)),
    "as written": Layout(checksum_of(b"z"), (bytes(range(16)), Slice(7, 0, 5_000), b"ends")),
    "large numbers": Layout(
        checksum_of(b""), (Slice((1 << 63) - 1, (1 << 63) - 3, (1 << 63) - 1), b"", Slice(1, 2, 3))
    ),
    "as many bytes as may be": Layout(bytes(16), (b"head", Slice(3, 0, MAX_SIZE - 4))),
}

IMPOSSIBLE: dict[str, Any] = {
    "no parts": [bytes(16), []],
    "a short checksum": [bytes(15), [b"x"]],
    "a slice of no bytes": [bytes(16), [[1, 5, 5]]],
    "a slice that ends before it begins": [bytes(16), [[1, 5, 4]]],
    "a slice that begins before its stream": [bytes(16), [[1, -1, 4]]],
    "no such stream": [bytes(16), [[-1, 0, 4]]],
    "a slice of two": [bytes(16), [[1, 2]]],
    "text": [bytes(16), ["text"]],
    "a float": [bytes(16), [[1, 0, 4.0]]],
    "too many bytes": [bytes(16), [[1, 0, MAX_SIZE], b"x"]],
    "no list": 7,
}
"""What no layout says, as MessagePack has it."""

INLINE = Value("msgpack", bytes.fromhex("82a16101a16202"))

VALUES: dict[str, Value] = {
    "inline": Value("msgpack", b"\xa1x"),
    "empty": Value("null", b""),
    "a layout": Value("msgpack", LAYOUTS["as written"]),
    "long": Value("bytes", BODIES["text"]),
}

MANIFESTS: dict[str, Manifest] = {
    "least": Manifest(0, INLINE, INLINE, {}),
    "with channels": Manifest(
        4,
        INLINE,
        Value("json", b"{}"),
        {
            "inline": INLINE,
            "none": Value("null", b""),
            "\xfcnicode": Value("bytes+aes", bytes(range(256))),
            "layout": Value("msgpack", LAYOUTS["as written"]),
            "numbers": Value("msgpack", LAYOUTS["large numbers"]),
        },
    ),
    "large body": Manifest(3, Value("msgpack", LAYOUTS["as written"]), INLINE, {"x": INLINE}),
}

SEGMENTS = {
    "raw": (Segment(7, 0, 5, _sealed(RAW, b"bytes")), b"bytes"),
    "late": (Segment((1 << 63) - 1, 1 << 40, (1 << 40) + 5, _sealed(RAW, b"bytes")), b"bytes"),
    "compressed": (
        Segment(7, 5, 5 + len(BODIES["text"]), _sealed(ZSTD, zstd.compress(BODIES["text"]))),
        BODIES["text"],
    ),
}

THREAD = "a golden thread"
MESSAGES = [{"role": "user", "content": noise(f"{n}", 300).hex()} for n in range(12)]
STATE: dict[str, Any] = {
    "text": "a\0b",
    "number": -7,
    "nothing": None,
    "bytes": bytes(range(256)) * 4,
    "messages": MESSAGES,
}
WRITES: list[tuple[str, Any]] = [
    ("messages", [{"role": "assistant", "content": noise("w", 5_000).hex()}]),
    ("__error__", "a\0b"),
    ("text", "short"),
]
METADATA: dict[str, Any] = {"source": "loop", "step": 1, "run_id": "a run", "odd": "\0\ue000"}
LATER = (
    STATE | {"messages": [*MESSAGES, "one more"]},
    STATE | {"messages": [*MESSAGES[:4], "edited", *MESSAGES[5:], "one more"]},
)


async def store(saver: AsyncSQLAlchemySaver) -> None:
    """Store the golden checkpoints."""
    first = checkpoint("1", STATE)
    where = await saver.aput(
        config(THREAD),
        first,
        METADATA,  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        first["channel_versions"],
    )
    await saver.aput_writes(where, WRITES, "a task", "a path")
    for number, state in enumerate(LATER, 2):
        later = checkpoint(str(number), state)
        where = await saver.aput(where, later, {"source": "loop"}, later["channel_versions"])


async def assert_stored(saver: AsyncSQLAlchemySaver) -> None:
    """The golden checkpoints read as they were put."""
    third, second, first = [one async for one in saver.alist(config(THREAD))]
    assert first.checkpoint == checkpoint("1", STATE)
    assert first.metadata == METADATA
    assert first.parent_config is None
    assert first.pending_writes == [
        ("a task", "__error__", "a\0b"),
        ("a task", "messages", WRITES[0][1]),
        ("a task", "text", "short"),
    ]
    assert second.checkpoint["channel_values"] == LATER[0]
    assert second.parent_config == first.config
    assert third.checkpoint["channel_values"] == LATER[1]


ROWS = (tables.threads, tables.checkpoints, tables.writes, tables.segments)
CHANGING = {
    "state": 7,
    "created_at": "2025-01-01T00:00:00+00:00",
    "updated_at": "2025-01-01T00:00:00+00:00",
}

Rows = dict[str, list[dict[str, Any]]]


async def stored_rows(saver: AsyncSQLAlchemySaver) -> Rows:
    """The rows of all tables in the order of their keys."""
    found: Rows = {}
    async with saver.engine.connect() as connection:
        for table in ROWS:
            result = await connection.execute(sa.select(table).order_by(*table.primary_key))
            found[table.name] = [{**row, **_same(row)} for row in result.mappings()]
    return found


def _same(row: Any) -> dict[str, Any]:
    return {name: value for name, value in CHANGING.items() if name in row}


async def insert(saver: AsyncSQLAlchemySaver, rows: Rows) -> None:
    """Store rows as they are."""
    async with saver.engine.begin() as connection:
        for table in ROWS:
            given = [{n: _from_json(n, v) for n, v in row.items()} for row in rows[table.name]]
            await connection.execute(sa.delete(table))
            await connection.execute(sa.insert(table), given)


def _from_json(name: str, value: Any) -> Any:
    return datetime.fromisoformat(value).astimezone(UTC) if name.endswith("_at") else value


async def rows_of_a_new_database() -> Rows:
    """The rows of the golden checkpoints, freshly stored, in short segments of known streams."""
    numbers = count(1 << 62, 1 << 40)
    with (
        tempfile.TemporaryDirectory() as directory,
        patch.object(sharing, "randbits", lambda _: next(numbers)),
        patch.object(sharing, "segments_of", partial(segments_of, size=2_000)),
    ):
        async with create_saver(f"sqlite:///{directory}/golden.db") as saver:
            await store(saver)
            return await stored_rows(saver)


WAYS: dict[str, Callable[[int], Iterator[tuple[int, int]]]] = {
    "merged": lambda size: iter([(0, size)]),
    "cut": lambda size: ((at, min(at + 777, size)) for at in range(0, size, 777)),
    "overlapping": lambda size: ((at, min(at + 1_300, size)) for at in range(0, size, 500)),
    "nested": lambda size: iter({(0, size), (9, min(99, size)), (size // 2, size)}),
}
"""Where the segments of a stream may begin and end, as a sweep, a merge or a copy leaves them."""


def otherwise(rows: Rows, way: str) -> Rows:
    """Rows with the same streams in other segments."""
    streams: dict[int, bytes] = {}
    for row in rows["checkpointer_segments"]:
        streams[row["stream_id"]] = streams.get(row["stream_id"], b"") + _segment(row).unpack()
    others = [
        {
            "thread_id": THREAD,
            "stream_id": stream,
            "start": start,
            "stop": stop,
            "data": _sealed(RAW, whole[start:stop]),
        }
        for stream, whole in streams.items()
        for start, stop in WAYS[way](len(whole))
    ]
    return rows | {"checkpointer_segments": others}


def _segment(row: dict[str, Any]) -> Segment:
    return Segment(row["stream_id"], row["start"], row["stop"], row["data"])


def parts_of(one: Manifest | Value) -> list[Value]:
    return list(one.values()) if isinstance(one, Manifest) else [one]


def bytes_of(rows: Rows, values: Sequence[Value]) -> list[tuple[str, bytes]]:
    """The type tags and the bytes of values, put together from rows."""
    segments = Segments(map(_segment, rows["checkpointer_segments"]))
    return [
        (
            one.type,
            segments.join(one.content)[0] if isinstance(one.content, Layout) else one.content,
        )
        for one in values
    ]


def content_of(rows: Rows) -> Any:
    """What rows say, whatever their writer has chosen."""
    described: list[Any] = [rows["checkpointer_threads"]]
    for table, column, decode in (
        ("checkpointer_checkpoints", "manifest", decode_manifest),
        ("checkpointer_writes", "data", decode_value),
    ):
        for row in rows[table]:
            one = decode(row[column])
            others = {name: value for name, value in row.items() if name != column}
            head = (one.version, list(one.channels)) if isinstance(one, Manifest) else ()
            described.append((others, head, bytes_of(rows, parts_of(one))))
    return described


def vectors() -> dict[str, Any]:
    """All vectors, as they are written to the file."""
    rows = asyncio.run(rows_of_a_new_database())
    return {
        "checksums": {str(size): checksum_of(noise("c", size)) for size in SIZES},
        "envelopes": envelopes(),
        "refused": refused(),
        "layouts": {name: ormsgpack.packb(pack_layout(one)) for name, one in LAYOUTS.items()},
        "impossible": {
            name: _sealed(RAW, ormsgpack.packb(["msgpack", one]))
            for name, one in IMPOSSIBLE.items()
        },
        "manifests": {name: _written(encode_manifest(one)) for name, one in MANIFESTS.items()},
        "values": {name: _written(encode_value(one)) for name, one in VALUES.items()},
        "segments": {
            name: [one.stream, one.start, one.stop, one.data, data]
            for name, (one, data) in SEGMENTS.items()
        },
        "rows": rows,
    }


def _written(stored: bytes) -> list[bytes]:
    """A body, raw and compressed."""
    body = unpack(stored, MAX_SIZE)
    return [_sealed(RAW, body), _sealed(ZSTD, zstd.compress(body))]


def _plain(value: Any) -> Any:
    return {"hex": value.hex()}


def _revived(found: dict[str, Any]) -> Any:
    return bytes.fromhex(found["hex"]) if found.keys() == {"hex"} else found


def golden(version: int) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path_of(version).read_text("utf-8"), object_hook=_revived)
    return loaded


def versions() -> list[int]:
    return sorted(int(path.stem.removeprefix("format-")) for path in GOLDEN.glob("format-*.json"))


CURRENT: dict[str, Any] = golden(FORMAT) if FORMAT in versions() else {}


def test_there_are_vectors_of_this_format() -> None:
    assert FORMAT in versions()
    for name, given in (
        ("checksums", map(str, SIZES)),
        ("envelopes", envelopes()),
        ("refused", refused()),
        ("layouts", LAYOUTS),
        ("impossible", IMPOSSIBLE),
        ("manifests", MANIFESTS),
        ("values", VALUES),
        ("segments", SEGMENTS),
    ):
        assert list(CURRENT[name]) == list(given)


@pytest.mark.parametrize("size", SIZES)
def test_values_have_the_checksums_that_they_had(size: int) -> None:
    data = noise("c", size)
    pinned = CURRENT["checksums"][str(size)]
    assert checksum_of(data) == pinned
    assert hash_of(data).checksum(data[:HEAD_SIZE]) == pinned


def test_envelopes_open_as_ever() -> None:
    for stored, body in CURRENT["envelopes"].values():
        assert unpack(stored, len(body)) == body
        assert stored[:8] == blake2b(stored[8:], digest_size=8).digest()
    for name, body in BODIES.items():
        assert CURRENT["envelopes"][name] == [_sealed(RAW, body), body]


@pytest.mark.parametrize("name", refused())
def test_what_is_no_envelope_is_refused_as_ever(name: str) -> None:
    stored, is_too_new = CURRENT["refused"][name]
    with pytest.raises(FormatError) as caught:
        unpack(stored, MAX_SEGMENT)
    assert isinstance(caught.value, TooNewError) == is_too_new


def test_what_is_packed_now_opens_as_ever() -> None:
    for body in (*BODIES.values(), noise("z", 300), bytes(MAX_SEGMENT)):
        stored = pack(body)
        assert stored[8:10] in {bytes([1, RAW]), bytes([1, ZSTD])}
        assert unpack(stored, MAX_SEGMENT) == body


def test_layouts_are_encoded_as_ever() -> None:
    for name, layout in LAYOUTS.items():
        assert ormsgpack.packb(pack_layout(layout)) == CURRENT["layouts"][name]
        assert unpack_layout(ormsgpack.unpackb(CURRENT["layouts"][name])) == layout


def test_impossible_layouts_are_refused_as_ever() -> None:
    for stored in CURRENT["impossible"].values():
        with pytest.raises(FormatError):
            decode_value(stored)


def test_manifests_are_encoded_as_ever() -> None:
    for name, manifest in MANIFESTS.items():
        pinned = CURRENT["manifests"][name]
        assert [decode_manifest(stored) for stored in pinned] == [manifest, manifest]
        assert _sealed(RAW, unpack(encode_manifest(manifest), MAX_SIZE)) == pinned[0]


def test_values_are_encoded_as_ever() -> None:
    for name, value in VALUES.items():
        pinned = CURRENT["values"][name]
        assert [decode_value(stored) for stored in pinned] == [value, value]
        assert _sealed(RAW, unpack(encode_value(value), MAX_SIZE)) == pinned[0]


def test_segments_are_read_as_ever() -> None:
    for stream, start, stop, stored, data in CURRENT["segments"].values():
        segment = Segment(stream, start, stop, stored)
        assert segment.unpack() == data
        assert Segments([segment]).bytes_of(Slice(stream, start + 1, stop)) == data[1:]
        with pytest.raises(FormatError, match="found"):
            Segment(stream, start, stop + 1, stored).unpack()
        [written] = segments_of(stream, start, data)
        assert (written.interval, written.unpack()) == ((start, stop), data)


def test_a_value_that_is_laid_out_now_is_read_as_ever() -> None:
    stream = Stream()
    data = noise("c", 5_000)
    _, layout = lay_out(data, [], stream)
    assert layout.checksum == CURRENT["checksums"]["5000"]
    assert Segments(stream.segments()).join(layout)[0] == data


async def test_what_is_stored_now_says_what_it_said(saver: AsyncSQLAlchemySaver) -> None:
    await store(saver)
    found = await stored_rows(saver)
    pinned = CURRENT["rows"]
    assert content_of(found) == content_of(pinned)
    for name, rows in found.items():
        kinds = [{column: type(value) for column, value in row.items()} for row in rows[:1]]
        before = [
            {column: type(value) for column, value in row.items()} for row in pinned[name][:1]
        ]
        assert kinds == before
    await assert_stored(saver)


@pytest.mark.parametrize("version", versions())
async def test_rows_of_every_version_stay_readable(
    saver: AsyncSQLAlchemySaver, version: int
) -> None:
    await insert(saver, golden(version)["rows"])
    await assert_stored(saver)
    found = await saver.averify()
    assert (found.whole, found.checkpoints, found.writes) == (True, 3, 3)
    newest = await saver.aget_tuple(config(THREAD))
    assert newest is not None
    more = LATER[1] | {"messages": [*LATER[1]["messages"], "and on"]}
    later = checkpoint("4", more)
    await saver.aput(newest.config, later, {}, later["channel_versions"])
    await saver.aprune([THREAD])
    async with create_saver(saver.engine, cache_bytes=0) as cold:
        [kept] = [one async for one in cold.alist(None)]
        assert kept.checkpoint["channel_values"] == more
        assert (await cold.averify()).whole


@pytest.mark.parametrize("way", WAYS)
async def test_streams_in_other_segments_are_read_and_gone_on_with(
    saver: AsyncSQLAlchemySaver, way: str
) -> None:
    """This version writes none of these but after a sweep; another one may."""
    await insert(saver, otherwise(CURRENT["rows"], way))
    await assert_stored(saver)
    async with create_saver(saver.engine, cache_bytes=0) as cold:
        await assert_stored(cold)
        assert (await cold.averify()).whole
        await cold.acopy_thread(THREAD, "a copy", checkpoint_id="2")
        copied = await cold.aget_tuple(config("a copy"))
        assert copied is not None
        assert copied.checkpoint["channel_values"] == LATER[0]
        await cold.aprune([THREAD])
        [kept] = [one async for one in cold.alist(config(THREAD))]
        assert kept.checkpoint["channel_values"] == LATER[1]
        assert (await cold.averify()).whole


def main(arguments: Sequence[str]) -> int:
    """Write the vectors of this version."""
    if list(arguments) != ["--write"]:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    GOLDEN.mkdir(exist_ok=True)
    written = json.dumps(vectors(), indent=1, default=_plain)
    path_of(FORMAT).write_text(f"{written}\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
