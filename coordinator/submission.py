"""From a request to a saga that may be written: everything that can be refused is refused here.

Pure but for the encoder.
"""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson
from uuid_utils.compat import uuid7

from coordinator.encoding import Encoder
from coordinator.models import SagaRequest
from coordinator.settings import Settings
from participant import sagas
from saga_processors.codec import definition_to_json
from saga_processors.definition import InvalidDefinition
from saga_processors.saga_codec import definition_from_record
from schemas import WrongShape
from web.problems import Malformed, TooLarge


@dataclass(frozen=True, slots=True)
class Submission:
    """A transaction that keeps every rule, ready to be written."""

    transaction_id: UUID
    #: Which machine runs it: ``transactions.kind``.
    kind: str
    name: str
    #: Whom it addresses, each once, in order.
    services: list[str]
    #: The first input, as stored in ``transactions.definition``.
    definition: bytes
    #: The first input, as it leaves through the outbox, and the name of its schema.
    payload: bytes
    type: str
    event_id: UUID
    traceparent: str | None


class Submissions:
    """Makes submissions of requests; knows the limits."""

    def __init__(self, settings: Settings, encoder: Encoder) -> None:
        self._settings = settings
        self._encoder = encoder

    async def make(self, request: SagaRequest, trace: str | None) -> Submission:
        """Check ``request`` and encode it.

        Raises:
            Malformed: the saga breaks a rule; the first one is named.
            TooLarge: one of its payloads, or all of it, is over the limit.
            RegistryUnavailable: the first saga of this process, and the registry does not answer.
        """
        _check_shape(request, self._settings.max_steps)
        record = self._record(request, request.saga_id or uuid7(), trace)
        self._check_payloads(record)
        try:
            definition_from_record(record).check(self._settings.max_steps)
        except InvalidDefinition as error:
            raise Malformed([(error.field, error.rule)]) from error
        try:
            payload = await self._encoder.encode(sagas.STARTED, record)
        except WrongShape as error:
            raise Malformed([("body", str(error))]) from error
        limit = self._settings.max_record_bytes
        if len(payload) > limit:
            raise TooLarge(
                f"The saga is {len(payload)} bytes as a record; at most {limit} may be.",
                "body",
                f"is at most {limit} bytes with all its payloads once it is encoded",
            )
        return Submission(
            transaction_id=UUID(record["transaction_id"]),
            kind="saga",
            name=request.name,
            services=list(dict.fromkeys(step.service_name for step in request.steps)),
            definition=orjson.dumps(definition_to_json(record)),
            payload=payload,
            type=sagas.STARTED,
            event_id=uuid7(),
            traceparent=trace,
        )

    def _record(self, request: SagaRequest, saga_id: UUID, trace: str | None) -> dict[str, Any]:
        steps = [
            sagas.Step(
                service_name=step.service_name,
                payload=step.payload,
                name=step.name,
                command=step.command,
                depends_on=step.depends_on,
                kind=step.kind,
                retry=_DEFAULT_RETRY if step.retry is None else sagas.Retry(**dict(step.retry)),
                timeout_seconds=step.timeout_seconds,
            )
            for step in request.steps
        ]
        try:
            return sagas.started(
                saga_id, request.name, steps, timeout_seconds=request.timeout_seconds, traceparent=trace
            )
        except orjson.JSONEncodeError as error:
            raise Malformed([_unencodable(request)]) from error

    def _check_payloads(self, record: dict[str, Any]) -> None:
        limit = self._settings.max_payload_bytes
        for i, step in enumerate(record["steps"]):
            text: str = step["payload"]
            size = len(text) if text.isascii() else len(text.encode())
            if size > limit:
                field = f"steps[{i}].payload"
                raise TooLarge(
                    f"{field} is {size} bytes; at most {limit} may be.",
                    field,
                    f"is at most {limit} bytes as JSON",
                )


_DEFAULT_RETRY = sagas.Retry()


def _check_shape(request: SagaRequest, max_steps: int) -> None:
    """What must be known before anything whose cost grows with the number of steps is done."""
    if len(request.steps) > max_steps:
        raise Malformed([("steps", f"a saga has at most {max_steps} steps; this one has {len(request.steps)}")])
    errors = []
    for i, step in enumerate(request.steps):
        for field in ("action_endpoint", "compensation_endpoint"):
            if getattr(step, field) is not None:
                errors.append(
                    (
                        f"steps[{i}].{field}",
                        "is not supported yet: steps over HTTP come with the next release. "
                        "Leave it out and address a Kafka service by service_name",
                    )
                )
        needed = step.depends_on or ()
        if len(needed) > max_steps or len(set(needed)) != len(needed):
            errors.append((f"steps[{i}].depends_on", "names each step at most once"))
    if errors:
        raise Malformed(errors)


def _unencodable(request: SagaRequest) -> tuple[str, str]:
    """Which payload orjson does not write, and why: the slow way, after it has failed."""
    for i, step in enumerate(request.steps):
        try:
            orjson.dumps(step.payload)
        except orjson.JSONEncodeError:
            return (
                f"steps[{i}].payload",
                "has integers from -2^63 to 2^64-1 only; send a larger one as a string",
            )
    return "body", "can be written as JSON"
