"""The envelope of stored bytes: what is packed comes back, and all else is refused in time."""

import random
import sys
import tracemalloc
from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpointer.sealing import (
    FORMAT,
    LEAST,
    LEVEL,
    MAX_WINDOW_LOG,
    RAW,
    SEAL_SIZE,
    ZSTD,
    FormatError,
    TooNewError,
    pack,
    seal,
    unpack,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MOST = 1 << 20
NOISE = random.Random(7).randbytes(MOST)  # noqa: S311 - a test's data, not a secret
WORDS = b"what is packed comes back, " * 40
WHOLE = zstd.compress(WORDS)
HEAD = SEAL_SIZE + 2

Parameter = zstd.CompressionParameter


def framed(frame: bytes) -> bytes:
    """A frame in an envelope whose checksum is right."""
    return seal(bytes([FORMAT, ZSTD]) + frame)


def header(window_log: int, size: int) -> bytes:
    """The beginning of a frame of so many bytes, whose window is not its content."""
    magic = (0xFD2FB528).to_bytes(4, "little")
    return magic + bytes([0b1000_0000, (window_log - 10) << 3]) + size.to_bytes(4, "little")


def run(size: int, *, last: bool = True) -> bytes:
    """A block of a frame: the same byte so many times."""
    return (size << 3 | 0b010 | last).to_bytes(3, "little") + b"x"


bodies = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda unit, times: unit * times, st.binary(max_size=40), st.integers(0, 2_000)),
    st.builds(lambda size: NOISE[:size], st.integers(0, 20_000)),
)


@given(bodies)
def test_what_is_packed_comes_back(body: bytes) -> None:
    packed = pack(body)
    assert unpack(packed, len(body)) == body
    assert len(packed) <= len(body) + HEAD
    assert packed[:SEAL_SIZE] == blake2b(packed[SEAL_SIZE:], digest_size=SEAL_SIZE).digest()
    assert packed[SEAL_SIZE] == FORMAT


