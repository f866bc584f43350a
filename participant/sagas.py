"""Starting a saga by an event in one's own outbox (choreography), and the record that does it.

``start`` and ``start_many`` join the caller's transaction: the sagas exist if, and only if, that transaction commits.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any
from uuid import UUID

from sqlalchemy import Connection
from sqlalchemy.orm import Session
from uuid_utils.compat import uuid7

from participant import outbox
from participant.json_text import dumps

#: The topic that decides (DESIGN section 1).
INPUT_TOPIC = "fluxora.transactions"
STARTED = "fluxora.SagaStarted"


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a failed attempt is made again, and after what wait (seconds).

    The wait before attempt n+1 is ``initial * multiplier^(n-1)``, at most ``max_delay``, less a random-looking
    share of up to ``jitter``.
    """

    #: Attempts of the action in all, 1 to 1000. Compensations have no limit.
    max_attempts: int = 5
    initial_delay_seconds: float = 0.5
    max_delay_seconds: float = 30.0
    multiplier: float = 2.0
    jitter: float = 0.2
    #: Attempts after which a saga that must go on is shown with ``needs_attention``.
    attention_after: int = 7


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a saga; times in seconds."""

    service_name: str
    #: Any JSON value; may refer to the saga's input and to results of earlier steps (saga_processors.reference).
    payload: Any = field(default_factory=dict)
    #: Unique within the saga; default ``step-<n>``.
    name: str | None = None
    #: Which handler of the service runs; default: the name.
    command: str | None = None
    #: Steps that must have been executed first; default: the one before it in the list.
    depends_on: Sequence[str] | None = None
    #: ``compensatable``, ``pivot`` or ``retriable``.
    kind: str = "compensatable"
    retry: Retry = field(default_factory=Retry)
    #: Of one attempt.
    timeout_seconds: float = 30.0
    #: Makes it a step at an HTTP service: ``POST`` to this path, or absolute URL, with the payload.
    action_endpoint: str | None = None
    #: How that is undone: ``POST`` with ``{step_id, original_payload, saga_id, result}``. Without one there is
    #: nothing to undo.
    compensation_endpoint: str | None = None

    def as_json(self) -> dict[str, Any]:
        """As ``POST /sagas`` takes it; what has its default is left out."""
        told: dict[str, Any] = {"service_name": self.service_name, "payload": self.payload}
        for name, default in _STEP_DEFAULTS.items():
            if (value := getattr(self, name)) != default:
                told[name] = value
        if self.depends_on is not None:
            told["depends_on"] = list(self.depends_on)
        if self.retry != Retry():
            told["retry"] = asdict(self.retry)
        return told


_STEP_DEFAULTS = {
    one.name: one.default
    for one in fields(Step)
    if one.name in ("name", "command", "kind", "timeout_seconds", "action_endpoint", "compensation_endpoint")
}


def started(
    saga_id: UUID,
    name: str,
    steps: Sequence[Step],
    *,
    timeout_seconds: float | None = None,
    traceparent: str | None = None,
    version: str | None = None,
    input: Any = None,
) -> dict[str, Any]:
    """Return the ``fluxora.SagaStarted`` record; its rules are checked by whoever accepts it.

    Args:
        version: of the definition that the steps were made from; for people.
        input: any JSON value that payloads may refer to; ``None`` = the saga has none.

    Raises:
        NotJson: the input or a payload is none.
    """
    names = [step.name or f"step-{i + 1}" for i, step in enumerate(steps)]
    return {
        "transaction_id": str(saga_id),
        "name": name,
        "version": version,
        "input": None if input is None else dumps(input, "input").decode(),
        "steps": [
            {
                "name": names[i],
                "service_name": step.service_name,
                "command": step.command or names[i],
                "payload": dumps(step.payload, f"steps[{i}].payload").decode(),
                "depends_on": names[i - 1 : i] if step.depends_on is None else list(step.depends_on),
                "kind": step.kind.upper(),
                "retry": {
                    "max_attempts": step.retry.max_attempts,
                    "initial_delay_ms": _ms(step.retry.initial_delay_seconds),
                    "max_delay_ms": _ms(step.retry.max_delay_seconds),
                    "multiplier": step.retry.multiplier,
                    "jitter": step.retry.jitter,
                    "attention_after": step.retry.attention_after,
                },
                "timeout_ms": _ms(step.timeout_seconds),
                "action_endpoint": step.action_endpoint,
                "compensation_endpoint": step.compensation_endpoint,
            }
            for i, step in enumerate(steps)
        ],
        "timeout_ms": None if timeout_seconds is None else _ms(timeout_seconds),
        "traceparent": traceparent,
    }


@dataclass(frozen=True, slots=True)
class NewSaga:
    """A saga to be started."""

    name: str
    steps: Sequence[Step | Mapping[str, Any]]
    saga_id: UUID = field(default_factory=uuid7)
    #: Of the whole saga; ``None`` = no limit.
    timeout_seconds: float | None = None
    #: W3C Trace Context.
    traceparent: str | None = None
    #: Of the definition that the steps were made from; for people.
    version: str | None = None
    #: Any JSON value that payloads may refer to; ``None`` = the saga has none.
    input: Any = None


def start(
    session: Session | Connection,
    name: str,
    steps: Sequence[Step | Mapping[str, Any]],
    *,
    saga_id: UUID | None = None,
    timeout_seconds: float | None = None,
    traceparent: str | None = None,
    version: str | None = None,
    input: Any = None,
) -> UUID:
    """Start a saga when the caller's transaction commits; returns its id (a UUIDv7 unless one is given).

    Never commits. A definition that breaks a rule is refused by the processor: the saga's journal says why.

    Raises:
        schemas.WrongShape: a step is not of the record's form.
        schemas.RegistryUnavailable: this is the first event of the process and the registry does not answer.
    """
    new = NewSaga(name, steps, saga_id or uuid7(), timeout_seconds, traceparent, version, input)
    return start_many(session, [new])[0]


def start_many(session: Session | Connection, sagas: Iterable[NewSaga]) -> list[UUID]:
    """Start sagas as ``start`` does, with one statement for all; returns their ids in order.

    When it raises, nothing was written.
    """
    whole = list(sagas)
    outbox.publish_many(session, [_message(new) for new in whole])
    return [new.saga_id for new in whole]


def _message(new: NewSaga) -> outbox.Message:
    record = started(
        new.saga_id,
        new.name,
        [step if isinstance(step, Step) else Step(**step) for step in new.steps],
        timeout_seconds=new.timeout_seconds,
        traceparent=new.traceparent,
        version=new.version,
        input=new.input,
    )
    return outbox.message(record, topic=INPUT_TOPIC, key=str(new.saga_id), type=STARTED, traceparent=new.traceparent)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
