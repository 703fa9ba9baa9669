"""Manifests and values: encoded, decoded, and never decoded into something else."""

import math
from collections.abc import Callable
from typing import Any

import ormsgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpointer.chunking import DIGEST_SIZE, HEAD_SIZE, MAX_DEPTH, MAX_SIZE, Tree
from checkpointer.manifest import (
    FORMAT,
    SEAL_SIZE,
    FormatError,
    Manifest,
    Value,
    decode_manifest,
    decode_value,
    encode_manifest,
    encode_value,
    seal,
    unseal,
)

text = st.text(st.characters(codec="utf-8"), max_size=10)
trees = st.builds(
    Tree,
    st.binary(min_size=HEAD_SIZE, max_size=HEAD_SIZE),
    st.integers(HEAD_SIZE, MAX_SIZE),
    st.integers(0, MAX_DEPTH),
    st.integers(0, 16).flatmap(
        lambda n: st.binary(min_size=n * DIGEST_SIZE, max_size=n * DIGEST_SIZE)
    ),
)
values = st.builds(Value, text, st.binary(max_size=40) | trees)
manifests = st.builds(
    Manifest, st.integers(0, 9), values, values, st.dictionaries(text, values, max_size=4)
)


@given(manifests)
def test_a_manifest_comes_back(manifest: Manifest) -> None:
    assert decode_manifest(encode_manifest(manifest)) == manifest


@given(values)
def test_a_value_comes_back(value: Value) -> None:
    assert decode_value(encode_value(value)) == value


@given(manifests)
def test_a_manifest_names_the_trees_of_all_its_values(manifest: Manifest) -> None:
    stored = [manifest.checkpoint, manifest.metadata, *manifest.channels.values()]
    assert list(manifest.values()) == stored
    assert list(manifest.trees()) == [v.content for v in stored if isinstance(v.content, Tree)]


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
tagged = st.tuples(text, st.binary(max_size=20) | plain)


@pytest.mark.parametrize("decode", DECODERS.values(), ids=DECODERS)
@given(
    body=st.one_of(
        plain,
        st.binary(max_size=50).map(lambda data: ormsgpack.Ext(1, data)),
        st.tuples(plain, tagged, tagged, st.dictionaries(text, tagged, max_size=3) | plain),
        st.tuples(text, st.tuples(plain, plain, plain, plain)),
    )
)
def test_sealed_nonsense_is_refused_or_is_a_whole_value(
    decode: Callable[[bytes], object], body: Any
) -> None:
    prefix = bytes([FORMAT]) if decode is decode_manifest else b""
    sealed = seal(prefix + ormsgpack.packb(body))
    try:
        decoded = decode(sealed)
    except FormatError:
        return
    assert isinstance(decoded, Manifest | Value)
    stored = list(decoded.values()) if isinstance(decoded, Manifest) else [decoded]
    for value in stored:
        assert type(value.type) is str
        assert isinstance(value.content, bytes | Tree)
        if isinstance(value.content, Tree):
            assert type(value.content.size) is type(value.content.depth) is int
    encoded = encode_manifest(decoded) if isinstance(decoded, Manifest) else encode_value(stored[0])
    assert decode(encoded) == decoded


HEAD, DIGEST = bytes(HEAD_SIZE), bytes(DIGEST_SIZE)
IMPOSSIBLE: dict[str, list[Any]] = {
    "a short head": [100, 0, HEAD[1:], DIGEST],
    "half a digest": [100, 0, HEAD, DIGEST[1:]],
    "no head": [100, 0, None, DIGEST],
    "no digests": [100, 0, HEAD, None],
    "text for digests": [100, 0, HEAD, "x" * DIGEST_SIZE],
    "a negative depth": [100, -1, HEAD, DIGEST],
    "too deep": [100, MAX_DEPTH + 1, HEAD, DIGEST],
    "half a level": [100, 0.5, HEAD, DIGEST],
    "a truth for a depth": [100, True, HEAD, DIGEST],
    "a size above all": [MAX_SIZE + 1, 0, HEAD, DIGEST],
    "a size below the head's": [HEAD_SIZE - 1, 0, HEAD, DIGEST],
    "a size that is no integer": [100.5, 0, HEAD, DIGEST],
    "a size that is no number": [math.nan, 0, HEAD, DIGEST],
    "no size": [None, 0, HEAD, DIGEST],
    "one part more": [100, 0, HEAD, DIGEST, 1],
    "nothing": [],
}


@pytest.mark.parametrize("tree", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_impossible_tree_is_refused(tree: list[Any]) -> None:
    with pytest.raises(FormatError):
        decode_value(seal(ormsgpack.packb(["msgpack", tree])))
    body = [4, ["msgpack", b""], ["msgpack", b""], {"a": ["msgpack", tree]}]
    with pytest.raises(FormatError):
        decode_manifest(seal(bytes([FORMAT]) + ormsgpack.packb(body)))


@pytest.mark.parametrize("version", [None, "four", [], 1.5, math.inf, math.nan])
def test_an_impossible_version_is_refused(version: Any) -> None:
    body = [version, ["msgpack", b""], ["msgpack", b""], {}]
    with pytest.raises(FormatError):
        decode_manifest(seal(bytes([FORMAT]) + ormsgpack.packb(body)))


@pytest.mark.parametrize("number", [0, FORMAT + 1, 255])
def test_an_unknown_format_is_named(number: int) -> None:
    body = encode_manifest(Manifest(4, Value("a", b""), Value("b", b""), {}))[SEAL_SIZE + 1 :]
    with pytest.raises(FormatError, match=f"format {number:02x}, expected {FORMAT:02x}"):
        decode_manifest(seal(bytes([number]) + body))


@given(st.binary(max_size=100))
def test_what_is_sealed_is_unsealed(body: bytes) -> None:
    assert len(seal(body)) == len(body) + SEAL_SIZE
    assert unseal(seal(body)) == body
