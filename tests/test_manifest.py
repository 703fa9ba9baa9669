"""Manifests and values: encoded, decoded, and never decoded into something else."""

import math
from collections.abc import Callable
from typing import Any

import ormsgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpointer import manifest as manifests_module
from checkpointer.manifest import (
    Manifest,
    Value,
    decode_manifest,
    decode_value,
    encode_manifest,
    encode_value,
)
from checkpointer.sealing import FORMAT, RAW, SEAL_SIZE, FormatError, TooNewError, pack, seal
from checkpointer.slices import (
    CHECKSUM_SIZE,
    MAX_PARTS,
    MAX_SIZE,
    MAX_STREAM,
    Layout,
    Slice,
    unpack_layout,
)

text = st.text(st.characters(codec="utf-8"), max_size=10)
slices = st.builds(
    lambda stream, start, size: Slice(stream, start, start + size),
    st.integers(0, MAX_STREAM),
    st.integers(0, MAX_STREAM - MAX_SIZE),
    st.integers(1, MAX_SIZE // 8),
)
layouts = st.builds(
    Layout,
    st.binary(min_size=CHECKSUM_SIZE, max_size=CHECKSUM_SIZE),
    st.lists(slices | st.binary(max_size=40), min_size=1, max_size=7).map(tuple),
)
values = st.builds(Value, text, st.binary(max_size=40) | layouts)
manifests = st.builds(
    Manifest, st.integers(0, 9), values, values, st.dictionaries(text, values, max_size=4)
)


def sealed(body: Any) -> bytes:
    """What a writer could store that sends anything."""
    return seal(bytes([FORMAT, RAW]) + ormsgpack.packb(body))


@given(manifests)
def test_a_manifest_comes_back(manifest: Manifest) -> None:
    assert decode_manifest(encode_manifest(manifest)) == manifest


@given(values)
def test_a_value_comes_back(value: Value) -> None:
    assert decode_value(encode_value(value)) == value


@given(manifests)
def test_a_manifest_names_the_layouts_of_all_its_values(manifest: Manifest) -> None:
    stored = [manifest.checkpoint, manifest.metadata, *manifest.channels.values()]
    assert list(manifest.values()) == stored
    assert manifest.layouts() == [v.content for v in stored if isinstance(v.content, Layout)]
    assert [v.layout() for v in stored if v.layout() is not None] == manifest.layouts()


def test_a_manifest_of_many_channels_is_compressed() -> None:
    channels = {f"channel {n}": Value("msgpack", b"the same value in each") for n in range(500)}
    manifest = Manifest(4, Value("msgpack", b""), Value("msgpack", b""), channels)
    encoded = encode_manifest(manifest)
    assert len(encoded) < 6_000
    assert decode_manifest(encoded) == manifest


DECODERS: dict[str, Callable[[bytes], object]] = {
    "manifest": decode_manifest,
    "value": decode_value,
}


@pytest.mark.parametrize("decode", DECODERS.values(), ids=DECODERS)
@given(data=st.data())
def test_bytes_that_were_cut_or_altered_are_refused(
    data: st.DataObject, decode: Callable[[bytes], object]
) -> None:
    stored = (
        encode_manifest(data.draw(manifests))
        if decode is decode_manifest
        else encode_value(data.draw(values))
    )
    bit = data.draw(st.integers(0, 8 * len(stored) - 1))
    flipped = bytearray(stored)
    flipped[bit // 8] ^= 1 << bit % 8
    for damaged in (
        bytes(flipped),
        stored[: bit // 8],
        stored[bit // 8 + 1 :],
        stored + b"\0",
        stored + stored,
    ):
        with pytest.raises(FormatError, match="checksum"):
            decode(damaged)


@pytest.mark.parametrize("decode", DECODERS.values(), ids=DECODERS)
@given(damaged=st.binary(max_size=300))
def test_any_other_bytes_are_refused(decode: Callable[[bytes], object], damaged: bytes) -> None:
    with pytest.raises(FormatError):
        decode(damaged)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | text | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=3),
    max_leaves=12,
)
checksums = st.just(bytes(CHECKSUM_SIZE)) | plain
nearly_slices = st.lists(st.integers(-1, 20) | plain, min_size=2, max_size=4)
nearly_layouts = st.tuples(checksums, st.lists(nearly_slices | st.binary(max_size=9), max_size=4))
tagged = st.tuples(text, st.binary(max_size=20) | nearly_layouts | plain)


@pytest.mark.parametrize("decode", DECODERS.values(), ids=DECODERS)
@given(
    body=st.one_of(
        plain,
        st.binary(max_size=50).map(lambda data: ormsgpack.Ext(1, data)),
        st.tuples(plain, tagged, tagged, st.dictionaries(text, tagged, max_size=3) | plain),
        st.tuples(st.just(4), tagged, tagged, st.dictionaries(text, tagged, max_size=3)),
        tagged,
    )
)
def test_sealed_nonsense_is_refused_or_is_a_whole_value(
    decode: Callable[[bytes], object], body: Any
) -> None:
    for stored in (sealed(body), pack(ormsgpack.packb(body))):
        try:
            decoded = decode(stored)
        except TooNewError:
            raise
        except FormatError:
            continue
        assert isinstance(decoded, Manifest | Value)
        found = list(decoded.values()) if isinstance(decoded, Manifest) else [decoded]
        for value in found:
            assert type(value.type) is str
            assert isinstance(value.content, bytes | Layout)
            if isinstance(value.content, Layout):
                assert type(value.content.checksum) is bytes
                for one in value.content.slices():
                    assert all(type(number) is int for number in one)
        encoded = (
            encode_manifest(decoded) if isinstance(decoded, Manifest) else encode_value(found[0])
        )
        assert decode(encoded) == decoded


CHECKSUM = bytes(CHECKSUM_SIZE)
IMPOSSIBLE: dict[str, Any] = {
    "a short checksum": [CHECKSUM[1:], [b"x"]],
    "no checksum": [None, [b"x"]],
    "no parts": [CHECKSUM, []],
    "nothing for parts": [CHECKSUM, None],
    "text for parts": [CHECKSUM, "x"],
    "too many parts": [CHECKSUM, [b""] * (MAX_PARTS + 1)],
    "a negative start": [CHECKSUM, [[1, -1, 1]]],
    "a slice of nothing": [CHECKSUM, [[1, 5, 5]]],
    "a stream above all": [CHECKSUM, [[MAX_STREAM + 1, 0, 1]]],
    "half a byte": [CHECKSUM, [[1, 0, 0.5]]],
    "a truth for a place": [CHECKSUM, [[1, 0, True]]],
    "a stop that is no number": [CHECKSUM, [[1, 0, math.nan]]],
    "no stop": [CHECKSUM, [[1, 0]]],
    "a size above all": [CHECKSUM, [[1, 0, MAX_SIZE], [1, 0, 1]]],
    "one part more": [CHECKSUM, [b"x"], 1],
    "nothing": [],
    "no value": None,
    "a number": 7,
    "a text": "text",
}


@pytest.mark.parametrize("layout", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_impossible_layout_is_refused(layout: Any) -> None:
    with pytest.raises(FormatError):
        decode_value(sealed(["msgpack", layout]))
    for body in (
        [4, ["msgpack", b""], ["msgpack", b""], {"a": ["msgpack", layout]}],
        [4, ["msgpack", layout], ["msgpack", b""], {}],
        [4, ["msgpack", b""], ["msgpack", layout], {}],
    ):
        with pytest.raises(FormatError):
            decode_manifest(sealed(body))


@pytest.mark.parametrize("version", [None, "four", [], 1.5, 4.0, -1, True, math.inf, math.nan])
def test_an_impossible_version_is_refused(version: Any) -> None:
    body = [version, ["msgpack", b""], ["msgpack", b""], {}]
    with pytest.raises(FormatError):
        decode_manifest(sealed(body))


@pytest.mark.parametrize("tag", [None, b"msgpack", 7, ["msgpack"]])
def test_a_type_tag_that_is_no_text_is_refused(tag: Any) -> None:
    with pytest.raises(FormatError, match="as a type tag"):
        decode_value(sealed([tag, b""]))
    with pytest.raises(FormatError, match="as a type tag"):
        decode_manifest(sealed([4, ["msgpack", b""], [tag, b""], {}]))


@pytest.mark.parametrize("number", [FORMAT + 1, 255])
@pytest.mark.parametrize("decode", DECODERS.values(), ids=DECODERS)
def test_an_unknown_format_is_named(decode: Callable[[bytes], object], number: int) -> None:
    manifest = encode_manifest(Manifest(4, Value("a", b""), Value("b", b""), {}))
    for stored in (manifest, encode_value(Value("a", b""))):
        with pytest.raises(TooNewError, match=f"found format {number} .* expected format {FORMAT}"):
            decode(seal(bytes([number]) + stored[SEAL_SIZE + 1 :]))


@pytest.mark.parametrize("decode", DECODERS.values(), ids=DECODERS)
def test_more_bytes_than_a_value_may_have_are_not_unpacked(
    monkeypatch: pytest.MonkeyPatch, decode: Callable[[bytes], object]
) -> None:
    """At a limit that is lower here: at the real one, it takes as much memory as is allowed."""
    monkeypatch.setattr(manifests_module, "MAX_BODY", 10_000)
    value = Value("msgpack", bytes(9_000))
    encoded = encode_manifest(Manifest(4, value, Value("", b""), {})), encode_value(value)
    assert decode(encoded[decode is decode_value])
    value = Value("msgpack", bytes(10_000))
    encoded = encode_manifest(Manifest(4, value, Value("", b""), {})), encode_value(value)
    assert max(map(len, encoded)) < 200
    with pytest.raises(FormatError, match="expected at most 10000"):
        decode(encoded[decode is decode_value])


def test_a_layout_that_is_read_says_what_it_was_read_from() -> None:
    layout = unpack_layout([CHECKSUM, [b"head", [1, 2, 3], b"", [1, 2, 5]]])
    assert layout == Layout(CHECKSUM, (b"head", Slice(1, 2, 3), b"", Slice(1, 2, 5)))
    assert layout.size == 8
    assert list(layout.slices()) == [(1, 2, 3), (1, 2, 5)]
