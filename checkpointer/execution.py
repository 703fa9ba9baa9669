"""Core statements, compiled once for a driver and run on its own connection.

SQLAlchemy's `Connection.execute` takes 60 to 100 microseconds a statement beside the driver's own
time: as long as the statement itself.
"""

from abc import ABC, abstractmethod
from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import sqlalchemy as sa
from sqlalchemy import util
from sqlalchemy.sql.base import Executable

from checkpointer.errors import DatabaseError

Processor: TypeAlias = Callable[[Any], Any]
Parameters: TypeAlias = Mapping[str, Any]

NOTHING: Final[Parameters] = {}

greenlet_spawn: Final[Any] = getattr(util, "greenlet_spawn", None)
"""Runs a function that waits for a driver by `run_async`. SQLAlchemy does not document it; without
it, all work runs through `AsyncConnection.run_sync`."""

SCHEMA_MAP: Final = "schema_translate_map"
"""SQLAlchemy's execution option by which an engine's tables stand in a schema."""


MAX_SCHEMAS: Final = 64
"""Schemas of one engine for which statements are kept compiled, about 230 KB each; the first goes
when another one comes. It is compiled for again where it is used again."""

_COMPILED: Final = "_checkpointer_compiled"
"""Where an engine's dialect keeps these, so that they go when the engine goes."""


def schema_of(source: sa.Engine | sa.Connection) -> str | None:
    """The schema that our tables stand in, `None` for the database's own default."""
    schemas: Mapping[str | None, str | None] | None = source.get_execution_options().get(SCHEMA_MAP)
    return (schemas or {}).get(None)


def schema_map(schema: str | None) -> dict[str | None, str | None] | None:
    """What SQLAlchemy takes to compile our statements for a schema."""
    return None if schema is None else {None: schema}


class Connection(ABC):
    """What a unit of work runs its statements on."""

    @abstractmethod
    def fetch(self, statement: Executable, parameters: Parameters = NOTHING) -> Sequence[Any]:
        """All rows of a statement, as named tuples."""

    @abstractmethod
    def execute(self, statement: Executable, *rows: Parameters) -> None:
        """Run a statement that returns nothing, once for each row of parameters."""


class CoreConnection(Connection):
    """Runs statements through SQLAlchemy's own connection, whatever the driver.

    Args:
        connection: The connection. Its options stay as they are.
        answered: Called after each answer.
        schema: Where the tables stand, whatever the connection's own options say.
    """

    def __init__(
        self,
        connection: sa.Connection,
        answered: Callable[[], None],
        schema: str | None = None,
    ) -> None:
        self._connection = connection
        self._answered = answered
        self._options = {SCHEMA_MAP: schema_map(schema)}

    def fetch(self, statement: Executable, parameters: Parameters = NOTHING) -> Sequence[Any]:
        """All rows of a statement."""
        result = self._connection.execute(statement, parameters, execution_options=self._options)
        rows = result.all()
        self._answered()
        return rows

    def execute(self, statement: Executable, *rows: Parameters) -> None:
        """Run a statement once for each row of parameters."""
        self._connection.execute(statement, rows, execution_options=self._options)
        self._answered()


def not_free(connection: str) -> DatabaseError:
    """The error that the application has a transaction open on a connection that we would use."""
    return DatabaseError(
        f"found a transaction of the application's on the {connection}, expected one that is free; "
        f"give the saver an engine of its own, or one whose pool has more connections"
    )


