"""What a connector's configuration says of its database."""

import pytest
from psycopg.conninfo import conninfo_to_dict

from connectors.debezium import configuration, database_url, slot_name


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://postgres@127.0.0.1:25432/billing",
        "postgresql://b%40b:p%2Fw%3A@db.internal:6543/Orders-2",
        "postgresql://b%20b:p%20w@db.internal:6543/the%20orders",
    ],
)
def test_a_database_is_found_where_its_connector_was_told(url: str) -> None:
    config = configuration(url)
    assert database_url(config) == url
    assert slot_name("another", config) == config["slot.name"]
    assert conninfo_to_dict(database_url(config))["dbname"] == config["database.dbname"], "libpq reads it too"


def test_a_port_that_is_not_given_is_postgresqls() -> None:
    config = {"database.hostname": "db", "database.dbname": "orders", "database.user": "u"}
    assert database_url(config) == "postgresql://u@db:5432/orders"
    assert slot_name("fluxora_orders", config) == "fluxora_orders"


@pytest.mark.parametrize("missing", ["database.hostname", "database.dbname"])
def test_a_configuration_without_its_place_is_told(missing: str) -> None:
    config = configuration("postgresql://postgres@127.0.0.1:25432/billing")
    del config[missing]
    with pytest.raises(ValueError, match=missing):
        database_url(config)
