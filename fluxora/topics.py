"""The platform's topics: created if missing, never changed behind anyone's back."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from connectors import heartbeat_topic

DAY_MS = 24 * 60 * 60 * 1000
#: Partitions of the inputs: the number of processors that can share the work.
INPUT_PARTITIONS = 12
COMMAND_PARTITIONS = 6
#: Ends the name of a service's command topic; the topic is what makes a service known.
COMMANDS = ".commands"


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it should be."""

    name: str
    partitions: int
    config: dict[str, str] = field(default_factory=dict)


#: Deleted by age, never compacted: offsets of the inputs must have no holes (DESIGN section 1).
#: Room for a compensation, which carries a step's payload and its result.
_KEPT = {
    "cleanup.policy": "delete",
    "retention.ms": str(30 * DAY_MS),
    "max.message.bytes": str(2 * 1024 * 1024),
}

PLATFORM = (
    # LogAppendTime: the machine's time is the log's, not a client's clock.
    Topic("fluxora.transactions", INPUT_PARTITIONS, {**_KEPT, "message.timestamp.type": "LogAppendTime"}),
    Topic("fluxora.transactions.dlq", 1, _KEPT),
    Topic("fluxora.messages.dlq", 1, _KEPT),
    Topic("fluxora.transactions.events", INPUT_PARTITIONS, _KEPT),
    Topic("fluxora.http.commands", COMMAND_PARTITIONS, _KEPT),
    Topic("fluxora.http.commands.dlq", 1, _KEPT),
)


def service_topics(service: str) -> tuple[Topic, ...]:
    return (Topic(f"{service}{COMMANDS}", COMMAND_PARTITIONS, _KEPT), Topic(f"{service}{COMMANDS}.dlq", 1, _KEPT))


def heartbeat_topics(connector: str) -> tuple[Topic, ...]:
    """A connector's heartbeats: nobody reads them, and they need not be kept."""
    return (Topic(heartbeat_topic(connector), 1, {"cleanup.policy": "delete", "retention.ms": str(DAY_MS // 24)}),)


def partitions_by_topic(admin: AdminClient, timeout_s: float = 10) -> dict[str, int]:
    """Return every topic of the cluster with its number of partitions."""
    return {name: len(topic.partitions) for name, topic in admin.list_topics(timeout=timeout_s).topics.items()}


def ensure_topics(
    admin: AdminClient, topics: Iterable[Topic], replication_factor: int = -1
) -> tuple[list[str], list[str]]:
    """Create the topics that are missing; returns the names created, and warnings about those that differ.

    A topic that exists keeps its partitions: adding some would send a transaction's later inputs to another
    partition than its earlier ones.

    Raises:
        KafkaException: the broker refuses or does not answer.
    """
    wanted = list(topics)
    created, warnings = [], []
    futures = admin.create_topics(
        [
            NewTopic(t.name, num_partitions=t.partitions, replication_factor=replication_factor, config=t.config)
            for t in wanted
        ],
        request_timeout=30,
    )
    there: dict[str, int] | None = None
    for topic in wanted:
        try:
            futures[topic.name].result()
            created.append(topic.name)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
            if there is None:
                there = partitions_by_topic(admin)
            if there.get(topic.name, topic.partitions) != topic.partitions:
                warnings.append(
                    f"{topic.name} has {there[topic.name]} partitions, not {topic.partitions}; it is left as it is"
                )
    return created, warnings
