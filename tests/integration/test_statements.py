"""The library's own statements on a real PostgreSQL: what SQLAlchemy's execution would do besides running them."""

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError, OperationalError

from participant.batch import _READ_BARRIER
from participant.inbox import claim
from participant.local_transaction import is_infrastructure
from participant.statements import Statement
from tests.integration.fix_participant import addresses, database_url, engine, migrated_url

__all__ = ["addresses", "database_url", "engine", "migrated_url"]  # fixtures

_WRITE = Statement("INSERT INTO fluxora.inbox (command_id) VALUES (%(id)s)")
_END = Statement("SELECT pg_terminate_backend(pg_backend_pid())")


@pytest.fixture(autouse=True)
def _no_rows_of_other_tests(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM fluxora.inbox"))


def ids(engine: Engine) -> list[str]:
    with engine.begin() as connection:
        return list(connection.scalars(text("SELECT command_id FROM fluxora.inbox ORDER BY 1")))


def test_a_transaction_that_a_statement_begins_is_committed_and_rolled_back_as_any_other(engine: Engine) -> None:
    with engine.connect() as connection:
        _WRITE(connection, id="a")
        connection.commit()
        _WRITE(connection, id="b")
        connection.rollback()
        with connection.begin():
            _WRITE(connection, id="c")
            savepoint = connection.begin_nested()
            _WRITE(connection, id="d")
            savepoint.rollback()
    assert ids(engine) == ["a", "c"]


def test_an_error_has_its_kind_and_a_savepoint_outlives_it(engine: Engine) -> None:
    with engine.begin() as connection:
        _WRITE(connection, id="a")
        with pytest.raises(IntegrityError, match="inbox_pkey") as told, connection.begin_nested():
            _WRITE(connection, id="a")
        assert not is_infrastructure(told.value)
        _WRITE(connection, id="b")
    assert ids(engine) == ["a", "b"]


def test_a_connection_that_is_lost_is_the_databases_fault_and_replaced(engine: Engine) -> None:
    with engine.connect() as connection:
        _WRITE(connection, id="a")
        with pytest.raises(OperationalError) as told:
            _END(connection)
        assert connection.invalidated
    assert told.value.connection_invalidated
    assert is_infrastructure(told.value)
    assert ids(engine) == []


def test_of_two_copies_the_first_is_claimed_once(engine: Engine) -> None:
    with engine.begin() as connection:
        assert claim(connection, [1, 2, 3], ["a", "b", "a"]) == [1, 2]
    with engine.begin() as connection:
        assert claim(connection, [4, 5], ["b", 'c"\\,{}']) == [5]
        assert claim(connection, [], []) == []
    assert ids(engine) == ["a", "b", 'c"\\,{}']


def test_a_plan_of_a_small_barrier_is_not_kept_for_a_large_one(engine: Engine) -> None:
    """Until it is analyzed, the table would be read as a whole for every batch."""
    keys = {
        "transaction_ids": "{" + ",".join(f"00000000-0000-0000-0000-0000000000{i:02x}" for i in range(10)) + "}",
        "steps": "{" + ",".join(["s"] * 10) + "}",
    }
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE fluxora.barrier"))
    with engine.connect() as connection:
        for _ in range(20):
            _READ_BARRIER(connection, **keys)
            connection.commit()
        connection.execute(
            text(
                "INSERT INTO fluxora.barrier (transaction_id, step, operation, outcome) "
                "SELECT gen_random_uuid(), 's', 'ACTION', 'DONE' FROM generate_series(1, 20000)"
            )
        )
        connection.commit()
        _READ_BARRIER(connection, **keys)
        read = connection.scalar(
            text("SELECT seq_tup_read FROM pg_stat_xact_user_tables WHERE relid = 'fluxora.barrier'::regclass")
        )
        connection.rollback()
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE fluxora.barrier"))
    assert read == 0
