"""States and journal folded again from the log, and what the log tells of one transaction."""

import json
import os
import uuid
from collections.abc import Iterator

import psycopg
import pytest

import coordinator.migrations
from fluxora.rebuild import CannotRebuild, Rebuild
from saga_processors.settings import ProcessorSettings
from saga_processors.transaction_definition import Policy
from tests import command_line
from tests.command_line import fluxora
from tests.platform import Platform, steps
from tests.services.vaults import ACCOUNTS
from tests.transfers import ALL_VAULTS, Transfer, Transfers


@pytest.fixture(scope="module")
def sagas(platform: Platform) -> dict[str, str]:
    """Some sagas that have ended, and how."""
    started = [platform.start(steps({}, {}, {"refuse": i % 2 == 1})) for i in range(6)]
    return platform.wait_all(started)


def test_the_live_rows_are_what_the_log_says(platform: Platform, sagas: dict[str, str]) -> None:
    code, told, errors = fluxora(platform, "rebuild", "--verify")
    assert (code, told["differences"]) == (0, []), errors
    assert told["transactions"] >= len(sagas)
    assert not platform.query("fluxora", "SELECT 1 FROM pg_namespace WHERE nspname = 'fluxora_rebuild'")


def test_two_phase_commits_are_folded_alike_whatever_settings_the_rebuild_has(platform: Platform) -> None:
    transfers = Transfers(platform)
    made = [Transfer(ALL_VAULTS, ACCOUNTS[i], 30, withdrawn=i == 1) for i in range(2)]
    transfers.each(transfers.run, made)
    assert sorted(transfers.all_ended(made).values()) == ["ABORTED", "COMMITTED"]
    other = {
        "FLUXORA_PARTICIPANT_TIMEOUT": "0.7",
        "FLUXORA_PARTICIPANT_RETRY_INITIAL": "7",
        "FLUXORA_PARTICIPANT_RETRY_MAX": "8",
        "FLUXORA_PARTICIPANT_ATTENTION_AFTER": "1",
        # With these, the first input of each would be refused.
        "FLUXORA_MAX_PARTICIPANTS": "1",
        "FLUXORA_MAX_PARTICIPANTS_SIZE": "1000",
    }
    code, told, errors = fluxora(platform, "rebuild", "--verify", **other)
    assert (code, told["differences"]) == (0, []), errors
    [(kept,)] = platform.query("fluxora", "SELECT definition -> 'policy' FROM transactions WHERE id = %s", made[0].id)
    assert kept["attempt_timeout_ms"] == Policy().attempt_timeout_ms, "the coordinator's setting, as the log has it"


def test_a_row_that_was_changed_and_a_journal_row_that_is_gone_are_named(
    platform: Platform, sagas: dict[str, str]
) -> None:
    saga = next(iter(sagas))
    [(state,)] = platform.query("fluxora", "SELECT state FROM transactions WHERE id = %s", saga)
    [taken] = platform.query(
        "fluxora",
        "WITH gone AS (DELETE FROM journal WHERE transaction_id = %s AND input_type = 'fluxora.SagaStarted' "
        "RETURNING *) SELECT row_to_json(gone)::text FROM gone",
        saga,
    )
    platform.query("fluxora", "UPDATE transactions SET state = 'STARTED' WHERE id = %s RETURNING 1", saga)
    try:
        code, told, _ = fluxora(platform, "rebuild", "--verify")
    finally:
        platform.query("fluxora", "UPDATE transactions SET state = %s WHERE id = %s RETURNING 1", state, saga)
        platform.query(
            "fluxora", "INSERT INTO journal SELECT * FROM json_populate_record(NULL::journal, %s) RETURNING 1", *taken
        )
    gone = json.loads(taken[0])
    assert code == 3
    assert told["differences"] == [
        {"what": saga, "how": "differs in state"},
        {"what": f"input {gone['partition']}/{gone['offset']}", "how": "only in the log"},
    ]
    assert fluxora(platform, "rebuild", "--verify")[0] == 0, "the test has put everything back"


def test_live_rows_are_not_replaced_while_processors_run(platform: Platform, sagas: dict[str, str]) -> None:
    code, told, errors = fluxora(platform, "rebuild", "--really")
    assert (code, told) == (1, None)
    assert "saga processors are running" in errors


