"""Avro schemas of typed dataclasses, and records to and from them.

=============================  ==============================================================
in the dataclass               in Avro
=============================  ==============================================================
``bool``, ``str``, ``bytes``   boolean, string, bytes
``int``, ``float``             long, double
``datetime`` (with a zone)     long, timestamp-micros; read back in UTC
``date``, ``time``             int, date; long, time-micros
``UUID``                       string, uuid
``Decimal``                    bytes, decimal of 38 digits, 9 after the point;
                               ``Annotated[Decimal, Digits(12, 2)]`` for others
``Enum`` with ``str`` values   enum of the values
a dataclass                    record of the class's name in the same namespace
``list[X]``, ``dict[str, X]``  array, map
``X | None``                   union of null and X
a field's default              the field's default; ``None``, a scalar, an Enum's member, an empty list or dict
=============================  ==============================================================

Nothing else goes in: what Avro cannot hold exactly is refused when the class is declared, naming the field. Docstrings
are left out, so that a better word is no new version. A field that is added needs a default, as everywhere with
BACKWARD compatibility.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from functools import partial
from typing import Annotated, Any, Union, get_args, get_origin
from uuid import UUID

from schemas.errors import InvalidSchema, WrongShape

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TYPES: dict[Any, Any] = {
    bool: "boolean",
    str: "string",
    bytes: "bytes",
    int: "long",
    float: "double",
    datetime: {"type": "long", "logicalType": "timestamp-micros"},
    date: {"type": "int", "logicalType": "date"},
    time: {"type": "long", "logicalType": "time-micros"},
    UUID: {"type": "string", "logicalType": "uuid"},
}


@dataclasses.dataclass(frozen=True, slots=True)
class Digits:
    """How exact a Decimal is: all its digits, and those of them after the point."""

    precision: int
    scale: int

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= self.precision or self.precision < 1:
            raise InvalidSchema(f"Digits({self.precision}, {self.scale}): 0 <= scale <= precision, precision >= 1")


_DIGITS = Digits(38, 9)

#: None where values stay as they are.
Convert = Callable[[Any], Any] | None


def schema_of(cls: type, name: str) -> dict[str, Any]:
    """Return the Avro record schema of a dataclass.

    Args:
        name: full name of the record, as ``shop.orders.OrderPlaced``.

    Raises:
        InvalidSchema: a type that has no place above; the message names the field.
    """
    parts = name.split(".")
    if not all(_NAME.fullmatch(part) for part in parts):
        raise InvalidSchema(f"{name!r} is no full name of an Avro record, as shop.orders.OrderPlaced")
    schema: dict[str, Any] = _record(cls, name, ".".join(parts[:-1]), {})
    return schema


def _record(cls: type, name: str, namespace: str, seen: dict[str, type]) -> Any:
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise InvalidSchema(f"{cls!r} is no dataclass")
    full = name if "." in name or not namespace else f"{namespace}.{name}"
    if full in seen:
        if seen[full] is not cls:
            raise InvalidSchema(f"two types of {cls.__module__} would both be {full}: rename one of them")
        return full
    seen[full] = cls
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = []
    for field in dataclasses.fields(cls):
        where = f"{full}.{field.name}"
        if not _NAME.fullmatch(field.name):
            raise InvalidSchema(f"{where}: an Avro name is made of ASCII letters, digits and _")
        if not field.init:
            raise InvalidSchema(f"{where} has init=False: an instance could not be made from a record")
        entry = {"name": field.name, "type": _type(hints[field.name], where, namespace, seen)}
        default = _default(field, where)
        if default is not _NONE:
            entry["default"] = default
            if isinstance(entry["type"], list) and default is not None:
                # Avro: a default is one of the union's first branch.
                entry["type"] = [*entry["type"][1:], "null"]
        fields.append(entry)
    schema = {"type": "record", "name": full.rpartition(".")[2], "fields": fields}
    return {**schema, "namespace": namespace} if namespace else schema


def _type(hint: Any, where: str, namespace: str, seen: dict[str, type]) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        digits = next((extra for extra in arguments[1:] if isinstance(extra, Digits)), None)
        if digits is not None and arguments[0] is Decimal:
            return _decimal(digits)
        return _type(arguments[0], where, namespace, seen)
    if hint is Decimal:
        return _decimal(_DIGITS)
    if isinstance(hint, type) and hint in _TYPES:
        return _TYPES[hint]
    if origin in (Union, types.UnionType):
        others = [one for one in arguments if one is not type(None)]
        if len(others) == 1 and len(arguments) == 2:
            return ["null", _type(others[0], where, namespace, seen)]
        raise InvalidSchema(f"{where}: of unions only X | None is possible, not {hint}")
    if origin is list:
        return {"type": "array", "items": _type(arguments[0], where, namespace, seen)}
    if origin is dict and arguments[0] is str:
        return {"type": "map", "values": _type(arguments[1], where, namespace, seen)}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enum(hint, where, namespace, seen)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _record(hint, hint.__name__, namespace, seen)
    raise InvalidSchema(
        f"{where}: {hint!r} has no place in Avro; use bool, int, float, str, bytes, datetime, date, time, UUID, "
        "Decimal, a str Enum, a dataclass, list[…], dict[str, …] or X | None"
    )


def _decimal(digits: Digits) -> dict[str, Any]:
    return {"type": "bytes", "logicalType": "decimal", "precision": digits.precision, "scale": digits.scale}


def _enum(cls: type[Enum], where: str, namespace: str, seen: dict[str, type]) -> Any:
    full = f"{namespace}.{cls.__name__}" if namespace else cls.__name__
    if full in seen:
        if seen[full] is not cls:
            raise InvalidSchema(f"two types of {cls.__module__} would both be {full}: rename one of them")
        return full
    seen[full] = cls
    values = [member.value for member in cls]
    if not values or not all(isinstance(value, str) and _NAME.fullmatch(value) for value in values):
        raise InvalidSchema(f"{where}: the values of {cls.__name__} must be strings of ASCII letters, digits and _")
    return {"type": "enum", "name": full, "symbols": values}


_NONE = object()


def _default(field: dataclasses.Field[Any], where: str) -> Any:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
        if value not in ([], {}):
            raise InvalidSchema(f"{where}: of factories only list and dict can be an Avro default")
    else:
        return _NONE
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, (bool, int, float, str, list, dict)):
        return value
    raise InvalidSchema(
        f"{where}: a {type(value).__name__} cannot be an Avro default; use None, a scalar, an Enum's member, or an "
        "empty list or dict"
    )


def to_record(event: object) -> Mapping[str, Any]:
    """Return a dataclass instance as fastavro writes it.

    Raises:
        WrongShape: a nested value is not of its declared class; the message names the field.
    """
    cls: type[Any] = type(event)
    return _writer(cls)(event)


def from_record(cls: type[Any], record: Mapping[str, Any]) -> Any:
    """Return the record as an instance of the dataclass: the inverse of ``to_record``.

    Raises:
        ValueError, TypeError: the class refuses the values.
    """
    return _reader(cls)(record)


#: Compiled once for each class.
_WRITERS: dict[type, Callable[[Any], dict[str, Any]]] = {}
_READERS: dict[type, Callable[[Mapping[str, Any]], Any]] = {}


def _writer(cls: type[Any]) -> Callable[[Any], dict[str, Any]]:
    if (known := _WRITERS.get(cls)) is not None:
        return known
    hints = _hints(cls)
    converts = {name: inner for name, hint in hints.items() if (inner := _convert(hint, _nested_writer))}
    plain = [name for name in hints if name not in converts]

    def convert(value: Any) -> dict[str, Any]:
        if not isinstance(value, cls):
            raise WrongShape(f"must be a {cls.__name__}, not {value!r:.60}")
        record = {name: getattr(value, name) for name in plain}
        for name, inner in converts.items():
            try:
                record[name] = inner(getattr(value, name))
            except WrongShape as error:
                raise WrongShape(f"{cls.__name__}.{name}: {error}") from None
        return record

    _WRITERS[cls] = convert
    return convert


def _reader(cls: type[Any]) -> Callable[[Mapping[str, Any]], Any]:
    if (known := _READERS.get(cls)) is not None:
        return known
    converts = {name: inner for name, hint in _hints(cls).items() if (inner := _convert(hint, _nested_reader))}

    def convert(record: Mapping[str, Any]) -> Any:
        values = dict(record)
        for name, inner in converts.items():
            if name in values:
                values[name] = inner(values[name])
        return cls(**values)

    _READERS[cls] = convert
    return convert


def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _nested_writer(cls: type[Any]) -> Callable[[Any], Any]:
    if issubclass(cls, Enum):

        def symbol(value: Any) -> Any:
            # A member, or what is no member and is then told by the check of the schema.
            return value.value if isinstance(value, cls) else value

        return symbol

    def write(value: Any) -> Any:
        # Looked up when it is used: a class may contain itself.
        return _writer(cls)(value)

    return write


def _nested_reader(cls: type[Any]) -> Callable[[Any], Any]:
    if issubclass(cls, Enum):
        return cls

    def read(value: Any) -> Any:
        return _reader(cls)(value)

    return read


def _convert(hint: Any, nested: Callable[[type], Callable[[Any], Any]]) -> Convert:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _convert(arguments[0], nested)
    if origin in (Union, types.UnionType):
        return _inside(_convert(next(one for one in arguments if one is not type(None)), nested), _optional)
    if origin is list:
        return _inside(_convert(arguments[0], nested), _list)
    if origin is dict:
        return _inside(_convert(arguments[1], nested), _dict)
    if isinstance(hint, type) and (dataclasses.is_dataclass(hint) or issubclass(hint, Enum)):
        return nested(hint)
    return None


def _inside(convert: Convert, around: Callable[[Callable[[Any], Any], Any], Any]) -> Convert:
    return None if convert is None else partial(around, convert)


# What is no list or dict at all is told by the check of the schema.


def _optional(convert: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None else convert(value)


def _list(convert: Callable[[Any], Any], value: Any) -> Any:
    return [convert(one) for one in value] if isinstance(value, list) else value


def _dict(convert: Callable[[Any], Any], value: Any) -> Any:
    return {key: convert(one) for key, one in value.items()} if isinstance(value, dict) else value
