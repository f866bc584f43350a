"""``fluxora prune`` on the whole platform, and what is so afterwards."""

import uuid

import pytest

from fluxora.rebuild import Rebuild
from saga_processors.settings import ProcessorSettings
from tests.command_line import fluxora
from tests.platform import Platform, steps


@pytest.fixture(scope="module")
def pruned(platform: Platform) -> dict[str, str]:
    """Sagas of 'a year ago', pruned from every database; and how they ended.

    Their ids are their client's own: a young UUIDv7 would say that they cannot be so old.
    """
    states = platform.wait_all(
        [platform.start(steps({}, {}, {"refuse": i % 2 == 1}), saga_id=str(uuid.uuid4())) for i in range(4)]
    )
    ids = list(states)
    # What may not have left is never pruned, and a partition that is idle says so only after a while.
    platform.until(
        lambda: platform.query("fluxora", "SELECT 1 FROM partitions WHERE published_through < next_offset") == [],
        "a partition never says that its effects have left",
    )
    # The watcher prunes a minute after its start at the soonest: not between our look and our deed.
    platform.restarted("connector-watcher", platform.kill("connector-watcher"))
    year = "- interval '1 year'"
    for database, table, column, which in (
        ("fluxora", "transactions", "updated_at", "id"),
        ("fluxora_ledger", "fluxora.barrier", "created_at", "transaction_id"),
        ("fluxora_ledger", "fluxora.inbox", "handled_at", "left(command_id, 36)"),
        ("fluxora_ledger", "fluxora.outbox", "created_at", "aggregateid"),
        ("fluxora", "fluxora.outbox", "created_at", "aggregateid"),
    ):
        platform.query(
            database,
            f"UPDATE {table} SET {column} = {column} {year} WHERE ({which})::text = ANY(%s::text[]) RETURNING 1",
            ids,
        )
    code, told, errors = fluxora(platform, "prune")
    assert code == 0, errors
    assert told["deleted"] is False
    counted = told["rows"]
    assert counted["(platform)"]["transactions"] == 4
    # Three steps of two sagas; two steps, their compensations and the refusal of the two others.
    assert counted["fluxora_fluxora_ledger"]["barrier"] >= 6 + 2 * 5
    assert counted["fluxora_fluxora_ledger"]["outbox"] >= 6 + 2 * 5
    assert counted["fluxora_fluxora"]["outbox"] >= 4
    code, told, errors = fluxora(platform, "prune", "--really", "--wait", "120")
    assert code == 0, errors
    assert told["deleted"] is True
    # Other tests' databases may be gone, and the watcher have brought their connectors back.
    for database in ("(platform)", "fluxora_fluxora", "fluxora_fluxora_ledger"):
        assert database not in told["kept"], told["kept"]
        for table, count in counted[database].items():
            assert told["rows"][database].get(table, 0) <= count, (database, table)
    for database, table, _, which in (
        ("fluxora", "transactions", "", "id"),
        ("fluxora", "journal", "", "transaction_id"),
        ("fluxora_ledger", "fluxora.barrier", "", "transaction_id"),
        ("fluxora_ledger", "fluxora.inbox", "", "left(command_id, 36)"),
        ("fluxora_ledger", "fluxora.outbox", "", "aggregateid"),
        ("fluxora", "fluxora.outbox", "", "aggregateid"),
    ):
        left = platform.query(database, f"SELECT 1 FROM {table} WHERE ({which})::text = ANY(%s::text[])", ids)
        assert left == [], (database, table)
    return states


def test_rebuild_does_not_miss_what_is_pruned(platform: Platform, pruned: dict[str, str]) -> None:
    code, told, errors = fluxora(platform, "rebuild", "--verify")
    assert (code, told["differences"]) == (0, []), errors
    assert told["pruned"] >= len(pruned)
    assert told["begun_before_the_log"] == 0


def test_rebuild_compares_what_a_log_that_was_cut_still_tells(
    platform: Platform, pruned: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when retention has removed the beginning of each partition, here in the middle of some saga."""
    platform.wait_all([platform.start(steps({}, {}, {})) for _ in range(12)])
    settings = ProcessorSettings(
        database_url=platform.endpoints["DATABASE_URL"],
        kafka_bootstrap_servers=platform.endpoints["KAFKA_BOOTSTRAP_SERVERS"],
        schema_registry_url=platform.endpoints["SCHEMA_REGISTRY_URL"],
    )
    bounds = Rebuild.log_bounds
    monkeypatch.setattr(
        Rebuild, "log_bounds", lambda self: {p: (max(0, end - 7), end) for p, (_, end) in bounds(self).items()}
    )
    with Rebuild(settings) as run:
        ends = run.snapshot()
        run.fold(ends, lambda done, total: None, whole=False)
        compared = run.compare(limit=10)
    assert compared.differences == ()
    assert compared.begun_before_the_log > 0
    assert compared.transactions > 0


def test_a_pruned_saga_is_not_run_again_by_a_copy_of_its_first_input(
    platform: Platform, pruned: dict[str, str]
) -> None:
    saga = next(iter(pruned))
    code, told, errors = fluxora(platform, "replay", "fluxora.transactions", "--key", saga, "--really")
    assert code == 0, errors
    assert told["sent"] >= 4
    platform.until(
        lambda: len(platform.query("fluxora", "SELECT 1 FROM journal WHERE transaction_id = %s", saga)) == told["sent"],
        "the copies are not folded",
    )
    rows = platform.query(
        "fluxora", 'SELECT input_type, outcome, reason FROM journal WHERE transaction_id = %s ORDER BY "offset"', saga
    )
    assert rows[0][:2] == ("fluxora.SagaStarted", "IGNORED"), rows
    assert rows[0][2] == f"the transaction has ended, {pruned[saga]}, and is pruned"
    assert {outcome for _, outcome, _ in rows[1:]} == {"REJECTED"}
    assert not platform.query("fluxora", "SELECT 1 FROM transactions WHERE id = %s", saga)
    assert fluxora(platform, "rebuild", "--verify")[1]["differences"] == []


def test_rest_tells_how_a_pruned_saga_ended_and_refuses_its_id(platform: Platform, pruned: dict[str, str]) -> None:
    saga, state = next(iter(pruned.items()))
    answer = platform.http.get(f"/sagas/{saga}")
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:fluxora:problem:pruned")
    assert answer.json()["state"] == state
    unknown = platform.http.get(f"/sagas/{uuid.uuid4()}").json()
    assert unknown["type"] == "urn:fluxora:problem:not-found"
    assert platform.http.get(f"/transactions/{saga}").json()["type"] == "urn:fluxora:problem:not-found"
    body = {"name": "ledger", "saga_id": saga, "steps": [step.as_json(i) for i, step in enumerate(steps({}))]}
    answer = platform.http.post("/sagas", json=body)
    assert (answer.status_code, answer.json()["state"]) == (409, state)
    assert not platform.query("fluxora", "SELECT 1 FROM transactions WHERE id = %s", saga)
