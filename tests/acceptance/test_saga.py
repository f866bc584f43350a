"""One saga in reading order, from the POST to COMPLETED, through everything it passes on the way."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine

from participant import outbox
from participant.definitions import Definition, saga_input
from participant.definitions import Step as TypedStep
from participant.sagas import NewSaga, Step, start_many
from participant.settings import sqlalchemy_url
from schemas import WrongShape
from tests.platform import Platform, steps


@pytest.fixture
def ledger(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """The services' database, as a service of one's own has it."""
    monkeypatch.setenv("SCHEMA_REGISTRY_URL", platform.endpoints["SCHEMA_REGISTRY_URL"])
    engine = create_engine(sqlalchemy_url(platform.endpoints["DATABASE_URL"] + "_ledger"))
    yield engine
    engine.dispose()


def test_a_saga_from_post_to_completed(platform: Platform) -> None:
    codec = platform.codec

    # 1. A client posts the saga. The answer names it and says where to look.
    body = {"name": "reading", "steps": [step.as_json(i) for i, step in enumerate(steps({"n": 1}, {"n": 2}))]}
    answer = platform.http.post("/sagas", json=body)
    assert answer.status_code == 201
    saga_id = answer.json()["saga_id"]
    assert answer.json()["state"] == "STARTED"
    assert answer.headers["Location"].endswith(f"/sagas/{saga_id}")

    # 2. It can be read at once, and waited for without polling.
    assert platform.http.get(f"/sagas/{saga_id}").status_code == 200
    saga = platform.wait(saga_id)
    assert saga["state"] == "COMPLETED"
    assert [(step["id"], step["service_name"], step["state"]) for step in saga["steps"]] == [
        ("s0", "alpha", "EXECUTED"),
        ("s1", "beta", "EXECUTED"),
    ]
    assert saga["steps"][0]["result"] == {"service": "alpha", "attempt": 1}

    # 3. The coordinator wrote no state but its first row: it put the input into its outbox, in the same transaction.
    [(type_, topic)] = platform.query(
        "fluxora", "SELECT type, topic FROM fluxora.outbox WHERE aggregateid = %s", saga_id
    )
    assert (type_, topic) == ("fluxora.SagaStarted", "fluxora.transactions")

    # 4. Debezium brought it, and later the replies, into the topic that decides.
    inputs = [codec.decode(message.value()) for message in platform.records_of("fluxora.transactions", saga_id)]
    assert [name for name, _ in inputs] == ["fluxora.SagaStarted", "fluxora.StepReplied", "fluxora.StepReplied"]
    assert [record["outcome"] for _, record in inputs[1:]] == ["DONE", "DONE"]

    # 5. The processor folded each input once, and wrote down what it decided.
    journal = platform.query(
        "fluxora",
        'SELECT input_type, outcome, state, effects FROM journal WHERE transaction_id = %s ORDER BY "offset"',
        saga_id,
    )
    assert [row[:3] for row in journal] == [
        ("fluxora.SagaStarted", "APPLIED", "EXECUTING"),
        ("fluxora.StepReplied", "APPLIED", "EXECUTING"),
        ("fluxora.StepReplied", "APPLIED", "COMPLETED"),
    ]

    # 6. Its commands went to the services' topics, each with an id made of what it is.
    for service, step in (("alpha", "s0"), ("beta", "s1")):
        [command] = platform.records_of(f"{service}.commands", saga_id)
        name, record = codec.decode(command.value())
        assert name == "fluxora.StepCommand"
        assert record["command_id"] == f"{saga_id}:{step}:action:1"
        assert dict(command.headers())["ce_id"] == record["command_id"].encode()

    # 7. Each service handled its command in one local transaction: its own row, the inbox row, the barrier row,
    #    and the reply in its outbox.
    assert platform.entries([saga_id])[saga_id] == {("s0", "ACTION"): 1, ("s1", "ACTION"): 1}
    assert platform.query(
        "fluxora_ledger", "SELECT count(*) FROM fluxora.inbox WHERE command_id LIKE %s", f"{saga_id}%"
    ) == [(2,)]
    assert platform.query(
        "fluxora_ledger",
        "SELECT step, operation, outcome FROM fluxora.barrier WHERE transaction_id = %s ORDER BY 1",
        saga_id,
    ) == [("s0", "ACTION", "DONE"), ("s1", "ACTION", "DONE")]
    assert platform.query("fluxora_ledger", "SELECT count(*) FROM fluxora.outbox WHERE aggregateid = %s", saga_id) == [
        (2,)
    ]

    # 8. Whoever wants to know consumed its lifecycle: published after the state is stored.
    platform.until(
        lambda: len(platform.records_of("fluxora.transactions.events", saga_id)) >= 4, "not all events are published"
    )
    events = [codec.decode(m.value())[1] for m in platform.records_of("fluxora.transactions.events", saga_id)]
    assert [(event["sequence"], event["type"], event["step"]) for event in events] == [
        (1, "SagaStarted", None),
        (2, "StepExecuted", "s0"),
        (3, "StepExecuted", "s1"),
        (4, "SagaCompleted", None),
    ]


def test_a_refused_saga_is_undone_in_reverse(platform: Platform) -> None:
    saga = platform.wait(platform.start(steps({}, {"undo_fails": 2}, {"refuse": True})))
    assert saga["state"] == "FAILED"
    assert [step["state"] for step in saga["steps"]] == ["COMPENSATED", "COMPENSATED", "FAILED"]
    assert saga["steps"][2]["reason"] == "gamma says no"
    assert saga["steps"][1]["attempt"] == 3
    undone = platform.query(
        "fluxora_ledger", "SELECT step, operation FROM entries WHERE saga = %s ORDER BY at", saga["saga_id"]
    )
    assert undone == [("s0", "ACTION"), ("s1", "ACTION"), ("s1", "COMPENSATION"), ("s0", "COMPENSATION")]


def test_a_handler_that_raises_is_dead_lettered_after_its_retries_and_its_saga_undone(platform: Platform) -> None:
    saga = platform.wait(platform.start(steps({}, {"raise": True})))
    assert saga["state"] == "FAILED"
    assert [step["state"] for step in saga["steps"]] == ["COMPENSATED", "FAILED"]
    assert saga["steps"][1]["attempt"] == 3
    [letter] = platform.records_of("beta.commands.dlq", saga["saga_id"])
    headers = dict(letter.headers())
    assert headers["__connect.errors.topic"] == b"beta.commands"
    assert b"beta is broken" in headers["__connect.errors.exception.message"]
    assert platform.codec.decode(letter.value())[1]["attempt"] == 3


def test_a_step_that_nobody_answers_times_out_and_is_undone_when_the_service_is_back(platform: Platform) -> None:
    """A saga that turns round while a step is in doubt undoes it, whichever of the two commands comes first."""
    [slow] = [step.as_json(0) for step in steps({"seconds": 3})]
    slow |= {"timeout_seconds": 1, "retry": {"max_attempts": 1}}
    answer = platform.http.post("/sagas", json={"name": "slow", "steps": [slow]})
    saga = platform.wait(answer.json()["saga_id"])
    assert saga["state"] == "FAILED"
    entries = platform.entries([saga["saga_id"]])[saga["saga_id"]]
    assert entries["s0", "ACTION"] == entries["s0", "COMPENSATION"] == 1


def test_many_sagas_start_with_one_statement_if_and_only_if_their_transaction_commits(
    platform: Platform, ledger: Engine
) -> None:
    new = [
        NewSaga(
            f"import-{i % 2}",
            [Step("alpha", {"n": i}, name="s0", command="enter"), Step("beta", name="s1", command="enter")],
        )
        for i in range(30)
    ]
    typed = Definition("typed", "1", [TypedStep("s0", service="gamma", payload={"n": saga_input.n}, command="enter")])
    with ledger.connect() as connection:
        lost = start_many(connection, [NewSaga("lost", [Step("alpha", name="s0", command="enter")]) for _ in range(3)])
        connection.rollback()
        started = start_many(connection, new)
        started += typed.start_many(connection, [{"n": 1}, {"n": 2}])
        connection.commit()
    assert started[:30] == [one.saga_id for one in new]
    assert set(platform.wait_all(map(str, started)).values()) == {"COMPLETED"}
    sagas = [platform.wait(str(id)) for id in started]
    assert [saga["name"] for saga in sagas[:2]] == ["import-0", "import-1"]
    assert [saga["input"] for saga in sagas[-2:]] == [{"n": 1}, {"n": 2}]
    for id in lost:
        assert platform.http.get(f"/sagas/{id}").status_code == 404
    assert not any(platform.entries([str(id) for id in lost]).values())


def test_of_many_events_none_is_written_when_one_cannot_be(platform: Platform, ledger: Engine) -> None:
    def event(**changes: str) -> outbox.Message:
        return outbox.message(b"{}", **{"type": "x", "topic": "many.events", "key": "k"} | changes)  # type: ignore[arg-type]

    with ledger.begin() as connection:
        with pytest.raises(WrongShape, match="'a b' is no Kafka topic name"):
            outbox.publish_many(connection, [event(), event(topic="a b")])
        outbox.publish_many(connection, [event(key="1"), event(key="2")])
    rows = platform.query(
        "fluxora_ledger", "SELECT aggregateid FROM fluxora.outbox WHERE topic = 'many.events' ORDER BY id"
    )
    assert rows == [("1",), ("2",)]
