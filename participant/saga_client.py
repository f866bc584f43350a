"""Sagas over REST, for services and scripts.

::

    with SagaClient("web-shop") as sagas:
        saga_id = sagas.start_saga("order", [Step("stock", payload={"sku": 7}), Step("billing")])
        saga = sagas.wait(saga_id)

Within a database transaction use ``participant.sagas.start``: the saga then exists if, and only if, it commits.
"""

import os
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, cast
from urllib.parse import quote
from uuid import UUID, uuid4

from participant.rest import CallFailed, Conflict, Invalid, NotFound, RestClient, Unavailable
from participant.sagas import Step

__all__ = [
    "CallFailed",
    "Conflict",
    "Invalid",
    "NotEnded",
    "NotFound",
    "SagaClient",
    "SagaHistory",
    "SagaPage",
    "SagaStatus",
    "StepStatus",
    "Unavailable",
]

SagaState = Literal["STARTED", "EXECUTING", "COMPENSATING", "COMPLETED", "FAILED"]
StepState = Literal["PENDING", "EXECUTING", "EXECUTED", "COMPENSATING", "COMPENSATED", "FAILED"]

#: One long poll asks the coordinator for at most this; a longer wait is several.
_POLL_SECONDS = 30.0
_NOT_DECIDED = 202
_PAUSE_SECONDS = 0.1


# As the JSON has it: a later coordinator may send more. Times are RFC 3339.


class StepStatus(TypedDict):
    id: str
    name: str
    service_name: str
    kind: Literal["compensatable", "pivot", "retriable"]
    depends_on: list[str]
    payload: Any
    state: StepState
    attempt: int
    result: Any
    reason: str | None
    in_doubt: bool
    skipped: bool
    started_at: str | None
    ended_at: str | None


class SagaStatus(TypedDict):
    saga_id: str
    name: str
    version: str | None
    input: Any
    state: SagaState
    steps: list[StepStatus]
    current_step_index: int
    needs_attention: bool
    reason: str | None
    created_at: str
    updated_at: str


class SagaPage(TypedDict):
    sagas: list[dict[str, Any]]
    next_cursor: str | None


class SagaHistory(TypedDict):
    saga_id: str
    entries: list[dict[str, Any]]
    next_cursor: str | None


class NotEnded(CallFailed):
    """The saga goes on; the time to wait is over.

    Attributes:
        saga: as it stood then.
    """

    def __init__(self, saga: SagaStatus, seconds: float) -> None:
        super().__init__(f"the saga {saga['saga_id']} has not ended within {seconds:g} s: {saga['state']}")
        self.saga = saga


