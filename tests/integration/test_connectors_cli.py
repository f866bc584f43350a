"""``fluxora init`` and ``fluxora service add`` as a person and as the supervisor run them."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.cimpl import NewTopic
from sqlalchemy import JSON, create_engine, make_url
from sqlalchemy.dialects.postgresql import JSONB

from fluxora.topics import partitions_by_topic
from participant import migrations
from participant.settings import sqlalchemy_url
from participant.tables import metadata
from tests import command_line
from tests.integration.fix_participant import Addresses, addresses, drop_database, fresh_database_url, new_name

__all__ = ["addresses", "fresh_database_url", "new_name"]  # fixtures


def fluxora(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return command_line.run(*arguments, environment={**os.environ, "COLUMNS": "200", **environment})


@pytest.fixture
def new_database(addresses: Addresses, new_name: Callable[[str], str]) -> Iterator[str]:
    """The URL of a database that is not there yet."""
    name = new_name("cli")
    yield addresses.url_of(name)
    drop_database(addresses, name)


def test_a_service_is_added_once_however_often_it_is_asked_for(
    addresses: Addresses, new_database: str, new_name: Callable[[str], str]
) -> None:
    name = new_name("billing")
    arguments = ("service", "add", name, "--database-url", new_database, "--create-database", "--json")
    first, second = fluxora(*arguments), fluxora(*arguments)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    made: dict[str, Any] = json.loads(first.stdout)
    database = make_url(new_database).database
    for what in (
        f"database {database}",
        f"replication slot fluxora_{database}",
        f"topic {name}.commands",
        f"topic {name}.commands.dlq",
        f"connector fluxora_{database}",
    ):
        assert what in made["done"]
    assert json.loads(second.stdout)["done"] == []
    listed = json.loads(fluxora("service", "list", "--json").stdout)
    assert {"service": name, "topic": f"{name}.commands", "partitions": 6} in listed


def test_init_makes_the_topics_as_the_design_wants_them(addresses: Addresses) -> None:
    ended = fluxora("init", "--json")
    assert ended.returncode == 0, ended.stderr
    admin = AdminClient({"bootstrap.servers": addresses.kafka})
    topics = partitions_by_topic(admin)
    assert (topics["fluxora.transactions"], topics["fluxora.transactions.dlq"]) == (12, 1)
    resource = ConfigResource("topic", "fluxora.transactions")
    config = admin.describe_configs([resource])[resource].result()
    assert config["message.timestamp.type"].value == "LogAppendTime"
    assert config["cleanup.policy"].value == "delete"
    assert config["retention.ms"].value == str(30 * 24 * 3600 * 1000)
    assert json.loads(fluxora("init", "--json").stdout)["done"] == []


def test_a_topic_with_other_partitions_is_left_alone_with_a_warning(
    addresses: Addresses, new_database: str, new_name: Callable[[str], str]
) -> None:
    name = new_name("billing")
    admin = AdminClient({"bootstrap.servers": addresses.kafka})
    admin.create_topics([NewTopic(f"{name}.commands", 2)])[f"{name}.commands"].result()
    ended = fluxora("service", "add", name, "--database-url", new_database, "--create-database")
    assert ended.returncode == 0
    assert f"{name}.commands has 2 partitions, not 6; it is left as it is" in " ".join(ended.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "environment", "told"),
    [
        (("service", "add", "Bad Name", "--database-url", "postgresql://x@y/z"), {}, "is no service name"),
        (("service", "add", "fluxora", "--database-url", "postgresql://x@y/z"), {}, "is reserved"),
        (("service", "add", "b", "--database-url", "mysql://x@y/z"), {}, "must be postgresql://"),
        (("service", "add", "b", "--database-url", "nonsense"), {}, "is no database URL"),
        (("init",), {"CONNECT_URL": ""}, "CONNECT_URL is not set"),
        (("init", "--wait", "1"), {"DATABASE_URL": "postgresql://x@127.0.0.1:1/z"}, "does not answer as it should"),
        (("saga", "list"), {"COORDINATOR_URL": "http://127.0.0.1:1"}, "does not answer"),
    ],
)
def test_what_is_wrong_is_told_without_a_trace(
    addresses: Addresses, arguments: tuple[str, ...], environment: dict[str, str], told: str
) -> None:
    ended = fluxora(*arguments, **environment)
    assert ended.returncode == 1
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_missing_database_is_not_made_unasked(addresses: Addresses) -> None:
    ended = fluxora("service", "add", "b", "--database-url", addresses.url_of("nobody_made_this"))
    assert ended.returncode == 1
    assert "pass --create-database" in ended.stderr


def test_the_migrations_make_what_the_tables_say_and_may_run_again(fresh_database_url: str) -> None:
    migrations.upgrade(fresh_database_url)
    migrations.upgrade(fresh_database_url)
    engine = create_engine(sqlalchemy_url(fresh_database_url))
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "version_table_schema": "fluxora",
                "include_schemas": True,
                "include_name": lambda name, kind, parents: kind != "schema" or name == "fluxora",
                "compare_server_default": _another_default,
            },
        )
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def _another_default(
    context: Any, inspected: Any, column: Any, there: str | None, wanted: Any, rendered: str | None
) -> bool | None:
    """PostgreSQL does not compare json with json, as Alembic would have it do: the texts are compared."""
    if not isinstance(column.type, JSON) or isinstance(column.type, JSONB):
        return None
    return (there or "").removesuffix("::json").strip("'") != (rendered or "").strip("'")
