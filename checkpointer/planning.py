"""Which checkpoints of a thread stay, and what these need. Pure functions."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias
from uuid import UUID

Key: TypeAlias = tuple[str, str]
"""A checkpoint within its thread: namespace and id."""

CALL_SEPARATOR: Final = ":"
"""Stands in the namespace of a subgraph's call, before the id of the task that called it."""

ROOT: Final = ""
"""The root graph's namespace."""

_GREGORIAN: Final = datetime(1582, 10, 15, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Node:
    """One checkpoint of a thread, as far as planning needs it.

    Attributes:
        parent: The id of its parent, in the same namespace.
        stored: The channels whose values it holds.
        replayed: The channels that it rebuilds from its ancestors' writes, where it does not hold
            their values.
        root: The id of the root graph's checkpoint that its subgraph call started from.
        sends_parent: Its parent's id, if it takes its pending sends from there.
        made: When it was made, if that is known.
        interrupted: Whether an interrupt was written to it.
        ends_step: Whether a run made it, when all tasks of its parent had ended.
    """

    parent: str | None
    stored: frozenset[str]
    replayed: frozenset[str]
    root: str | None
    sends_parent: str | None = None
    made: datetime | None = None
    interrupted: bool = False
    ends_step: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """Which checkpoints of a thread are wanted. The latest of each namespace always is.

    Attributes:
        keep_last: Those that are among the latest so many of their namespace.
        made_after: Those that were made then or later, or whose age is unknown.
        protected: Those with these ids.
        waiting: Those that wait for the answer to an interrupt, though others may be newer, also
            as their children: an update or an input beside the question does not answer it.
        replayable: For each of the root graph's that is wanted, the one before it in the namespace
            of each subgraph with a memory: a run that starts from there takes that one up.
    """

    keep_last: int = 1
    made_after: datetime | None = None
    protected: frozenset[str] = frozenset()
    waiting: bool = False
    replayable: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What a prune removes from one thread.

    Attributes:
        namespaces: Dropped whole: calls that have finished.
        checkpoints: The ids to delete, by namespace, in order.
    """

    namespaces: frozenset[str] = frozenset()
    checkpoints: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])


def plan(nodes: Mapping[Key, Node], rule: Rule) -> Plan:
    """Keep what the rule wants, and the ancestors that it is read from.

    These are, for each channel that a wanted checkpoint rebuilds, all back to the nearest one that
    holds the channel's value; and the parent that holds its pending sends. The namespaces of
    subgraph calls go with the root checkpoint that they started from, once that one is saved and
    not kept, but for protected checkpoints.
    """
    lines = _lines(nodes)
    wanted = {ns: _wanted(nodes, ns, line, rule) for ns, line in lines.items()}
    if rule.replayable:
        for ns, line in lines.items():
            if ns != ROOT and CALL_SEPARATOR not in ns:
                places = (bisect_left(line, root) for root in wanted.get(ROOT, ()))
                wanted[ns] |= {line[place - 1] for place in places if place}
    kept = {ROOT: _with_needs(nodes, ROOT, wanted.get(ROOT, set()))}
    dropped = set()
    for ns, line in lines.items():
        root = nodes[ns, line[-1]].root
        if CALL_SEPARATOR in ns and (ROOT, root) in nodes and root not in kept[ROOT]:
            wanted[ns] = set(rule.protected.intersection(line))
            if not wanted[ns]:
                dropped.add(ns)
        kept[ns] = _with_needs(nodes, ns, wanted[ns])
    doomed = {ns: [one for one in line if one not in kept[ns]] for ns, line in lines.items()}
    return Plan(frozenset(dropped), {ns: ids for ns, ids in doomed.items() if ids})


def _lines(nodes: Iterable[Key]) -> dict[str, list[str]]:
    lines = defaultdict[str, list[str]](list)
    for namespace, checkpoint_id in sorted(nodes):
        lines[namespace].append(checkpoint_id)
    return dict(lines)


def _wanted(nodes: Mapping[Key, Node], ns: str, line: list[str], rule: Rule) -> set[str]:
    wanted = set(line[-rule.keep_last :]) | rule.protected.intersection(line)
    if rule.made_after is not None:
        wanted |= {
            one for one in line if (made := nodes[ns, one].made) is None or made >= rule.made_after
        }
    if rule.waiting:
        # Not the writes: an update as the node that asks makes them in the name of its task, and
        # with durability="exit" an answer makes none.
        answered = {nodes[ns, one].parent for one in line if nodes[ns, one].ends_step}
        wanted |= {one for one in line if nodes[ns, one].interrupted and one not in answered}
    return wanted


def _with_needs(nodes: Mapping[Key, Node], namespace: str, wanted: Iterable[str]) -> set[str]:
    """Checkpoints, and the ancestors without which they would not read the same."""
    kept = set(wanted)
    asked = defaultdict[str, frozenset[str]](frozenset)
    steps: list[tuple[str | None, frozenset[str]]] = []
    for one in tuple(kept):
        node = nodes[namespace, one]
        if node.sends_parent is not None:
            kept.add(node.sends_parent)
        steps.append((node.parent, node.replayed - node.stored))
    while steps:
        name, missing = steps.pop()
        ancestor = nodes.get((namespace, name)) if name is not None and missing else None
        if name is None or ancestor is None:
            continue
        kept.add(name)
        new = missing - asked[name]  # each ancestor once for each channel, however many need it
        asked[name] |= new
        steps.append((ancestor.parent, new - ancestor.stored))
    return kept


def made_at(checkpoint_id: str) -> datetime | None:
    """The time in a checkpoint's id, if it is a UUIDv6."""
    try:
        found = UUID(checkpoint_id)
    except ValueError:
        return None
    if found.version != 6:  # noqa: PLR2004
        return None
    # The 60 bits of the time, highest first, with the version's 4 bits before the last 12.
    ticks = (found.int >> 80) << 12 | (found.int >> 64) & 0xFFF
    return _GREGORIAN + timedelta(microseconds=ticks // 10)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where one checkpoint of a thread comes from.

    Attributes:
        parent: The id of its parent, in the same namespace.
        root: The id of the root graph's checkpoint that its subgraph call started from.
    """

    parent: str | None
    root: str | None


def up_to(origins: Mapping[Key, Origin], checkpoint_id: str) -> dict[str, list[str]]:
    """The checkpoints of a thread as it stood at one of the root graph's, by namespace.

    These are that one and its ancestors; of subgraph calls, what started from one of them; of
    subgraphs with a memory, what was made before it, on whichever fork, and what started from it.
    """
    line = _ancestors(origins, ROOT, [checkpoint_id])

    def is_there(namespace: str, name: str) -> bool:
        root = origins[namespace, name].root
        if CALL_SEPARATOR in namespace and root is not None:
            return root in line
        return root == checkpoint_id or name < checkpoint_id

    found = {ROOT: line}
    for namespace, ids in _lines(origins).items():
        if namespace != ROOT:
            there = [name for name in ids if is_there(namespace, name)]
            found[namespace] = _ancestors(origins, namespace, there)
    return {namespace: sorted(ids) for namespace, ids in found.items() if ids}


def _ancestors(origins: Mapping[Key, Origin], namespace: str, ids: Iterable[str]) -> set[str]:
    """Checkpoints and all their ancestors."""
    found: set[str] = set()
    for one in ids:
        name: str | None = one
        while name is not None and name not in found and (namespace, name) in origins:
            found.add(name)
            name = origins[namespace, name].parent
    return found
