"""Two-phase commands of the command topic, in the batch's one transaction beside those of sagas."""

import uuid
from typing import Any

import pytest
from sqlalchemy import text

from participant import Command, Operation, ResourceManager, Service
from participant.batch import Batch
from participant.incoming import AnyCommand, decoder
from participant.two_phase import ParticipantCommand, TwoPhaseOperation
from schemas import Codec, UndecodableRecord
from tests.integration.fix_participant import addresses, codec, database_url, engine, migrated_url
from tests.integration.fix_two_phase import Bank, bank

__all__ = ["addresses", "bank", "codec", "database_url", "engine", "migrated_url"]  # fixtures

PREPARE, COMMIT, ABORT = TwoPhaseOperation.PREPARE, TwoPhaseOperation.COMMIT, TwoPhaseOperation.ABORT


def command(
    operation: TwoPhaseOperation, transaction: uuid.UUID, payload: Any = None, attempt: int = 1
) -> ParticipantCommand:
    id = f"{transaction}:bank:{operation}:{attempt}"
    return ParticipantCommand(id, transaction, "bank", operation, attempt, payload or {})


def take(account: str, amount: int) -> dict[str, Any]:
    return {"resource": "money", "resource_id": account, "operation": "update", "data": {"amount": -amount}}


class Kafka:
    """The batch of a service that takes part with the bank's manager, and its replies."""

    def __init__(self, bank: Bank, codec: Codec, manager: ResourceManager | None = None) -> None:
        self.bank, self.codec = bank, codec
        service = Service("bank")
        service.action("note", compensates=False)(
            lambda connection, command: connection.execute(text("INSERT INTO orders (note) VALUES ('a saga')")) and None
        )
        self.batch = Batch(
            bank.engine,
            service.handlers,
            codec,
            service="bank",
            dead_letter=lambda command, error: pytest.fail(f"dead letter: {error}"),
            participant=manager or bank.manager,
        )

    def handle(self, *commands: AnyCommand) -> None:
        self.batch.handle(commands)

    def outcomes(self, transaction: uuid.UUID) -> list[tuple[str, str]]:
        rows = self.bank.sql(
            "SELECT type, payload FROM fluxora.outbox WHERE aggregateid = :t ORDER BY id", t=str(transaction)
        )
        replies = [
            self.codec.decode(bytes(payload))[1] for type, payload in rows if type.endswith("ParticipantReplied")
        ]
        return [(reply["operation"], reply["outcome"]) for reply in replies]


@pytest.fixture
def kafka(bank: Bank, codec: Codec) -> Kafka:
    return Kafka(bank, codec)


def test_prepare_and_commit_take_effect_once_and_are_answered_once(kafka: Kafka) -> None:
    kafka.bank.open(ada=10)
    t = uuid.uuid4()
    prepare, commit = command(PREPARE, t, take("ada", 3)), command(COMMIT, t)
    kafka.handle(prepare, prepare)
    assert kafka.bank.balances() == {"ada": 10}
    kafka.handle(prepare, commit, commit)
    kafka.handle(commit, command(COMMIT, t, attempt=2))
    assert kafka.bank.balances() == {"ada": 7}
    assert kafka.outcomes(t) == [("PREPARE", "DONE"), ("COMMIT", "DONE"), ("COMMIT", "DONE")]


def test_each_way_to_fail_has_its_own_outcome_and_costs_the_others_nothing(kafka: Kafka) -> None:
    kafka.bank.open(ada=10, bob=10)
    winner, loser, unknown, aborted, rubbish = (uuid.uuid4() for _ in range(5))
    saga = Command("c", uuid.uuid4(), "order", "note", "note", Operation.ACTION)
    kafka.handle(
        command(PREPARE, winner, take("ada", 1)),
        command(PREPARE, loser, take("ada", 1)),
        command(COMMIT, unknown),
        command(ABORT, aborted),
        saga,
        command(PREPARE, aborted, take("bob", 1)),
        command(COMMIT, aborted),
        command(PREPARE, rubbish, {"operations": 7}),
        command(COMMIT, winner),
    )
    assert kafka.outcomes(winner) == [("PREPARE", "DONE"), ("COMMIT", "DONE")]
    assert kafka.outcomes(loser) == [("PREPARE", "REFUSED")]
    assert kafka.outcomes(unknown) == [("COMMIT", "NO_SUCH_TRANSACTION")]
    assert kafka.outcomes(aborted) == [("ABORT", "DONE"), ("PREPARE", "REFUSED"), ("COMMIT", "FAILED")]
    assert kafka.outcomes(rubbish) == [("PREPARE", "REFUSED")]
    assert kafka.bank.balances() == {"ada": 9, "bob": 10}
    assert kafka.bank.sql("SELECT note FROM orders") == [("a saga",)]


def test_a_participant_that_raises_fails_alone(kafka: Kafka) -> None:
    kafka.bank.open(ada=10)

    def broken(connection: Any, change: Any) -> None:
        connection.execute(text("INSERT INTO orders (note) VALUES ('half done')"))
        raise RuntimeError("broken")

    kafka.bank.manager.resource("broken", apply=broken)
    good, bad = uuid.uuid4(), uuid.uuid4()
    odd = {"resource": "broken", "resource_id": "1", "operation": "create", "data": {}}
    kafka.handle(command(PREPARE, good, take("ada", 1)), command(PREPARE, bad, odd))
    assert kafka.outcomes(good) == [("PREPARE", "DONE")]
    assert kafka.outcomes(bad) == [("PREPARE", "FAILED")]
    assert kafka.bank.sql("SELECT * FROM orders") == []
    assert kafka.bank.state(str(bad)) is None


def test_a_service_without_a_participant_refuses(bank: Bank, codec: Codec) -> None:
    kafka, t = Kafka(bank, codec, ResourceManager(bank.engine, service="bank")), uuid.uuid4()
    kafka.handle(command(PREPARE, t, take("ada", 1)), command(ABORT, t))
    assert kafka.outcomes(t) == [("PREPARE", "REFUSED"), ("ABORT", "DONE")]


def test_a_record_becomes_a_command_or_is_undecodable(codec: Codec) -> None:
    t = uuid.uuid4()
    record = {
        "command_id": "c",
        "transaction_id": str(t),
        "participant": "bank",
        "operation": "PREPARE",
        "attempt": 2,
        "payload": '{"a": 1}',
        "expires_at": None,
    }
    decode = decoder(codec)
    assert decode(codec.encode("fluxora.ParticipantCommand", record), "00-ab") == ParticipantCommand(
        "c", t, "bank", PREPARE, 2, {"a": 1}, "00-ab"
    )
    for wrong in ({"transaction_id": "7"}, {"payload": "{"}, {"command_id": ""}):
        with pytest.raises(UndecodableRecord):
            decode(codec.encode("fluxora.ParticipantCommand", {**record, **wrong}), None)
