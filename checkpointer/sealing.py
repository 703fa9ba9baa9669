"""The envelope of every stored kind of bytes: checksum, version, codec (docs/format.md). Pure.

The checksum finds damage on reading. If an envelope has a higher version or an unknown codec, a
newer version of this package has written it: that is no damage.
"""

import sys
from hashlib import blake2b
from threading import local
from typing import Final

from checkpointer.quoting import quoted

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FORMAT: Final = 1
"""The version of the format that is written."""

SEAL_SIZE: Final = 8
"""Bytes of the checksum in front: BLAKE2b-64."""

RAW: Final = 0
ZSTD: Final = 1
"""The codecs: the bytes as they are, or one Zstandard frame that tells how many bytes it holds."""

LEVEL: Final = 3
"""How hard short bodies are compressed. Levels up to 19 can be read; others look back too far."""

LONG: Final = 64 << 10
LEVEL_OF_LONG: Final = 1
"""The least bytes of a long body, and how hard it is compressed.

This takes half the time. Prose gets 3 percent longer, random letters do not.
"""

LEAST: Final = 128
"""The least bytes of a body that is compressed: a shorter one gains less than a frame costs."""

MAX_WINDOW_LOG: Final = 23
"""A frame may look back 8 MiB at most, so that a few bytes cannot ask for much memory."""

_HEAD: Final = SEAL_SIZE + 2

_own: Final = local()


class FormatError(Exception):
    """Stored bytes are altered, or hold values that are impossible."""


class TooNewError(FormatError):
    """Stored bytes are whole, and of a version or codec that only a newer package knows."""


def pack(body: bytes, *, level: int | None = None) -> bytes:
    """`body` as it is stored, compressed where that makes it shorter."""
    packed, codec = body, RAW
    if len(body) >= LEAST:
        level = level or (LEVEL if len(body) < LONG else LEVEL_OF_LONG)
        frame = _compressor(level).compress(body, zstd.ZstdCompressor.FLUSH_FRAME)
        if len(frame) < len(body):
            packed, codec = frame, ZSTD
    return seal(bytes([FORMAT, codec]) + packed)


def _compressor(level: int) -> zstd.ZstdCompressor:
    """A compressor of this thread alone. Making one takes longer than compressing a short body."""
    made: dict[int, zstd.ZstdCompressor] = vars(_own).setdefault("compressors", {})
    if level not in made:
        made[level] = zstd.ZstdCompressor(level)
    return made[level]


def unpack(data: object, most: int) -> bytes:
    """What was stored as `data`.

    Args:
        data: The stored bytes.
        most: How many bytes there may be. If the stored bytes claim more, nothing is unpacked.

    Raises:
        FormatError: The bytes are altered, or there are more.
        TooNewError: Only a newer version of this package can read them.
    """
    if not isinstance(data, bytes):  # SQLite stores anything in any column
        raise FormatError(f"found {quoted(data)}, expected bytes")
    if len(data) < _HEAD or _checksum(data[SEAL_SIZE:]) != data[:SEAL_SIZE]:
        raise FormatError(f"found {len(data)} bytes that do not match their checksum")
    version, codec = data[SEAL_SIZE], data[SEAL_SIZE + 1]
    if version < FORMAT:
        raise FormatError(f"found format {version}, expected {FORMAT}")
    if version > FORMAT or codec not in {RAW, ZSTD}:
        raise TooNewError(
            f"found format {version} with codec {codec}, expected format {FORMAT}; a newer version "
            f"of langgraph-checkpoint-sqlalchemy has written it: use that one"
        )
    body = data[_HEAD:]
    size = _size_of_frame(body) if codec == ZSTD else len(body)
    if size > most:
        raise FormatError(f"found {size} bytes, expected at most {most}")
    return _decompress(body, size) if codec == ZSTD else body


def seal(body: bytes) -> bytes:
    """`body` with its checksum before it."""
    return _checksum(body) + body


def _checksum(body: bytes) -> bytes:
    return blake2b(body, digest_size=SEAL_SIZE).digest()


def _size_of_frame(frame: bytes) -> int:
    try:
        info = zstd.get_frame_info(frame)
    except zstd.ZstdError as exc:
        raise FormatError(f"found no Zstandard frame: {exc}") from exc
    if info.decompressed_size is None or info.dictionary_id:
        raise FormatError("found a Zstandard frame without its size, or one with a dictionary")
    return info.decompressed_size


def _decompress(frame: bytes, size: int) -> bytes:
    options = {int(zstd.DecompressionParameter.window_log_max): MAX_WINDOW_LOG}
    decompressor = zstd.ZstdDecompressor(options=options)
    try:
        body = decompressor.decompress(frame, max_length=size)
    except zstd.ZstdError as exc:
        raise FormatError(f"found a Zstandard frame that cannot be read: {exc}") from exc
    if len(body) != size or not decompressor.eof or decompressor.unused_data:
        raise FormatError(f"found {len(body)} bytes in a Zstandard frame of {size}")
    return body
