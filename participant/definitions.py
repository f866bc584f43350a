"""A saga written in Python: named, versioned, checked when it is written, the same for everybody who runs it.

::

    from participant.definitions import Definition, Step, saga_input

    reserve = Step("reserve", service="stock", payload={"item": saga_input.item})
    pay = Step("pay", service="billing", kind="pivot", payload={"order": reserve.result.order_id})
    ship = Step("ship", service="shipping", kind="retriable", payload={"item": saga_input.item})

    place_order = Definition("place-order", "1", [reserve, pay, ship], timeout_seconds=300)

Steps are named by the objects themselves, so an unknown step or a cycle cannot be written down. Everything here is
immutable. What is wrong raises :class:`InvalidSaga` at once, with the step's name; limits that depend on the platform
(numbers of steps, sizes) are checked by the coordinator when the saga is registered, and by ``fluxora saga check``.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, Literal, NoReturn, Protocol
from uuid import UUID

import orjson
from sqlalchemy import Connection
from sqlalchemy.orm import Session

from participant import sagas
from participant.sagas import Retry
from schemas import FluxoraError

__all__ = [
    "Definition",
    "HttpStep",
    "InvalidInput",
    "InvalidSaga",
    "Reference",
    "Registry",
    "Retry",
    "Step",
    "saga_input",
]

Kind = Literal["compensatable", "pivot", "retriable"]

#: As saga_processors.definition.NAME, which this package must not import; a test holds them together.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
VERSION = re.compile(r"[\x21-\x7e]{1,100}")


class InvalidSaga(FluxoraError):
    """A definition breaks a rule; the text names the saga and the step, and says what to do."""


class InvalidInput(FluxoraError):
    """What a saga is started with lacks a value that one of its payloads refers to."""


class _NoDefault:
    pass


_NO_DEFAULT = _NoDefault()


class Reference:
    """A value that is known only when the saga runs: of its input, or of an earlier step's result.

    ``saga_input.customer.id`` and ``reserve.result.items[0]`` go deeper; ``["default"]`` does too, for keys that are
    no Python names. ``.default(value)`` is used where there is no such value.

    It stands for a whole JSON value. It is no string and no number, so it cannot be formatted, added or compared:
    that would have to happen while the saga runs. Let the service do it.
    """

    __slots__ = ("_default", "_path", "_step")

    _step: "AnyStep | None"
    _path: tuple[str, ...]
    _default: Any

    def __init__(self, step: "AnyStep | None", path: tuple[str, ...] = (), default: Any = _NO_DEFAULT) -> None:
        """``step``: whose result; ``None`` = the input."""
        object.__setattr__(self, "_step", step)
        object.__setattr__(self, "_path", path)
        object.__setattr__(self, "_default", default)

    def __getattr__(self, key: str) -> "Reference":
        if key.startswith("__"):
            raise AttributeError(key)
        return self[key]

    def __getitem__(self, key: str | int) -> "Reference":
        if not isinstance(self._default, _NoDefault):
            raise InvalidSaga(f"{self!r}: the default comes last, after the whole path")
        if isinstance(key, bool) or not isinstance(key, str | int) or (isinstance(key, int) and key < 0):
            raise InvalidSaga(f"{self!r}[{key!r}]: a key is a string, or a position in a list from 0")
        if isinstance(key, str) and (not key or "." in key):
            raise InvalidSaga(f"{self!r}[{key!r}]: a key is not empty and has no dot in it; refer to what is around it")
        return Reference(self._step, (*self._path, str(key)))

    def default(self, value: Any) -> "Reference":
        """The same value, or ``value``, any JSON, where there is none."""
        return Reference(self._step, self._path, value)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{self!r} stands for a value of a saga that runs; it cannot be set")

    def __repr__(self) -> str:
        return ".".join((f"{self._step.name}.result" if self._step else "saga_input", *self._path))

    def _no_value(self, *_: object) -> NoReturn:
        raise InvalidSaga(
            f"{self!r} is known only while the saga runs: put it into a payload as it is; the service can work with it"
        )

    __str__ = __bool__ = __iter__ = __len__ = __int__ = __float__ = _no_value
    __add__ = __radd__ = __sub__ = __mul__ = __rmul__ = __truediv__ = __lt__ = __gt__ = __le__ = __ge__ = _no_value

    def __format__(self, spec: str) -> NoReturn:
        self._no_value()


#: What the saga is started with.
saga_input = Reference(None)


@dataclass(frozen=True, eq=False)
class AnyStep:
    """What steps of both kinds of service have in common; times in seconds."""

    #: Unique within the saga.
    name: str
    _: KW_ONLY
    #: Who runs it.
    service: str
    #: Any JSON, with references anywhere in it. What is done to the object afterwards does not change the step.
    payload: Any = field(default_factory=dict)
    #: What must have been executed first. Default: the step before it in the list; ``()``: nothing.
    depends_on: "Sequence[AnyStep] | None" = None
    kind: Kind = "compensatable"
    retry: Retry = field(default_factory=Retry)
    #: Of one attempt.
    timeout_seconds: float = 30.0
    #: The payload as it travels: JSON text with ``{"$from": …}`` objects.
    template: str = field(init=False, repr=False)
    #: The references in the payload.
    references: tuple[Reference, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise InvalidSaga(f"a step's name is 1 to 100 letters, digits, '_', '.' or '-'; got {self.name!r}")
        if not isinstance(self.service, str) or not NAME.fullmatch(self.service):
            raise self.wrong(f"service is a name of letters, digits, '_', '.' or '-'; got {self.service!r}")
        if self.kind not in ("compensatable", "pivot", "retriable"):
            raise self.wrong(f"kind is 'compensatable', 'pivot' or 'retriable'; got {self.kind!r}")
        if self.depends_on is not None:
            if isinstance(self.depends_on, str) or not all(isinstance(other, AnyStep) for other in self.depends_on):
                raise self.wrong("depends_on holds the steps themselves, not their names: depends_on=(reserve,)")
            object.__setattr__(self, "depends_on", tuple(self.depends_on))
        if not 0.1 <= self.timeout_seconds <= 30 * 24 * 3600:
            raise self.wrong(f"timeout_seconds is between 0.1 and 2592000; got {self.timeout_seconds!r}")
        _check_retry(self)
        found: list[Reference] = []
        plain = _compiled(self, self.payload, "payload", found)
        try:
            template = orjson.dumps(plain).decode()
        except orjson.JSONEncodeError as error:
            raise self.wrong(f"payload is no JSON: {error}") from error
        object.__setattr__(self, "template", template)
        object.__setattr__(self, "references", tuple(found))

    @property
    def result(self) -> Reference:
        """What its action answers, for payloads of later steps."""
        return Reference(self)

    def wrong(self, rule: str) -> InvalidSaga:
        """The error that names this step."""
        return InvalidSaga(f"step {self.name!r}: {rule}")


@dataclass(frozen=True, eq=False, kw_only=True)
class Step(AnyStep):
    """A step at a Kafka service: a command on ``<service>.commands``."""

    #: Which handler of the service runs; default: the step's name.
    command: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.command is not None and not (isinstance(self.command, str) and NAME.fullmatch(self.command)):
            raise self.wrong(f"command is a name of letters, digits, '_', '.' or '-'; got {self.command!r}")


@dataclass(frozen=True, eq=False, kw_only=True)
class HttpStep(AnyStep):
    """A step at an HTTP service: ``POST`` with the payload."""

    #: A path at the service, as ``/reserve``, or an absolute URL.
    action: str
    #: What is called to undo it. Without one there is nothing to undo.
    compensation: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for where, endpoint in (("action", self.action), ("compensation", self.compensation)):
            if endpoint is not None and not (isinstance(endpoint, str) and endpoint):
                raise self.wrong(f"{where} is a path such as '/reserve', or an http(s) URL; got {endpoint!r}")
        if self.compensation is not None and self.kind != "compensatable":
            raise self.wrong(f"a {self.kind} step is never undone: leave compensation out")


class Registry(Protocol):
    """Where definitions are registered: ``participant.saga_client.SagaClient``."""

    def register(self, name: str, version: str, definition: Mapping[str, Any], /) -> Any: ...


@dataclass(frozen=True, slots=True, eq=False)
class Definition:
    """A saga that can be registered, started, tested and explored.

    Attributes:
        version: any text of up to 100 printable characters. A new version never changes a saga that runs.
        timeout_seconds: of the whole saga; then it is undone.
        example: an input, for ``fluxora saga check`` and tests. It does not travel, and is not part of the digest.
    """

    name: str
    version: str
    steps: Sequence[AnyStep]
    timeout_seconds: float | None = None
    description: str | None = None
    example: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise InvalidSaga(f"a saga's name is 1 to 100 letters, digits, '_', '.' or '-'; got {self.name!r}")
        if not isinstance(self.version, str) or not VERSION.fullmatch(self.version):
            raise self._wrong(f"version is a string of 1 to 100 printable characters; got {self.version!r}")
        if not self.steps:
            raise self._wrong("a saga has at least one step")
        seen: set[str] = set()
        for step in self.steps:
            if not isinstance(step, AnyStep):
                raise self._wrong(f"steps are Step and HttpStep objects; got {step!r}")
            if step.name in seen:
                raise self._wrong(f"two steps are named {step.name!r}; give one another name")
            seen.add(step.name)
        above = self._ancestors()
        self._check_kinds(above)
        self._check_references(above)

    @property
    def digest(self) -> str:
        """SHA-256 of what is registered, in hex: another digest under the same version is another saga."""
        return hashlib.sha256(orjson.dumps(self.document(), option=orjson.OPT_SORT_KEYS)).hexdigest()

    def document(self) -> dict[str, Any]:
        """What is registered: ``PUT /saga-definitions/{name}/versions/{version}``."""
        document: dict[str, Any] = {"steps": [self._step_document(i) for i in range(len(self.steps))]}
        if self.timeout_seconds is not None:
            document["timeout_seconds"] = self.timeout_seconds
        if self.description is not None:
            document["description"] = self.description
        return document

    def compiled(self) -> list[sagas.Step]:
        """The steps as ``participant.sagas`` takes them."""
        return [
            sagas.Step(
                service_name=step.service,
                payload=orjson.loads(step.template),
                name=step.name,
                command=step.command if isinstance(step, Step) else None,
                depends_on=[other.name for other in self._needs(i)],
                kind=step.kind,
                retry=step.retry,
                timeout_seconds=step.timeout_seconds,
                action_endpoint=step.action if isinstance(step, HttpStep) else None,
                compensation_endpoint=step.compensation if isinstance(step, HttpStep) else None,
            )
            for i, step in enumerate(self.steps)
        ]

    def register(self, registry: Registry) -> None:
        """Make the saga known to the coordinator; the same version again is no change. Call it when a service starts.

        Raises:
            participant.saga_client.Conflict: this version is registered with another content: give it a new version.
        """
        registry.register(self.name, self.version, self.document())

    def start(
        self,
        session: Session | Connection,
        input: Any = None,
        *,
        saga_id: UUID | None = None,
        traceparent: str | None = None,
    ) -> UUID:
        """Start it by an event in the caller's own outbox: it runs if, and only if, the caller's transaction commits.

        Never commits. Needs no registration: the whole definition travels with the event. Returns the saga's id.

        Raises:
            InvalidInput: a payload refers to something that ``input`` has not.
        """
        new = self._new(self.compiled(), input, traceparent)
        return sagas.start_many(session, [new if saga_id is None else replace(new, saga_id=saga_id)])[0]

    def start_many(
        self, session: Session | Connection, inputs: Iterable[Any], *, traceparent: str | None = None
    ) -> list[UUID]:
        """As ``start``, one for each of ``inputs``, with one statement for all; returns their ids in order.

        For ids of your own: ``participant.sagas.start_many``.
        """
        steps = self.compiled()
        return sagas.start_many(session, [self._new(steps, input, traceparent) for input in inputs])

    def _new(self, steps: Sequence[sagas.Step], input: Any, traceparent: str | None) -> sagas.NewSaga:
        self.check_input(input)
        return sagas.NewSaga(
            self.name,
            steps,
            timeout_seconds=self.timeout_seconds,
            traceparent=traceparent,
            version=self.version,
            input=input,
        )

    def check_input(self, input: Any) -> None:
        """Raise InvalidInput, naming step and value, if a payload refers to something that ``input`` has not."""
        for step in self.steps:
            for path, default in _input_references(orjson.loads(step.template)):
                if not default and not _has(input, path):
                    raise InvalidInput(
                        f"{self.name}: step {step.name!r} needs input.{'.'.join(path)}, and this input has none: "
                        "give it, or give the reference a .default(...)"
                    )

    # Rules

    def _needs(self, i: int) -> Sequence[AnyStep]:
        needed = self.steps[i].depends_on
        return self.steps[max(0, i - 1) : i] if needed is None else needed

    def _ancestors(self) -> dict[str, set[str]]:
        above: dict[str, set[str]] = {}
        for i, step in enumerate(self.steps):
            above[step.name] = set()
            for other in self._needs(i):
                if not any(other is known for known in self.steps):
                    raise self._wrong(f"step {step.name!r} depends on {other.name!r}, which is no step of this saga")
                if other.name not in above:
                    raise self._wrong(
                        f"step {step.name!r} depends on {other.name!r}, which stands behind it: move it before"
                    )
                above[step.name] |= above[other.name] | {other.name}
        return above

    def _check_kinds(self, above: Mapping[str, set[str]]) -> None:
        """As saga_processors.definition does when the saga arrives; here with the line of the user's code."""
        pivots = [step.name for step in self.steps if step.kind == "pivot"]
        if len(pivots) > 1:
            raise self._wrong(f"step {pivots[1]!r} is a second pivot, after {pivots[0]!r}; a saga has at most one")
        for step in self.steps:
            for other in self.steps:
                can_fail = other.kind == "compensatable" or (other.kind == "pivot" and step.kind == "retriable")
                if (
                    step.kind != "compensatable"
                    and can_fail
                    and other is not step
                    and other.name not in above[step.name]
                ):
                    raise self._wrong(
                        f"step {step.name!r} is {step.kind} and cannot be undone, so {other.name!r} ({other.kind}, can "
                        "fail) must come before it: add it to depends_on"
                    )

    def _check_references(self, above: Mapping[str, set[str]]) -> None:
        steps = {step.name: step for step in self.steps}
        for step in self.steps:
            for reference in step.references:
                source = reference._step
                if source is None:
                    continue
                if steps.get(source.name) is not source:
                    raise self._wrong(f"step {step.name!r} refers to {reference!r}, which is no step of this saga")
                if source.name not in above[step.name]:
                    raise self._wrong(
                        f"step {step.name!r} refers to {reference!r}, and {source.name!r} does not come before it: "
                        "add it to depends_on"
                    )
                if step.kind == "retriable" and isinstance(reference._default, _NoDefault):
                    raise self._wrong(
                        f"step {step.name!r} is retriable and cannot fail, so {reference!r} needs a .default(...)"
                    )

    def _step_document(self, i: int) -> dict[str, Any]:
        step = self.steps[i]
        document: dict[str, Any] = {
            "name": step.name,
            "service_name": step.service,
            "payload": orjson.loads(step.template),
            "depends_on": [other.name for other in self._needs(i)],
            "kind": step.kind,
            "retry": {name: getattr(step.retry, name) for name in Retry.__slots__},
            "timeout_seconds": step.timeout_seconds,
        }
        if isinstance(step, Step) and step.command is not None:
            document["command"] = step.command
        if isinstance(step, HttpStep):
            document["action_endpoint"] = step.action
            if step.compensation is not None:
                document["compensation_endpoint"] = step.compensation
        return document

    def _wrong(self, rule: str) -> InvalidSaga:
        return InvalidSaga(f"saga {self.name!r}: {rule}")


