"""What a saga is made of, and the rules it must keep. Pure: standard library only.

A definition travels whole in the transaction's first input, so what is stored with a saga never changes under it.
All times are integer milliseconds; JSON values are kept as text, the machine never looks into them.
"""

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from saga_processors.backoff import wait_ms

#: Names of sagas, steps, services and commands: what fits a Kafka topic name and a URL path segment.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
#: W3C Trace Context, version 00 or a later one in the same form.
TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
#: A step waits at least this long for an answer, so a typing error cannot make a busy loop.
MIN_TIMEOUT_MS = 100
MAX_TIMEOUT_MS = 30 * 24 * 3600 * 1000
MAX_ATTEMPTS = 1000


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
    """

    #: Attempts of an action in all; compensations have no limit.
    max_attempts: int
    initial_delay_ms: int
    max_delay_ms: int
    multiplier: float
    jitter: float
    #: From this attempt on, a saga that cannot go on without an answer is shown with ``needs_attention``.
    attention_after: int

    def delay_ms(self, attempt: int, seed: str) -> int:
        """Wait after ``attempt`` (from 1) in ms. A function of its arguments: a replay waits exactly as long."""
        return wait_ms(
            attempt,
            seed,
            initial_ms=self.initial_delay_ms,
            max_ms=self.max_delay_ms,
            multiplier=self.multiplier,
            jitter=self.jitter,
        )


@dataclass(frozen=True, slots=True)
class StepDefinition:
    name: str
    service_name: str
    #: Which handler of the service runs.
    command: str
    #: JSON text, given to the action and again to the compensation.
    payload: str
    #: Names of the steps that must have been executed before this one starts.
    depends_on: tuple[str, ...]
    kind: StepKind
    retry: RetryPolicy
    #: How long one attempt may take before it counts as unanswered, ms.
    timeout_ms: int
    action_endpoint: str | None = None
    compensation_endpoint: str | None = None


@dataclass(frozen=True)
class SagaDefinition:
    name: str
    steps: tuple[StepDefinition, ...]
    #: Of the whole saga from its first input, ms; ``None`` = no limit.
    timeout_ms: int | None = None
    traceparent: str | None = None

    @cached_property
    def index(self) -> dict[str, int]:
        """Position of each step by its name."""
        return {step.name: i for i, step in enumerate(self.steps)}

    @cached_property
    def depends_on(self) -> tuple[tuple[int, ...], ...]:
        """For each step the positions of those it waits for."""
        return tuple(tuple(self.index[name] for name in step.depends_on) for step in self.steps)

    @cached_property
    def dependents(self) -> tuple[tuple[int, ...], ...]:
        """For each step the positions of those that wait for it."""
        return tuple(
            tuple(j for j, needed in enumerate(self.depends_on) if i in needed) for i in range(len(self.steps))
        )

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
        _check_kinds(self, _ancestors(self))


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


def _check_step(where: str, step: StepDefinition) -> None:
    _check_name(f"{where}.name", step.name)
    _check_name(f"{where}.service_name", step.service_name)
    _check_name(f"{where}.command", step.command)
    _check_timeout(f"{where}.timeout_seconds", step.timeout_ms)
    if step.action_endpoint is not None or step.compensation_endpoint is not None:
        raise InvalidDefinition(f"{where}.action_endpoint", "is not there yet: steps address Kafka services")
    try:
        json.loads(step.payload)
    except ValueError as error:
        raise InvalidDefinition(f"{where}.payload", f"is JSON text: {error}") from error
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


def _ancestors(saga: SagaDefinition) -> list[set[int]]:
    """All steps that each step waits for, directly or not; raises on a cycle (Kahn's algorithm)."""
    waiting = [len(set(needed)) for needed in saga.depends_on]
    ready = [i for i, count in enumerate(waiting) if count == 0]
    above: list[set[int]] = [set() for _ in saga.steps]
    done = 0
    while ready:
        i = ready.pop()
        done += 1
        for j in saga.dependents[i]:
            above[j] |= above[i] | {i}
            waiting[j] -= 1
            if waiting[j] == 0:
                ready.append(j)
    if done != len(saga.steps):
        cycle = ", ".join(saga.steps[i].name for i, count in enumerate(waiting) if count > 0)
        raise InvalidDefinition("steps.depends_on", f"has no cycle; these steps wait for each other: {cycle}")
    return above


def _check_kinds(saga: SagaDefinition, above: list[set[int]]) -> None:
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
