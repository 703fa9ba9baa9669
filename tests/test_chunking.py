"""Chunks and trees: what is cut is joined again, and an edit changes little."""

from hashlib import blake2b
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpointer.chunking import (
    DIGEST_SIZE,
    HEAD_SIZE,
    MAX_CHUNK,
    MAX_DEPTH,
    MAX_NODE,
    MAX_ROOT,
    MIN_CHUNK,
    ChunkError,
    Tree,
    digest_of,
    join,
    split,
    split_digests,
)


def stream(seed: str, size: int) -> bytes:
    """Bytes that are the same everywhere and for ever."""
    blocks = (
        blake2b(n.to_bytes(8, "big"), key=seed.encode()).digest() for n in range(size // 64 + 1)
    )
    return b"".join(blocks)[:size]


def stored(chunks: dict[bytes, bytes]) -> dict[bytes, bytes]:
    return {digest: bytes(data) for digest, data in chunks.items()}


def leaves(tree: Tree, chunks: dict[bytes, bytes]) -> list[bytes]:
    """The digests of the chunks of the bytes themselves."""
    digests = split_digests(tree.digests)
    for _ in range(tree.depth):
        digests = [digest for node in digests for digest in split_digests(chunks[node])]
    return digests


sizes = st.one_of(
    st.integers(HEAD_SIZE + 1, 4_000),
    st.sampled_from([HEAD_SIZE + MIN_CHUNK, HEAD_SIZE + MAX_CHUNK, 100_000, 1_000_000]),
)
texts = st.one_of(
    st.builds(stream, st.text("abc", min_size=1, max_size=3), sizes),
    st.builds(lambda byte, size: bytes([byte]) * size, st.integers(0, 255), sizes),
    st.binary(min_size=HEAD_SIZE + 1, max_size=2_000),
    st.builds(lambda unit, times: unit * times, st.binary(min_size=17, max_size=90), sizes),
)


@given(texts)
def test_what_is_split_is_joined_again(data: bytes) -> None:
    tree, chunks = split(data)
    assert tree.head == data[:HEAD_SIZE]
    assert tree.size == len(data)
    assert tree.depth <= MAX_DEPTH
    assert len(split_digests(tree.digests)) <= MAX_ROOT
    assert {digest_of(chunk): chunk for chunk in chunks.values()} == chunks
    assert join(tree, stored(chunks)) == data


@given(texts)
def test_chunks_and_nodes_keep_their_limits(data: bytes) -> None:
    tree, chunks = split(data)
    ends = leaves(tree, stored(chunks))
    for digest in ends[:-1]:
        assert MIN_CHUNK <= len(chunks[digest]) <= MAX_CHUNK
    assert 1 <= len(chunks[ends[-1]]) <= MAX_CHUNK
    for digest in chunks.keys() - set(ends):
        assert len(split_digests(bytes(chunks[digest]))) <= MAX_NODE


@given(texts)
def test_the_same_bytes_are_cut_the_same(data: bytes) -> None:
    tree, chunks = split(data)
    assert split(bytes(bytearray(data))) == (tree, chunks)


@pytest.mark.parametrize("size", [HEAD_SIZE + 1, 1_000, 30_000])
def test_a_small_value_has_no_nodes_and_a_larger_one_few(size: int) -> None:
    tree, chunks = split(stream("small", size))
    assert tree.depth <= 1
    assert len(chunks) <= 2 * size // MIN_CHUNK + 1


@pytest.mark.parametrize(
    ("size", "depths"), [(10_000, {0}), (100_000, {1}), (1_000_000, {2}), (30_000_000, {3, 4})]
)
def test_a_root_stays_small_however_long_the_value(size: int, depths: set[int]) -> None:
    tree, chunks = split(stream("deep", size))
    assert tree.depth in depths
    assert len(tree.digests) <= MAX_ROOT * DIGEST_SIZE
    assert join(tree, stored(chunks)) == stream("deep", size)


def test_each_level_is_at_most_half_as_long_as_the_one_below() -> None:
    """So that a tree ends, whatever its chunks are called: here all of one value are the same."""
    for number in range(256):
        tree, chunks = split(bytes([number]) * 200_000)
        level = split_digests(tree.digests)
        lengths = [len(level)]
        for _ in range(tree.depth):
            level = [digest for node in level for digest in split_digests(bytes(chunks[node]))]
            lengths.append(len(level))
        assert all(above <= (below + 1) // 2 for above, below in pairwise(lengths)), lengths


edits = st.tuples(st.integers(0, 299_999), st.binary(max_size=40), st.integers(0, 40))


@given(edits)
def test_an_edit_changes_few_chunks(edit: tuple[int, bytes, int]) -> None:
    position, inserted, removed = edit
    data = stream("edit", 300_000)
    before = split(data)[1]
    edited = data[:position] + inserted + data[position + removed :]
    after = split(edited)[1]
    new = sum(len(after[digest]) for digest in after.keys() - before.keys())
    assert new <= 40_000  # a few chunks, and the nodes above them


@given(st.integers(1, 5_000))
def test_an_append_changes_few_chunks(size: int) -> None:
    data = stream("append", 305_000)
    before = split(data[:300_000])[1]
    after = split(data[: 300_000 + size])[1]
    new = sum(len(after[digest]) for digest in after.keys() - before.keys())
    assert new <= size + 20_000


def test_the_length_at_the_front_of_a_list_changes_no_chunk() -> None:
    body = stream("list", 50_000)
    chunks = [split(length.to_bytes(5, "big") + bytes(HEAD_SIZE) + body)[1] for length in (7, 8)]
    assert chunks[0] == chunks[1]


def test_a_conversation_takes_the_bytes_of_its_end() -> None:
    messages = b""
    kept: dict[bytes, bytes] = {}
    for number in range(300):
        messages += stream(f"message {number}", 1_000)
        kept |= stored(split(messages)[1])
    total = sum(map(len, kept.values()))
    assert total <= 12 * len(messages)  # rewriting the whole each time takes 150 times as much


@given(texts, st.data())
def test_a_missing_chunk_is_named(data: bytes, chosen: st.DataObject) -> None:
    tree, chunks = split(data)
    missing = chosen.draw(st.sampled_from(sorted(chunks)))
    left = {digest: chunk for digest, chunk in stored(chunks).items() if digest != missing}
    with pytest.raises(ChunkError, match=missing.hex()) as caught:
        join(tree, left)
    assert caught.value.digest == missing


@given(texts, st.integers(-3, 3).filter(bool))
def test_chunks_that_do_not_add_up_are_refused(data: bytes, difference: int) -> None:
    tree, chunks = split(data)
    other = Tree(tree.head, tree.size + difference, tree.depth, tree.digests)
    with pytest.raises(ChunkError, match=rf"{tree.size} bytes, expected {other.size}"):
        join(other, stored(chunks))


@given(st.binary(max_size=200))
def test_a_list_of_digests_has_whole_digests(data: bytes) -> None:
    if len(data) % DIGEST_SIZE:
        with pytest.raises(ChunkError, match=f"{len(data)} bytes"):
            split_digests(data)
    else:
        assert b"".join(split_digests(data)) == data
