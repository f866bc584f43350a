"""``python -m saga_processors.clock``: deadlines that have passed become inputs (DESIGN section 1, "time is an input").

Any number of clocks may run. A deadline is claimed for a while, then produced; a clock that dies in between loses
nothing, because the claim ends and another look finds it. One that produces twice does no harm: the machine
answers a deadline that is no longer due with "nothing is due".

A deadline that was produced and is not folded (no processor runs, or they lag) is produced again, in case its first
claim was one of a clock that died; but ever more seldom, so that the log does not grow by it while nobody reads it.

Deadlines are times of the log, whose clock is the brokers'; rows are claimed by the database's. Were it ahead, what the
machine sets after an answer would be past at once: each look would produce it, no wait and no timeout would hold, and
an action over HTTP that still runs would be undone before its end. So the reports of what was produced tell how far the
two are apart (:class:`Skew`), and a deadline is due by the brokers' clock. As long as that is not known (at the start,
and when nothing was produced for a minute), a deadline of the epoch is produced first, at which nothing is due.
"""

import signal
import threading
import time
from typing import Any
from uuid import UUID

import psycopg
import structlog
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, KafkaError, Message, Producer
from prometheus_client import Counter

from participant.health import HealthServer, hung
from participant.settings import CONNECT
from saga_processors.log import INPUT_TOPIC
from saga_processors.records import to_ms
from saga_processors.settings import ProcessorSettings
from saga_processors.skew import Skew
from schemas import Codec

log = structlog.get_logger()

PRODUCED = Counter("fluxora_deadlines_total", "DeadlinePassed inputs produced")

# What would be claimed, one of them.
_DUE = """
SELECT id, extract(epoch FROM statement_timestamp())::float8 FROM transactions
WHERE next_deadline <= statement_timestamp() + interval '1 second' * %(ahead)s
  AND (deadline_claimed_until IS NULL OR deadline_claimed_until < statement_timestamp())
ORDER BY next_deadline LIMIT 1
"""
# The statement's time, not clock_timestamp(), which is volatile: no index would be searched by it.
_CLAIM = """
UPDATE transactions SET deadline_claimed_until = statement_timestamp() + interval '1 second' * CASE
    -- Nobody has claimed it since it was set.
    WHEN deadline_claimed_until IS NULL THEN %(lease)s
    -- As long as it is late already: the waits double.
    ELSE least(greatest(%(lease)s, extract(epoch FROM statement_timestamp() - next_deadline) + %(ahead)s), %(longest)s)
    END
WHERE id IN (
    SELECT id FROM transactions
    WHERE next_deadline <= statement_timestamp() + interval '1 second' * %(ahead)s
      AND (deadline_claimed_until IS NULL OR deadline_claimed_until < statement_timestamp())
    ORDER BY next_deadline LIMIT %(batch)s FOR UPDATE SKIP LOCKED)
RETURNING id, next_deadline, extract(epoch FROM statement_timestamp())::float8
"""
# What the brokers did not take is in no log: it is due as before.
_RELEASE = "UPDATE transactions SET deadline_claimed_until = NULL WHERE id = ANY(%s)"
#: A round trip that says enough of the clocks, seconds; and how many are made in the hope of one.
_NARROW_S = 0.5
_COMPARISONS = 5


