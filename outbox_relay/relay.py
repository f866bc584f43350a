"""The relay: commands on Kafka become HTTP calls, and their answers inputs of the transactions.

A command is answered, the answer is acknowledged by the brokers, and only then its offset may be committed. A crash on
any line before that brings the command again. If its answer is in the log it is passed over; if not, the call is made
again with the same Idempotency-Key, and then "refused" and "not called" become UNKNOWN, since the first call may have
run: the machine tries again or undoes.

What remains open is two relays at once. One that was paused in front of a call (a frozen process, a virtual machine
that moved) goes on with it after its partitions have gone to another. Nothing is sent after the command's
``expires_at``, or, if the pause falls between that check and the socket, as soon as the process runs again. Both calls
have one Idempotency-Key. If the successor was refused or not reached and the zombie's call runs, the machine undoes the
step when the zombie's answer comes before the saga's end; after the end nobody does. The same holds for a second copy
that comes after ``remembered`` other commands of its partition were answered, and for a service that works on after we
have stopped waiting for it.
"""

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any

import structlog
from prometheus_client import Counter, Gauge, Histogram

from outbox_relay.addresses import Address, AddressRefused, Resolver, check_service_url, check_url, is_absolute
from outbox_relay.asks import Asks
from outbox_relay.attempt import Caller
from outbox_relay.clock import BrokerClock
from outbox_relay.command import HttpCommand
from outbox_relay.directory import Directory, DirectoryUnavailable, UnknownService
from outbox_relay.intake import SECOND, Intake, Taken
from outbox_relay.lanes import Lanes, Overloaded
from outbox_relay.outcome import ASKS, Called, NotSent, Verdict, judge
from outbox_relay.replies import Replies
from outbox_relay.settings import RelaySettings
from participant.crashpoint import crash_at
from participant.health import HealthServer, hung
from schemas import Codec

log = structlog.get_logger(__name__)

#: Instances of a service that one attempt tries, as long as none can be connected to.
_INSTANCES_TRIED = 3
#: Services with a label of their own in the metrics; the rest share one, so that names from outside fill no memory.
_LABELS = 200

IN_FLIGHT = Gauge("fluxora_relay_in_flight", "Calls under way, replies included")
WAITING = Gauge("fluxora_relay_waiting", "Commands that wait for a place")
CALLS = Counter("fluxora_relay_calls_total", "Commands answered", ["operation", "outcome"])
OVERLOADED = Counter("fluxora_relay_overloaded_total", "Commands answered without a call because too many wait")
SECONDS = Histogram(
    "fluxora_relay_call_seconds",
    "Time of one call",
    ["service"],
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)


