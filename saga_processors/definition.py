"""What a saga is made of, and the rules it must keep. Pure: standard library only.

A definition travels whole in the transaction's first input, so what is stored with a saga never changes under it.
All times are integer milliseconds; JSON values are kept as text, which the machine looks into only where a payload
refers to them (``saga_processors.reference``).
"""

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from types import MappingProxyType

from saga_processors import endpoint, reference
from saga_processors.backoff import jittered

#: Names of sagas, steps, services and commands: what fits a Kafka topic name and a URL path segment.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
#: W3C Trace Context, version 00 or a later one in the same form.
TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
#: Of a registered definition; for people.
VERSION = re.compile(r"[\x21-\x7e]{1,100}")
#: A step waits at least this long for an answer, so a typing error cannot make a busy loop.
MIN_TIMEOUT_MS = 100
MAX_TIMEOUT_MS = 30 * 24 * 3600 * 1000
MAX_ATTEMPTS = 1000
#: How long the waits of a step that is tried without end become, once it has called for attention: hundreds of sagas
#: that wait for one dead service must not fill the log. A policy whose ``max_delay_ms`` is longer keeps that.
LONG_DELAY_MS = 5 * 60 * 1000


class InvalidDefinition(ValueError):
    """The caller's saga breaks a rule.

    Attributes:
        field: where, as a path: ``steps[2].depends_on``.
        rule: what must hold, for people.
    """

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(f"{field}: {rule}")
        self.field = field
        self.rule = rule


