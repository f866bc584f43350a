"""One batch of events, handled in one PostgreSQL transaction.

What happens, and what a crash of the process leaves on each line::

    1  begin                      nothing
    2  inbox rows of the batch    nothing: the transaction is rolled back by the server, the events come again
    3  the handlers run           the same; what a handler did outside this database is the handler's business
    4  commit                     in doubt for us, not for the database: either 2 and 3 are there, and the events that
                                  come again find their inbox rows and are skipped, or nothing is
    5  a dead letter, if one      the event comes again, is tried again, and may leave a second letter
       fails for the last time
    6  Kafka offsets are          the events come again; what was handled is skipped, what was dead-lettered is tried
       committed (the stream)     again, and may leave a second letter

An event that was dead-lettered has no inbox row: sent again with its own id, it is handled.

The batch is tried as if nothing could fail, without savepoints. When a handler raises, or the commit does,
everything is rolled back and the batch is cut until the culprit stands alone. What fails alone holds back its
partition, from itself on, and is tried again after a pause; other partitions go on. After the last try it is
dead-lettered, and those behind it go on, of the same key too: who cannot bear that sets no limit of tries. Tries are
counted in memory, so a restart begins anew.
"""

import time
from collections.abc import Callable, Sequence
from enum import StrEnum

import structlog
from sqlalchemy import Connection, Engine

from participant import inbox
from participant.crashpoint import crash_at
from participant.handling import handling
from participant.local_transaction import Culprit, Guard, Retry, cut, first_line, is_infrastructure
from participant.stream import Hold, Place
from participant.subscriptions import Event, Subscription, Subscriptions, rounds
from schemas import Codec, RegistryUnavailable

log = structlog.get_logger(__name__)


class Fate(StrEnum):
    """What became of an event."""

    #: its handler's rows are committed
    HANDLED = "handled"
    #: a second copy
    DUPLICATE = "duplicate"
    #: nobody subscribed to its type
    SKIPPED = "skipped"
    #: a try failed; another one follows
    FAILED = "failed"
    #: given up
    DEAD_LETTERED = "dead_lettered"


