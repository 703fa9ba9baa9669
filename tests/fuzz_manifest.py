"""What reads stored bytes, fed with any: a target for atheris, and checks for the tests.

    python tests/fuzz_manifest.py -runs=100000 -artifact_prefix=/tmp/ /tmp/corpus

Checksums are made here, so that what is fuzzed is what they let pass. Whatever the bytes are, they
are refused with `FormatError`, or are what they say.
"""

import contextlib
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

from checkpointer import manifest, sealing, sharing, slices
from checkpointer.manifest import (
    Manifest,
    Value,
    decode_manifest,
    decode_projection,
    decode_value,
    encode_manifest,
    encode_value,
)
from checkpointer.sealing import FORMAT, RAW, ZSTD, FormatError, pack, seal, unpack
from checkpointer.sharing import MANY, Stream, Whole, lay_out
from checkpointer.slices import (
    CHECKSUM_SIZE,
    HEAD_SIZE,
    MAX_PARTS,
    MAX_SIZE,
    MAX_STREAM,
    Layout,
    Part,
    Segment,
    Segments,
    Slice,
    hash_of,
)

LARGEST = 1 << 20
"""Bytes that are unpacked and put together here: a layout may be true and name far more."""

STREAMS = [
    bytes((at * 7 + (at >> 8) + stream * 101) & 255 for at in range(9_000)) for stream in (0, 1)
]
"""The bytes of two streams; rows that hold the same of them agree."""


def check_manifest(body: bytes) -> None:
    """Decode what stands under a manifest's seal."""
    with contextlib.suppress(FormatError):
        decoded = decode_manifest(seal(body))
        assert type(decoded.version) is int
        assert all(type(name) is str for name in decoded.channels)
        for value in decoded.values():
            _check(value)
        assert decode_manifest(encode_manifest(decoded)) == decoded


def check_packed_manifest(body: bytes) -> None:
    """The same for what stands behind the format's version and the codec."""
    check_manifest(bytes([FORMAT, RAW]) + body)


def check_value(body: bytes) -> None:
    """Decode what stands under a pending write's seal, as it is, and behind version and codec."""
    for under in (body, bytes([FORMAT, RAW]) + body):
        with contextlib.suppress(FormatError):
            value = decode_value(seal(under))
            _check(value)
            assert decode_value(encode_value(value)) == value


def check_bytes(data: bytes) -> None:
    """Decode bytes that have no seal of ours."""
    for decode in (decode_manifest, decode_value):
        with contextlib.suppress(FormatError):
            decoded: Manifest | Value = decode(data)
            assert decode(data) == decoded


def check_frame(frame: bytes) -> None:
    """Unpack what may be compressed, with some bound."""
    for most in (0, len(frame), LARGEST):
        with contextlib.suppress(FormatError):
            body = unpack(seal(bytes([FORMAT, ZSTD]) + frame), most)
            assert len(body) <= most
            assert unpack(pack(body), len(body)) == body


def check_projection(data: bytes) -> None:
    """Decode the metadata's projection."""
    with contextlib.suppress(FormatError):
        assert isinstance(decode_projection(data.decode("utf-8", "replace")), dict)


def _check(value: Value) -> None:
    assert type(value.type) is str
    layout = value.layout()
    if layout is None:
        assert type(value.content) is bytes
        return
    assert len(layout.checksum) == CHECKSUM_SIZE
    assert 1 <= len(layout.parts) <= MAX_PARTS
    assert 0 <= layout.size <= MAX_SIZE
    for part in layout.parts:
        if isinstance(part, Slice):
            assert all(type(number) is int for number in part)
            assert 0 <= part.stream <= MAX_STREAM
            assert 0 <= part.start < part.stop <= MAX_STREAM
        else:
            assert type(part) is bytes


