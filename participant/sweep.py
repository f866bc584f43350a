"""Transactions that stay prepared are brought to their end by asking the coordinator.

Normally the coordinator repeats its commit or abort until it is acknowledged, and there is nothing to do here. The
sweep is for what it cannot know of: a prepare that arrived after its transaction had ended, or a coordinator that has
lost or changed the way to this service. It does what the coordinator says, and never decides by itself:

=====================================  ======================================================================
the coordinator says                   done here
=====================================  ======================================================================
COMMITTING, COMMITTED                  commit
ABORTING, ABORTED                      abort
any other state                        nothing: it is not decided
404, and it does answer for others     abort, if it was prepared ``presume_abort_after_s`` ago: the coordinator
                                       keeps every transaction from before its first prepare, so it never was
                                       one, or it has ended and is long forgotten (presumed abort)
anything else, or nothing              nothing, and the round ends: it is asked again in the next
=====================================  ======================================================================
"""

import math
import os
import random
import time
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from threading import Event, Thread
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
import structlog
from prometheus_client import Counter as Metric
from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from participant.two_phase import Participant, TwoPhaseError, Undecided

log = structlog.get_logger(__name__)

SWEPT = Metric("fluxora_swept_total", "Old prepared transactions looked at", ["service", "resolution"])

#: The media type and the problem type of the coordinator's own 404 (RFC 9457).
_PROBLEM, _NOT_FOUND = "application/problem+json", "urn:fluxora:problem:not-found"
#: Ended transactions that are deleted at once.
_FORGET_LIMIT = 10_000


class SweepSettings(BaseSettings):
    """Settings of the sweep; in the environment ``FLUXORA_SWEEP_<NAME>``, but for ``COORDINATOR_URL``."""

    model_config = SettingsConfigDict(env_prefix="FLUXORA_SWEEP_", populate_by_name=True, extra="ignore")

    coordinator_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("COORDINATOR_URL", "coordinator_url"),
        description="Whom to ask; without it there is no sweep.",
    )
    interval_s: float = Field(
        default=30.0, ge=0.1, le=86_400, description="Between two rounds, plus or minus a fifth by chance."
    )
    older_than_s: float = Field(
        default=60.0, ge=0, le=86_400, description="What is prepared for less than this is left to the coordinator."
    )
    presume_abort_after_s: float = Field(
        default=600.0, ge=1, le=30 * 86_400, description="Age from which an unknown transaction counts as aborted."
    )
    limit: int = Field(default=100, ge=1, le=10_000, description="Most transactions in one round.")
    timeout_s: float = Field(default=5.0, gt=0, le=60, description="Of one question to the coordinator.")
    keep_ended_s: float = Field(
        default=30 * 86_400.0,
        ge=86_400,
        le=10 * 365 * 86_400,
        description="The end of a transaction is remembered so long, for commands that are repeated.",
    )


class Resolution(StrEnum):
    COMMIT = "commit"
    ABORT = "abort"
    #: not decided, or not known: asked again in the next round
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class Swept:
    """What one round came to."""

    committed: int = 0
    aborted: int = 0
    waiting: int = 0
    #: the coordinator did not answer, so the round ended early
    trouble: str | None = None


class _NoAnswer(Exception):
    """The coordinator did not say anything that may be acted on."""


