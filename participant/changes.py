"""What a transaction wants to change here, and how it is checked and applied: tables, or functions of the service."""

import hashlib
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson
from sqlalchemy import Column, Connection, Table, UniqueConstraint, select
from sqlalchemy.engine import CursorResult

from participant.command import ID_LIMIT, Refused
from participant.handlers import InvalidService
from participant.json_text import NotJson, dumps
from participant.two_phase import InvalidChange

#: Changes of one transaction in one service.
CHANGES_LIMIT = 1_000
#: Bytes of all changes of one transaction, as JSON.
DATA_LIMIT = 1024 * 1024


class ChangeKind(StrEnum):
    #: the resource must not exist yet
    CREATE = "create"
    #: the resource must exist; ``data`` holds what changes
    UPDATE = "update"
    #: the resource must exist
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Change:
    """One operation on one resource, as a transaction wants it. ``data`` is JSON, parsed."""

    transaction_id: str
    #: what kind of thing: the name of a registered resource
    resource: str
    resource_id: str
    operation: ChangeKind
    data: Any = None

    def as_json(self) -> dict[str, Any]:
        return {
            "resource": self.resource,
            "resource_id": self.resource_id,
            "operation": self.operation.value,
            "data": self.data,
        }


class CannotApply(Exception):
    """The change does not fit what is there. A vote of no while preparing; a failure when it happens at commit."""


@dataclass(frozen=True, slots=True)
class Resource:
    """How changes of one kind of resource are done. Every function runs in one local transaction, which it must
    neither commit nor roll back; none may have effects outside this database.

    ``apply`` must do at commit what it did when it was rehearsed, whatever time passes in between.
    """

    #: makes the change; at commit, and as a rehearsal at prepare, which is rolled back
    apply: Callable[[Connection, Change], object]
    #: says no by returning Refused; what it writes is rolled back
    validate: Callable[[Connection, Change], Refused | None] | None = None
    #: at prepare: writes what must be there until the end, such as funds set aside; may return Refused
    reserve: Callable[[Connection, Change], Refused | None] | None = None
    #: at abort: takes back what ``reserve`` wrote
    release: Callable[[Connection, Change], object] | None = None
    #: further (resource, id) pairs to hold, beside the change's own
    holds: Callable[[Connection, Change], Iterable[tuple[str, str]]] | None = None
    #: what is wrong with the change by itself: raises InvalidChange
    check: Callable[[Change], object] | None = None
    #: whether prepare tries ``apply`` and rolls it back
    rehearse: bool = True


def changes_from(
    transaction_id: str, operations: Iterable[Mapping[str, Any]], resources: Mapping[str, Resource]
) -> list[Change]:
    """Check ``[{resource?, resource_id, operation, data?}, …]`` and return it as changes.

    Raises:
        InvalidChange: a rule is broken; nothing was looked up in a database.
    """
    changes: dict[tuple[str, str], Change] = {}
    for number, operation in enumerate(operations):
        if number == CHANGES_LIMIT:
            raise InvalidChange("operations", f"must be at most {CHANGES_LIMIT}")
        place = f"operations[{number}]."
        change = _change(transaction_id, operation, resources, place)
        key = (change.resource, change.resource_id)
        if key in changes:
            raise InvalidChange(f"{place}resource_id", f"comes twice: one change for {change.resource_id!r} is allowed")
        changes[key] = change
    encode([*changes.values()])
    return [*changes.values()]


