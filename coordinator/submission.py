"""From the bytes of a request to a saga that may be written: everything that can be refused is refused here.

Pure but for the codec, which asks the schema registry once in the life of the process.
"""

import asyncio
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson
from pydantic import ValidationError
from uuid_utils.compat import uuid7

from coordinator.models import SagaRequest
from coordinator.settings import Settings
from participant import sagas
from saga_processors.codec import definition_to_json
from saga_processors.definition import InvalidDefinition
from saga_processors.saga_codec import definition_from_record
from schemas import Codec, RegistryUnavailable, WrongShape
from web.problems import Malformed, TooLarge, from_validation


@dataclass(frozen=True, slots=True)
class Submission:
    """A saga that keeps every rule, ready to be written."""

    saga_id: UUID
    name: str
    #: Whom its steps address, each once, in order.
    services: list[str]
    #: The first input, as stored in ``transactions.definition``.
    definition: bytes
    #: The first input, as it leaves through the outbox.
    payload: bytes
    event_id: UUID
    traceparent: str | None


def parse(body: bytes) -> tuple[SagaRequest, Any]:
    """Return the request and the plain JSON it came as.

    Two parsers, because each lets something pass: pydantic's takes NaN and 1e999 inside of a payload,
    orjson's makes floats of large integers without a word.

    Raises:
        Malformed: not JSON, or not of the request's shape.
    """
    try:
        plain = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Malformed([("body", f"is valid JSON ({error})")]) from error
    try:
        return SagaRequest.model_validate_json(body), plain
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False, include_input=False)) from error


class Submissions:
    """Makes submissions of requests; knows the limits and the codec."""

    def __init__(self, settings: Settings, codec: Codec) -> None:
        self._settings = settings
        self._codec = codec
        self._warm = False
        self._meeting: asyncio.Task[str | None] | None = None

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
        payload = await self._encode(record)
        limit = self._settings.max_record_bytes
        if len(payload) > limit:
            raise TooLarge(
                f"The saga is {len(payload)} bytes as a record; at most {limit} may be.",
                "body",
                f"is at most {limit} bytes with all its payloads once it is encoded",
            )
        return Submission(
            saga_id=UUID(record["transaction_id"]),
            name=request.name,
            services=list(dict.fromkeys(step.service_name for step in request.steps)),
            definition=orjson.dumps(definition_to_json(record)),
            payload=payload,
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

    async def _encode(self, record: dict[str, Any]) -> bytes:
        if not self._warm:
            await self._meet_registry(record)
        try:
            return self._codec.encode(sagas.STARTED, record)
        except WrongShape as error:
            raise Malformed([("body", str(error))]) from error

    async def _meet_registry(self, record: dict[str, Any]) -> None:
        """Let the codec ask the registry for the schema's id: blocking, so on a thread, one for all who need it."""
        if self._meeting is None or self._meeting.done():
            self._meeting = asyncio.create_task(self._ask_registry(record), name="registry")
        meeting = self._meeting
        await asyncio.wait((meeting,), timeout=self._settings.registry_timeout_seconds)
        if not meeting.done():
            raise RegistryUnavailable("the registry has not given the id of our schema yet")
        if (error := meeting.result()) is not None:
            raise RegistryUnavailable(error)

    async def _ask_registry(self, record: dict[str, Any]) -> str | None:
        """Returns why it failed, so that no exception is lost when nobody waits any more."""
        try:
            await asyncio.to_thread(self._codec.encode, sagas.STARTED, record)
        except RegistryUnavailable as error:
            return str(error)
        except WrongShape:
            pass  # the id is asked for first; whose record it is will meet this again
        self._warm = True
        return None


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
