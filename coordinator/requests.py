"""Asking a transaction for something: the request goes into the log, the machine decides, the journal tells.

REST changes no state (DESIGN section 1), so two clients that ask for opposite things at the same moment get one
truth: the log puts one request before the other, and the machine answers each in that order.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple
from uuid import NAMESPACE_URL, UUID, uuid5

from fastapi import Request
from uuid_utils.compat import uuid7

from coordinator.encoding import Encoder
from coordinator.gathering import Gathering
from coordinator.request_store import REQUEST_MADE, Answer, Asked, RequestStore, Written
from coordinator.settings import Settings
from coordinator.waiting import Waiting
from participant.crashpoint import crash_at
from saga_processors.machine import Request as What
from saga_processors.machine import Verdict
from schemas import WrongShape
from web.content import responds_async, traceparent
from web.idempotency import digest, idempotency_key, reused
from web.problems import Conflict, Malformed, Problem, TooLarge

_KEYED = uuid5(NAMESPACE_URL, "urn:fluxora:request")


class Requests:
    """Belongs to one event loop."""

    def __init__(self, settings: Settings, store: RequestStore, waiting: Waiting, encoder: Encoder) -> None:
        self._settings = settings
        self._store = store
        self._waiting = waiting
        self._encoder = encoder
        self._gathering = Gathering("requests", store.write, store.write_many, settings.pool_queue)

    async def stop(self) -> None:
        await self._gathering.stop()

    async def ask(
        self,
        http: Request,
        kind: str,
        transaction_id: UUID,
        what: What,
        plain: Any,
        *,
        step: str | None = None,
        participant: Callable[[], Awaitable[Mapping[str, Any]]] | None = None,
        who: str | None = None,
        why: str | None = None,
    ) -> Answer | None:
        """Ask, and wait for the machine's decision (``request_wait_seconds``).

        With an Idempotency-Key, the same request sent again is answered as the first one was, and is not in the
        log a second time: its id is made of the key, so it finds the first one's answer.

        Args:
            http: the client's request, whose body has been read: its headers Idempotency-Key, Prefer and
                traceparent are honoured.
            kind: ``saga`` or ``transaction``; an id of the other kind is unknown.
            plain: its body as JSON.
            step: with RETRY and SKIP.
            participant: with ADD_PARTICIPANT, finds the ``fluxora.Participant`` record. It asks others, who may be
                away or say something else by now: so not for a request that was made before.

        Returns:
            The answer, APPLIED or IGNORED. ``None``: the request is durable and not decided yet, because the
            client did not want to wait, the time is over, or the transaction is parked.

        Raises:
            Problem: 404, there is no such transaction; 409, the machine rejects it; 422, the key was used for
                another request.
            Unavailable: too many wait.
            DatabaseUnavailable: it may or may not have been written; with a key it can be sent again safely.
            RegistryUnavailable: nothing was written.
        """
        named = _named(http, plain)
        if participant is not None and await self._made_before(named, kind, transaction_id):
            return await self._decision(http, transaction_id, what, named.request_id, None)
        found = None if participant is None else await participant()
        asked = await self._asked(http, kind, transaction_id, what, named, step, found, who, why)
        return await self._decision(http, transaction_id, what, asked.request_id, asked)

    async def _decision(
        self, http: Request, transaction_id: UUID, what: What, request_id: UUID, asked: Asked | None
    ) -> Answer | None:
        """Write ``asked``, unless it was written before, and wait for what the machine makes of it."""
        if responds_async(http):
            if asked is not None:
                await self._write(asked)
            return None
        # Registered before it is written: the answer may come before the statement that wrote it has returned.
        with self._waiting.register(transaction_id, self._store.answers, key=request_id) as woken:
            before = asked is None or await self._write(asked)
            answer = await self._look(request_id) if before else None
            if answer is None:
                answer = await self._waiting.until(woken, self._settings.request_wait_seconds, http.receive)
        answer = answer or await self._look(request_id)
        if answer is not None and answer.verdict is Verdict.REJECTED:
            state = answer.state or "unknown"
            raise Conflict(answer.reason or f"{what.value} is not possible: the state is {state}", state)
        return answer

    async def answered(
        self,
        http: Request,
        kind: str,
        transaction_id: UUID,
        what: What,
        plain: Any,
        *,
        who: str | None,
        why: str | None,
    ) -> bool:
        """Whether this very request, known by its Idempotency-Key, was decided before."""
        asked = await self._asked(http, kind, transaction_id, what, _named(http, plain), None, None, who, why)
        return await self._look(asked.request_id) is not None

    async def _made_before(self, named: "_Named", kind: str, transaction_id: UUID) -> bool:
        """Whether this very request holds its key. Raises Malformed: another one does."""
        if named.key is None:
            return False
        holder = await self._store.holder(named.key, kind, transaction_id)
        if holder is not None and holder != named.digest:
            raise reused("request")
        return holder is not None

    async def _write(self, asked: Asked) -> bool:
        """Write it; returns whether it was written before. Raises Problem: no such transaction; the key is taken."""
        crash_at("coordinator.before_request")
        written = await self._gathering.write(asked)
        # A crash here: it will be done, and the client does not know. With a key it can ask again.
        crash_at("coordinator.after_request")
        _check(written, asked)
        return written.holder is not None

    async def _look(self, request_id: UUID) -> Answer | None:
        return (await self._store.answers([request_id])).get(request_id)

    async def _asked(
        self,
        http: Request,
        kind: str,
        transaction_id: UUID,
        what: What,
        named: "_Named",
        step: str | None,
        participant: Mapping[str, Any] | None,
        who: str | None,
        why: str | None,
    ) -> Asked:
        for field, value in (("step", step), ("who", who), ("why", why)):
            # The answer is found by a field of the journal's JSON, which PostgreSQL cannot read past a NUL.
            if value is not None and "\0" in value:
                raise Malformed([(field, "holds no NUL (U+0000)")])
        record = {
            "transaction_id": str(transaction_id),
            "request_id": str(named.request_id),
            "request": what.value,
            "step": step,
            "participant": participant,
            "who": who,
            "why": why,
        }
        try:
            payload = await self._encoder.encode(REQUEST_MADE, record)
        except WrongShape as error:
            raise Malformed([("body", str(error))]) from error
        if len(payload) > self._settings.max_record_bytes:
            rule = f"is at most {self._settings.max_record_bytes} bytes once it is encoded"
            raise TooLarge(f"The request {rule}; it is {len(payload)}.", "body", rule)
        trace = traceparent(http.headers.get("traceparent"))
        return Asked(named.request_id, transaction_id, kind, payload, trace, named.key, named.digest)


class _Named(NamedTuple):
    """By what a request is known."""

    request_id: UUID
    #: The client's Idempotency-Key and the digest of its request.
    key: str | None
    digest: bytes | None


def _named(http: Request, plain: Any) -> _Named:
    key = idempotency_key(http.headers.getlist("idempotency-key"))
    if key is None:
        return _Named(uuid7(), None, None)
    digested = digest(f"{http.method} {http.url.path}", plain)
    return _Named(uuid5(_KEYED, f"{key}\n{digested.hex()}"), key, digested)


def not_found(kind: str, transaction_id: UUID) -> Problem:
    return Problem(404, "not-found", f"There is no {kind} {transaction_id}.")


def _check(written: Written, asked: Asked) -> None:
    if not written.known:
        raise not_found(asked.kind, asked.transaction_id)
    if written.holder is not None and written.holder != asked.digest:
        raise reused("request")