class Clock:
    """Looks for deadlines that have passed and produces them. Blocking; errors end the process."""

    def __init__(self, settings: ProcessorSettings) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self._turned = time.monotonic()
        self._codec = Codec(settings.schema_registry_url)
        self._producer = Producer(
            {
                "bootstrap.servers": settings.kafka_bootstrap_servers,
                "acks": "all",
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "linger.ms": 1,
            }
        )
        self._failed = 0
        #: Of the brokers' clock and the database's.
        self._skew = Skew()
        #: How far the database's is ahead of ours that only runs forward, seconds; as of the latest claim.
        self._database_ahead = 0.0

    def stop(self) -> None:
        """Let :meth:`run` return after the look under way. Safe in a signal handler."""
        self._stop.set()

    def live(self) -> list[str]:
        """What is wrong with it, in words. Safe from any thread."""
        return hung({"the loop": time.monotonic() - self._turned})

    def run(self) -> None:
        """Look until :meth:`stop`."""
        settings = self._settings
        with psycopg.connect(
            settings.database_url, autocommit=True, application_name=settings.instance, **CONNECT
        ) as connection:
            while not self._stop.is_set():
                self._turned = time.monotonic()
                if self.look(connection) < settings.clock_batch:
                    self._stop.wait(settings.clock_interval)

    def look(self, connection: psycopg.Connection[Any]) -> int:
        """Produce the deadlines that have passed; returns how many.

        Raises:
            ConnectionError: the brokers have not taken all of them; the process must end, and they are found again.
        """
        settings = self._settings
        if not self._skew.known(self._database_now()) and not self._compare(connection):
            return 0
        limits = {
            "lease": settings.clock_lease,
            "longest": max(settings.clock_lease, settings.clock_lease_max),
            "batch": settings.clock_batch,
            "ahead": self._skew.certain,
        }
        asked = time.monotonic()
        due = connection.execute(_CLAIM, limits).fetchall()
        for id, deadline, claimed in due:
            self._produce(id, to_ms(deadline), asked, claimed)
        if due:
            try:
                self._flush(len(due))
            except ConnectionError:
                connection.execute(_RELEASE, ([id for id, _, _ in due],))
                raise
            PRODUCED.inc(len(due))
        return len(due)

    def _compare(self, connection: psycopg.Connection[Any]) -> bool:
        """Find out how far the clocks are apart; ``False``: nothing is due by any of them.

        An old measurement may hold nothing back: what it holds back would be what could refute it. A slow round trip
        says little, as the first ones after an outage do; when all are slow, the best of them has to do.
        """
        for _ in range(_COMPARISONS):
            asked = time.monotonic()
            row = connection.execute(_DUE, {"ahead": max(0.0, self._skew.certain)}).fetchone()
            if row is None:
                return False
            self._produce(row[0], 0, asked, row[1])
            self._flush(1)
            if self._skew.width <= _NARROW_S:
                break
        return True

    def _database_now(self) -> float:
        """Not before it: a round trip of the claim is added."""
        return time.monotonic() + self._database_ahead

    def _produce(self, id: UUID, due_at: int, asked: float, claimed: float) -> None:
        """``asked``, ``claimed``: when the database was asked, by our clock that only runs forward, and by its own."""
        self._database_ahead = claimed - asked

        def delivered(error: KafkaError | None, message: Message) -> None:
            self._delivered(error, message, claimed)

        value = self._codec.encode("fluxora.DeadlinePassed", {"transaction_id": str(id), "due_at": due_at})
        self._producer.produce(INPUT_TOPIC, value, str(id).encode(), on_delivery=delivered)

    def _flush(self, count: int) -> None:
        waiting = self._producer.flush(self._settings.publish_timeout)
        if waiting or self._failed:
            raise ConnectionError(f"{waiting + self._failed} of {count} deadlines were not acknowledged by the brokers")

    def _delivered(self, error: KafkaError | None, message: Message, claimed: float) -> None:
        if error is not None:
            self._failed += 1
            log.error("deadline not produced", error=str(error))
            return
        # The time that the machine folds it at. A report of what was a copy for the brokers has this host's time.
        kind, logged = message.timestamp()
        if kind == TIMESTAMP_LOG_APPEND_TIME:
            self._skew.observe(claimed, self._database_now(), logged / 1000)


def main() -> None:
    settings = ProcessorSettings()
    clock = Clock(settings)
    HealthServer(settings.health_port, live=clock.live, ready=clock.live, host=settings.health_host).start()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: clock.stop())
    clock.run()


if __name__ == "__main__":
    main()
