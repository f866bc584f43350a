"""From a request to a two-phase commit, or a further participant of one, that keeps every rule.

What can be refused is refused here; what depends on the transaction's state is the machine's.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any
from uuid import UUID

import orjson
from uuid_utils.compat import uuid7

from coordinator.encoding import Encoder
from coordinator.services import KafkaUnavailable, Services
from coordinator.settings import Settings
from coordinator.submission import Submission
from coordinator.transaction_models import ParticipantRequest, TransactionRequest
from outbox_relay.addresses import AddressRefused, AllowList, check_path, check_url
from outbox_relay.directory import Directory
from saga_processors.codec import definition_to_json
from saga_processors.definition import InvalidDefinition
from saga_processors.transaction_codec import NAME
from saga_processors.transaction_definition import (
    ParticipantDefinition,
    TransactionDefinition,
    Transport,
)
from schemas import WrongShape
from web.problems import Malformed, TooLarge, Unavailable

STARTED = "fluxora.TransactionStarted"
KIND = "transaction"
_ENDPOINTS = ("prepare_endpoint", "commit_endpoint", "abort_endpoint")


class TransactionSubmissions:
    """Makes them; knows the limits, and who can be reached how."""

    def __init__(
        self, settings: Settings, encoder: Encoder, services: Services, directory: Directory, allowed: AllowList
    ) -> None:
        self._settings = settings
        self._encoder = encoder
        self._services = services
        self._directory = directory
        self._allowed = allowed
        self._policy = settings.policy

    async def make(self, request: TransactionRequest, trace: str | None) -> Submission:
        """Check ``request`` and encode it.

        Raises:
            Malformed: it breaks a rule.
            TooLarge: a payload, or all of it, is over the limit.
            Unavailable: it cannot be said how a participant is reached.
            RegistryUnavailable: the first transaction of this process, and the schema registry does not answer.
        """
        if len(request.participants) > self._policy.max_participants:
            # Before anything whose cost grows with their number is done.
            raise Malformed([("participants", f"are at most {self._policy.max_participants}")])
        definition = TransactionDefinition(
            timeout_ms=round(request.timeout_seconds * 1000),
            auto_commit=request.auto_commit,
            metadata=None if request.metadata is None else _json("metadata", request.metadata),
            participants=tuple(
                self._participant(participant, f"participants[{i}].")
                for i, participant in enumerate(request.participants)
            ),
            traceparent=trace,
            policy=self._policy,
        )
        try:
            definition.check()
        except InvalidDefinition as error:
            raise Malformed([(error.field, error.rule)]) from error
        where = [f"participants[{i}]." for i in range(len(definition.participants))]
        participants = await self._reach(definition.participants, where)
        transaction_id = request.transaction_id or uuid7()
        record = {
            "transaction_id": str(transaction_id),
            "timeout_ms": definition.timeout_ms,
            "auto_commit": definition.auto_commit,
            "metadata": definition.metadata,
            "participants": [asdict(participant) for participant in participants],
            "traceparent": trace,
            "policy": asdict(definition.policy),
        }
        try:
            payload = await self._encoder.encode(STARTED, record)
        except WrongShape as error:
            raise Malformed([("body", str(error))]) from error
        limit = self._settings.max_record_bytes
        if len(payload) > limit:
            rule = f"is at most {limit} bytes with all its payloads once it is encoded"
            raise TooLarge(f"The transaction {rule}; it is {len(payload)}.", "body", rule)
        return Submission(
            transaction_id=UUID(str(transaction_id)),
            kind=KIND,
            name=NAME,
            services=[participant.service_name for participant in participants],
            definition=orjson.dumps(definition_to_json(record)),
            payload=payload,
            type=STARTED,
            event_id=uuid7(),
            traceparent=trace,
        )

    async def participant(self, request: ParticipantRequest) -> ParticipantDefinition:
        """Check one that is to be added. Raises as :meth:`make`."""
        participant = self._participant(request, "")
        try:
            participant.check()
        except InvalidDefinition as error:
            raise Malformed([(error.field.removeprefix("participant."), error.rule)]) from error
        [reached] = await self._reach([participant], [""])
        return reached

    def _participant(self, request: ParticipantRequest, where: str) -> ParticipantDefinition:
        """The definition; one without a service_url counts as reached over Kafka until :meth:`_reach`."""
        payload = _json(f"{where}payload", request.payload)
        size = len(payload.encode())
        if size > (limit := self._settings.max_payload_bytes):
            field = f"{where}payload"
            raise TooLarge(
                f"{field} is {size} bytes; at most {limit} may be.", field, f"is at most {limit} bytes as JSON"
            )
        url: str | None = None
        if request.service_url is not None:
            try:
                url = check_url(request.service_url, self._allowed).url
            except AddressRefused as error:
                raise Malformed([(f"{where}service_url", str(error))], slug="address-refused") from error
        for field in _ENDPOINTS:
            try:
                check_path(getattr(request, field))
            except AddressRefused as error:
                raise Malformed([(f"{where}{field}", str(error))]) from error
        return ParticipantDefinition(
            service_name=request.service_name,
            transport=Transport.KAFKA if url is None else Transport.HTTP,
            prepare_endpoint=request.prepare_endpoint,
            commit_endpoint=request.commit_endpoint,
            abort_endpoint=request.abort_endpoint,
            payload=payload,
            service_url=url,
        )

    async def _reach(
        self, participants: Sequence[ParticipantDefinition], where: Sequence[str]
    ) -> list[ParticipantDefinition]:
        """Find those without a service_url: in the registry or the map, or else among the Kafka services."""
        names = list(dict.fromkeys(p.service_name for p in participants if p.service_url is None))
        # ``None``: the registry cannot say. A question to it is shared by all who ask it, and bounded.
        in_registry = dict(zip(names, await asyncio.gather(*map(self._directory.known, names)), strict=True))
        others = [name for name in names if not in_registry[name]]
        try:
            unknown = await self._services.unknown(others)
        except KafkaUnavailable as error:
            raise Unavailable(
                "Not every participant is known here and Kafka does not answer. Nothing was done.", 5
            ) from error
        if any(in_registry[name] is None for name in unknown):
            silent = ", ".join(repr(name) for name in others if name in unknown and in_registry[name] is None)
            raise Unavailable(
                f"The service registry does not answer, and no Kafka service has this name: {silent[:200]}. "
                "Nothing was done.",
                5,
            )
        if unknown:
            raise Malformed(
                [
                    (f"{place}service_name", _unknown(p.service_name))
                    for p, place in zip(participants, where, strict=True)
                    if p.service_url is None and p.service_name in unknown
                ],
                slug="unknown-service",
            )
        return [
            replace(p, transport=Transport.HTTP) if p.service_url is None and in_registry[p.service_name] else p
            for p in participants
        ]


def _unknown(name: str) -> str:
    return (
        f"is in the service registry (or in FLUXORA_SERVICE_MAP), or has a Kafka command topic; {name!r} "
        "was found in neither. Give a service_url, register it there, or add it with: "
        f"fluxora service add {name} --database-url postgresql://..."
    )


def _json(field: str, value: Any) -> str:
    """Names in one order, so that the same content is the same text."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    except orjson.JSONEncodeError as error:
        raise Malformed([(field, "has integers from -2^63 to 2^64-1 only; send a larger one as a string")]) from error