class Sweep:
    """Brings old prepared transactions of one participant to their end, once or from a thread of its own.

    Several processes of a service may sweep at once: commit and abort are idempotent.
    """

    def __init__(self, participant: Participant, settings: SweepSettings, client: httpx.Client | None = None) -> None:
        """``client`` is for tests, and for those who need a proxy or certificates of their own."""
        if settings.coordinator_url is None and client is None:
            raise ValueError("the sweep has nobody to ask: set COORDINATOR_URL")
        self._participant = participant
        self._settings = settings
        self._client = client or httpx.Client(
            base_url=settings.coordinator_url or "", timeout=settings.timeout_s, follow_redirects=False
        )
        self._stopping = Event()
        self._thread: Thread | None = None

    def once(self) -> Swept:
        """Go over what is old enough, once. Raises only what the participant's database raises."""
        old = self._participant.undecided(self._settings.older_than_s, self._settings.limit)
        done: Counter[Resolution] = Counter()
        for number, one in enumerate(old):
            if self._stopping.is_set():
                break
            try:
                resolution = self._resolution(one)
            except _NoAnswer as error:
                log.warning("sweep_without_answer", service=self._participant.service, error=str(error))
                done[Resolution.WAIT] += len(old) - number
                return self._told(done, str(error))
            done[self._end(one, resolution)] += 1
        return self._told(done, None)

    def start(self) -> None:
        """Sweep from a thread of its own until ``stop``. A failed round is logged; the next one comes."""
        if self._thread is not None:
            return
        self._thread = Thread(target=self._run, name=f"sweep-{self._participant.service}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the transaction in hand, and close the client. A sweep that was stopped is over."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=self._settings.timeout_s + 5)
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        forget_at = time.monotonic()
        # Not all replicas of a service at the same moment.
        while not self._stopping.wait(self._settings.interval_s * random.uniform(0.8, 1.2)):
            try:
                self.once()
                if time.monotonic() >= forget_at:
                    self._participant.forget(self._settings.keep_ended_s, _FORGET_LIMIT)
                    forget_at = time.monotonic() + 3600
            except Exception:
                log.exception("sweep_failed", service=self._participant.service)

    def _resolution(self, one: Undecided) -> Resolution:
        answer = self._ask(f"/transactions/{quote(str(one.transaction_id), safe='')}")
        match answer.status_code:
            case 200:
                return resolution_of(_object(answer))
            case 404 if one.age_s >= self._settings.presume_abort_after_s and self._does_not_know(one, answer):
                return Resolution.ABORT
            case 404 | 422:  # 422: an id that is none of the coordinator's
                return Resolution.WAIT
        raise _NoAnswer(f"{answer.request.url} answered {answer.status_code}")

    def _does_not_know(self, one: Undecided, answer: httpx.Response) -> bool:
        """Whether the transaction never was, by the coordinator that would know.

        Not so for a proxy's 404, nor for that of a coordinator which remembers nothing from before the promise: it is
        another one, or its database was lost, and the decision with it.
        """
        problem = answer.headers.get("content-type", "").partition(";")[0] == _PROBLEM
        if not problem or _object(answer).get("type") != _NOT_FOUND:
            return False
        older = self._ask(f"/transactions?older_than={math.ceil(one.age_s)}s&limit=1")
        return older.status_code == 200 and bool(_object(older).get("transactions"))

    def _ask(self, path: str) -> httpx.Response:
        try:
            return self._client.get(path)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _NoAnswer(f"{type(error).__name__}: {error}") from error

    def _end(self, one: Undecided, resolution: Resolution) -> Resolution:
        try:
            if resolution is Resolution.COMMIT:
                self._participant.commit(one.transaction_id)
            elif resolution is Resolution.ABORT:
                self._participant.abort(one.transaction_id)
        except TwoPhaseError as error:
            # Ended meanwhile, or busy.
            log.warning("sweep_came_late", service=self._participant.service, error=str(error))
            resolution = Resolution.WAIT
        except Exception:
            # One that cannot be committed now must not keep the others from their end.
            log.exception("sweep_cannot_end", service=self._participant.service, transaction_id=one.transaction_id)
            resolution = Resolution.WAIT
        SWEPT.labels(self._participant.service, resolution.value).inc()
        if resolution is not Resolution.WAIT:
            log.info("swept", transaction_id=one.transaction_id, resolution=resolution.value, age_s=round(one.age_s))
        return resolution

    @staticmethod
    def _told(done: Counter[Resolution], trouble: str | None) -> Swept:
        return Swept(done[Resolution.COMMIT], done[Resolution.ABORT], done[Resolution.WAIT], trouble)


def sweep_from_environment(participant: Participant, coordinator_url: str | None = None) -> Sweep | None:
    """A sweep by the environment's settings; None, and a line in the log, if there is no coordinator to ask."""
    settings = SweepSettings(coordinator_url=coordinator_url or os.environ.get("COORDINATOR_URL"))
    if settings.coordinator_url is None:
        log.warning("no_sweep", service=participant.service, reason="COORDINATOR_URL is not set")
        return None
    return Sweep(participant, settings)


def resolution_of(transaction: dict[str, Any]) -> Resolution:
    """What the coordinator's document of a transaction means for a participant that has it prepared."""
    match transaction.get("state"):
        case "COMMITTING" | "COMMITTED":
            return Resolution.COMMIT
        case "ABORTING" | "ABORTED":
            return Resolution.ABORT
    return Resolution.WAIT


def _object(answer: httpx.Response) -> dict[str, Any]:
    try:
        document = answer.json()
    except ValueError as error:
        raise _NoAnswer(f"{answer.request.url} answered something that is not JSON") from error
    if not isinstance(document, dict):
        raise _NoAnswer(f"{answer.request.url} answered something that is not an object")
    return document