class SagaClient:
    """The coordinator's ``/sagas`` and ``/saga-definitions``.

    Blocking. Safe to share between threads. Every call goes with an Idempotency-Key or is idempotent by itself, so it
    is sent again when no answer comes (or 429, 503), until ``retry_seconds`` are over. Every method raises
    :class:`CallFailed`, or one of its kind: ``NotFound``, ``Conflict``, ``Invalid``, ``Unavailable``.
    """

    def __init__(
        self,
        service_name: str,
        base_url: str | None = None,
        *,
        timeout_seconds: float = 10.0,
        retry_seconds: float = 30.0,
    ) -> None:
        """
        Args:
            service_name: who calls; told with operators' requests unless they name somebody.
            base_url: the coordinator's; default: ``COORDINATOR_URL`` of the environment.
            timeout_seconds: of one attempt.
            retry_seconds: from the first attempt on, how long a call without an answer is sent again.

        Raises:
            ValueError: there is no address.
        """
        url = base_url or os.environ.get("COORDINATOR_URL")
        if not url:
            raise ValueError("no address of the coordinator: give base_url, or set COORDINATOR_URL")
        self._service_name = service_name
        self._retry = retry_seconds
        self._rest = RestClient(
            url, f"fluxora-saga-client ({service_name})", timeout_seconds=timeout_seconds, retry_seconds=retry_seconds
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._rest.close()

    # Starting

    def start_saga(
        self,
        name: str,
        steps: Sequence[Step | Mapping[str, Any]] | None = None,
        *,
        timeout_seconds: float | None = None,
        idempotency_key: str | None = None,
        input: Any = None,
        version: str | None = None,
        saga_id: str | UUID | None = None,
    ) -> str:
        """Start a saga; returns its id. It is durable then.

        Args:
            steps: each a ``Step`` or as in ``POST /sagas``; None: the registered definition of that name.
            idempotency_key: your own, to make it once over several calls of this method; default: a new one.
            input: any JSON; payloads refer to it with ``{"$from": "input.…"}``.
            version: of the registered definition; default: the newest.

        Raises:
            Invalid: the saga breaks a rule; ``errors`` says which.
            Conflict: there is another transaction of this ``saga_id``.
        """
        body: dict[str, Any] = {"name": name}
        if steps is not None:
            body["steps"] = [step.as_json() if isinstance(step, Step) else dict(step) for step in steps]
        for field, value in (("input", input), ("timeout_seconds", timeout_seconds), ("version", version)):
            if value is not None:
                body[field] = value
        if saga_id is not None:
            body["saga_id"] = str(saga_id)
        return str(self._rest.call("POST", "/sagas", body, key=idempotency_key or str(uuid4()))["saga_id"])

    def run(
        self, name: str, input: Any = None, *, version: str | None = None, idempotency_key: str | None = None
    ) -> str:
        """Start the registered saga ``name``; returns its id. Raises as :meth:`start_saga`."""
        return self.start_saga(name, input=input, version=version, idempotency_key=idempotency_key)

    def register(self, name: str, version: str, definition: Mapping[str, Any]) -> bool:
        """Register one version of a definition; True if it is new, False if it was there, the same.

        Args:
            definition: ``{"steps": […], "timeout_seconds"?, "input_required"?, "description"?}``; a step may be a
                ``Step``.

        Raises:
            Conflict: another document is registered under this version.
            Invalid: it breaks a rule.
        """
        steps = [step.as_json() if isinstance(step, Step) else step for step in definition.get("steps", ())]
        path = f"/saga-definitions/{_part(name)}/versions/{_part(version)}"
        return bool(self._rest.call("PUT", path, {**definition, "steps": steps})["registered"])

    # Looking

    def get_saga_status(self, saga_id: str | UUID) -> SagaStatus:
        """The saga as it stands; raises NotFound."""
        return cast(SagaStatus, self._rest.call("GET", _saga(saga_id)))

    def wait(self, saga_id: str | UUID, timeout: float = 60.0) -> SagaStatus:
        """The saga once it has ended: COMPLETED or FAILED, which is no error of this call.

        Outages of the coordinator meanwhile are waited through.

        Args:
            timeout: seconds.

        Raises:
            NotEnded: it goes on after ``timeout``; carries the saga.
        """
        deadline = time.monotonic() + timeout
        while True:
            left = max(0.0, deadline - time.monotonic())
            hold = min(left, _POLL_SECONDS)
            saga = cast(
                SagaStatus,
                self._rest.call(
                    "GET", _saga(saga_id), query={"wait": f"{hold:.3f}s"}, hold_seconds=hold, retry_seconds=left
                ),
            )
            if saga["state"] in ("COMPLETED", "FAILED"):
                return saga
            if time.monotonic() >= deadline:
                raise NotEnded(saga, timeout)

    def list_sagas(self, **filters: Any) -> SagaPage:
        """A page of sagas, newest first; ``filters`` as of ``GET /sagas``: name, state, service, older_than, cursor…"""
        query = {name: value for name, value in filters.items() if value is not None}
        return cast(SagaPage, self._rest.call("GET", "/sagas", query=query))

    def history(self, saga_id: str | UUID, *, cursor: str | None = None, limit: int | None = None) -> SagaHistory:
        """A page of what happened to a saga: its inputs in order, with verdict and effects."""
        query = {name: value for name, value in (("cursor", cursor), ("limit", limit)) if value is not None}
        return cast(SagaHistory, self._rest.call("GET", f"{_saga(saga_id)}/history", query=query))

    def definitions(self, name: str | None = None, *, cursor: str | None = None) -> dict[str, Any]:
        """A page of registered definitions, newest first; with ``name`` the versions of one."""
        path = "/saga-definitions" if name is None else f"/saga-definitions/{_part(name)}"
        return dict(self._rest.call("GET", path, query={} if cursor is None else {"cursor": cursor}))

    # Operators' requests. Each returns the saga after the machine has granted it; Unavailable if it has not decided in
    # ``retry_seconds``.

    def cancel(self, saga_id: str | UUID, *, who: str | None = None, why: str | None = None) -> SagaStatus:
        """Turn the saga round: what has run is undone. Raises Conflict past the pivot or its end."""
        return self._ask(saga_id, "cancel", None, who, why)

    def retry(
        self, saga_id: str | UUID, step: str | None = None, *, who: str | None = None, why: str | None = None
    ) -> SagaStatus:
        """Make attempts that wait for their time now: those of one step, or all. Raises Conflict if none waits."""
        return self._ask(saga_id, "retry", step, who, why)

    def skip(
        self, saga_id: str | UUID, step: str | None = None, *, who: str | None = None, why: str | None = None
    ) -> SagaStatus:
        """Take a step's action, or its compensation, for done: somebody has seen to it; without ``step`` that of the
        only one at work. Raises Conflict."""
        return self._ask(saga_id, "skip", step, who, why)

    def unpark(self, saga_id: str | UUID, *, who: str | None = None, why: str | None = None) -> SagaStatus:
        """Fold what was queued behind an input that could not be folded. Raises Conflict if it still cannot."""
        return self._ask(saga_id, "unpark", None, who, why)

    def _ask(self, saga_id: str | UUID, verb: str, step: str | None, who: str | None, why: str | None) -> SagaStatus:
        told = (("step", step), ("who", who or self._service_name), ("why", why))
        body = {name: value for name, value in told if value is not None}
        key = str(uuid4())
        deadline = time.monotonic() + self._retry
        while True:
            reply = self._rest.reply("POST", f"{_saga(saga_id)}/{verb}", body, key=key)
            if reply.status != _NOT_DECIDED:
                return cast(SagaStatus, reply.document)
            # The coordinator has waited a while for the machine. Sent again with its key, it goes on waiting.
            if time.monotonic() >= deadline:
                raise Unavailable(
                    f"{verb} of {saga_id} is asked for, but no processor has decided yet; it may be granted", 202
                )
            time.sleep(_PAUSE_SECONDS)


def _saga(saga_id: str | UUID) -> str:
    return f"/sagas/{_part(str(saga_id))}"


def _part(text: str) -> str:
    return quote(text, safe="")
