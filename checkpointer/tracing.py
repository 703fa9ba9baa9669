"""OpenTelemetry: a span an operation, and metrics. Imported only for `telemetry=True`.

Nothing that is exported is, or is made of, a stored value, an identifier or a parameter.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, contextmanager
from functools import wraps
from importlib.metadata import version
from inspect import isasyncgenfunction, iscoroutinefunction
from time import time_ns
from typing import Any, Final, TypeVar, cast
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from opentelemetry import metrics, trace
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, use_span

from checkpointer.dialects import dialect_named
from checkpointer.errors import CheckpointerError, DatabaseError
from checkpointer.faults import status_of
from checkpointer.figures import Figures, Telemetry, clock, current
from checkpointer.records import Put, size_of

T = TypeVar("T")

SCOPE: Final = "checkpointer"
DISTRIBUTION: Final = "langgraph-checkpoint-sqlalchemy"

_UNTRACED: Final = {"aclose"}
"""Methods that are no operation on the database."""

_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_PUTS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class OpenTelemetry(Telemetry):
    """Tells the process's tracer and meter about one database.

    Args:
        url: The engine's URL. Of it, the host, the port and the database's name go out; of a file,
            its name without the directory.
    """

    def __init__(self, url: sa.URL) -> None:
        self._tracer = trace.get_tracer(SCOPE, version(DISTRIBUTION))
        meter = metrics.get_meter(SCOPE, version(DISTRIBUTION))
        self._attributes = _attributes(url)
        self._waiting = WeakKeyDictionary[Any, tuple[Figures, float]]()
        self._duration = meter.create_histogram(
            "db.client.operation.duration",
            unit="s",
            description="Duration of the saver's operations.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._wait = meter.create_histogram(
            "checkpointer.wait.duration",
            unit="s",
            description="Time from asking for a connection until work began on it.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._batch = meter.create_histogram(
            "checkpointer.commit.puts",
            unit="{put}",
            description="Puts that one transaction has stored.",
            explicit_bucket_boundaries_advisory=_PUTS,
        )
        self._hits = meter.create_counter(
            "checkpointer.cache.hits", unit="{lookup}", description="Looks that found something."
        )
        self._misses = meter.create_counter(
            "checkpointer.cache.misses", unit="{lookup}", description="Looks that found nothing."
        )

    @contextmanager
    def operation(self, name: str) -> Iterator[Figures]:
        """A span from here to the end, the parent of those that drivers start meanwhile."""
        if (outer := current.get()) is not None:
            yield outer
            return
        figures, error = Figures(span=self._started(name)), None
        token, since = current.set(figures), clock()
        try:
            with _as_parent(figures.span):
                yield figures
        except Exception as exc:
            error = exc
            raise
        finally:
            current.reset(token)
            self._end(name, figures, clock() - since, error)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A span only if the database is asked meanwhile, from when it is asked for."""
        if current.get() is not None:
            yield
            return
        figures, error = Figures(), None
        token = current.set(figures)
        try:
            yield
        except Exception as exc:
            error = exc
            raise
        finally:
            current.reset(token)
            if figures.asked is not None:
                figures.span = self._started(name, since=figures.asked)
                self._end(name, figures, (time_ns() - figures.asked) / 1e9, error)

    @contextmanager
    def commit(self, puts: Sequence[tuple[Put, object]]) -> Iterator[None]:
        """A span of its own, linked to those of the puts' operations."""
        waiting = [known for _, key in puts if (known := self._waiting.get(key)) is not None]
        links = [Link(figures.span.get_span_context()) for figures, _ in waiting if figures.span]
        figures, error = Figures(span=self._started("commit", links=links)), None
        token, since = current.set(figures), clock()
        try:
            with _as_parent(figures.span):
                yield
        except Exception as exc:
            error = exc
            raise
        finally:
            current.reset(token)
            figures.rows = figures.bytes = 0
            figures.puts = len(puts)
            _measure(figures, [put for put, _ in puts])
            for operation, asked in waiting:
                operation.puts = figures.puts
                operation.statements += figures.statements
                operation.round_trips += figures.round_trips
                operation.wait = (figures.began or clock()) - asked
            self._batch.record(figures.puts, self._attributes)
            self._end("commit", figures, clock() - since, error)

    def await_commit(self, put: Put, key: object) -> None:
        """Note what the operation under way hands over, and since when it waits."""
        if (figures := current.get()) is not None:
            _measure(figures, [put])
            self._waiting[key] = figures, clock()

    def looked_up(self, kind: str, *, found: int, missing: int) -> None:
        """Count looks into the cache."""
        attributes = {"checkpointer.cache.kind": kind}
        if found:
            self._hits.add(found, attributes)
        if missing:
            self._misses.add(missing, attributes)

    def _started(self, name: str, *, since: int | None = None, links: Sequence[Link] = ()) -> Span:
        return self._tracer.start_span(
            f"checkpointer.{name}",
            kind=SpanKind.CLIENT,
            attributes={**self._attributes, "db.operation.name": name},
            links=links,
            start_time=since,
        )

    def _end(self, name: str, figures: Figures, seconds: float, error: Exception | None) -> None:
        attributes: dict[str, Any] = {**self._attributes, "db.operation.name": name}
        span: Span = figures.span
        span.set_attributes(_told(figures))
        if error is not None:
            attributes |= _told_error(error)
            span.set_attributes(attributes)
            # No description: messages name users, paths, identifiers, and what stands in a row.
            span.set_status(Status(StatusCode.ERROR))
        span.end()
        self._duration.record(seconds, attributes)
        if figures.asked is not None or figures.puts:
            self._wait.record(figures.wait, attributes)


