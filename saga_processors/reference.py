"""References in the payload of a step: values from the saga's input, or from results of earlier steps. Pure.

A JSON object with ``$from``, perhaps ``default``, and nothing else stands for a value::

    {"customer": {"$from": "input.customer.id"},
     "order": {"$from": "steps.reserve.result.order_id"},
     "first_item": {"$from": "input.items.0"},
     "note": {"$from": "input.note", "default": null}}

A path is keys with dots between them; in a list the position, from 0. ``input`` and ``steps.<name>.result`` alone are
the whole value. A step that answered nothing, or was skipped, has the result null. What is missing is replaced by
``default``, which is taken literally; without one the step is not executed. Values are put in as they are: nothing in
them is looked for references, so no service can make a payload read what its author did not name. Keys with dots in
them cannot be named: take what is around them. To send an object that has a key ``$from``, refer to one in the input.

Everything is a function of the payload and its sources, so a command is made a second time with the same bytes.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any, Final

#: Of JSON that is read here; deeper it would depend on Python's stack whether it can be read.
MAX_DEPTH = 128
#: Characters of a path, at most.
MAX_PATH = 500
#: Bytes of a payload with its values in place. A record holds it beside a result (participant.command.RESULT_LIMIT)
#: in less than 2 MiB (saga_processors.log.MAX_RECORD_BYTES).
MAX_PAYLOAD_BYTES = 1024 * 1024

_FROM, _DEFAULT = "$from", "default"
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")
#: The closing quote may lack: then the rest is one string, and reading the text takes linear time all the same.
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', re.DOTALL)


class InvalidReference(ValueError):
    """The author's payload holds something like a reference that is none.

    Attributes:
        where: the place in the payload, as ``.customer`` or ``.items[0].id``.
        rule: what must hold, for people.
    """

    def __init__(self, where: str, rule: str) -> None:
        super().__init__(f"payload{where}: {rule}")
        self.where = where
        self.rule = rule


class Unresolved(ValueError):
    """A payload cannot be made now; the text says which reference is to blame."""


@dataclass(frozen=True, slots=True)
class Reference:
    #: Its place in the payload, as ``.items[0].id``.
    where: str
    #: As it was written, for people.
    text: str
    #: Position of the step whose result it reads; ``None`` = the saga's input.
    step: int | None
    path: tuple[str, ...]
    #: JSON text to use when there is no value.
    default: str | None


@dataclass(frozen=True, slots=True)
class Template:
    """A payload taken apart: JSON text, and the references between it."""

    parts: tuple[str | Reference, ...]

    @property
    def references(self) -> list[Reference]:
        return [part for part in self.parts if isinstance(part, Reference)]


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_ASCII_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))
MISSING: Final = object()


def read(text: str) -> Any:
    """Parse JSON (RFC 8259: no NaN).

    Raises:
        ValueError: it is none, or nested more than ``MAX_DEPTH`` deep.
    """
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    return _DECODER.decode(text)


#: Many steps read the same few sources, one after the other. What is read is never changed.
_read_source = lru_cache(maxsize=8)(read)


def parse(payload: str, steps: Mapping[str, int]) -> Template | None:
    """Find the references in ``payload``; ``None`` if there are none.

    Args:
        payload: JSON that ``read`` takes.
        steps: positions of the saga's steps by their names.

    Raises:
        InvalidReference: the first one that breaks a rule.
    """
    # The key may be written with escapes.
    if _FROM not in payload and "\\u" not in payload:
        return None
    parts: list[str | Reference] = []
    _take_apart(read(payload), "", steps, parts)
    if not any(isinstance(part, Reference) for part in parts):
        return None
    return Template(tuple(_merged(parts)))


def resolve(template: Template, input: str | None, result_of: Callable[[int], str | None]) -> str:
    """Return the payload with every reference replaced.

    Args:
        input: JSON text; ``None`` = the saga has none.
        result_of: JSON text of the result of the step at a position; ``None`` reads as null.

    Raises:
        Unresolved: a value is missing and there is no default, or the payload would be too large.
    """
    texts: list[str] = []
    size = 0
    for part in template.parts:
        text = part if isinstance(part, str) else _value_of(part, input, result_of)
        size += len(text) if text.isascii() else len(text.encode())
        if size > MAX_PAYLOAD_BYTES:
            at = f" at {part.text}" if isinstance(part, Reference) else ""
            raise Unresolved(f"the payload grows over its limit of {MAX_PAYLOAD_BYTES} bytes{at}")
        texts.append(text)
    return "".join(texts)


def look_up(source: str | None, path: tuple[str, ...]) -> Any:
    """Return the value at ``path`` in a JSON text, or ``MISSING``; so is everything in what is not JSON."""
    if source is None:
        return MISSING
    try:
        value = _read_source(source)
    except ValueError:
        return MISSING
    for key in path:
        if isinstance(value, dict):
            value = value.get(key, MISSING)
        elif isinstance(value, list) and _INDEX.fullmatch(key) and int(key) < len(value):
            value = value[int(key)]
        else:
            return MISSING
    return value


def _value_of(reference: Reference, input: str | None, result_of: Callable[[int], str | None]) -> str:
    source = input if reference.step is None else result_of(reference.step) or "null"
    value = look_up(source, reference.path)
    if value is not MISSING:
        try:
            return _write(value)
        except ValueError as error:
            # 1e999 is JSON, and reads as infinity.
            raise Unresolved(f"payload{reference.where}: {reference.text} cannot be written: {error}") from error
    if reference.default is None:
        raise Unresolved(f"payload{reference.where}: there is no {reference.text}, and no default")
    return reference.default


def _write(value: Any) -> str:
    text = _ENCODER.encode(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Half a surrogate pair can be written in JSON, as \ud800, but not in UTF-8.
        return _ASCII_ENCODER.encode(value)
    return text


def _take_apart(value: Any, where: str, steps: Mapping[str, int], parts: list[str | Reference]) -> None:
    if isinstance(value, dict):
        if _FROM in value:
            parts.append(_reference(value, where, steps))
            return
        mark = "{"
        for key, item in value.items():
            parts.append(f"{mark}{_write(key)}:")
            _take_apart(item, f"{where}.{_shown(key[:100])}", steps, parts)
            mark = ","
        parts.append("}" if value else "{}")
    elif isinstance(value, list):
        mark = "["
        for i, item in enumerate(value):
            parts.append(mark)
            _take_apart(item, f"{where}[{i}]", steps, parts)
            mark = ","
        parts.append("]" if value else "[]")
    else:
        try:
            parts.append(_write(value))
        except ValueError as error:
            raise InvalidReference(where, f"is a number that JSON can carry ({error})") from error


def _merged(parts: list[str | Reference]) -> Iterator[str | Reference]:
    """The texts between two references as one."""
    for literal, group in groupby(parts, lambda part: isinstance(part, str)):
        if literal:
            yield "".join(part for part in group if isinstance(part, str))
        else:
            yield from group


def _reference(value: dict[str, Any], where: str, steps: Mapping[str, int]) -> Reference:
    text = value[_FROM]
    if others := value.keys() - {_FROM, _DEFAULT}:
        raise InvalidReference(
            where, f"is a reference, so it has {_FROM!r}, {_DEFAULT!r} and nothing else; got {min(others)[:100]!r}"
        )
    if not isinstance(text, str) or not 1 <= len(text) <= MAX_PATH or "" in text.split("."):
        raise InvalidReference(
            where,
            f"has in {_FROM!r} keys with dots between them, up to {MAX_PATH} characters; got {str(text)[:120]!r}",
        )
    try:
        default = _write(value[_DEFAULT]) if _DEFAULT in value else None
    except ValueError as error:
        raise InvalidReference(where, f"has a {_DEFAULT!r} that JSON can carry ({error})") from error
    source, *path = text.split(".")
    if source == "input":
        return Reference(where, _shown(text), None, tuple(path), default)
    # The names of steps may have dots in them.
    ends = [i for i, key in enumerate(path) if key == "result" and ".".join(path[:i]) in steps]
    if source != "steps" or not ends:
        raise InvalidReference(
            where, f"begins with 'input' or 'steps.<name of a step of this saga>.result'; got {text[:120]!r}"
        )
    if len(ends) > 1:
        raise InvalidReference(where, f"means one step; {text[:120]!r} can be read in {len(ends)} ways: rename one")
    return Reference(where, _shown(text), steps[".".join(path[: ends[0]])], tuple(path[ends[0] + 1 :]), default)


def _shown(text: str) -> str:
    """The author's own words as they may stand in a reason, which becomes an Avro string and PostgreSQL's text: neither
    holds half a surrogate pair (``\\ud800`` in JSON), and the latter no NUL."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def _depth(text: str) -> int:
    deepest = depth = 0
    for match in _BRACKETS.finditer(text):
        if match[0] in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif match[0] in "]}":
            depth -= 1
    return deepest
