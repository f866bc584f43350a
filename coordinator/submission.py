"""From a request to a saga that may be written: everything that can be refused is refused here.

Pure but for the encoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self
from uuid import UUID

import orjson
from uuid_utils.compat import uuid7

from coordinator.encoding import Encoder
from coordinator.models import DefinitionRequest, SagaRequest, StepRequest
from coordinator.settings import Settings
from outbox_relay.addresses import AddressRefused, AllowList, check_path, check_url, is_absolute
from participant import sagas
from saga_processors import reference
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


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to run: the steps of a request, or of a registered definition."""

    name: str
    steps: Sequence[StepRequest]
    timeout_seconds: float | None
    #: Of the registered definition.
    version: str | None = None
    #: Names that the input must have.
    input_required: Sequence[str] = ()

    @classmethod
    def own(cls, request: SagaRequest) -> Self:
        """The request's own steps; raises Malformed."""
        if request.version is not None:
            raise Malformed(
                [
                    (
                        "version",
                        "is that of a registered definition, whose steps are run: give steps or version, not both",
                    )
                ]
            )
        return cls(request.name, request.steps or (), request.timeout_seconds)

    @classmethod
    def registered(cls, name: str, version: str, document: DefinitionRequest) -> Self:
        return cls(name, document.steps, document.timeout_seconds, version, document.input_required)


class Submissions:
    """Makes submissions of requests; knows the limits."""

    def __init__(self, settings: Settings, encoder: Encoder, allowed: AllowList) -> None:
        self._settings = settings
        self._encoder = encoder
        self._allowed = allowed

    async def make(self, request: SagaRequest, plan: Plan, trace: str | None) -> Submission:
        """Check ``request``, to which ``plan`` belongs, and encode it.

        Raises:
            Malformed: the saga breaks a rule; the first one is named.
            TooLarge: its input, one of its payloads, or all of it, is over the limit.
            RegistryUnavailable: the first saga of this process, and the registry does not answer.
        """
        _check_input(request, plan)
        record = self._record(plan, request.saga_id or uuid7(), trace, request.input)
        _check_definition(record, self._settings.max_steps)
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
            name=plan.name,
            services=list(dict.fromkeys(step.service_name for step in plan.steps)),
            definition=orjson.dumps(definition_to_json(record)),
            payload=payload,
            type=sagas.STARTED,
            event_id=uuid7(),
            traceparent=trace,
        )

    def check(self, plan: Plan) -> dict[str, Any]:
        """Check all of ``plan`` that can be checked before there is an input.

        Returns what it comes to, with every default written out: plans that come to the same are the same.

        Raises:
            Malformed, TooLarge: as :meth:`make`.
        """
        record = self._record(plan, _NOBODY, None, None)
        _check_definition({**record, "input": _invented_input(record)}, self._settings.max_steps)
        steps = [{**step, "payload": orjson.loads(step["payload"])} for step in record["steps"]]
        return {"steps": steps, "timeout_ms": record["timeout_ms"], "input_required": sorted(set(plan.input_required))}

    def _record(self, plan: Plan, saga_id: UUID, trace: str | None, given: Any) -> dict[str, Any]:
        _check_shape(plan.steps, self._settings.max_steps)
        self._check_addresses(plan.steps)
        try:
            record = sagas.started(
                saga_id,
                plan.name,
                [_step(step) for step in plan.steps],
                timeout_seconds=plan.timeout_seconds,
                traceparent=trace,
                input=given,
                version=plan.version,
            )
        except orjson.JSONEncodeError as error:
            raise Malformed([_unencodable(plan.steps, given)]) from error
        texts = [(f"steps[{i}].payload", step["payload"]) for i, step in enumerate(record["steps"])]
        for field, text in (("input", record["input"] or ""), *texts):
            self._check_size(field, text)
        return record

    def _check_size(self, field: str, text: str) -> None:
        limit = self._settings.max_payload_bytes
        size = len(text) if text.isascii() else len(text.encode())
        if size > limit:
            raise TooLarge(
                f"{field} is {size} bytes; at most {limit} may be.", field, f"is at most {limit} bytes as JSON"
            )

    def _check_addresses(self, steps: Sequence[StepRequest]) -> None:
        """What the relay would refuse to call is refused here already, where its author reads why."""
        errors = []
        for i, step in enumerate(steps):
            for field, endpoint in (
                ("action_endpoint", step.action_endpoint),
                ("compensation_endpoint", step.compensation_endpoint),
            ):
                if endpoint is None:
                    continue
                try:
                    if is_absolute(endpoint):
                        check_url(endpoint, self._allowed)
                    else:
                        check_path(endpoint)
                except AddressRefused as error:
                    errors.append((f"steps[{i}].{field}", str(error)))
        if errors:
            raise Malformed(errors)