class Relay:
    """One relay process."""

    def __init__(self, settings: RelaySettings) -> None:
        self._settings = settings
        self._allowed = settings.allow_list
        self._stop = asyncio.Event()
        self._codec = Codec(settings.schema_registry_url)
        self._directory = Directory(settings)
        self._resolver = Resolver(ttl_s=settings.dns_ttl_s, timeout_s=settings.connect_timeout_s)
        self._caller = Caller(self._resolver, self._allowed, settings.attempt_limits)
        self._clock = BrokerClock()
        self._replies = Replies(settings.kafka_bootstrap_servers, settings.reply_timeout_s, self._clock, self._fail)
        self._lanes: Lanes[Taken] = Lanes(settings.lane_limits, self._handle)
        self._asks = Asks()
        self._answering: set[asyncio.Task[None]] = set()
        self._failure: asyncio.Future[None] = self._lanes.failure
        self._labels: set[str] = set()
        self._turned = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._intake = Intake(settings, self._codec, self._clock, self._delivered)

    async def run(self) -> None:
        """Relay until SIGTERM or SIGINT; then finish what runs, commit, and return.

        Raises whatever makes it impossible to go on (crash-only): the caller ends the process at once.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop.set)
        IN_FLIGHT.set_function(lambda: self._lanes.running)
        WAITING.set_function(lambda: self._lanes.waiting)
        health = HealthServer(self._settings.health_port, self._live, self._ready, self._settings.health_host)
        health.start()
        intake = self._loop.run_in_executor(None, self._intake.run)
        log.info("relay_started", health_port=health.port)
        try:
            await self._until_stopped(intake)
            self._intake.stop()
            await intake
            self._lanes.drop(lambda taken: True)
            cancelled = await self._lanes.finish(self._settings.stop_grace_s)
            if self._answering:
                await asyncio.wait(self._answering, timeout=self._settings.reply_timeout_s)
            await asyncio.to_thread(self._intake.leave)
            log.info("relay_stopped", calls_cut_off=cancelled)
        finally:
            self._intake.stop()
            await self._caller.close()
            await self._directory.close()
            self._resolver.close()
            self._replies.close()
            self._codec.close()
            health.stop()

    async def _until_stopped(self, intake: asyncio.Future[None]) -> None:
        stopped = asyncio.create_task(self._stop.wait())
        ends: list[asyncio.Future[Any]] = [stopped, intake, self._failure]
        try:
            while not stopped.done():
                self._turned = time.monotonic()
                done, _ = await asyncio.wait(ends, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                for ended in (intake, self._failure):
                    if ended in done:
                        ended.result()
        finally:
            stopped.cancel()

    # ── From the consumer's thread ─────────────────────────────────────────────────────────────────────────

    def _delivered(self, batch: Sequence[Taken], handed: threading.Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the process with it
            self._loop.call_soon_threadsafe(self._take, batch, handed)

    def _take(self, batch: Sequence[Taken], handed: threading.Event) -> None:
        if not batch:
            self._lanes.drop(lambda taken: taken.window.revoked)
            self._asks.forget_revoked()
        for taken in batch:
            self._asks.take(taken)
            try:
                self._lanes.submit(_lane(taken.command), taken, taken.size)
            except Overloaded as error:
                self._asks.begin(taken)
                OVERLOADED.inc()
                task = self._loop.create_task(self._answer(taken, NotSent(str(error))))
                self._answering.add(task)
                task.add_done_callback(self._answered)
        if len(self._answering) < self._settings.batch_limit:
            handed.set()
        else:
            # What is answered at once is bounded too: nothing more comes before these are with the brokers.
            waiting = asyncio.gather(*self._answering, return_exceptions=True)
            waiting.add_done_callback(lambda _: handed.set())

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._answering.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """End the process: it cannot go on."""
        if not self._failure.done():
            self._failure.set_exception(error)

    # ── One command ────────────────────────────────────────────────────────────────────────────────────────

    async def _handle(self, taken: Taken) -> None:
        """Call and answer. Whatever it raises ends the process."""
        self._asks.begin(taken)
        if taken.window.revoked:
            return
        if taken.over:
            SECOND.labels("decision").inc()
            taken.done()
            return
        crash_at("relay.before_call")
        began = time.monotonic()
        called = NotSent(taken.withheld) if taken.withheld else await self._call(taken.command)
        SECONDS.labels(self._label(taken.command.service_name)).observe(time.monotonic() - began)
        # A crash here: the call comes again.
        crash_at("relay.after_call")
        await self._answer(taken, called)

    async def _call(self, command: HttpCommand) -> Called:
        left_s = command.expires_at - self._clock.now()
        if left_s <= 0:
            return NotSent(f"the command has expired {-left_s:.1f} s ago, before its turn came")
        try:
            where = self._given_address(command)
            if where is not None:
                return await self._post(command, where, trusted=False)
            tried = [await self._directory.choose(command.service_name)]
            while True:
                called = await self._post(command, tried[-1].join(command.endpoint), trusted=True)
                if not isinstance(called, NotSent) or len(tried) == _INSTANCES_TRIED:
                    return called
                # Nothing was sent: another one may be called, and where the registry says that it is now.
                another = await self._directory.another(command.service_name, tried)
                if another is None:
                    return called
                tried.append(another)
        except (AddressRefused, UnknownService, DirectoryUnavailable) as error:
            return NotSent(str(error))

    async def _post(self, command: HttpCommand, address: Address, *, trusted: bool) -> Called:
        # By expires_at the machine has given the attempt up.
        timeout_s = min(command.timeout_s, command.expires_at - self._clock.now(), self._settings.max_timeout_s)
        if timeout_s <= 0:
            return NotSent("the command has expired while its service was looked for")
        return await self._caller.post(address, command.body, command.http_headers(), timeout_s, trusted=trusted)

    def _given_address(self, command: HttpCommand) -> Address | None:
        """Where the request itself says that the call goes; None: the operator's own directory says it."""
        if is_absolute(command.endpoint):
            return check_url(command.endpoint, self._allowed)
        if command.service_url is not None:
            return check_service_url(command.service_url, self._allowed).join(command.endpoint)
        return None

    async def _answer(self, taken: Taken, called: Called) -> None:
        command = taken.command
        verdict = judge(command.operation, called, again=taken.again)
        await self._reply(command, verdict)
        CALLS.labels(command.operation.value, verdict.outcome.value).inc()
        # A crash here: the call and its reply come again.
        crash_at("relay.after_reply")
        taken.done()

    async def _reply(self, command: HttpCommand, verdict: Verdict) -> None:
        schema, record = command.reply(verdict)
        headers = command.reply_headers(schema, time.time())
        await self._replies.send(command.transaction_id, self._codec.encode(schema, record), headers)

    # ── Health ─────────────────────────────────────────────────────────────────────────────────────────────

    def _label(self, service: str) -> str:
        if service not in self._labels:
            if len(self._labels) >= _LABELS:
                return "others"
            self._labels.add(service)
        return service

    def _live(self) -> list[str]:
        return hung({"the consumer's thread": self._intake.silent_s, "the loop": time.monotonic() - self._turned})

    def _ready(self) -> list[str]:
        return [self._intake.trouble] if self._intake.trouble else []


def _lane(command: HttpCommand) -> str:
    """What a call shares its fate with: the service by its name, or the address that the request gives.

    What was decided (compensations, commits, aborts) does not wait behind what asks: others wait for it, and for what
    it lets go of. What it overtakes is over (``outbox_relay.asks``).
    """
    url = command.endpoint if is_absolute(command.endpoint) else command.service_url
    service = command.service_name if url is None else "/".join(url.split("/", 3)[:3])
    return service if command.operation in ASKS else f"{service} (decided)"
