"""Whether a record fits an Avro schema, and if not, which field and why.

fastavro writes what it is given as well as it can: 1.5 becomes the long 1, ``"no"`` the boolean true, ``"ab"`` the
array ``["a", "b"]``, and a time without a zone becomes one of the machine's zone. In an event those are
lies, so users' events are checked before they are written. A schema is compiled once into functions.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

#: Characters of a wrong value that are shown.
_SHOWN = 60

#: Returns nothing if the value fits; else the path from the value ("" for itself) and the rule it breaks.
Problem = tuple[str, str]
Check = Callable[[Any], Problem | None]


def check_of(schema: Any) -> Check:
    """Compile ``schema`` (JSON, parsed)."""
    return _compile(schema, "", {})


def _compile(schema: Any, namespace: str, named: dict[str, Check]) -> Check:
    if isinstance(schema, list):
        return _union(schema, namespace, named)
    if isinstance(schema, str):
        if schema in _PRIMITIVES:
            return _PRIMITIVES[schema]
        full = _full(schema, namespace)

        def later(value: Any) -> Problem | None:
            # Looked up when it is used: a record may contain itself.
            return named[full](value)

        return later
    kind = schema["type"]
    if isinstance(kind, (dict, list)):
        return _compile(kind, namespace, named)
    logical = _LOGICAL.get((kind, schema.get("logicalType")))
    if kind == "record":
        return _record(schema, namespace, named)
    if kind in ("enum", "fixed"):
        name = _full(schema["name"], schema.get("namespace", namespace))
        named[name] = _decimal(schema) if schema.get("logicalType") == "decimal" else _named(schema)
        return named[name]
    if kind == "array":
        return _array(_compile(schema["items"], namespace, named))
    if kind == "map":
        return _map(_compile(schema["values"], namespace, named))
    if schema.get("logicalType") == "decimal":
        return _decimal(schema)
    return logical or _compile(kind, namespace, named)


def _full(name: str, namespace: str) -> str:
    return name if "." in name or not namespace else f"{namespace}.{name}"


def _told(value: Any) -> str:
    shown = repr(value)
    return f"{shown[:_SHOWN]}…" if len(shown) > _SHOWN else shown


def _is(types: type | tuple[type, ...], rule: str, *, but: tuple[type, ...] = ()) -> Check:
    def check(value: Any) -> Problem | None:
        if isinstance(value, types) and not isinstance(value, but):
            return None
        return "", f"must be {rule}, not {_told(value)}"

    return check


def _integer(bits: int, name: str) -> Check:
    limit = 1 << (bits - 1)

    def check(value: Any) -> Problem | None:
        if isinstance(value, int) and not isinstance(value, bool) and -limit <= value < limit:
            return None
        return "", f"must be {name}, a whole number of {bits} bits, not {_told(value)}"

    return check


def _string(value: Any) -> Problem | None:
    if not isinstance(value, str):
        return "", f"must be a string, not {_told(value)}"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "", f"must be text that UTF-8 can hold, not {_told(value)}"
    return None


def _instant(value: Any) -> Problem | None:
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            return "", f"must carry a time zone, as datetime.now(UTC) does, not {_told(value)}"
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return None
    return "", f"must be a datetime with a time zone, not {_told(value)}"


def _uuid(value: Any) -> Problem | None:
    if isinstance(value, UUID):
        return None
    try:
        UUID(value)
    except (ValueError, TypeError, AttributeError):
        return "", f"must be a UUID, not {_told(value)}"
    return None


def _decimal(schema: Mapping[str, Any]) -> Check:
    precision, scale = schema["precision"], schema.get("scale", 0)

    def check(value: Any) -> Problem | None:
        if not isinstance(value, Decimal):
            return "", f"must be a Decimal, not {_told(value)}"
        if not value.is_finite():
            return "", f"must be a finite Decimal, not {value}"
        _, digits, exponent = value.as_tuple()
        assert isinstance(exponent, int)
        if -exponent > scale or len(digits) + exponent + scale > precision:
            return "", f"must have at most {precision} digits, {scale} of them after the point, not {_told(value)}"
        return None

    return check


def _named(schema: Mapping[str, Any]) -> Check:
    if schema["type"] == "fixed":
        size = schema["size"]

        def fixed(value: Any) -> Problem | None:
            if isinstance(value, (bytes, bytearray)) and len(value) == size:
                return None
            return "", f"must be {size} bytes, not {_told(value)}"

        return fixed
    symbols = frozenset(schema["symbols"])
    listed = ", ".join(schema["symbols"])

    def enum(value: Any) -> Problem | None:
        if isinstance(value, str) and value in symbols:
            return None
        return "", f"must be one of {listed}, not {_told(value)}"

    return enum


def _array(items: Check) -> Check:
    def check(value: Any) -> Problem | None:
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes, bytearray)):
            return "", f"must be a list, not {_told(value)}"
        for number, item in enumerate(value):
            if (problem := items(item)) is not None:
                return f"[{number}]{problem[0]}", problem[1]
        return None

    return check


def _map(values: Check) -> Check:
    def check(value: Any) -> Problem | None:
        if not isinstance(value, Mapping):
            return "", f"must be a mapping, not {_told(value)}"
        for key, item in value.items():
            if (problem := _string(key)) is not None:
                return "", f"has a key that {problem[1]}"
            if (problem := values(item)) is not None:
                return f"[{key!r}]{problem[0]}", problem[1]
        return None

    return check


def _record(schema: Mapping[str, Any], namespace: str, named: dict[str, Check]) -> Check:
    full = _full(schema["name"], schema.get("namespace", namespace))
    inner = full.rpartition(".")[0]
    fields: list[tuple[str, bool, Check]] = []
    names = frozenset(field["name"] for field in schema["fields"])

    def check(value: Any) -> Problem | None:
        if not isinstance(value, Mapping):
            return "", f"must be a mapping with the fields of {full}, not {_told(value)}"
        for name, required, fits in fields:
            if name in value:
                if (problem := fits(value[name])) is not None:
                    return f".{name}{problem[0]}", problem[1]
            elif required:
                return f".{name}", "is missing, and has no default"
        if not names.issuperset(value):
            unknown = next(iter(sorted(str(name) for name in value if name not in names)))
            return f".{unknown[:_SHOWN]}", f"is no field of {full}; its fields are {', '.join(sorted(names))}"
        return None

    named[full] = check
    for field in schema["fields"]:
        fields.append((field["name"], "default" not in field, _compile(field["type"], inner, named)))
    return check


def _union(branches: Sequence[Any], namespace: str, named: dict[str, Check]) -> Check:
    checks = [_compile(branch, namespace, named) for branch in branches]
    nullable = "null" in branches
    others = [check for check, branch in zip(checks, branches, strict=True) if branch != "null"]

    def check(value: Any) -> Problem | None:
        if value is None and nullable:
            return None
        problems = []
        for fits in others:
            problem = fits(value)
            if problem is None:
                return None
            problems.append(problem)
        if len(problems) == 1:
            return problems[0]
        # The branch that came furthest knows best.
        return max(problems, key=lambda problem: len(problem[0]), default=("", f"must be null, not {_told(value)}"))

    return check


_INT = _integer(32, "an int")
_LONG = _integer(64, "a long")
_NUMBER = _is((int, float), "a number", but=(bool,))
_PRIMITIVES: dict[str, Check] = {
    "null": _is(type(None), "null"),
    "boolean": _is(bool, "True or False"),
    "int": _INT,
    "long": _LONG,
    "float": _NUMBER,
    "double": _NUMBER,
    "bytes": _is((bytes, bytearray), "bytes"),
    "string": _string,
}
_DATE = _is((date, int), "a date", but=(datetime, bool))
_TIME = _is((time, int), "a time of day", but=(bool,))
_LOCAL = _is((datetime, int), "a datetime", but=(bool,))
_LOGICAL: dict[tuple[str, str | None], Check] = {
    ("string", "uuid"): _uuid,
    ("int", "date"): _DATE,
    ("int", "time-millis"): _TIME,
    ("long", "time-micros"): _TIME,
    ("long", "timestamp-millis"): _instant,
    ("long", "timestamp-micros"): _instant,
    ("long", "local-timestamp-millis"): _LOCAL,
    ("long", "local-timestamp-micros"): _LOCAL,
}
