"""What a two-phase commit is made of, and the rules it must keep. Pure: standard library only.

All times are integer milliseconds; payloads are kept as JSON text.
"""

import json
from dataclasses import dataclass
from enum import StrEnum

from saga_processors import endpoint
from saga_processors.backoff import wait_ms
from saga_processors.definition import MAX_TIMEOUT_MS, MIN_TIMEOUT_MS, NAME, TRACEPARENT, InvalidDefinition
from saga_processors.reference import MAX_PAYLOAD_BYTES, read


@dataclass(frozen=True, slots=True)
class Policy:
    """How participants are asked, and how much a transaction may be. Set by whoever runs the platform.

    The first input carries it: what is decided depends on it, so a fold of the log must find it there.
    """

    #: One call to prepare, commit or abort counts as unanswered after this, ms. A Kafka participant's vote has no
    #: limit but the transaction's own.
    attempt_timeout_ms: int = 20_000
    #: Wait before the second attempt to commit or abort; it doubles from there.
    initial_delay_ms: int = 500
    #: And ends here. There is no last attempt.
    max_delay_ms: int = 30_000
    multiplier: float = 2.0
    #: Share of the wait that is taken off at most.
    jitter: float = 0.5
    #: After so many attempts without success the transaction is shown with ``needs_attention``.
    attention_after: int = 7
    max_participants: int = 1_000
    #: Of all participants together, characters: they are one value in the database, written with every change.
    max_size: int = 1024 * 1024

    def check(self) -> None:
        """Raise :class:`InvalidDefinition` for the first value out of bounds; anybody may have written the input."""
        for field, (least, most) in _POLICY_BOUNDS.items():
            if not least <= (value := getattr(self, field)) <= most:
                raise InvalidDefinition(f"policy.{field}", f"is between {least} and {most}; got {value}")

    def delay_ms(self, attempt: int, seed: str) -> int:
        """Wait after ``attempt`` (from 1), ms."""
        return wait_ms(
            attempt,
            seed,
            initial_ms=self.initial_delay_ms,
            max_ms=self.max_delay_ms,
            multiplier=self.multiplier,
            jitter=self.jitter,
        )


DEFAULT_POLICY = Policy()
#: Constants, so that no setting decides whether an input of the log is accepted.
_POLICY_BOUNDS: dict[str, tuple[float, float]] = {
    "attempt_timeout_ms": (1, 3600 * 1000),
    "initial_delay_ms": (1, 3600 * 1000),
    "max_delay_ms": (1, 24 * 3600 * 1000),
    "multiplier": (1, 10),
    "jitter": (0, 1),
    "attention_after": (1, 1_000),
    "max_participants": (1, 10_000),
    "max_size": (1, 16 * 1024 * 1024),
}


class Transport(StrEnum):
    #: Commands go to the topic ``<service_name>.commands``.
    KAFKA = "KAFKA"
    #: Commands go through the relay to ``service_url``, or to where the service registry finds the name.
    HTTP = "HTTP"


@dataclass(frozen=True, slots=True)
class ParticipantDefinition:
    #: Unique within a transaction.
    service_name: str
    transport: Transport
    prepare_endpoint: str
    commit_endpoint: str
    abort_endpoint: str
    #: JSON text of an object; goes with every call.
    payload: str
    #: ``http(s)://host[:port][/path]``; whether the host is allowed is the relay's question, at every call.
    service_url: str | None = None

    @property
    def size(self) -> int:
        """Characters."""
        endpoints = len(self.prepare_endpoint) + len(self.commit_endpoint) + len(self.abort_endpoint)
        return len(self.service_name) + endpoints + len(self.payload) + len(self.service_url or "")

    def check(self, where: str = "participant") -> None:
        """Raise :class:`InvalidDefinition` for the first rule that is broken; ``where`` begins the field's path."""
        if not NAME.fullmatch(self.service_name):
            raise InvalidDefinition(
                f"{where}.service_name",
                "is 1 to 100 letters, digits, '_', '.' or '-' and starts with a letter or digit; "
                f"got {self.service_name[:120]!r}",
            )
        for field in ("prepare_endpoint", "commit_endpoint", "abort_endpoint"):
            path = getattr(self, field)
            if (rule := endpoint.broken_rule(path)) is not None:
                raise InvalidDefinition(f"{where}.{field}", rule)
            if endpoint.split(path)[0] is not None:
                raise InvalidDefinition(f"{where}.{field}", "is a path such as /transaction/prepare, without a host")
        if self.service_url is not None:
            if self.transport is not Transport.HTTP:
                raise InvalidDefinition(f"{where}.service_url", "goes with transport HTTP only")
            _check_service_url(f"{where}.service_url", self.service_url)
        _check_payload(f"{where}.payload", self.payload)


