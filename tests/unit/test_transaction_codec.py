"""What is stored and sent of a two-phase commit."""

import io
import json
import math
from dataclasses import asdict

import fastavro
import orjson
import pytest

from saga_processors import codec as codecs
from saga_processors import transaction_codec
from saga_processors.definition import InvalidDefinition
from saga_processors.machine import DeadlinePassed, Request
from saga_processors.transaction import (
    AskParticipant,
    Operation,
    Outcome,
    ParticipantAddRequested,
    TransactionStarted,
    VerbRequested,
)
from saga_processors.transaction_definition import Policy, Transport
from schemas import SCHEMAS, Codec, UndecodableRecord
from schemas.evolution import RELEASED
from schemas.registry import MemoryRegistry
from tests.unit.transaction_samples import Play, add, answer, participant, transaction_of

ID = "01890a5d-ac96-774b-bcce-b302099a8057"
PARTICIPANT = {
    "service_name": "beta",
    "transport": "HTTP",
    "service_url": "http://beta:8000",
    "prepare_endpoint": "/p",
    "commit_endpoint": "/c",
    "abort_endpoint": "/a",
    "payload": "{}",
}
STARTED = {
    "transaction_id": ID,
    "timeout_ms": 30_000,
    "auto_commit": True,
    "metadata": '{"m": 1}',
    "participants": [PARTICIPANT],
    "traceparent": None,
}


def request(request: str, **fields: object) -> dict[str, object]:
    given = {"transaction_id": ID, "request_id": ID, "request": request}
    return given | {"step": None, "participant": None, "who": None, "why": None} | fields


def test_inputs_are_built_from_their_records() -> None:
    policy = Policy(max_participants=3)
    started = codecs.input_from_record("fluxora.TransactionStarted", STARTED, policy)
    assert isinstance(started, TransactionStarted)
    assert started.definition.policy == policy
    assert started.definition.participants[0].transport is Transport.HTTP
    added = codecs.input_from_record("fluxora.RequestMade", request("ADD_PARTICIPANT", participant=PARTICIPANT))
    assert added == ParticipantAddRequested(started.definition.participants[0])
    for verb in (Request.PREPARE, Request.COMMIT, Request.ABORT):
        assert codecs.input_from_record("fluxora.RequestMade", request(verb)) == VerbRequested(verb)


def test_the_policy_of_the_first_input_counts_and_not_the_processors() -> None:
    policy = Policy(attempt_timeout_ms=77, initial_delay_ms=5, max_delay_ms=9, jitter=0.25, attention_after=2)
    record = STARTED | {"policy": asdict(policy)}
    codec = Codec(MemoryRegistry())
    read = codec.decode(codec.encode("fluxora.TransactionStarted", record))[1]
    for processors in (Policy(), Policy(attempt_timeout_ms=1, max_participants=1)):
        started = codecs.input_from_record("fluxora.TransactionStarted", read, processors)
        assert isinstance(started, TransactionStarted)
        assert started.definition.policy == policy
    play = Play(started.definition)
    stored = orjson.loads(orjson.dumps(codecs.definition_to_json(read)))
    progress = codecs.progress_to_json(play.now)
    assert codecs.machine_from_json("transaction", stored, play.now.state, progress) == play.now
    assert "policy" not in codecs.input_to_json(read), "the definition has it"


def test_a_first_input_of_an_older_release_is_folded_by_the_processors_policy() -> None:
    released = json.loads((RELEASED / "0.1.0" / "TransactionStarted.avsc").read_text())
    value = io.BytesIO()
    fastavro.schemaless_writer(value, fastavro.parse_schema(released), STARTED)
    value.seek(0)
    read = fastavro.schemaless_reader(
        value, fastavro.parse_schema(released), fastavro.parse_schema(SCHEMAS["fluxora.TransactionStarted"])
    )
    assert isinstance(read, dict)
    policy = Policy(attempt_timeout_ms=77)
    started = codecs.input_from_record("fluxora.TransactionStarted", read, policy)
    assert isinstance(started, TransactionStarted)
    assert started.definition.policy == policy


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attempt_timeout_ms", 0),
        ("initial_delay_ms", -1),
        ("max_delay_ms", 2**40),
        ("multiplier", math.nan),
        ("multiplier", math.inf),
        ("jitter", 1.1),
        ("attention_after", 0),
        ("max_participants", 10**6),
        ("max_size", 2**40),
    ],
)
def test_a_policy_that_nobody_could_set_is_refused_and_named(field: str, value: float) -> None:
    record = STARTED | {"policy": asdict(Policy()) | {field: value}}
    started = codecs.input_from_record("fluxora.TransactionStarted", record)
    assert isinstance(started, TransactionStarted)
    with pytest.raises(InvalidDefinition, match=f"policy.{field}"):
        started.definition.check()


@pytest.mark.parametrize(
    "record",
    [
        request("MAKE_COFFEE"),
        request("ADD_PARTICIPANT"),
        request("PREPARE", request_id="x"),
        request("PREPARE", why="a\0b"),
    ],
)
def test_a_request_that_makes_no_sense_is_none(record: dict[str, object]) -> None:
    with pytest.raises(UndecodableRecord):
        codecs.input_from_record("fluxora.RequestMade", record)


def test_the_journal_holds_a_first_input_without_what_is_in_the_definition() -> None:
    assert codecs.input_to_json(STARTED) == {"timeout_ms": 30_000, "auto_commit": True, "metadata": '{"m": 1}'}
    definition = codecs.definition_to_json(STARTED)
    assert "transaction_id" not in definition
    assert codecs.services_of("transaction", None, definition) == ["beta"]
    assert codecs.name_of("transaction", definition) == "transaction"


@pytest.mark.parametrize("policy", [Policy(), Policy(attempt_timeout_ms=77, jitter=0.0)])
def test_a_state_comes_back_from_its_json_as_it_was(policy: Policy) -> None:
    record = STARTED | {"auto_commit": False}
    play = Play(transaction_codec.definition_from_record(record, policy))
    play.put(add(participant("gamma", payload='{"x": "ö"}')))
    for step in (
        VerbRequested(Request.PREPARE),
        answer("beta", Operation.PREPARE),
        answer("gamma", Operation.PREPARE),
        VerbRequested(Request.COMMIT),
        answer("gamma", Operation.COMMIT, Outcome.NO_SUCH_TRANSACTION),
        answer("beta", Operation.COMMIT),
        DeadlinePassed(1_000_000),
        answer("gamma", Operation.COMMIT, attempt=2),
    ):
        decision = play.put(step)
        stored = orjson.loads(orjson.dumps(codecs.progress_to_json(play.now)))
        definition = codecs.definition_to_json(record)
        assert codecs.machine_from_json("transaction", definition, play.now.state, stored) == play.now
        for effect in decision.effects:
            journalled = orjson.loads(orjson.dumps(codecs.effect_to_json(effect)))
            assert codecs.effect_from_json(play.now, journalled) == effect
    assert play.now.ended
    assert codecs.services_of("transaction", play.now, {}) == ["beta", "gamma"]


def test_a_prepare_is_not_called_after_the_transaction_has_given_up() -> None:
    play = Play(transaction_of("a", timeout_ms=5_000))
    play.at = 4_600
    play.prepare()
    ask = AskParticipant(0, Operation.PREPARE, 1)
    assert ask in play.decision.effects
    assert transaction_codec.timeout_ms(play.now, Operation.PREPARE, 4_600) == 400
    assert transaction_codec.timeout_ms(play.now, Operation.COMMIT, 4_600) == 1_000
    assert play.now.next_deadline == 5_000