class DriverConnection(Connection):
    """Runs compiled statements on a driver's own connection.

    Args:
        dialect: The engine's dialect, which knows the driver.
        schema: Where the tables stand.
    """

    def __init__(self, dialect: sa.Dialect, schema: str | None = None) -> None:
        self._dialect = dialect
        self.schema = schema

    @abstractmethod
    def run(self, sql: str, values: Sequence[Any]) -> Iterable[Sequence[Any]]:
        """Run a statement in the driver's own words; its rows."""

    @abstractmethod
    def run_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run such a statement once for each row of values."""

    def fetch(self, statement: Executable, parameters: Parameters = NOTHING) -> Sequence[Any]:
        """All rows of a statement."""
        compiled = compiled_for(statement, self._dialect, self.schema)
        return compiled.rows(self.run(*compiled.bound(parameters)))

    def execute(self, statement: Executable, *rows: Parameters) -> None:
        """Run a statement once for each row of parameters."""
        compiled = compiled_for(statement, self._dialect, self.schema)
        if len(rows) == 1:
            self.run(*compiled.bound(rows[0]))
        else:
            self.run_many(compiled.sql, map(compiled.values, rows))


class Compiled:
    """One statement as a driver takes it: its SQL, its values by position, its rows by name."""

    def __init__(self, statement: Any, dialect: sa.Dialect, schema: str | None = None) -> None:
        self._compiled = compiled = statement.compile(
            dialect=dialect,
            schema_translate_map=schema_map(schema),
            render_schema_translate=schema is not None,
        )
        self.sql = str(compiled)
        self._names: Sequence[str] = compiled.positiontup or ()
        binds: Mapping[str, sa.BindParameter[Any]] = compiled.binds
        self._constants = {n: v for n, v in compiled.params.items() if not binds[n].required}
        processors = [_bind_processor(binds[name].type, dialect) for name in self._names]
        self._lists = {
            position: process
            for position, process in enumerate(processors)
            if binds[self._names[position]].expanding
        }
        self._expanded: dict[tuple[int, ...], str] = {}
        self._processors = [
            (position, process)
            for position, process in enumerate(processors)
            if process is not None and position not in self._lists
        ]
        columns = list(getattr(statement, "exported_columns", ()))
        row: Any = namedtuple("Row", [column.key for column in columns])  # type: ignore[misc] # noqa: PYI024
        self._make: Callable[[Iterable[Any]], Any] = row._make
        self._results = [
            (position, process)
            for position, column in enumerate(columns)
            if (process := _result_processor(column.type, dialect)) is not None
        ]

    def bound(self, parameters: Parameters) -> tuple[str, Sequence[Any]]:
        """The SQL and the values for some parameters.

        A list is filled up with its last item to a power of two, so that there are few different
        statements, and the driver finds them prepared.
        """
        if not self._lists:
            return self.sql, self.values(parameters)
        given = self.values(parameters)
        for position in self._lists:
            given[position] = _filled(given[position])
        lengths = tuple(len(given[position]) for position in self._lists)
        sql = self._expanded.get(lengths)
        if sql is None:
            everything = dict(zip(self._names, given, strict=True))
            sql = self._compiled.construct_expanded_state(everything).statement
            self._expanded[lengths] = sql
        values: list[Any] = []
        for position, value in enumerate(given):
            if position not in self._lists:
                values.append(value)
            else:
                process = self._lists[position]
                values += map(process, value) if process else value
        return sql, values

    def values(self, parameters: Parameters) -> list[Any]:
        """The values of one row of parameters, by position; those of lists as they are."""
        given = {**self._constants, **parameters} if self._constants else parameters
        values = [given[name] for name in self._names]
        for position, process in self._processors:
            values[position] = process(values[position])
        return values

    def rows(self, found: Iterable[Sequence[Any]]) -> Sequence[Any]:
        """The rows with names, their values as Core's types make them."""
        make = self._make
        if not self._results:
            return list(map(make, found))
        rows = []
        for row in map(list, found):
            for position, process in self._results:
                row[position] = process(row[position])
            rows.append(make(row))
        return rows


def compiled_for(statement: Any, dialect: sa.Dialect, schema: str | None = None) -> Compiled:
    """A statement, compiled for a dialect and a schema once; statements are told by identity."""
    schemas: dict[str | None, dict[Any, Compiled]] = vars(dialect).setdefault(_COMPILED, {})
    known = schemas.get(schema)
    if known is None:
        for oldest in list(schemas)[: 1 - MAX_SCHEMAS]:
            schemas.pop(oldest, None)
        known = schemas.setdefault(schema, {})
    compiled = known.get(statement)
    if compiled is None:
        compiled = known[statement] = Compiled(statement, dialect, schema)
    return compiled


def _filled(items: Sequence[Any]) -> Sequence[Any]:
    missing = (1 << (len(items) - 1).bit_length()) - len(items) if items else 0
    return [*items, *[items[-1]] * missing] if missing else items


def _bind_processor(type_: sa.types.TypeEngine[Any], dialect: sa.Dialect) -> Processor | None:
    if isinstance(type_, sa.ARRAY):
        # Core's own would copy an array item by item also where items are passed as they are.
        process = _bind_processor(type_.item_type, dialect)
        return None if process is None else lambda items: list(map(process, items))
    return type_.dialect_impl(dialect).bind_processor(dialect)


def _result_processor(type_: sa.types.TypeEngine[Any], dialect: sa.Dialect) -> Processor | None:
    return type_.dialect_impl(dialect).result_processor(dialect, None)
