"""Records that cannot be handled, kept in a dead letter topic with the headers of Kafka Connect's own."""

import traceback
from collections.abc import Callable, Sequence

import structlog
from confluent_kafka import KafkaError, Message, Producer
from confluent_kafka import KafkaException as KafkaFailure
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

log = structlog.get_logger(__name__)

#: Seconds to wait for the broker's acknowledgement; then the process gives up and starts anew.
ACK_TIMEOUT_S = 30

#: Bytes of a letter: what a command's topic takes (fluxora.topics), and room for the reasons.
MAX_RECORD_BYTES = 2 * 1024 * 1024
#: As the platform's own (fluxora.topics).
_KEPT = {
    "cleanup.policy": "delete",
    "retention.ms": str(30 * 24 * 60 * 60 * 1000),
    "max.message.bytes": str(MAX_RECORD_BYTES),
}
#: Characters of an exception's message and of its traceback that are kept.
MESSAGE_LIMIT, TRACEBACK_LIMIT = 2_000, 16_000

Headers = Sequence[tuple[str, str | bytes | None]]


class ProducerLost(Exception):
    """An idempotent producer that lost track of its sequence sends nothing more, whatever is tried."""


class DeadLetters:
    """Produces dead letters and waits until they are durable."""

    def __init__(
        self,
        bootstrap_servers: str,
        service: str,
        reported_by: str = "participant.worker.Worker",
        topic: Callable[[str], str] = "{}.dlq".format,
    ) -> None:
        """``reported_by`` is the class that stands in the letters as the one that could not go on.

        ``topic`` returns the dead letter topic of a topic.
        """
        self.topic = topic
        self._bootstrap_servers = bootstrap_servers
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

    def create(self, topics: Sequence[str]) -> None:
        """Create dead letter topics that are missing; who may not is told in the log, and by the first letter."""
        admin = AdminClient(
            {"bootstrap.servers": self._bootstrap_servers, "client.id": f"{self._service}-dead-letters"}
        )
        wanted = [NewTopic(topic, num_partitions=1, replication_factor=-1, config=_KEPT) for topic in topics]
        for topic, made in admin.create_topics(wanted, request_timeout=ACK_TIMEOUT_S).items():
            try:
                made.result()
            except KafkaFailure as failure:
                if failure.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    log.warning("dead_letter_topic_not_created", topic=topic, error=str(failure))

    def put(self, message: Message, error: BaseException, *, stage: str) -> None:
        """Store ``message`` as it came, with why; returns when it is acknowledged.

        Raises:
            KafkaFailure: it could not be stored in time.
            ProducerLost: this process can store none any more, and must end.
        """
        failed: list[KafkaError] = []

        def delivered(problem: KafkaError | None, _: Message) -> None:
            if problem is not None:
                failed.append(problem)

        try:
            self._producer.produce(
                self.topic(message.topic() or ""),
                key=message.key(),
                value=message.value(),
                headers=[*(message.headers() or []), *self._why(message, error, stage)],
                on_delivery=delivered,
            )
        except KafkaFailure as failure:
            failed.append(failure.args[0])
        if self._producer.flush(ACK_TIMEOUT_S + 5) or failed:
            problem = failed[0] if failed else KafkaError(KafkaError._TIMED_OUT)
            if problem.fatal() or problem.code() == KafkaError._FATAL:
                raise ProducerLost(f"the producer of dead letters has failed for good: {problem.str()}")
            raise KafkaFailure(problem)

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
