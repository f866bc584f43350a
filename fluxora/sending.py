"""Records to Kafka, as many as there are: what waits for the brokers is bounded, and whoever sends waits then."""

from confluent_kafka import KafkaError, Message, Producer

from schemas import FluxoraError

_FLUSH_S = 30.0
#: Of the producer's queue; librdkafka's own default is a gigabyte.
_QUEUE_KBYTES = 32 * 1024
#: Of a record, key and headers included.
_RECORD_BYTES = 2 * 1024 * 1024


class NotSent(FluxoraError):
    """The brokers refuse a record, or do not answer; those before it, and some after it, were sent."""


class Sender:
    """Sends records in order. Not for concurrent use."""

    def __init__(self, bootstrap_servers: str, record_bytes: int = _RECORD_BYTES) -> None:
        """``record_bytes``: of the largest record, key and headers included."""
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap_servers,
                "acks": "all",
                "enable.idempotence": True,
                # As Debezium's and everybody's here: a key has one partition whoever writes it.
                "partitioner": "murmur2_random",
                "message.max.bytes": record_bytes,
                "queue.buffering.max.kbytes": _QUEUE_KBYTES,
            }
        )
        #: Records that the brokers have.
        self.acknowledged = 0
        self._refused: str | None = None

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: str | bytes | None,
        headers: list[tuple[str, str | bytes | None]],
        *,
        partition: int = -1,
        timestamp: int = 0,
    ) -> None:
        """Raises NotSent, of this record or of one before it; those that were sent are counted then.

        Args:
            partition: the key's by default.
            timestamp: ms; now by default.
        """
        while True:
            try:
                self._producer.produce(
                    topic, value, key, partition, on_delivery=self._delivered, timestamp=timestamp, headers=headers
                )
                break
            except BufferError:  # full until the brokers have acknowledged, or refused, some
                self._producer.poll(0.1)
        self._producer.poll(0)
        if self._refused is not None:
            self.finish()

    def wait(self, seconds: float) -> None:
        """Let time pass, and the brokers' answers come in."""
        self._producer.poll(seconds)

    def finish(self) -> None:
        """Return when every record is acknowledged. Raises NotSent."""
        left = self._producer.flush(_FLUSH_S)
        if self._refused is not None:
            raise NotSent(self._refused)
        if left:
            raise NotSent("no answer")

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.acknowledged += 1
        elif self._refused is None:
            self._refused = f"{message.topic()}: {error.str()}"
