"""Records to Kafka, as many as there are: what waits for the brokers is bounded, and whoever sends waits then."""

from confluent_kafka import KafkaError, Message, Producer

from schemas import FluxoraError

_FLUSH_S = 30.0
#: Of the producer's queue; librdkafka's own default is a gigabyte.
_QUEUE_KBYTES = 32 * 1024


class NotSent(FluxoraError):
    """The brokers refuse a record, or do not answer; those before it, and some after it, were sent."""


class Sender:
    """Sends records in order. Not for concurrent use."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap_servers,
                "acks": "all",
                "enable.idempotence": True,
                # As Debezium's and everybody's here: a key has one partition whoever writes it.
                "partitioner": "murmur2_random",
                "message.max.bytes": 2 * 1024 * 1024,
                "queue.buffering.max.kbytes": _QUEUE_KBYTES,
            }
        )
        #: Records that the brokers have.
        self.acknowledged = 0
        self._refused: str | None = None

    def send(
        self, topic: str, value: bytes | None, key: str | bytes | None, headers: list[tuple[str, str | bytes | None]]
    ) -> None:
        """Raises NotSent, of this record or of one before it."""
        while True:
            try:
                self._producer.produce(topic, value, key, headers=headers, on_delivery=self._delivered)
                break
            except BufferError:  # full until the brokers have acknowledged, or refused, some
                self._producer.poll(0.1)
        self._producer.poll(0)
        self._check()

    def finish(self) -> None:
        """Return when every record is acknowledged. Raises NotSent."""
        left = self._producer.flush(_FLUSH_S)
        self._check()
        if left:
            raise NotSent("no answer")

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.acknowledged += 1
        elif self._refused is None:
            self._refused = f"{message.topic()}: {error.str()}"

    def _check(self) -> None:
        if self._refused is not None:
            raise NotSent(self._refused)
