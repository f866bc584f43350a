"""Kafka: one KRaft node that is broker and controller."""

from __future__ import annotations

import shutil
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from pathlib import Path

from deploy.java import java, with_archive
from deploy.parts import Part, RunCommand
from deploy.processes import write_atomically
from deploy.readiness import kafka_answers
from deploy.settings import StackSettings

LOGGING = Path(__file__).resolve().parent / "jvm" / "log4j2.xml"

#: Largest record the broker takes, in bytes; also what Connect's producers may send.
MAX_MESSAGE_BYTES = 2 * 1024 * 1024


def kafka_java(settings: StackSettings, heap: str, main: str, *arguments: str) -> tuple[str, ...]:
    """A class of Kafka's (broker, Connect, a tool), with our logging."""
    jars = settings.jvm_dir.absolute() / "kafka"
    logging = f"-Dlog4j2.configurationFile={LOGGING}"
    return java(heap, logging, "-cp", f"{jars}/*", main, *arguments)


def properties(values: Mapping[str, object]) -> str:
    """A Java properties file. Backslashes, which a path may hold, are escaped."""
    return "".join(f"{key}={str(value).replace(chr(92), chr(92) * 2)}\n" for key, value in values.items())


def broker_part(settings: StackSettings) -> Part:
    """The broker on loopback; its log in the run directory."""
    home = settings.root / "kafka"
    data = home / "data"
    configuration = home / "server.properties"
    formatted = home / "formatted"
    bootstrap = f"127.0.0.1:{settings.kafka_port}"

    async def prepare(run: RunCommand) -> None:
        home.mkdir(parents=True, exist_ok=True)
        write_atomically(configuration, properties(_server(settings, data)))
        if formatted.exists():
            return
        # No broker has run on it: what is there is from a format that was interrupted.
        shutil.rmtree(data, ignore_errors=True)
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        arguments = ("format", "--cluster-id", cluster, "--config", str(configuration))
        await run(kafka_java(settings, "128m", "kafka.tools.StorageTool", *arguments))
        write_atomically(formatted, cluster + "\n")

    part = Part(
        name="kafka",
        commands=(kafka_java(settings, settings.kafka_heap, "kafka.Kafka", str(configuration)),),
        ready=kafka_answers(bootstrap),
        prepare=prepare,
        ports={
            "FLUXORA_KAFKA_PORT": settings.kafka_port,
            "FLUXORA_KAFKA_CONTROLLER_PORT": settings.kafka_controller_port,
        },
        directory=home,
    )
    return with_archive(part, settings)


def _server(settings: StackSettings, data: Path) -> dict[str, object]:
    listener = f"127.0.0.1:{settings.kafka_port}"
    controller = f"127.0.0.1:{settings.kafka_controller_port}"
    return {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@{controller}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://{listener},CONTROLLER://{controller}",
        "advertised.listeners": f"PLAINTEXT://{listener}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": data,
        # A topic that springs up from a typing error has the wrong number of partitions for ever.
        "auto.create.topics.enable": "false",
        "default.replication.factor": 1,
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 4,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "share.coordinator.state.topic.num.partitions": 1,
        "group.initial.rebalance.delay.ms": 0,
        "group.min.session.timeout.ms": 1000,
        # The quorum is this process alone: after a `kill -9` it waits for nobody's vote, and for the session of
        # its own former life to end. A broker that stalls longer than that is out until its next heartbeat.
        "controller.quorum.election.timeout.ms": 500,
        "controller.quorum.fetch.timeout.ms": 1000,
        "broker.heartbeat.interval.ms": 400,
        "broker.session.timeout.ms": 2000,
        "message.max.bytes": MAX_MESSAGE_BYTES,
        "replica.fetch.max.bytes": MAX_MESSAGE_BYTES,
        "num.network.threads": 2,
        "num.io.threads": 4,
        "num.recovery.threads.per.data.dir": 2,
        "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
    }
