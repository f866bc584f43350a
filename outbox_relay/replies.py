"""Replies to ``fluxora.transactions``: handed to the producer by the loop, acknowledged to it by a thread."""

import asyncio
import threading
from collections.abc import Callable, Sequence

from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, KafkaError, Message, Producer
from confluent_kafka import KafkaException as KafkaFailure

from outbox_relay.clock import BrokerClock
from outbox_relay.command import RecordHeader
from participant.command import TRANSACTIONS_TOPIC

#: Bytes of a record: what the topic takes (fluxora.topics).
_MAX_RECORD_BYTES = 2 * 1024 * 1024
_POLL_S = 0.1


class Replies:
    """Belongs to one event loop."""

    def __init__(
        self,
        bootstrap_servers: str,
        ack_timeout_s: float,
        clock: BrokerClock,
        failed: Callable[[BaseException], None],
    ) -> None:
        """``clock`` is told what the brokers say of theirs, and ``failed``, on the loop, when no reply can leave."""
        self._failed = failed
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._stopping = threading.Event()
        #: What the brokers have said since the loop was told last.
        self._said: list[tuple[asyncio.Future[None], KafkaError | None]] = []
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap_servers,
                "client.id": "fluxora-http-relay",
                "acks": "all",
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "delivery.timeout.ms": round(ack_timeout_s * 1000),
                "message.max.bytes": _MAX_RECORD_BYTES,
                # A reply waits for none to share its batch with; under load they gather by themselves.
                "linger.ms": 1,
                "queue.buffering.max.kbytes": 64 * 1024,
            }
        )
        self._thread = threading.Thread(target=self._listen, name="replies", daemon=True)
        self._thread.start()

    async def send(self, key: str, value: bytes, headers: list[RecordHeader]) -> None:
        """Return when all in-sync brokers have it.

        Raises:
            KafkaFailure: they did not take it in time, or never will.
        """
        acknowledged: asyncio.Future[None] = self._loop.create_future()

        sent = self._clock.own()

        def delivered(problem: KafkaError | None, message: Message) -> None:
            kind, appended_ms = message.timestamp()
            if problem is None and kind == TIMESTAMP_LOG_APPEND_TIME:
                self._clock.observe(sent, self._clock.own(), appended_ms / 1000)
            self._said.append((acknowledged, problem))

        while True:
            try:
                self._producer.produce(TRANSACTIONS_TOPIC, key=key, value=value, headers=headers, on_delivery=delivered)
                break
            except BufferError:
                # The brokers are away or slow; the oldest record gives up after the timeout, and we with it.
                await asyncio.sleep(_POLL_S)
        await acknowledged

    def close(self) -> None:
        """Let go; what is not acknowledged is sent again by whoever gets the command next."""
        self._stopping.set()
        self._thread.join()

    def _listen(self) -> None:
        try:
            while not self._stopping.is_set():
                self._producer.poll(_POLL_S)
                if self._said:
                    said, self._said = self._said, []
                    self._loop.call_soon_threadsafe(_tell, said)
        except BaseException as error:
            # Without it no reply would ever be acknowledged.
            self._loop.call_soon_threadsafe(self._failed, error)


def _tell(said: Sequence[tuple[asyncio.Future[None], KafkaError | None]]) -> None:
    for acknowledged, problem in said:
        if acknowledged.done():
            continue
        if problem is None:
            acknowledged.set_result(None)
        else:
            acknowledged.set_exception(KafkaFailure(problem))
