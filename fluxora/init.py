"""Bringing the platform, or a service, into an existing PostgreSQL, Kafka and Connect. All of it is idempotent."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import httpx
import stamina
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from sqlalchemy import URL, create_engine, make_url, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.pool import NullPool

import coordinator.migrations
import outbox_relay.messages.migrations
from connectors import Connect, ConnectUnavailable, configuration, connector_name, ensure_slot
from connectors.debezium import PREFIX
from fluxora.settings import CliSettings
from fluxora.topics import (
    COMMANDS,
    PLATFORM,
    Topic,
    ensure_topics,
    heartbeat_topics,
    partitions_by_topic,
    service_topics,
)
from participant import migrations
from participant.local_transaction import first_line
from participant.settings import CONNECT, sqlalchemy_url
from schemas import FluxoraError, RegistryUnavailable, register_all

#: Names of services: parts of topic names, consumer groups, URLs and labels.
_SERVICE = re.compile(r"[a-z0-9]([a-z0-9._-]{0,98}[a-z0-9])?")
#: Held by the platform's own topics.
_RESERVED = "fluxora"

_T = TypeVar("_T")


class SetupFailed(FluxoraError):
    """Something is missing or wrong; the message says what to do. What was done until then stays and is harmless."""


@dataclass(slots=True)
class Report:
    """What was done."""

    #: things that were made or changed
    done: list[str] = field(default_factory=list)
    #: things that were as they should be
    unchanged: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def note(self, changed: bool, what: str) -> None:
        (self.done if changed else self.unchanged).append(what)


def initialise(settings: CliSettings, *, create_database: bool = False) -> Report:
    """Prepare the coordinator's database, the topics, the schemas, and the coordinator's own outbox.

    Raises:
        SetupFailed: a dependency does not answer in time, or refuses.
    """
    report = Report()
    url = _required(settings.database_url, "DATABASE_URL")
    registry = _required(settings.schema_registry_url, "SCHEMA_REGISTRY_URL")
    bootstrap = _required(settings.kafka_bootstrap_servers, "KAFKA_BOOTSTRAP_SERVERS")
    connect_url = _required(settings.connect_url, "CONNECT_URL")
    deadline = time.monotonic() + settings.wait_s

    _database(url, create_database, deadline, report)
    coordinator.migrations.upgrade(url)
    report.unchanged.append("the coordinator's tables")
    outbox_relay.messages.migrations.upgrade(url)
    report.unchanged.append("the outbox service's tables")
    _topics(bootstrap, (*PLATFORM, *_heartbeat(url)), settings, deadline, report)
    ids = _patiently("the schema registry", deadline, (RegistryUnavailable,), lambda: register_all(registry))
    report.unchanged.append(f"{len(ids)} schemas")
    _connector(connect_url, url, settings, deadline, report)
    return report


def add_service(settings: CliSettings, name: str, database_url: str, *, create_database: bool = False) -> Report:
    """Give a service its tables, slot, topics and connector.

    The slot comes before the connector, and the tables before the slot: no row can be written that nobody keeps.

    Raises:
        SetupFailed: as ``initialise``.
    """
    check_service_name(name)
    bootstrap = _required(settings.kafka_bootstrap_servers, "KAFKA_BOOTSTRAP_SERVERS")
    connect_url = _required(settings.connect_url, "CONNECT_URL")
    report = Report()
    deadline = time.monotonic() + settings.wait_s
    _database(database_url, create_database, deadline, report)
    _topics(bootstrap, (*service_topics(name), *_heartbeat(database_url)), settings, deadline, report)
    _connector(connect_url, database_url, settings, deadline, report)
    return report


def services(settings: CliSettings) -> list[dict[str, object]]:
    """Return the known services by name, with the partitions of their command topics."""
    bootstrap = _required(settings.kafka_bootstrap_servers, "KAFKA_BOOTSTRAP_SERVERS")
    topics = _patiently(
        f"Kafka at {bootstrap}",
        time.monotonic() + settings.wait_s,
        (KafkaException,),
        lambda: partitions_by_topic(_admin(bootstrap), timeout_s=5),
    )
    return [
        {"service": topic.removesuffix(COMMANDS), "topic": topic, "partitions": partitions}
        for topic, partitions in sorted(topics.items())
        # fluxora.http.commands is the relay's, not a service's.
        if topic.endswith(COMMANDS) and not topic.startswith("fluxora.")
    ]


def check_service_name(name: str) -> None:
    """Raise SetupFailed unless ``name`` can be a service's name."""
    if not _SERVICE.fullmatch(name):
        raise SetupFailed(
            f"{name!r} is no service name: 1 to 100 of a-z, 0-9, '.', '_' and '-', with a letter or digit at both ends"
        )
    if name == _RESERVED or name.startswith(f"{_RESERVED}."):
        raise SetupFailed(f"{name!r} is reserved for the platform's own topics; choose another name")