_DEFAULT_RETRY = sagas.Retry()
#: A plan that is only checked belongs to no saga.
_NOBODY = UUID(int=0)


def kafka_services(steps: Sequence[StepRequest]) -> dict[str, list[int]]:
    """The services that are reached through their command topics, with the positions of their steps."""
    found: dict[str, list[int]] = {}
    for i, step in enumerate(steps):
        if step.action_endpoint is None:
            found.setdefault(step.service_name, []).append(i)
    return found


def _step(step: StepRequest) -> sagas.Step:
    return sagas.Step(
        service_name=step.service_name,
        payload=step.payload,
        name=step.name,
        command=step.command,
        depends_on=step.depends_on,
        kind=step.kind,
        retry=_DEFAULT_RETRY if step.retry is None else sagas.Retry(**dict(step.retry)),
        timeout_seconds=step.timeout_seconds,
        action_endpoint=step.action_endpoint,
        compensation_endpoint=step.compensation_endpoint,
    )


def _check_input(request: SagaRequest, plan: Plan) -> None:
    if plan.input_required:
        required = f"by version {plan.version} of {plan.name!r}"
        if not isinstance(request.input, dict):
            names = ", ".join(plan.input_required)
            raise Malformed([("input", f"is an object with these names, required {required}: {names}")])
        missing = [name for name in plan.input_required if name not in request.input]
        if missing:
            raise Malformed([(f"input.{name}", f"is required {required}") for name in missing])


def _check_definition(record: dict[str, Any], max_steps: int) -> None:
    try:
        definition_from_record(record).check(max_steps)
    except InvalidDefinition as error:
        raise Malformed([(error.field, error.rule)]) from error


def _invented_input(record: dict[str, Any]) -> str:
    """An input in which everything is found that payloads refer to, so that all other rules can be checked."""
    names = {step["name"]: i for i, step in enumerate(record["steps"])}
    invented: dict[str, Any] = {}
    for step in record["steps"]:
        try:
            template = reference.parse(step["payload"], names)
        except ValueError:
            continue  # the check says which rule is broken
        for found in () if template is None else template.references:
            if found.step is None:
                within = invented
                for key in found.path:
                    within = within.setdefault(key, {})
    return orjson.dumps(invented).decode()


def _check_shape(steps: Sequence[StepRequest], max_steps: int) -> None:
    """What must be known before anything whose cost grows with the number of steps is done."""
    if len(steps) > max_steps:
        raise Malformed([("steps", f"a saga has at most {max_steps} steps; this one has {len(steps)}")])
    errors = []
    for i, step in enumerate(steps):
        needed = step.depends_on or ()
        if len(needed) > max_steps or len(set(needed)) != len(needed):
            errors.append((f"steps[{i}].depends_on", "names each step at most once"))
    if errors:
        raise Malformed(errors)


def _unencodable(steps: Sequence[StepRequest], given: Any) -> tuple[str, str]:
    """Which value orjson does not write, and why: the slow way, after it has failed."""
    values = [("input", given), *((f"steps[{i}].payload", step.payload) for i, step in enumerate(steps))]
    for field, value in values:
        try:
            orjson.dumps(value)
        except orjson.JSONEncodeError:
            return field, "has integers from -2^63 to 2^64-1 only; send a larger one as a string"
    return "body", "can be written as JSON"
