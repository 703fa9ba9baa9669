"""What no caller should pass: text that means something to SQL, and objects that misbehave."""

import struct
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

from hypothesis import strategies as st


class Huge(int):
    """An int whose text Python refuses to make, except for reports of failures."""

    def __str__(self) -> str:
        return int.__repr__(self)

    def __repr__(self) -> str:
        return "a huge int"


HUGE = Huge(10**5000)


class Raising:
    """An object that has no text, no equal, no length, no hash and no truth."""

    def _raise(self, *_: object) -> Any:
        raise RuntimeError("this object does not answer")

    __str__ = __eq__ = __bool__ = __len__ = __hash__ = _raise


class Lying:
    """An object whose text is none."""

    def __str__(self) -> str:
        return cast("str", 7)


class Shouting(str):
    """Text whose own text says something else."""

    __slots__ = ()

    def __str__(self) -> str:
        return self.upper()


CYCLE: list[Any] = []
CYCLE.append(CYCLE)
DEEP: list[Any] = []
for _ in range(400):
    DEEP = [DEEP]

FRAGMENTS = [
    "",
    " ",
    "'",
    "''",
    '"',
    "\\",
    "%",
    "%s",
    "%(a)s",
    ":thread_id",
    "$1",
    "?",
    "'; DROP TABLE checkpointer_threads; --",
    "' OR 1 = 1 --",
    "/*",
    "{}",
    "null",
    "NULL",
    "|",
    "a:b|c:d",
    "__error__",
    "__pregel_tasks",
    "\0",
    "a\0b",
    "\ud800",
    "a\udc80b",
    "\ue000",
    "\ufeff",
    "\u202e",
    "e\u0301",
    "\N{LATIN SMALL LETTER E WITH ACUTE}",
    "\U0001f600",
    "\n\r\t\x7f\x85\u2028",
]

texts = st.one_of(
    st.sampled_from(FRAGMENTS),
    st.text(st.characters(exclude_categories=()), max_size=10),
    st.lists(st.sampled_from(FRAGMENTS), min_size=2, max_size=4).map("".join),
)
"""Any text, lone surrogates included, and often what is no harmless one."""

numbers = st.one_of(st.integers(-(2**63), 2**64 - 1), st.floats(), st.booleans(), st.uuids())
"""What is no text, and has one of its own."""

MISFITS: dict[str, Any] = {
    "a huge int": HUGE,
    "bytes": b"bytes",
    "a bytearray": bytearray(b"bytes"),
    "a memoryview": memoryview(b"bytes"),
    "an empty list": [],
    "a list": ["a"],
    "a tuple": (),
    "an empty dict": {},
    "a dict": {"a": 1},
    "a set": set(),
    "an object": object(),
    "a class": object,
    "a function": len,
    "a cycle": CYCLE,
    "many levels": DEEP,
    "an object that raises": Raising(),
    "its class": Raising,
    "an object that lies": Lying(),
}
"""What has no text of its own."""

# By name, because some have no hash, which Hypothesis would ask for.
misfits = st.sampled_from(sorted(MISFITS)).map(lambda name: MISFITS[name])

_leaves = st.one_of(
    st.none(),
    texts,
    numbers,
    misfits,
    st.builds(Shouting, st.sampled_from(FRAGMENTS)),
    st.sampled_from([Decimal("1.10"), UUID(int=0), "x" * 3000, "\N{SNOWMAN}" * 1000]),
)

names = st.one_of(st.text("abc", max_size=2), texts, st.integers(0, 2), st.none(), st.binary())
"""Keys of dicts."""


def _grow(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)


junk = st.recursive(_leaves, _grow, max_leaves=5)
"""Anything at all."""


def mostly(usual: st.SearchStrategy[Any], other: st.SearchStrategy[Any] = junk) -> Any:
    """The usual, and one time in 15 something else: so that not all is refused at once."""
    return st.integers(0, 14).flatmap(lambda n: other if n == 14 else usual)


def like(**parts: st.SearchStrategy[Any]) -> Any:
    """A dict with these parts; rarely junk in place of one of them, or of all."""
    return mostly(st.fixed_dictionaries({name: mostly(part) for name, part in parts.items()}))


words = st.text("ab '%:", min_size=1, max_size=3)
identifiers = mostly(words, st.one_of(texts, numbers, junk))
channels = mostly(words, texts | names)
plain = st.recursive(st.none() | texts | numbers | st.binary(max_size=300), _grow, max_leaves=4)
values = st.dictionaries(channels, mostly(plain), max_size=3)
versions = st.dictionaries(channels, mostly(words), max_size=3)
configs = like(
    configurable=like(
        thread_id=identifiers,
        checkpoint_ns=identifiers,
        checkpoint_id=identifiers,
        user=mostly(texts),
        __private=junk,
    ),
    metadata=st.dictionaries(names, mostly(plain), max_size=2),
)
checkpoints = like(
    v=st.integers(1, 4),
    id=identifiers,
    ts=texts,
    channel_values=values,
    channel_versions=versions,
    versions_seen=st.dictionaries(words, versions, max_size=2),
    updated_channels=st.none(),
)
metadata = mostly(st.dictionaries(names, mostly(plain), max_size=3))
runs = mostly(st.just({}), st.builds(lambda run: {"run_id": run}, identifiers))
writes = mostly(st.lists(mostly(st.tuples(channels, mostly(plain))), max_size=3))


def deep_objects(levels: int, code: int = 1) -> bytes:
    """MessagePack of lists in lists in an object in lists in lists in an object, and so on."""
    packed = b"\xc0"
    for _ in range(levels):
        packed = b"\x91" * 900 + b"\xc9" + struct.pack(">IB", len(packed), code) + packed
    return packed