def check_layout(program: bytes) -> None:
    """Put a value together, and lay others out that share its bytes; see `layout_of`."""
    layout, rows, expected = layout_of(program)
    if layout.size > LARGEST:
        return
    segments = Segments(rows)
    try:
        data, hashed = segments.join(layout)
    except FormatError:
        assert expected is None
        return
    assert data == expected
    assert all(segments.covers(one) for one in layout.slices())
    source = Whole(data, hashed), layout
    for other in (data + program, data[: len(data) // 2] + program, program + data, data + b"."):
        if not other:  # which no writer lays out
            continue
        stream = Stream()
        whole, found = lay_out(other, [source], stream)
        joined, _ = Segments([*rows, *stream.segments()]).join(found)
        assert joined == whole.data == other
        assert len(found.parts) <= MANY + 1


def layout_of(program: bytes) -> tuple[Layout, list[Segment], bytes | None]:
    """A layout, rows whose seals are right, and the bytes that these make; `None` for damage.

    Each step makes a row of so many bytes somewhere in one of two streams, names a slice of one, or
    adds literal bytes. The first byte says what is wrong, if anything: the checksum, or a row.
    """
    wrong, *rest = program or b"\0"
    steps = [rest[i : i + 4] for i in range(0, len(rest) - 3, 4)]
    rows: list[Segment] = []
    parts: list[Part] = []
    for kind, start, count, more in steps:
        stream, at = kind >> 4 & 1, start * 16
        size = count * 16 + more % 16 + 1
        if kind % 3 == 0:
            rows.append(Segment(stream, at, at + size, pack(_bytes(stream, at, at + size))))
        elif kind % 3 == 1:
            parts.append(Slice(stream, at + more % 16, at + more % 16 + size))
        else:
            parts.append(bytes([more]) * count)
    parts = parts or [b"."]
    there = bytearray(len(STREAMS[0])), bytearray(len(STREAMS[1]))
    for row in rows:
        there[row.stream][row.start : row.stop] = b"x" * (row.stop - row.start)
    needed = [part for part in parts if isinstance(part, Slice)]
    whole = b"".join(part if isinstance(part, bytes) else _bytes(*part) for part in parts)
    layout = Layout(hash_of(whole).checksum(whole[:HEAD_SIZE]), tuple(parts))
    if wrong == 1:
        return Layout(bytes(CHECKSUM_SIZE), layout.parts), rows, None
    if wrong in {2, 3, 4} and needed:
        # All rows, because another might hold the same bytes.
        return layout, [_damaged(row, wrong) for row in rows], None
    is_there = all(b"\0" not in there[one.stream][one.start : one.stop] for one in needed)
    return layout, rows, whole if is_there else None


def _bytes(stream: int, start: int, stop: int) -> bytes:
    return STREAMS[stream][start:stop]


def _damaged(row: Segment, how: int) -> Segment:
    """A row that holds a byte more or less than it says, or bytes of another place."""
    places = {2: (0, 1), 3: (0, -1), 4: (1, 1)}
    first, last = places[how]
    data = _bytes(row.stream, row.start + first, row.stop + last)
    return Segment(row.stream, row.start, row.stop, pack(data))


CHECKS: list[Callable[[bytes], None]] = [
    check_packed_manifest,
    check_manifest,
    check_value,
    check_bytes,
    check_projection,
    check_layout,
    check_frame,
]


def check(data: bytes) -> None:
    """Feed one of the checks, which the first byte chooses."""
    if data:
        CHECKS[data[0] % len(CHECKS)](data[1:])


def seeds() -> list[bytes]:
    """Inputs from which a fuzzer gets further than from nothing."""
    layout = Layout(bytes(CHECKSUM_SIZE), (bytes(HEAD_SIZE), Slice(1 << 40, 0, 1_000)))
    values = [Value("msgpack", b"\x80"), Value("msgpack", layout)]
    whole = encode_manifest(Manifest(4, values[0], values[1], {"a": values[1], "b": values[0]}))
    packed = [
        unpack(whole, LARGEST),
        whole[8:],
        unpack(encode_value(values[1]), LARGEST),
        whole,
        b'{"a": [1]}',
        bytes([0, *(0, 0, 63, 15), *(2, 0, 16, 66), *(1, 1, 50, 3), *(1, 0, 19, 5)]),
        pack(b"a frame " * 50)[10:],
    ]
    return [bytes([i]) + data for i, data in enumerate(packed)]


def main() -> None:
    """Run the fuzzer with the options of the command line."""
    atheris: Any = import_module("atheris")  # the checks do without
    for i, seed in enumerate(seeds()):
        (Path(sys.argv[-1]) / f"seed-{i}").write_bytes(seed)
    for module in (manifest, sealing, sharing, slices):
        for function in vars(module).values():
            if isinstance(function, FunctionType):
                atheris.instrument_func(function)
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