@dataclass(frozen=True, slots=True)
class TransactionDefinition:
    #: From the first input until the decision; an undecided transaction aborts then.
    timeout_ms: int
    #: Commit as soon as everybody has voted yes.
    auto_commit: bool = False
    #: JSON text, the client's own; shown, never read.
    metadata: str | None = None
    #: Those it begins with.
    participants: tuple[ParticipantDefinition, ...] = ()
    traceparent: str | None = None
    policy: Policy = DEFAULT_POLICY

    def check(self) -> None:
        """Raise :class:`InvalidDefinition` for the first rule that is broken; the field is named."""
        if not MIN_TIMEOUT_MS <= self.timeout_ms <= MAX_TIMEOUT_MS:
            raise InvalidDefinition(
                "timeout_seconds",
                f"is between {MIN_TIMEOUT_MS / 1000:g} and {MAX_TIMEOUT_MS // 1000} seconds; "
                f"got {self.timeout_ms / 1000:g}",
            )
        if self.traceparent is not None and not TRACEPARENT.fullmatch(self.traceparent):
            raise InvalidDefinition("traceparent", "is a W3C Trace Context header: 00-<32 hex>-<16 hex>-<2 hex>")
        if self.metadata is not None:
            _parse("metadata", self.metadata)
        self.policy.check()
        most = self.policy.max_participants
        if len(self.participants) > most:
            raise InvalidDefinition(
                "participants",
                f"a transaction has at most {most} (FLUXORA_MAX_PARTICIPANTS); this one has {len(self.participants)}",
            )
        seen: dict[str, int] = {}
        for i, participant in enumerate(self.participants):
            participant.check(f"participants[{i}]")
            if (first := seen.setdefault(participant.service_name, i)) != i:
                raise InvalidDefinition(
                    f"participants[{i}].service_name",
                    f"is unique within a transaction; {participant.service_name!r} is already participants[{first}]",
                )
        if (size := sum(participant.size for participant in self.participants)) > self.policy.max_size:
            raise InvalidDefinition(
                "participants",
                f"are at most {self.policy.max_size} characters together (FLUXORA_MAX_PARTICIPANTS_SIZE); "
                f"these are {size}. Send large data another way and put a reference to it into the payload",
            )


def _check_service_url(where: str, url: str) -> None:
    if (rule := endpoint.broken_rule(url)) is not None:
        raise InvalidDefinition(where, rule)
    if endpoint.split(url)[0] is None or "?" in url:
        raise InvalidDefinition(where, f"is http(s)://host[:port][/path] without a query; got {url[:120]!r}")


def _check_payload(where: str, text: str) -> None:
    payload, size = _parse(where, text)
    if not isinstance(payload, dict):
        raise InvalidDefinition(where, "is a JSON object: it is merged with the transaction_id")
    if size > MAX_PAYLOAD_BYTES:
        raise InvalidDefinition(
            where,
            f"is at most {MAX_PAYLOAD_BYTES} bytes as it is sent, in ASCII and with numbers written out; this one is "
            f"{size}. Send large data another way and put a reference to it into the payload",
        )


def _parse(where: str, text: str) -> tuple[object, int]:
    """Return the value, and its bytes when it is written as calls carry it (``transaction_codec``).

    Strictly: what passes here can be written as JSON again, in every language.
    """
    try:
        value = read(text)
        return value, len(json.dumps(value, allow_nan=False))
    except ValueError as error:
        raise InvalidDefinition(where, f"is JSON text: {error}") from error
