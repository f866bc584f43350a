"""Kafka Connect in distributed mode, with Debezium on its plugin path."""

from __future__ import annotations

from deploy.java import with_archive
from deploy.kafka import MAX_MESSAGE_BYTES, kafka_java, properties
from deploy.parts import Part, RunCommand
from deploy.processes import write_atomically
from deploy.readiness import http_answers
from deploy.settings import StackSettings
from deploy.timer_slack import with_timer_slack

#: So that Debezium does not spin (``deploy.timer_slack``): more than the millisecond that it would spin for.
TIMER_SLACK_NS = 1_500_000


def local_url(settings: StackSettings) -> str:
    return f"http://127.0.0.1:{settings.connect_port}"


def connect_part(settings: StackSettings, bootstrap: str, requires: tuple[str, ...]) -> Part:
    """One worker. Ready when it lists connectors: before that it is not in its group, or answers 404."""
    home = settings.root / "connect"
    configuration = home / "connect.properties"

    async def prepare(run: RunCommand) -> None:
        home.mkdir(parents=True, exist_ok=True)
        write_atomically(configuration, properties(_worker(settings, bootstrap)))

    part = Part(
        name="connect",
        commands=(
            kafka_java(
                settings,
                settings.connect_heap,
                "org.apache.kafka.connect.cli.ConnectDistributed",
                str(configuration),
            ),
        ),
        requires=requires,
        ready=http_answers(f"{local_url(settings)}/connectors"),
        prepare=prepare,
        ports={"FLUXORA_CONNECT_PORT": settings.connect_port},
        directory=home,
    )
    return with_timer_slack(with_archive(part, settings), TIMER_SLACK_NS)


def _worker(settings: StackSettings, bootstrap: str) -> dict[str, object]:
    return {
        "bootstrap.servers": bootstrap,
        "group.id": "fluxora-connect",
        "listeners": local_url(settings),
        "rest.advertised.host.name": "127.0.0.1",
        "rest.advertised.port": settings.connect_port,
        "plugin.path": settings.jvm_dir.absolute() / "plugins",
        # Every plugin we use is listed in its jar; scanning all classes costs seconds at each start.
        "plugin.discovery": "service_load",
        "config.storage.topic": "connect.configs",
        "config.storage.replication.factor": 1,
        "offset.storage.topic": "connect.offsets",
        "offset.storage.replication.factor": 1,
        "offset.storage.partitions": 4,
        "status.storage.topic": "connect.status",
        "status.storage.replication.factor": 1,
        "status.storage.partitions": 1,
        "key.converter": "org.apache.kafka.connect.storage.StringConverter",
        "value.converter": "org.apache.kafka.connect.converters.ByteArrayConverter",
        # What was sent but not yet noted is sent again after a crash: consumers are idempotent.
        "offset.flush.interval.ms": 1000,
        # Off: exactly-once cost four times the latency, and consumers are idempotent (DESIGN section 3).
        "exactly.once.source.support": "disabled",
        "connector.client.config.override.policy": "All",
        "task.shutdown.graceful.timeout.ms": 3000,
        # A worker that comes back takes its tasks at once; the default would hold them for five minutes.
        "scheduled.rebalance.max.delay.ms": 0,
        # The group waits this long for the member that a `kill -9` left behind.
        "session.timeout.ms": 3000,
        "heartbeat.interval.ms": 1000,
        "rebalance.timeout.ms": 10000,
        "producer.linger.ms": 1,
        "producer.compression.type": "none",
        "producer.max.request.size": MAX_MESSAGE_BYTES,
        # The broker is back within seconds, on loopback: look for it often.
        "reconnect.backoff.max.ms": 500,
        "producer.reconnect.backoff.max.ms": 500,
    }