class Delivery:
    """Handles batches of one consumer. Not bound to a thread, but one batch at a time for one engine."""

    def __init__(
        self,
        engine: Engine,
        subscriptions: Subscriptions,
        codec: Codec,
        *,
        service: str,
        group: str,
        attempts: int = 1,
        wait_s: float = 0.5,
        wait_max_s: float = 30.0,
        idle_limit_s: float = float("inf"),
        dead_letter: Callable[[Event, BaseException], None],
        observe: Callable[[Event, Fate], None] = lambda event, fate: None,
    ) -> None:
        """
        Args:
            attempts: tries of one event; 0: for ever.
            wait_s: pause after the first failure, doubled with each further one up to ``wait_max_s``.
            idle_limit_s: what ``limit_idle_transactions`` was told: a handler that loses its connection after such a
                pause has failed; before it, the database has.
            dead_letter: stores an event that failed for good; returns when the letter is durable, or raises Retry.
        """
        self._engine = engine
        self._subscriptions = subscriptions
        self._codec = codec
        self._service = service
        self._group = group
        self._attempts = attempts
        self._wait_s = wait_s
        self._wait_max_s = wait_max_s
        self._idle_limit_s = idle_limit_s
        self._dead_letter = dead_letter
        self._observe = observe
        self._guard = Guard(engine)
        #: Failures so far, and when the next try is due, by place and offset.
        self._failures: dict[tuple[Place, int], tuple[int, float]] = {}
        #: Of the batch in hand; a batch that is tried again writes no second letter.
        self._buried: set[tuple[Place, int]] = set()

    def handle(self, events: Sequence[Event]) -> list[Hold]:
        """Handle ``events``, each of a type that was subscribed to; when it returns, those of no held partition are
        done: committed, skipped as duplicates, or dead-lettered.

        Raises:
            Retry: PostgreSQL, the registry or the dead letter topic is not there. Call again with the same events.
        """
        waiting = list(reversed(self._parts(events)))
        held: dict[Place, Hold] = {}
        while waiting:
            part = [event for event in waiting.pop() if event.place not in held]
            if not part:
                continue
            if len(part) == 1 and (hold := self._early(part[0])) is not None:
                held[part[0].place] = hold
                continue
            try:
                self._attempt(part)
            except Culprit as culprit:
                if len(part) > 1:
                    waiting.extend(reversed(cut(part, culprit.items)))
                elif (hold := self._fail(part[0], culprit.cause)) is not None:
                    held[part[0].place] = hold
        self._buried.clear()
        return list(held.values())

    def forget(self, place: Place) -> None:
        """The partition is another member's now, which counts anew."""
        for key in [key for key in self._failures if key[0] == place]:
            del self._failures[key]

    def within(self, connection: Connection, events: Sequence[Event]) -> list[Event]:
        """Lines 2 and 3, in the transaction that is open on ``connection``; returns those that were new.

        Raises:
            Culprit: a handler raised.
        """
        new = inbox.claim(connection, events, [event.inbox_key(self._group) for event in events])
        for one in rounds(new, self._handler):
            for handler, group in one:
                if handler.batch:
                    self._call(connection, handler, group, group)
                else:
                    for event in group:
                        self._call(connection, handler, event, [event])
        return new

    def _parts(self, events: Sequence[Event]) -> list[list[Event]]:
        """One part, but for events that failed before: each stands alone, so that it takes no others with it."""
        parts: list[list[Event]] = [[]]
        for event in events:
            if (event.place, event.offset) in self._buried:
                continue
            if (event.place, event.offset) in self._failures:
                parts += [[event], []]
            else:
                parts[-1].append(event)
        return [part for part in parts if part]

    def _early(self, event: Event) -> Hold | None:
        """It comes before its time when the batch is tried again for another reason."""
        _, due = self._failures.get((event.place, event.offset), (0, 0.0))
        left = due - time.monotonic()
        return Hold(*event.place, event.offset, left) if left > 0 else None

    def _attempt(self, events: Sequence[Event]) -> None:
        try:
            with self._engine.begin() as connection:
                new = self.within(connection, events)
                crash_at("participant.events_before_commit")
            crash_at("participant.events_after_commit")
        except Culprit:
            raise
        except RegistryUnavailable as error:
            raise Retry(str(error)) from error
        except Exception as error:
            if is_infrastructure(error):
                raise Retry(first_line(error)) from error
            # A deferred constraint at the commit, or a handler that swallowed its statement's error.
            raise Culprit(events, error) from error
        handled = {id(event) for event in new}
        for event in events:
            self._failures.pop((event.place, event.offset), None)
            self._observe(event, Fate.HANDLED if id(event) in handled else Fate.DUPLICATE)

    def _handler(self, event: Event) -> Subscription:
        found = self._subscriptions.find(event.topic, event.type)
        assert found is not None, "only events with a handler come here"
        return found

    def _call(
        self, connection: Connection, handler: Subscription, given: Event | list[Event], events: Sequence[Event]
    ) -> None:
        started = time.monotonic()
        traceparent = events[0].traceparent if len(events) == 1 else None
        try:
            with handling(self._service, self._codec, traceparent):
                self._guard.call(connection, lambda: handler.call(connection, given))
        except RegistryUnavailable:
            raise  # what the handler publishes cannot be encoded now: no event's fault
        except Exception as error:
            if is_infrastructure(error) and time.monotonic() - started < self._idle_limit_s:
                raise
            raise Culprit(events, error) from error

    def _fail(self, event: Event, error: BaseException) -> Hold | None:
        """Hold the event's partition back, or give the event up."""
        key = (event.place, event.offset)
        failures = self._failures.get(key, (0, 0.0))[0] + 1
        final = 0 < self._attempts <= failures
        log.warning(
            "event_failed",
            group=self._group,
            type=event.type,
            id=event.id,
            topic=event.topic,
            partition=event.partition,
            offset=event.offset,
            attempt=failures,
            final=final,
            exc_info=error,
        )
        if final:
            self._dead_letter(event, error)
            crash_at("participant.event_dead_lettered")
            self._failures.pop(key, None)
            self._buried.add(key)
            self._observe(event, Fate.DEAD_LETTERED)
            return None
        # The exponent is bounded: a float holds no 2 ** 1024.
        delay = min(self._wait_max_s, self._wait_s * 2 ** min(failures - 1, 64))
        self._failures[key] = failures, time.monotonic() + delay
        self._observe(event, Fate.FAILED)
        return Hold(*event.place, event.offset, delay)
