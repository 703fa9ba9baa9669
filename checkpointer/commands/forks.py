"""`history`: the tree of a thread's checkpoints."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.text import Text
from rich.tree import Tree

from checkpointer.commands import console as terminal
from checkpointer.commands.harmless import line
from checkpointer.commands.output import OK, write_json
from checkpointer.commands.points import Point, missing, points
from checkpointer.commands.target import Target
from checkpointer.commands.values import PlainSerializer, as_json

Key = tuple[str, str]
"""Namespace and id."""


async def history(
    target: Target, thread_id: str, *, namespace: str | None, limit: int, as_json: bool = False
) -> int:
    """Draw the tree of a thread's checkpoints, oldest first."""
    async with target.opened(PlainSerializer()) as saver:
        found = points(saver, thread_id, namespace=namespace, limit=limit + 1)
        # What they hold is let go of one by one: all of it may be more than fits into memory.
        newest = [Mark.of(one) async for one in found]
    if not newest:
        raise missing(thread_id, namespace=namespace or "")
    forest = Forest.of(newest[:limit])
    more = len(newest) > limit
    if as_json:
        told = [_document(one, forest) for one in forest.points.values()]
        write_json({"thread_id": thread_id, "more": more, "checkpoints": told})
        return OK
    heading = terminal.text(f"thread {thread_id}", "bold").append("  times in UTC", "dim")
    tree = Tree(heading, guide_style="dim")
    if more:
        tree.add(Text(f"older checkpoints than these {limit} (--limit)", "dim"))
    forest.draw(tree)
    terminal.put(tree)
    return OK


@dataclass(frozen=True, slots=True)
class Mark:
    """What the tree tells of a checkpoint, without its values.

    Attributes:
        parent_id: Its parent's id, in the same namespace.
        created: When, in ISO 8601.
        step: The superstep that made it; -1 for the first input.
        source: What made it: input, loop, update or fork.
        run_id: The run that made it.
        start: The root graph's checkpoint that its namespace started from.
        seen: The versions that each node has seen.
        sent: The nodes that were sent something, once for each time.
        following: The nodes that run next.
        interrupts: What its tasks have asked.
        errors: How its tasks have failed.
        writes: How many pending writes it has.
    """

    namespace: str
    checkpoint_id: str
    parent_id: str | None
    created: str
    step: Any
    source: str
    run_id: Any
    start: Key
    seen: Mapping[str, Mapping[str, Any]]
    sent: Sequence[str]
    following: Sequence[str]
    interrupts: Sequence[Any]
    errors: Sequence[Any]
    writes: int

    @classmethod
    def of(cls, one: Point) -> "Mark":
        """The mark of a checkpoint."""
        return cls(
            namespace=one.namespace,
            checkpoint_id=one.checkpoint_id,
            parent_id=one.parent_id,
            created=one.created,
            step=one.step,
            source=one.source,
            run_id=one.metadata.get("run_id"),
            start=_start(one),
            seen=one.seen,
            sent=one.sent_to(),
            following=one.next_nodes(),
            interrupts=one.interrupts,
            errors=one.errors,
            writes=len(one.writes),
        )

    def nodes_since(self, parent: "Mark | None") -> list[str]:
        """The nodes that ran between its parent and itself: told by what they have seen.

        Args:
            parent: Its parent; without one, nothing can be told.
        """
        if parent is None:
            return []
        ran = {node for node, seen in self.seen.items() if seen != parent.seen.get(node)}
        if self.source == "loop":
            ran.update(parent.sent)
        return sorted(node for node in ran if not node.startswith("__"))