def traced(base: type[T], telemetry: Telemetry) -> type[T]:
    """A saver's class, each of whose public async methods is an operation."""
    methods: dict[str, Any] = {}
    for name in dir(base):
        method = getattr(base, name)
        ours = str(getattr(method, "__module__", "")).startswith(f"{SCOPE}.")
        if not ours or name.startswith("_") or name in _UNTRACED:
            continue
        sync = name.removeprefix("a")
        operation = sync if hasattr(base, sync) else name
        if iscoroutinefunction(method):
            methods[name] = _traced_call(method, operation, telemetry)
        elif isasyncgenfunction(method):
            methods[name] = _traced_items(method, operation, telemetry)
    methods["__module__"] = base.__module__
    return cast("type[T]", type(base.__name__, (base,), methods))


def _traced_call(
    method: Callable[..., Awaitable[Any]], name: str, telemetry: Telemetry
) -> Callable[..., Awaitable[Any]]:
    @wraps(method)
    async def call(*args: Any, **kwargs: Any) -> Any:
        with telemetry.operation(name):
            return await method(*args, **kwargs)

    return call


def _traced_items(
    method: Callable[..., AsyncGenerator[Any, None]], name: str, telemetry: Telemetry
) -> Callable[..., AsyncGenerator[Any, None]]:
    """A span a page: the caller's own time in the loop is not ours, and the loop may be left."""

    @wraps(method)
    async def iterate(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        async with aclosing(method(*args, **kwargs)) as items:
            while True:
                with telemetry.step(name):
                    try:
                        item = await anext(items)
                    except StopAsyncIteration:
                        return
                yield item

    return iterate


def _as_parent(span: Span) -> AbstractContextManager[Span]:
    """Make a span the one that others are started in; how it fails is told by us."""
    return use_span(span, record_exception=False, set_status_on_exception=False)


def _measure(figures: Figures, puts: Sequence[Put]) -> None:
    """Add what puts hand over."""
    for put in puts:
        rows, size = size_of(put)
        figures.rows += rows
        figures.bytes += size
        figures.threads.add(put.namespace.thread_id)


def _told(figures: Figures) -> dict[str, int | float]:
    """What of an operation's figures goes out."""
    told = {
        "checkpointer.threads": len(figures.threads),
        "checkpointer.rows": figures.rows,
        "checkpointer.bytes": figures.bytes,
        "checkpointer.statements": figures.statements,
        "checkpointer.round_trips": figures.round_trips,
        "checkpointer.wait": figures.wait,
    }
    return told | {"checkpointer.commit.puts": figures.puts} if figures.puts else told


def _told_error(error: Exception) -> dict[str, str]:
    """The kind of an error, and the code that the database gave it."""
    kind = type(error)
    ours = isinstance(error, CheckpointerError)
    told = {"error.type": kind.__qualname__ if ours else f"{kind.__module__}.{kind.__qualname__}"}
    code = status_of(error) if isinstance(error, DatabaseError) else ""
    return told | {"db.response.status_code": code} if code else told


def _attributes(url: sa.URL) -> dict[str, str | int]:
    """What of a URL goes out."""
    kind = url.get_backend_name()
    known = {
        "db.system.name": kind,
        "db.namespace": dialect_named(kind).namespace(url),
        "server.address": url.host,
        "server.port": url.port,
    }
    return {name: value for name, value in known.items() if value}
