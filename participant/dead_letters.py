"""Commands that cannot be handled, kept in ``<service>.commands.dlq`` with the headers of Kafka Connect's own."""

import traceback
from collections.abc import Sequence

from confluent_kafka import KafkaError, Message, Producer
from confluent_kafka import KafkaException as KafkaFailure

#: Seconds to wait for the broker's acknowledgement; then the process gives up and starts anew.
ACK_TIMEOUT_S = 30

#: Bytes of a letter: what a command's topic takes (fluxora.topics), and room for the reasons.
MAX_RECORD_BYTES = 2 * 1024 * 1024
#: Characters of an exception's message and of its traceback that are kept.
MESSAGE_LIMIT, TRACEBACK_LIMIT = 2_000, 16_000

Headers = Sequence[tuple[str, str | bytes | None]]


class DeadLetters:
    """Produces dead letters and waits until they are durable."""

    def __init__(self, bootstrap_servers: str, service: str, reported_by: str = "participant.worker.Worker") -> None:
        """``reported_by`` is the class that stands in the letters as the one that could not go on."""
        self.topic = f"{service}.commands.dlq"
        self._service = service
        self._reported_by = reported_by
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap_servers,
                "client.id": f"{service}-dead-letters",
                "acks": "all",
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "delivery.timeout.ms": ACK_TIMEOUT_S * 1000,
                "message.max.bytes": MAX_RECORD_BYTES,
            }
        )

    def put(self, message: Message, error: BaseException, *, stage: str) -> None:
        """Store ``message`` as it came, with why; returns when it is acknowledged.

        Raises:
            KafkaFailure: it could not be stored in time.
        """
        failed: list[KafkaError] = []

        def delivered(problem: KafkaError | None, _: Message) -> None:
            if problem is not None:
                failed.append(problem)

        self._producer.produce(
            self.topic,
            key=message.key(),
            value=message.value(),
            headers=[*(message.headers() or []), *self._why(message, error, stage)],
            on_delivery=delivered,
        )
        if self._producer.flush(ACK_TIMEOUT_S + 5) or failed:
            raise KafkaFailure(failed[0] if failed else KafkaError(KafkaError._TIMED_OUT))

    def _why(self, message: Message, error: BaseException, stage: str) -> Headers:
        # Names of org.apache.kafka.connect.runtime.errors.DeadLetterQueueReporter.
        why = {
            "topic": message.topic(),
            "partition": message.partition(),
            "offset": message.offset(),
            "connector.name": self._service,
            "task.id": 0,
            "stage": stage,
            "class.name": self._reported_by,
            "exception.class.name": f"{type(error).__module__}.{type(error).__qualname__}",
            "exception.message": str(error)[:MESSAGE_LIMIT],
            "exception.stacktrace": "".join(traceback.format_exception(error))[-TRACEBACK_LIMIT:],
        }
        return [(f"__connect.errors.{name}", str(value).encode("utf-8", "replace")) for name, value in why.items()]