@dataclass(frozen=True, slots=True)
class Forest:
    """Checkpoints, and who comes from whom.

    Attributes:
        points: All of them, oldest first.
        children: Of each, oldest first; under `None` those whose parent is not among them.
        inner: The namespaces that started from each.
    """

    points: Mapping[Key, Mark]
    children: Mapping[tuple[str, str | None], Sequence[Mark]]
    inner: Mapping[Key, Sequence[str]]
    _latest: dict[Key, str] = field(default_factory=dict)

    @classmethod
    def of(cls, newest_first: Sequence[Mark]) -> "Forest":
        """The forest that some checkpoints make up."""
        points = {(one.namespace, one.checkpoint_id): one for one in reversed(newest_first)}
        children = defaultdict[tuple[str, str | None], list[Mark]](list)
        inner = defaultdict[Key, list[str]](list)
        known = set[str]()
        for one in points.values():
            # An id of a child comes after its parent's: so there is no way round in a circle.
            parent = one.parent_id
            has_parent = parent is not None and parent < one.checkpoint_id
            here = parent if has_parent and (one.namespace, parent) in points else None
            children[one.namespace, here].append(one)
            if one.namespace not in known:
                known.add(one.namespace)
                inner[one.start if one.start in points else ("", "")].append(one.namespace)
        forest = cls(points, children, inner)
        for one in newest_first:
            below = children.get((one.namespace, one.checkpoint_id), ())
            ends = [forest._latest[child.namespace, child.checkpoint_id] for child in below]
            forest._latest[one.namespace, one.checkpoint_id] = max([one.checkpoint_id, *ends])
        return forest

    def parent(self, one: Mark) -> Mark | None:
        """The parent of a checkpoint, if it is among them."""
        return None if one.parent_id is None else self.points.get((one.namespace, one.parent_id))

    def draw(self, tree: Tree) -> None:
        """Draw everything into a tree. A line of checkpoints stays at one level."""
        waiting: list[tuple[Tree, Mark]] = []
        for namespace in reversed(self.inner.get(("", ""), ())):
            place = tree.add(_heading(namespace)) if namespace else tree
            waiting += [(place, one) for one in reversed(self.children[namespace, None])]
        while waiting:
            place, one = waiting.pop()
            drawn = place.add(self._label(one))
            for namespace in reversed(self.inner.get((one.namespace, one.checkpoint_id), ())):
                inside = drawn.add(_heading(namespace))
                roots = reversed(self.children[namespace, None])
                waiting += [(inside, root) for root in roots]
            below = list(self.children.get((one.namespace, one.checkpoint_id), ()))
            if not below:
                continue
            main = max(below, key=lambda c: self._latest[c.namespace, c.checkpoint_id])
            waiting.append((place, main))
            for child in below:
                if child is not main:
                    waiting.append((drawn.add(Text("fork", "italic")), child))

    def _label(self, one: Mark) -> Text:
        label = Text.assemble(
            (f"{line(str(one.step)):>3} ", "bold"),
            (f"{line(one.source):<6} ", "cyan"),
            (line(one.checkpoint_id), "dim"),
            f"  {line(terminal.moment(one.created))}",
        )
        if ran := one.nodes_since(self.parent(one)):
            label.append(f"  ran {line(', '.join(ran))}")
        if one.following:
            label.append(f"  next {line(', '.join(_grouped(one.following)))}", "green")
        for asked in one.interrupts:
            label.append(f"  interrupt {terminal.short(asked)}", "yellow")
        for error in one.errors:
            label.append(f"  error {terminal.short(error)}", "red")
        return label


def _grouped(nodes: Sequence[str]) -> Iterable[str]:
    """Names, each once: "work x3"."""
    for node in dict.fromkeys(nodes):
        times = nodes.count(node)
        yield node if times == 1 else f"{node} x{times}"


def _heading(namespace: str) -> Text:
    return terminal.text(f"subgraph {namespace}", "magenta")


def _start(one: Point) -> Key:
    """The root graph's checkpoint that a subgraph's namespace started from."""
    parents = one.metadata.get("parents")
    root = parents.get("") if isinstance(parents, Mapping) else None
    return ("", str(root)) if one.namespace else ("", "")


def _document(one: Mark, forest: Forest) -> dict[str, Any]:
    return {
        "checkpoint_ns": one.namespace,
        "checkpoint_id": one.checkpoint_id,
        "parent_checkpoint_id": one.parent_id,
        "created_at": one.created,
        "step": as_json(one.step),
        "source": one.source,
        "run_id": as_json(one.run_id),
        "nodes": one.nodes_since(forest.parent(one)),
        "next": one.following,
        "interrupts": as_json(one.interrupts),
        "errors": as_json(one.errors),
        "writes": one.writes,
    }