def _compiled(step: AnyStep, value: Any, where: str, found: list[Reference]) -> Any:
    """Return ``value`` with every reference as the object that stands for it in a document."""
    if isinstance(value, Reference):
        found.append(value)
        source = "input" if value._step is None else f"steps.{value._step.name}.result"
        compiled: dict[str, Any] = {"$from": ".".join((source, *value._path))}
        if not isinstance(value._default, _NoDefault):
            nested: list[Reference] = []
            compiled["default"] = _compiled(step, value._default, f"{where} (default)", nested)
            if nested:
                raise step.wrong(f"{where}: a default is a plain value, not the reference {nested[0]!r}")
        return compiled
    if isinstance(value, AnyStep):
        raise step.wrong(f"{where} is the step {value.name!r}; its answer is .result")
    if isinstance(value, Mapping):
        if "$from" in value:
            raise step.wrong(f"{where} has a key '$from': write references as saga_input.key or step.result.key")
        for key in value:
            if not isinstance(key, str):
                raise step.wrong(f"{where}: keys of JSON are strings; got {key!r}")
        return {key: _compiled(step, item, f"{where}.{key}", found) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_compiled(step, item, f"{where}[{i}]", found) for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise step.wrong(f"{where}: {value} is no JSON number")
    return value


def _check_retry(step: AnyStep) -> None:
    retry = step.retry
    if not 1 <= retry.max_attempts <= 1000:
        raise step.wrong(f"retry.max_attempts is between 1 and 1000; got {retry.max_attempts!r}")
    if not 0.001 <= retry.initial_delay_seconds <= retry.max_delay_seconds:
        raise step.wrong("retry has 0.001 <= initial_delay_seconds <= max_delay_seconds")
    if not 1 <= retry.multiplier <= 10:
        raise step.wrong(f"retry.multiplier is between 1 and 10; got {retry.multiplier!r}")
    if not 0 <= retry.jitter <= 1:
        raise step.wrong(f"retry.jitter is between 0 and 1; got {retry.jitter!r}")


def _input_references(value: Any) -> Iterator[tuple[list[str], bool]]:
    """The paths below ``input`` that a compiled payload refers to, and whether each has a default."""
    if isinstance(value, dict):
        if "$from" in value:
            source, *path = value["$from"].split(".")
            if source == "input":
                yield path, "default" in value
            return
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _input_references(item)


def _has(value: Any, path: Sequence[str]) -> bool:
    if value is None:
        return False
    for key in path:
        if isinstance(value, Mapping) and key in value:
            value = value[key]
        elif isinstance(value, list | tuple) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            return False
    return True