def _required(value: str | None, variable: str) -> str:
    if not value:
        raise SetupFailed(f"{variable} is not set; `make up` writes it to .run/endpoints.env: source that, or set it")
    return value


def _database(url: str, create: bool, deadline: float, report: Report) -> None:
    target = _parsed(url)
    shown = target.render_as_string()
    try:
        _patiently(f"PostgreSQL at {shown}", deadline, (OperationalError,), lambda: _connects(target, create, report))
        migrations.upgrade(url)
    except SQLAlchemyError as error:
        raise SetupFailed(f"preparing {shown}: {first_line(error)}") from error
    report.unchanged.append(f"tables and publication in {target.database}")
    try:
        created = ensure_slot(url)
    except SQLAlchemyError as error:
        raise SetupFailed(
            f"creating the replication slot in {shown}: {first_line(error)}. It needs wal_level=logical, a free "
            "slot (max_replication_slots) and a user with REPLICATION"
        ) from error
    report.note(created, f"replication slot {connector_name(target.database or '')}")


def _connects(target: URL, create: bool, report: Report) -> None:
    engine = create_engine(
        sqlalchemy_url(target.render_as_string(hide_password=False)),
        poolclass=NullPool,
        connect_args=CONNECT,
    )
    try:
        with engine.connect():
            return
    except OperationalError as error:
        if "does not exist" not in str(error) or "database" not in str(error):
            raise
        if not create:
            raise SetupFailed(
                f"the database {target.database!r} does not exist: create it, or pass --create-database"
            ) from error
    maintenance = create_engine(
        sqlalchemy_url(target.set(database="postgres").render_as_string(hide_password=False)),
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
    )
    with maintenance.connect() as connection:
        quoted = connection.dialect.identifier_preparer.quote_identifier(target.database or "")
        connection.execute(text(f"CREATE DATABASE {quoted}"))
    report.done.append(f"database {target.database}")


def _topics(bootstrap: str, topics: tuple[Topic, ...], settings: CliSettings, deadline: float, report: Report) -> None:
    created, warnings = _patiently(
        f"Kafka at {bootstrap}",
        deadline,
        (KafkaException,),
        lambda: ensure_topics(_admin(bootstrap), topics, settings.replication_factor),
    )
    for topic in topics:
        report.note(topic.name in created, f"topic {topic.name}")
    report.warnings += warnings


def _connector(connect_url: str, database_url: str, settings: CliSettings, deadline: float, report: Report) -> None:
    config = configuration(database_url, poll_interval_ms=settings.debezium_poll_ms)
    name = config["slot.name"]
    with Connect(connect_url, patience_s=max(1.0, deadline - time.monotonic())) as connect:
        there = connect.config(name)
        same = ("database.hostname", "database.port", "database.dbname")
        if there is not None and any(there.get(key) != config[key] for key in same):
            raise SetupFailed(
                f"the connector {name} reads {there.get('database.hostname')}:{there.get('database.port')}/"
                f"{there.get('database.dbname')}, another database of nearly the same name. If the database has "
                f"moved, delete the connector first: DELETE {connect_url}/connectors/{name}"
            )
        report.note(connect.put(name, config), f"connector {name}")
        connect.await_running(name)


def _heartbeat(database_url: str) -> tuple[Topic, ...]:
    return heartbeat_topics(connector_name(_parsed(database_url).database or ""))


def _admin(bootstrap: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": bootstrap, "client.id": "fluxora-cli", "log_level": 0})


def _parsed(url: str) -> URL:
    try:
        target = make_url(url)
    except (SQLAlchemyError, ValueError) as error:
        raise SetupFailed(f"{url!r} is no database URL: postgresql://user@host:port/name") from error
    if not target.drivername.startswith("postgres") or not target.host or not target.database:
        raise SetupFailed(f"{target.render_as_string()} must be postgresql://user@host:port/name")
    return target


def _patiently(what: str, deadline: float, on: tuple[type[Exception], ...], call: Callable[[], _T]) -> _T:
    """Call until it succeeds; a dependency that starts gets until the deadline."""
    try:
        for attempt in stamina.retry_context(
            on=on, attempts=None, timeout=max(0.1, deadline - time.monotonic()), wait_initial=0.2, wait_max=2
        ):
            with attempt:
                return call()
    except on as error:
        raise SetupFailed(f"{what} does not answer as it should: {first_line(error)}") from error
    raise AssertionError  # the loop above returns or raises


#: What a caller reports as a failure with a message, without a trace.
EXPECTED = (FluxoraError, KafkaException, httpx.HTTPError, ConnectUnavailable)
__all__ = ["EXPECTED", "PREFIX", "Report", "SetupFailed", "add_service", "check_service_name", "initialise", "services"]