def operations_of(payload: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the operations a payload describes: ``{"operations": […]}``, one operation, or ``{}`` for none.

    Raises:
        InvalidChange: it is neither.
    """
    if not payload:
        return []
    operations = payload.get("operations")
    if operations is None:
        return [payload]
    if not isinstance(operations, list) or not all(isinstance(operation, Mapping) for operation in operations):
        raise InvalidChange("operations", "must be a list of objects")
    return operations


def encode(changes: Sequence[Change]) -> str:
    """Return the changes as JSON. Raises InvalidChange if they are not JSON, or too large."""
    try:
        encoded = dumps([change.as_json() for change in changes], "operations")
    except NotJson as error:
        raise InvalidChange(error.field, error.rule) from error
    if len(encoded) > DATA_LIMIT:
        raise InvalidChange("data", f"must be at most {DATA_LIMIT} bytes of JSON for one transaction")
    return encoded.decode()


def decode(transaction_id: str, stored: str) -> list[Change]:
    return [
        Change(transaction_id, one["resource"], one["resource_id"], ChangeKind(one["operation"]), one["data"])
        for one in orjson.loads(stored)
    ]


def _change(transaction_id: str, operation: Mapping[str, Any], resources: Mapping[str, Resource], place: str) -> Change:
    name = operation.get("resource")
    if name is None and len(resources) == 1:
        (name,) = resources
    if not isinstance(name, str) or name not in resources:
        there = ", ".join(sorted(resources)) or "none; register one with ResourceManager(tables=…) or .resource(…)"
        raise InvalidChange(f"{place}resource", f"must be one of those registered here: {there}")
    resource_id = operation.get("resource_id")
    if isinstance(resource_id, (int, uuid.UUID)) and not isinstance(resource_id, bool):
        resource_id = str(resource_id)
    if not isinstance(resource_id, str) or not 0 < len(resource_id) <= ID_LIMIT or "\x00" in resource_id:
        raise InvalidChange(f"{place}resource_id", f"must be a string of 1 to {ID_LIMIT} characters, or an integer")
    try:
        kind = ChangeKind(str(operation.get("operation")))
    except ValueError:
        raise InvalidChange(f"{place}operation", "must be one of create, update, delete") from None
    try:
        # As it will come back from the table, so that what is checked is what is applied.
        data = orjson.loads(dumps(operation.get("data"), f"{place}data", default=str))
    except NotJson as error:
        raise InvalidChange(error.field, error.rule) from error
    except orjson.JSONDecodeError as error:
        raise InvalidChange(f"{place}data", f"must be JSON: {error}") from error
    change = Change(transaction_id, name, resource_id, kind, data)
    if (check := resources[name].check) is not None:
        try:
            check(change)
        except InvalidChange as error:
            raise InvalidChange(place + error.field, error.rule) from None
    return change


def table_resource(table: Table) -> Resource:
    """Changes of the rows of ``table``: ``resource_id`` is the primary key, ``data`` holds values by column name.

    The values of unique constraints and indexes that a change claims are held too, so that two transactions cannot
    both be promised the same one.

    Raises:
        InvalidService: the primary key is not a single column.
    """
    if len(table.primary_key.columns) != 1:
        raise InvalidService(
            f"the table {table.name!r} needs a primary key of one column; "
            "for any other give functions with ResourceManager.resource(name, apply=…)"
        )
    rows = _Rows(table)
    return Resource(apply=rows.apply, holds=rows.unique_values, check=rows.check)


class _Rows:
    def __init__(self, table: Table) -> None:
        self._table = table
        (self._key,) = table.primary_key.columns
        #: By the names that data uses: SQLAlchemy's keys and the database's names are the same unless told otherwise.
        self._columns: dict[str, Column[Any]] = {column.name: column for column in table.columns}
        constraints = [list(c.columns) for c in table.constraints if isinstance(c, UniqueConstraint)]
        indexes = [list(index.columns) for index in table.indexes if index.unique and len(index.columns)]
        self._unique = [[column.name for column in columns] for columns in constraints + indexes]

    def check(self, change: Change) -> None:
        self._identity(change)
        if change.operation is ChangeKind.DELETE:
            if change.data:
                raise InvalidChange("data", "must be empty with delete")
            return
        if not isinstance(change.data, dict):
            raise InvalidChange("data", f"must be an object of column values with {change.operation}")
        if change.operation is ChangeKind.UPDATE and not change.data:
            raise InvalidChange("data", "must name at least one column with update")
        for name, value in change.data.items():
            if name not in self._columns:
                raise InvalidChange("data", f"names {name[:100]!r}, which is no column of {self._table.name}")
            if name == self._key.name and str(value) != change.resource_id:
                raise InvalidChange("data", f"gives {name!r} another value than resource_id")

    def apply(self, connection: Connection, change: Change) -> None:
        identity = self._identity(change)
        if change.operation is ChangeKind.CREATE:
            values = {**self._values(change), self._key: identity}
            connection.execute(self._table.insert().values(values))
            return
        here = self._key == identity
        if change.operation is ChangeKind.UPDATE:
            done: CursorResult[Any] = connection.execute(self._table.update().where(here).values(self._values(change)))
        else:
            done = connection.execute(self._table.delete().where(here))
        if done.rowcount != 1:
            raise CannotApply(f"there is no {change.resource} {change.resource_id}")

    def unique_values(self, connection: Connection, change: Change) -> Iterable[tuple[str, str]]:
        if change.operation is ChangeKind.DELETE:
            return
        for names in self._unique:
            if change.operation is ChangeKind.UPDATE and not any(name in change.data for name in names):
                continue
            values = {name: change.data[name] for name in names if name in change.data}
            missing = [self._columns[name] for name in names if name not in values]
            if missing and change.operation is ChangeKind.UPDATE:
                row = connection.execute(select(*missing).where(self._key == self._identity(change))).one_or_none()
                if row is None:
                    continue  # there is nothing to update, as the rehearsal will find
                values |= {column.name: value for column, value in zip(missing, row, strict=True)}
            if any(values.get(name) is None for name in names):
                continue  # NULLs differ from one another; a default of the database is not known before
            yield f"{change.resource}({','.join(names)})", _short([str(values[name]) for name in names])

    def _identity(self, change: Change) -> Any:
        try:
            python_type = self._key.type.python_type
        except NotImplementedError:
            return change.resource_id
        if python_type not in (int, uuid.UUID):
            return change.resource_id
        try:
            return python_type(change.resource_id)
        except ValueError:
            raise InvalidChange("resource_id", f"must be a {python_type.__name__}, as {self._key} is") from None

    def _values(self, change: Change) -> dict[Column[Any], Any]:
        return {self._columns[name]: value for name, value in change.data.items()}


def _short(values: Sequence[str]) -> str:
    """A text that is the same for the same values, and short enough for an index."""
    encoded = orjson.dumps(values).decode()
    return encoded if len(encoded) <= ID_LIMIT else hashlib.sha256(encoded.encode()).hexdigest()