@pytest.fixture
def lost(platform: Platform) -> Iterator[ProcessorSettings]:
    """A database that has nothing, in the place of one that was lost; nobody folds into it."""
    name = f"lost_{uuid.uuid4().hex[:8]}"
    server = platform.endpoints["DATABASE_URL"].removesuffix("fluxora")
    with psycopg.connect(server + "postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        coordinator.migrations.upgrade(server + name)
        yield ProcessorSettings(
            database_url=server + name,
            kafka_bootstrap_servers=platform.endpoints["KAFKA_BOOTSTRAP_SERVERS"],
            schema_registry_url=platform.endpoints["SCHEMA_REGISTRY_URL"],
        )
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_lost_database_is_made_again_from_the_log(
    platform: Platform, sagas: dict[str, str], lost: ProcessorSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The processors that run here fold into another database.
    monkeypatch.setattr(Rebuild, "check_nobody_folds", lambda self: None)
    told: list[tuple[int, int]] = []
    with Rebuild(lost) as run:
        ends = run.snapshot()
        run.fold(ends, lambda done, total: told.append((done, total)))
        before = run.compare(limit=1)
        run.replace(ends)
    assert before.more + len(before.differences) == before.transactions + before.inputs, "nothing was there"
    assert told[-1] == (before.inputs, before.inputs)
    with psycopg.connect(lost.database_url) as connection:
        states = dict(connection.execute("SELECT id::text, state FROM transactions").fetchall())
        positions = dict(connection.execute("SELECT partition, next_offset FROM partitions").fetchall())
    assert {saga: states[saga] for saga in sagas} == sagas
    assert positions == ends
    with Rebuild(lost) as run:
        ends = run.snapshot()
        run.fold(ends, lambda done, total: None)
        assert run.compare(limit=10).differences == ()
        with psycopg.connect(lost.database_url, autocommit=True) as connection:
            connection.execute("UPDATE partitions SET next_offset = next_offset + 1")
        with pytest.raises(CannotRebuild, match="have moved"):
            run.replace(ends)


def test_the_history_of_a_transaction_is_read_from_the_log(platform: Platform, sagas: dict[str, str]) -> None:
    saga = next(id for id, state in sagas.items() if state == "FAILED")
    code, told, errors = fluxora(platform, "tx", "history", saga)
    assert code == 0, errors
    journal = platform.query(
        "fluxora", 'SELECT input_type, outcome, state FROM journal WHERE transaction_id = %s ORDER BY "offset"', saga
    )
    assert [(one["type"], one["verdict"], one["state"]) for one in told] == journal
    assert told[-1]["state"] == "FAILED"
    environment = {**os.environ, **platform.endpoints, "COLUMNS": "120"}
    plain = command_line.run("tx", "history", saga, environment=environment).stdout
    assert "SagaStarted" in plain
    assert "REFUSED" in plain


def test_what_if_shows_the_decisions_that_would_differ(platform: Platform, sagas: dict[str, str]) -> None:
    saga = next(id for id, state in sagas.items() if state == "COMPLETED")
    _, told, _ = fluxora(platform, "tx", "history", saga)
    last = max(one["number"] for one in told if one["type"] == "fluxora.StepReplied" and one["verdict"] == "APPLIED")
    code, differs, errors = fluxora(platform, "tx", "whatif", saga, "--input", f'{last}={{"outcome": "REFUSED"}}')
    assert code == 0, errors
    assert (differs["as_it_was"], differs["as_it_would_be"]) == ("COMPLETED", "COMPENSATING")
    assert any(line.startswith("+") and "COMPENSATION" in line for line in differs["difference"])
    assert fluxora(platform, "tx", "whatif", saga, "--input", '1={"name": "other"}')[1]["difference"] == []
    assert platform.wait(saga)["state"] == "COMPLETED", "nothing was written"
    code, _, errors = fluxora(platform, "tx", "whatif", saga, "--input", '99={"outcome": "DONE"}')
    assert code == 1
    assert "there is no input 99" in errors


def test_an_id_that_the_log_does_not_hold_says_so(platform: Platform) -> None:
    code, _, errors = fluxora(platform, "tx", "history", str(uuid.uuid4()))
    assert code == 1
    assert "holds no input" in errors
    code, _, errors = fluxora(platform, "tx", "history", "nonsense")
    assert code == 2
    assert "is not a UUID" in errors