class StepKind(StrEnum):
    #: Can be undone; the default.
    COMPENSATABLE = "COMPENSATABLE"
    #: The point of no return: once it has run, the saga only goes forward.
    PIVOT = "PIVOT"
    #: After the pivot: is tried until it succeeds, and never undone.
    RETRIABLE = "RETRIABLE"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often an attempt that failed is made again, and after what wait.

    The wait before attempt n+1 is ``initial * multiplier^(n-1)``, at most ``max_delay_ms``, of which a share of
    up to ``jitter`` is taken off, so that many sagas that failed together do not come back together.

    Where attempts have no limit (a compensation, a retriable step, a pivot in doubt), the wait goes on growing once
    the saga needs attention: from its value then by the multiplier, at least by 2, up to ``LONG_DELAY_MS``.
    """

    #: Attempts of an action in all; compensations have no limit.
    max_attempts: int
    initial_delay_ms: int
    max_delay_ms: int
    multiplier: float
    jitter: float
    #: From this attempt on, a saga that cannot go on without an answer is shown with ``needs_attention``.
    attention_after: int

    def delay_ms(self, attempt: int, seed: str, slower_after: int | None = None) -> int:
        """Wait after ``attempt`` (from 1) in ms. A function of its arguments: a replay waits exactly as long.

        Args:
            slower_after: the attempt after which waits grow up to ``LONG_DELAY_MS``; ``None`` = they do not.
        """
        if slower_after is None or attempt <= slower_after:
            base = self._capped(attempt)
        else:
            grown = self._capped(slower_after) * max(self.multiplier, 2.0) ** min(attempt - slower_after, 64)
            base = min(grown, float(max(self.max_delay_ms, LONG_DELAY_MS)))
        return jittered(base, attempt, seed, self.jitter)

    def _capped(self, attempt: int) -> float:
        return min(self.initial_delay_ms * self.multiplier ** min(attempt - 1, 64), float(self.max_delay_ms))


@dataclass(frozen=True, slots=True)
class StepDefinition:
    name: str
    service_name: str
    #: Which handler of the service runs.
    command: str
    #: JSON text, given to the action and again to the compensation; may hold references.
    payload: str
    #: Names of the steps that must have been executed before this one starts.
    depends_on: tuple[str, ...]
    kind: StepKind
    retry: RetryPolicy
    #: How long one attempt may take before it counts as unanswered, ms.
    timeout_ms: int
    #: Makes it an HTTP step: a path at the service, or an absolute URL.
    action_endpoint: str | None = None
    #: Of an HTTP step; without one there is nothing to undo, and its compensation is settled without a call.
    compensation_endpoint: str | None = None

    @property
    def over_http(self) -> bool:
        """Whether the relay calls it. Then no barrier orders its action and its compensation: the machine must."""
        return self.action_endpoint is not None


#: Steps of a saga whose graph is kept for the next one of its kind; the graph of a large one takes megabytes.
KEPT_STEPS = 30


@dataclass(frozen=True, slots=True)
class Graph:
    """How the steps of a saga wait for each other; they are named by their positions."""

    #: Position of each step by its name.
    index: Mapping[str, int]
    #: For each step those it waits for.
    depends_on: tuple[tuple[int, ...], ...]
    #: For each step those that wait for it.
    dependents: tuple[tuple[int, ...], ...]
    #: For each step all that it waits for, directly or not.
    above: tuple[frozenset[int], ...]


@dataclass(frozen=True)
class SagaDefinition:
    name: str
    steps: tuple[StepDefinition, ...]
    #: Of the whole saga from its first input, ms; ``None`` = no limit.
    timeout_ms: int | None = None
    traceparent: str | None = None
    #: Of the registered definition it was made from.
    version: str | None = None
    #: JSON text; what payloads may refer to.
    input: str | None = None

    @cached_property
    def templates(self) -> tuple[reference.Template | None, ...]:
        """For each step its payload taken apart; ``None`` where it holds no reference.

        Raises:
            InvalidDefinition: one is none; never after ``check``.
        """
        return tuple(self._template(i, step.payload) for i, step in enumerate(self.steps))

    def _template(self, i: int, payload: str) -> reference.Template | None:
        try:
            return reference.parse(payload, self.index)
        except reference.InvalidReference as error:
            raise InvalidDefinition(f"steps[{i}].payload{error.where}", error.rule) from error

    @cached_property
    def graph(self) -> Graph:
        """Who waits for whom. Names are known and unique: after ``check``."""
        steps = tuple((step.name, step.depends_on) for step in self.steps)
        return _kept_graph(steps) if len(steps) <= KEPT_STEPS else _graph(steps)

    @property
    def index(self) -> Mapping[str, int]:
        """Position of each step by its name."""
        return self.graph.index

    @property
    def depends_on(self) -> tuple[tuple[int, ...], ...]:
        """For each step the positions of those it waits for."""
        return self.graph.depends_on

    @property
    def dependents(self) -> tuple[tuple[int, ...], ...]:
        """For each step the positions of those that wait for it."""
        return self.graph.dependents

    def check(self, max_steps: int) -> None:
        """Raise :class:`InvalidDefinition` for the first rule that is broken; the field is named."""
        _check_name("name", self.name)
        if not self.steps:
            raise InvalidDefinition("steps", "a saga has at least one step")
        if len(self.steps) > max_steps:
            raise InvalidDefinition("steps", f"a saga has at most {max_steps} steps; this one has {len(self.steps)}")
        if self.traceparent is not None and not TRACEPARENT.fullmatch(self.traceparent):
            raise InvalidDefinition("traceparent", "is a W3C Trace Context header: 00-<32 hex>-<16 hex>-<2 hex>")
        if self.timeout_ms is not None:
            _check_timeout("timeout_seconds", self.timeout_ms)
        if self.version is not None and not VERSION.fullmatch(self.version):
            raise InvalidDefinition("version", "is 1 to 100 printable ASCII characters without spaces")
        if self.input is not None:
            _check_json("input", self.input)
        seen: dict[str, int] = {}
        for i, step in enumerate(self.steps):
            _check_step(f"steps[{i}]", step)
            if step.name in seen:
                raise InvalidDefinition(
                    f"steps[{i}].name", f"is unique within a saga; {step.name!r} is already steps[{seen[step.name]}]"
                )
            seen[step.name] = i
        for i, step in enumerate(self.steps):
            for name in step.depends_on:
                if name not in seen:
                    raise InvalidDefinition(f"steps[{i}].depends_on", f"names steps of this saga; there is no {name!r}")
        above = self.graph.above
        _check_kinds(self, above)
        _check_references(self, above)


def _check_name(where: str, name: str) -> None:
    if not NAME.fullmatch(name):
        raise InvalidDefinition(
            where, f"is 1 to 100 letters, digits, '_', '.' or '-' and starts with a letter or digit; got {name[:120]!r}"
        )


def _check_timeout(where: str, timeout_ms: int) -> None:
    if not MIN_TIMEOUT_MS <= timeout_ms <= MAX_TIMEOUT_MS:
        raise InvalidDefinition(
            where,
            f"is between {MIN_TIMEOUT_MS / 1000:g} and {MAX_TIMEOUT_MS // 1000} seconds; got {timeout_ms / 1000:g}",
        )


def _check_json(where: str, text: str) -> None:
    try:
        reference.read(text)
    except ValueError as error:
        raise InvalidDefinition(where, f"is JSON text: {error}") from error


def _check_endpoint(where: str, value: str) -> None:
    if (rule := endpoint.broken_rule(value)) is not None:
        raise InvalidDefinition(where, rule)


def _check_step(where: str, step: StepDefinition) -> None:
    _check_name(f"{where}.name", step.name)
    _check_name(f"{where}.service_name", step.service_name)
    _check_name(f"{where}.command", step.command)
    _check_timeout(f"{where}.timeout_seconds", step.timeout_ms)
    if step.action_endpoint is not None:
        _check_endpoint(f"{where}.action_endpoint", step.action_endpoint)
    if step.compensation_endpoint is not None:
        if step.action_endpoint is None:
            raise InvalidDefinition(
                f"{where}.compensation_endpoint",
                "comes with an action_endpoint: give both for an HTTP service, none for a Kafka service",
            )
        _check_endpoint(f"{where}.compensation_endpoint", step.compensation_endpoint)
    _check_json(f"{where}.payload", step.payload)
    if (size := len(step.payload.encode())) > reference.MAX_PAYLOAD_BYTES:
        raise InvalidDefinition(
            f"{where}.payload",
            f"is at most {reference.MAX_PAYLOAD_BYTES} bytes; this one is {size}. Send large data another way and put "
            "a reference to it into the payload",
        )
    retry = step.retry
    if not 1 <= retry.max_attempts <= MAX_ATTEMPTS:
        raise InvalidDefinition(f"{where}.retry.max_attempts", f"is between 1 and {MAX_ATTEMPTS}")
    if not 1 <= retry.initial_delay_ms <= retry.max_delay_ms <= MAX_TIMEOUT_MS:
        raise InvalidDefinition(
            f"{where}.retry", "has 0.001 <= initial_delay_seconds <= max_delay_seconds, and at most 30 days"
        )
    if not 1.0 <= retry.multiplier <= 10.0:
        raise InvalidDefinition(f"{where}.retry.multiplier", "is between 1 and 10")
    if not 0.0 <= retry.jitter <= 1.0:
        raise InvalidDefinition(f"{where}.retry.jitter", "is between 0 and 1")
    if retry.attention_after < 1:
        raise InvalidDefinition(f"{where}.retry.attention_after", "is at least 1")


@lru_cache(maxsize=1_000)
def _kept_graph(steps: tuple[tuple[str, tuple[str, ...]], ...]) -> Graph:
    """One for all sagas of a kind."""
    return _graph(steps)


def _graph(steps: tuple[tuple[str, tuple[str, ...]], ...]) -> Graph:
    """The graph of steps, each with its name and the names that it waits for.

    Raises:
        InvalidDefinition: there is a cycle (Kahn's algorithm).
    """
    index = {name: i for i, (name, _) in enumerate(steps)}
    depends_on = tuple(tuple(index[name] for name in needed) for _, needed in steps)
    dependents = tuple(tuple(j for j, needed in enumerate(depends_on) if i in needed) for i in range(len(steps)))
    waiting = [len(set(needed)) for needed in depends_on]
    ready = [i for i, count in enumerate(waiting) if count == 0]
    above: list[set[int]] = [set() for _ in steps]
    done = 0
    while ready:
        i = ready.pop()
        done += 1
        for j in dependents[i]:
            above[j] |= above[i] | {i}
            waiting[j] -= 1
            if waiting[j] == 0:
                ready.append(j)
    if done != len(steps):
        cycle = ", ".join(steps[i][0] for i, count in enumerate(waiting) if count > 0)
        raise InvalidDefinition("steps.depends_on", f"has no cycle; these steps wait for each other: {cycle}")
    return Graph(MappingProxyType(index), depends_on, dependents, tuple(map(frozenset, above)))


def _check_kinds(saga: SagaDefinition, above: Sequence[Set[int]]) -> None:
    """Nothing that can fail may come after, or beside, what cannot be undone (Garcia-Molina and Salem's pivot)."""
    pivots = [i for i, step in enumerate(saga.steps) if step.kind is StepKind.PIVOT]
    if len(pivots) > 1:
        raise InvalidDefinition(f"steps[{pivots[1]}].kind", "a saga has at most one pivot")
    for i, step in enumerate(saga.steps):
        if step.kind is StepKind.COMPENSATABLE:
            continue
        for j, other in enumerate(saga.steps):
            can_fail = other.kind is StepKind.COMPENSATABLE or (
                other.kind is StepKind.PIVOT and step.kind is StepKind.RETRIABLE
            )
            if can_fail and j not in above[i]:
                raise InvalidDefinition(
                    f"steps[{i}].kind",
                    f"{step.name!r} is {step.kind.lower()} and cannot be undone, so {other.name!r} "
                    f"({other.kind.lower()}, can fail) must come before it: add it to depends_on",
                )


def _check_references(saga: SagaDefinition, above: Sequence[Set[int]]) -> None:
    """A bad reference is found now, not at the third step; only what a service answers is not known yet."""
    for i, template in enumerate(saga.templates):
        if template is None:
            continue
        step = saga.steps[i]
        for found in template.references:
            where = f"steps[{i}].payload{found.where}"
            if found.step is None:
                if found.default is None and reference.look_up(saga.input, found.path) is reference.MISSING:
                    given = "the saga has no input" if saga.input is None else "this saga's input has no such value"
                    raise InvalidDefinition(where, f"refers to {found.text!r}, but {given}: give it, or a default")
                continue
            other = saga.steps[found.step].name
            if found.step not in above[i]:
                raise InvalidDefinition(
                    where,
                    f"refers to results of steps that come before {step.name!r}; {other!r} does not: "
                    "add it to depends_on",
                )
            if step.kind is StepKind.RETRIABLE and found.default is None:
                raise InvalidDefinition(
                    where,
                    f"has a default, because {step.name!r} is retriable and cannot fail if {other!r} answers "
                    "without this value",
                )
