"""Messages that are due are claimed, attempted once, and what came of it is written down.

What a crash does (``kill -9`` at any line):

| line | what | a crash right after it |
|---|---|---|
| a | claim: ``claim`` and the end of the lease are committed | the lease ends; another process claims it |
| b | POST to the receiver | the same: it gets the message again, with the same ``Idempotency-Key`` |
| c | settle: DELIVERED, or the next attempt, only under (a)'s claim | done; with it the lane's next became due |

So DELIVERED is written only after a 2xx. An attempt that cannot end within its lease is not begun (a process that
was stopped between a and b), and one that settles after its lease finds its claim gone.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import structlog

from outbox_relay.addresses import Address, AddressRefused
from outbox_relay.directory import Directory, DirectoryUnavailable, UnknownService
from outbox_relay.messages.destinations import HttpDestinations
from outbox_relay.messages.metrics import Metrics
from outbox_relay.messages.policy import RetryPolicy, Slots
from outbox_relay.messages.posting import Answer, Poster, headers_of
from outbox_relay.messages.settings import MessageSettings
from outbox_relay.messages.store import Claimed, Outcome, Settlement, Store
from outbox_relay.messages.topics import Topics
from participant.crashpoint import crash_at
from web.database import DatabaseUnavailable

log = structlog.get_logger()

#: Where a destination takes messages.
PATH = "/messages"
#: Until the next look at a message that could not be attempted for a reason that is not its own.
_POSTPONED_SECONDS = 1.0
_SETTLE_PAUSE_SECONDS = 0.2
_SETTLE_ROWS = 200


class Way(StrEnum):
    """How a destination that has no HTTP instance is reached."""

    KAFKA = "KAFKA"
    #: no instance and no topic
    NONE = "NONE"
    #: no instance now, but there was one: it is not there now, whatever topics it has
    AWAY = "AWAY"
    #: the registry, or Kafka, cannot say
    UNSURE = "UNSURE"


class Ways:
    """Finds how a destination is reached: HTTP comes first, and for good; its topic only if it never was HTTP."""

    def __init__(self, directory: Directory, topics: Topics, used: HttpDestinations) -> None:
        self._directory = directory
        self._topics = topics
        self._used = used

    async def find(self, destination: str) -> Address | Way:
        """Raises DatabaseUnavailable."""
        try:
            address = await self._directory.choose(destination)
        except DirectoryUnavailable:
            # Its topic may be there for commands only: an outage of the registry must not turn messages into it.
            return Way.UNSURE
        except UnknownService:
            if await self._used.has(destination):
                # A registry that has restarted knows nobody until they come back.
                return Way.AWAY
            if await self._topics.find(destination):
                return Way.KAFKA
            # A process that starts while Kafka is down knows no topic: that must not use up a message's attempts.
            return Way.NONE if self._topics.error is None else Way.UNSURE
        await self._used.remember(destination)
        return address

    async def is_kafka(self, destination: str) -> bool:
        """Whether it is its topic unless it was reached over HTTP before, which ``Acceptance`` looks at; does not
        ask Kafka."""
        return self._topics.has(destination) and await self._directory.known(destination) is False


@dataclass(frozen=True, slots=True)
class _Ended:
    settlement: Settlement
    #: When the claim's lease ends, by the monotonic clock.
    until: float
    settled: asyncio.Future[None]


class Delivery:
    """The worker of a process. Belongs to one event loop."""

    def __init__(self, settings: MessageSettings, store: Store, ways: Ways, poster: Poster, metrics: Metrics) -> None:
        self._settings = settings
        self._store = store
        self._ways = ways
        self._poster = poster
        self._metrics = metrics
        self._policy = RetryPolicy(
            settings.max_attempts,
            settings.retry_initial_seconds,
            settings.retry_multiplier,
            settings.retry_max_seconds,
            settings.retry_jitter,
        )
        self._slots = Slots(settings.concurrency, settings.destination_concurrency)
        self._wake = asyncio.Event()
        self._stopping = False
        self._claiming: asyncio.Task[None] | None = None
        self._settling: asyncio.Task[None] | None = None
        self._attempts: set[asyncio.Task[None]] = set()
        self._ended: deque[_Ended] = deque()
        self._has_ended = asyncio.Event()

    def start(self) -> None:
        self._claiming = asyncio.create_task(self._claim_all(), name="claiming")
        self._settling = asyncio.create_task(self._settle_all(), name="settling")

    def wake(self) -> None:
        """There is a message that is due."""
        self._wake.set()

    def stop_claiming(self) -> None:
        """The process is about to end: nothing new is begun."""
        self._stopping = True
        self._wake.set()

    async def stop(self, seconds: float) -> None:
        """Let attempts end, for ``seconds``; the rest is given up, and is made again when its lease ends."""
        self.stop_claiming()
        if self._claiming is not None:
            await asyncio.wait((self._claiming,), timeout=seconds)
        if self._attempts:
            await asyncio.wait(self._attempts, timeout=seconds)
        tasks = [task for task in (self._claiming, self._settling, *self._attempts) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _claim_all(self) -> None:
        while not self._stopping:
            self._wake.clear()
            claimed: Sequence[Claimed] = ()
            began = time.monotonic()
            if self._slots.free > 0:
                limits, places = self._slots.limits(began)
                try:
                    claimed = await self._store.claim(limits, places, self._slots.free, self._settings.lease_seconds)
                except DatabaseUnavailable as error:
                    log.warning("claiming failed", error=str(error))
                except Exception:
                    log.exception("claiming failed unexpectedly")
            for message in claimed:
                self._slots.begin(message.routed_to)
                task = asyncio.create_task(self._attempt(message, began), name=f"message {message.id}")
                self._attempts.add(task)
                task.add_done_callback(self._attempts.discard)
            self._metrics.in_flight.set(self._slots.in_flight)
            if not claimed:
                pause = min(self._settings.poll_seconds, self._slots.pause_ends(time.monotonic()) or float("inf"))
                try:
                    async with asyncio.timeout(pause):
                        await self._wake.wait()
                except TimeoutError:
                    pass

    async def _attempt(self, message: Claimed, claimed_at: float) -> None:
        failed: bool | None = None
        try:
            settlement, failed = await self._try(message, claimed_at)
            if settlement is not None:
                crash_at("messages.after_attempt")
                done = asyncio.get_running_loop().create_future()
                self._ended.append(_Ended(settlement, claimed_at + self._settings.lease_seconds, done))
                self._has_ended.set()
                await done
        except DatabaseUnavailable as error:
            log.warning("no attempt; it is made when the lease ends", message=message.id, error=str(error))
        except Exception:
            log.exception("an attempt failed unexpectedly; it is made again when its lease ends", message=message.id)
        finally:
            self._slots.end(message.routed_to, failed=failed, now=time.monotonic())
            self._wake.set()

    async def _try(self, message: Claimed, claimed_at: float) -> tuple[Settlement | None, bool | None]:
        """What the attempt came to, and whether it speaks against the destination."""
        way = await self._ways.find(message.routed_to)
        if way is Way.KAFKA:
            return Settlement(message, Outcome.HANDED), None
        if way is Way.UNSURE:
            return self._postponed(
                message, "the service registry or Kafka does not answer, so it is not known where this goes"
            ), None
        if way is Way.NONE:
            return self._failed(
                message,
                Answer(
                    None,
                    f"no way to {message.routed_to}: no instance in the service registry or FLUXORA_SERVICE_MAP, and "
                    f"no topic {message.routed_to}.messages or {message.routed_to}.commands",
                ),
            ), None
        if way is Way.AWAY:
            return self._failed(
                message,
                Answer(
                    None,
                    f"{message.routed_to} is not there now: it was reached over HTTP before, and neither the service "
                    "registry nor FLUXORA_SERVICE_MAP names an instance; it is not taken for a topic "
                    "(docs/messages.md: if it has moved to Kafka for good)",
                ),
            ), None
        if message.behind_kafka:
            return self._postponed(message, None), None
        try:
            address = way.join(PATH)
        except AddressRefused as error:
            return self._failed(message, Answer(None, str(error))), None
        if time.monotonic() > claimed_at + self._settings.send_within_seconds:
            return None, None  # we were stopped, or very slow: the lease could end before the attempt
        crash_at("messages.before_attempt")
        headers = headers_of(
            str(message.id),
            type=message.type,
            key=message.key,
            traceparent=message.traceparent,
            attempt=message.retry_count + 1,
        )
        began = time.monotonic()
        answer = await self._poster.post(address, message.payload.encode(), headers)
        self._metrics.attempt_seconds.observe(time.monotonic() - began)
        if answer.delivered:
            return Settlement(message, Outcome.DELIVERED), False
        return self._failed(message, answer), answer.blames_destination

    def _failed(self, message: Claimed, answer: Answer) -> Settlement:
        wait = self._policy.wait_after(message.retry_count + 1, str(message.id), answer.retry_after)
        if wait is None:
            return Settlement(message, Outcome.FAILED, answer.error)
        return Settlement(message, Outcome.RETRY, answer.error, wait)

    @staticmethod
    def _postponed(message: Claimed, why: str | None) -> Settlement:
        return Settlement(message, Outcome.POSTPONED, why, _POSTPONED_SECONDS)

    async def _settle_all(self) -> None:
        """What ends while a batch is written is the next batch."""
        while True:
            await self._has_ended.wait()
            self._has_ended.clear()
            while self._ended:
                batch = [self._ended.popleft() for _ in range(min(len(self._ended), _SETTLE_ROWS))]
                await self._settle(batch)

    async def _settle(self, batch: Sequence[_Ended]) -> None:
        while batch:
            try:
                settled = await self._store.settle([one.settlement for one in batch])
            except DatabaseUnavailable as error:
                # An attempt that is not written down in time is made again.
                log.warning("settling failed", error=str(error), attempts=len(batch))
                late = [one for one in batch if one.until <= time.monotonic()]
                batch = [one for one in batch if one.until > time.monotonic()]
                self._release(late)
                await asyncio.sleep(_SETTLE_PAUSE_SECONDS)
            except Exception:
                log.exception("settling failed unexpectedly; the attempts are made again when their leases end")
                self._release(batch)
                return
            else:
                for one in batch:
                    lost = one.settlement.of.id not in settled
                    self._metrics.settled.labels("LOST" if lost else one.settlement.outcome.value).inc()
                self._release(batch)
                return

    @staticmethod
    def _release(batch: Sequence[_Ended]) -> None:
        for one in batch:
            if not one.settled.done():
                one.settled.set_result(None)