@pytest.mark.parametrize("size", [0, 1, LEAST - 1, LEAST, 131_071, 131_072, 131_073, 262_144, MOST])
@pytest.mark.parametrize("level", [-5, 1, LEVEL, 19, 22])
def test_bytes_of_any_length_come_back_from_any_level(size: int, level: int) -> None:
    for body in (NOISE[:size], bytes(size), (WORDS * (size // len(WORDS) + 1))[:size]):
        assert unpack(pack(body, level=level), size) == body


def test_what_no_compression_makes_shorter_stays_as_it_is() -> None:
    for body in (NOISE[:5_000], b"", b"a" * (LEAST - 1)):
        assert pack(body) == seal(bytes([FORMAT, RAW]) + body)
    packed = pack(b"a" * LEAST)
    assert packed[SEAL_SIZE + 1] == ZSTD
    assert len(packed) < LEAST


@given(bodies, st.data())
def test_bytes_that_were_cut_or_altered_are_refused(body: bytes, chosen: st.DataObject) -> None:
    packed = pack(body)
    bit = chosen.draw(st.integers(0, 8 * len(packed) - 1))
    flipped = bytearray(packed)
    flipped[bit // 8] ^= 1 << bit % 8
    for damaged in (
        bytes(flipped),
        packed[: bit // 8],
        packed[bit // 8 + 1 :],
        packed + b"\0",
        packed + packed,
    ):
        with pytest.raises(FormatError, match="checksum") as caught:
            unpack(damaged, MOST)
        assert not isinstance(caught.value, TooNewError)


@pytest.mark.parametrize("body", [b"", b"short", WORDS], ids=["empty", "raw", "compressed"])
def test_every_single_bit_counts(body: bytes) -> None:
    packed = pack(body)
    for bit in range(8 * len(packed)):
        flipped = bytearray(packed)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError, match="checksum"):
            unpack(bytes(flipped), MOST)


@pytest.mark.parametrize("size", range(21))
def test_the_shortest_bytes_are_refused_or_whole(size: int) -> None:
    for data in (bytes(size), b"\xff" * size, NOISE[:size]):
        with pytest.raises(FormatError, match=f"found {size} bytes"):
            unpack(data, MOST)
    sealed = seal(bytes([FORMAT, RAW, *range(18)])[:size])
    if size < 2:  # a checksum, and nothing that tells what it is of
        with pytest.raises(FormatError, match="checksum"):
            unpack(sealed, MOST)
    else:
        assert unpack(sealed, MOST) == bytes(range(size - 2))


@pytest.mark.parametrize("data", [None, "text", 7, 1.5, bytearray(20), memoryview(bytes(20))])
def test_what_is_no_bytes_is_refused(data: object) -> None:
    with pytest.raises(FormatError, match="expected bytes"):
        unpack(data, MOST)


UNKNOWN = [
    *((version, codec) for version in (FORMAT + 1, 255) for codec in (RAW, ZSTD, 7)),
    *((FORMAT, codec) for codec in (2, 7, 255)),
]


@pytest.mark.parametrize(("version", "codec"), UNKNOWN)
def test_an_unknown_version_or_codec_is_too_new_only_where_the_checksum_holds(
    version: int, codec: int
) -> None:
    sealed = seal(bytes([version, codec]) + WHOLE)
    with pytest.raises(TooNewError, match=f"format {version} with codec {codec}"):
        unpack(sealed, MOST)
    for damaged in (pack(WORDS)[:SEAL_SIZE] + sealed[SEAL_SIZE:], sealed[:-1]):
        with pytest.raises(FormatError, match="checksum") as caught:
            unpack(damaged, MOST)
        assert not isinstance(caught.value, TooNewError)


def test_a_version_that_never_was_is_damage() -> None:
    with pytest.raises(FormatError, match="format 0") as caught:
        unpack(seal(bytes([0, RAW]) + WHOLE), MOST)
    assert not isinstance(caught.value, TooNewError)


def test_a_frame_may_have_a_checksum_of_its_own() -> None:
    frame = zstd.compress(WORDS, options={Parameter.checksum_flag: 1})
    assert unpack(framed(frame), MOST) == WORDS


DICTIONARY = zstd.ZstdDict(WORDS, is_raw=True)
TRAINED = zstd.train_dict([b"sample %d of many " % n * 20 for n in range(500)], 2_000)
OTHERS: dict[str, tuple[bytes, str]] = {
    "no frame": (b"", "no Zstandard frame"),
    "noise": (NOISE[:500], "no Zstandard frame"),
    "half a header": (WHOLE[:5], "no Zstandard frame"),
    "no size": (zstd.compress(WORDS, options={Parameter.content_size_flag: 0}), "without its size"),
    "a dictionary": (zstd.compress(WORDS, zstd_dict=TRAINED), "with a dictionary"),
    "a dictionary without a name": (zstd.compress(WORDS, zstd_dict=DICTIONARY), "cannot be read"),
    "a byte after it": (WHOLE + b"\0", "in a Zstandard frame of"),
    "a frame after it": (WHOLE + WHOLE, "in a Zstandard frame of"),
    "an empty frame after it": (WHOLE + zstd.compress(b""), "in a Zstandard frame of"),
    "half a frame": (WHOLE[:-1], "in a Zstandard frame of"),
    "a byte less than it says": (header(20, 3_000) + run(2_999), "cannot be read"),
    "a byte more than it says": (header(20, 3_000) + run(3_001), "cannot be read"),
    "blocks that do not end": (header(20, 3_000) + run(3_000, last=False), "frame of 3000"),
}


def test_the_frames_made_here_are_right_where_nothing_is_wrong() -> None:
    assert unpack(framed(header(20, 3_000) + run(3_000)), MOST) == b"x" * 3_000
    parts = run(100_000, last=False) + run(100_000)
    assert unpack(framed(header(MAX_WINDOW_LOG, 200_000) + parts), MOST) == b"x" * 200_000


@pytest.mark.parametrize(("frame", "reason"), OTHERS.values(), ids=OTHERS)
def test_another_frame_is_refused(frame: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason) as caught:
        unpack(framed(frame), MOST)
    assert not isinstance(caught.value, TooNewError)


@given(st.binary(max_size=60), st.integers(0, len(WHOLE)))
def test_any_frame_is_refused_or_as_long_as_it_says(noise: bytes, kept: int) -> None:
    for frame in (WHOLE[:kept] + noise, header(20, 50) + noise, noise):
        try:
            body = unpack(framed(frame), MOST)
        except FormatError:
            continue
        assert len(body) == zstd.get_frame_info(frame).decompressed_size


@pytest.mark.parametrize("log", [MAX_WINDOW_LOG + 1, MAX_WINDOW_LOG + 4, 31])
def test_a_frame_that_looks_back_further_is_refused(log: int) -> None:
    parts = run(100_000, last=False) + run(100_000)
    with pytest.raises(FormatError, match="cannot be read"):
        unpack(framed(header(log, 200_000) + parts), MOST)


@pytest.mark.parametrize("size", [0, 1, 1_000, MOST])
def test_as_many_bytes_as_there_may_be_are_taken_and_one_more_is_not(size: int) -> None:
    for packed in (pack(bytes(size)), seal(bytes([FORMAT, RAW]) + bytes(size))):
        assert unpack(packed, size) == bytes(size)
        if size:
            with pytest.raises(FormatError, match=f"found {size} bytes, expected at most"):
                unpack(packed, size - 1)


def allocated(frame: bytes, most: int) -> int:
    """How many bytes Python holds at once while it refuses a frame."""
    sealed = framed(frame)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            unpack(sealed, most)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_few_bytes_that_claim_much_are_refused_before_anything_is_allocated() -> None:
    large = 200 << 20
    frame = zstd.compress(bytes(large))
    assert len(frame) < 10_000
    assert zstd.get_frame_info(frame).decompressed_size == large
    assert allocated(frame, MOST) < 200_000
    assert allocated(header(20, large) + run(1), 512 << 20) < 500_000  # as much may be, and is not


def test_a_few_bytes_that_hold_more_than_they_claim_take_no_more_memory_than_that() -> None:
    blocks = b"".join(run(131_072, last=False) for _ in range(1_600)) + run(1)
    assert len(blocks) < 10_000
    assert allocated(header(20, MOST) + blocks, MOST) < 2 * MOST
    assert allocated(header(20, 1_000) + blocks, MOST) < 200_000
