"""What becomes of the body of POST /sagas before anything is written."""

import asyncio
import io
import json
import struct
from typing import Any

import fastavro
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.encoding import Encoder
from coordinator.models import DefinitionRequest, SagaRequest
from coordinator.settings import Settings
from coordinator.submission import Plan, Submission, Submissions, kafka_services
from outbox_relay.addresses import AllowList
from schemas import SCHEMAS, Codec
from web.content import parse, traceparent
from web.idempotency import digest, idempotency_key
from web.problems import Malformed, Problem, TooLarge

STEP = {"service_name": "billing"}
SAGA = {"name": "order", "steps": [STEP]}


class OfflineCodec(Codec):
    """Writes real Avro; the registry's id is always 1."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:9")

    def _header(self, name: str) -> bytes:
        return struct.pack(">bI", 0, 1)


def settings(**changes: Any) -> Settings:
    return Settings(
        database_url="postgresql://nowhere",
        kafka_bootstrap_servers="nowhere:1",
        schema_registry_url="http://nowhere",
        **changes,
    )


CODEC = OfflineCodec()


ALLOWED = AllowList.parse("partner.example")


def submit(body: bytes, plan: Plan | None = None, **changes: Any) -> Submission:
    wanted, _ = parse(SagaRequest, body)
    limits = settings(**changes)

    async def make() -> Submission:
        return await Submissions(limits, Encoder(limits, CODEC), ALLOWED).make(wanted, plan or Plan.own(wanted), None)

    return asyncio.run(make())


def register(document: Any, **changes: Any) -> dict[str, Any]:
    """What a registered definition comes to."""
    wanted, _ = parse(DefinitionRequest, json.dumps(document).encode())
    limits = settings(**changes)

    async def check() -> dict[str, Any]:
        return Submissions(limits, Encoder(limits, CODEC), ALLOWED).check(Plan.registered("order", "1", wanted))

    return asyncio.run(check())


def refused(document: Any, **changes: Any) -> Problem:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(Problem) as told:
        submit(body, **changes)
    return told.value


def fields(problem: Problem) -> list[str]:
    return [error["field"] for error in problem.members["errors"]]


def test_a_saga_is_stored_with_every_default_written_out() -> None:
    made = submit(orjson.dumps(SAGA))
    stored = orjson.loads(made.definition)
    assert stored["name"] == "order" and "transaction_id" not in stored
    assert stored["steps"][0] | {"retry": None} == {
        "name": "step-1",
        "service_name": "billing",
        "command": "step-1",
        "payload": "{}",
        "depends_on": [],
        "kind": "COMPENSATABLE",
        "retry": None,
        "timeout_ms": 30_000,
        "action_endpoint": None,
        "compensation_endpoint": None,
    }
    assert made.services == ["billing"] and made.transaction_id.version == 7


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"steps": []}, "steps"),
        ({"steps": [STEP] * 2000}, "steps"),
        ({"steps": [{}]}, "steps[0].service_name"),
        ({"steps": [STEP | {"name": "a"}, STEP | {"name": "a"}]}, "steps[1].name"),
        ({"steps": [STEP | {"depends_on": ["nobody"]}]}, "steps[0].depends_on"),
        ({"steps": [STEP | {"name": "a", "depends_on": ["a"]}]}, "steps.depends_on"),
        ({"steps": [STEP | {"depends_on": ["a"] * 100_000}]}, "steps[0].depends_on"),
        ({"steps": [STEP | {"kind": "pivot"}, STEP]}, "steps[0].kind"),
        ({"steps": [STEP | {"kind": "other"}]}, "steps[0].kind"),
        ({"steps": [STEP | {"compensation_endpoint": "/release"}]}, "steps[0].compensation_endpoint"),
        ({"steps": [STEP | {"action_endpoint": "http://elsewhere.example/x"}]}, "steps[0].action_endpoint"),
        ({"steps": [STEP | {"action_endpoint": "http://169.254.169.254/"}]}, "steps[0].action_endpoint"),
        ({"steps": [STEP | {"action_endpoint": "http://u:p@partner.example/"}]}, "steps[0].action_endpoint"),
        ({"steps": [STEP | {"action_endpoint": "ftp://partner.example/"}]}, "steps[0].action_endpoint"),
        ({"steps": [STEP | {"action_endpoint": "/a/../b"}]}, "steps[0].action_endpoint"),
        ({"steps": [STEP | {"action_endpoint": "/a\r\nHost: x"}]}, "steps[0].action_endpoint"),
        ({"steps": [STEP | {"action_endpoint": ""}]}, "steps[0].action_endpoint"),
        (
            {"steps": [STEP | {"action_endpoint": "/a", "compensation_endpoint": "http://10.0.0.1/"}]},
            "steps[0].compensation_endpoint",
        ),
        ({"steps": [STEP | {"payload": {"id": {"$from": "input.id"}}}]}, "steps[0].payload.id"),
        ({"steps": [STEP | {"payload": {"id": {"$from": "output.id"}}}]}, "steps[0].payload.id"),
        ({"steps": [STEP | {"payload": [{"$from": "steps.step-2.result"}]}, STEP]}, "steps[0].payload[0]"),
        ({"steps": [STEP | {"payload": {"$from": "input", "and": 1}}], "input": {}}, "steps[0].payload"),
        ({"input": 2**64}, "input"),
        ({"version": "3"}, "version"),
        ({"steps": [STEP | {"retry": {"max_attempts": 0}}]}, "steps[0].retry.max_attempts"),
        ({"steps": [STEP | {"retry": {"attempts": 3}}]}, "steps[0].retry.attempts"),
        ({"steps": [STEP | {"timeout_seconds": "3"}]}, "steps[0].timeout_seconds"),
        ({"steps": [STEP | {"timeout_seconds": 0.001}]}, "steps[0].timeout_seconds"),
        ({"steps": [STEP | {"timeout_seconds": 1e300}]}, "steps[0].timeout_seconds"),
        ({"steps": [STEP | {"payload": 2**64}]}, "steps[0].payload"),
        ({"steps": "none"}, "steps"),
        ({"name": ""}, "name"),
        ({"name": "nul\u0000"}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"saga_id": "7"}, "saga_id"),
        ({"unknown": 1}, "unknown"),
        ({"timeout_seconds": -1}, "timeout_seconds"),
    ],
)
def test_a_broken_rule_is_told_with_its_field(change: dict[str, Any], field: str) -> None:
    problem = refused(SAGA | change)
    assert isinstance(problem, Malformed)
    assert fields(problem) == [field]
    assert len(problem.response().body) < 2000


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"name": NaN}',
        b"\xff",
        b'{"name":"x","steps":[{"service_name":"a","payload":NaN}]}',
        b'{"name":"x","steps":[{"service_name":"a","payload":[1e999]}]}',
        b'{"name":"x","steps":[{"service_name":"a","payload":"\\ud800"}]}',
        b'{"name":"x","steps":[{"service_name":"a","payload":' + b"[" * 100_000 + b"]" * 100_000 + b"}]}",
        b'{"name":"x","steps":[{"service_name":"a","payload":' + b"[" * 300 + b"]" * 300 + b"}]}",
    ],
)
def test_what_is_no_json_of_ours_is_malformed(body: bytes) -> None:
    assert isinstance(refused(body), Malformed)


def test_a_step_at_an_http_service_is_kept_with_its_endpoints_and_needs_no_command_topic() -> None:
    http = STEP | {"action_endpoint": "https://partner.example/reserve?x=1", "compensation_endpoint": "/release"}
    wanted, _ = parse(SagaRequest, orjson.dumps(SAGA | {"steps": [http, STEP, STEP | {"service_name": "stock"}]}))
    assert wanted.steps is not None
    assert kafka_services(wanted.steps) == {"billing": [1], "stock": [2]}
    step = orjson.loads(submit(orjson.dumps(SAGA | {"steps": [http]})).definition)["steps"][0]
    assert step["action_endpoint"] == http["action_endpoint"]
    assert step["compensation_endpoint"] == http["compensation_endpoint"]


def test_an_address_that_is_not_allowed_is_refused_with_the_setting_to_change() -> None:
    problem = refused(SAGA | {"steps": [STEP | {"action_endpoint": "http://elsewhere.example/x"}]})
    assert "FLUXORA_ALLOWED_HOSTS" in problem.members["errors"][0]["rule"]


def test_the_input_goes_with_the_saga_and_is_what_its_payloads_refer_to() -> None:
    body = SAGA | {"steps": [STEP | {"payload": {"id": {"$from": "input.id"}}}], "input": {"id": 7}}
    stored = orjson.loads(submit(orjson.dumps(body)).definition)
    assert stored["input"] == '{"id":7}' and stored["version"] is None
    assert orjson.loads(stored["steps"][0]["payload"]) == {"id": {"$from": "input.id"}}
    assert fields(refused(body, max_payload_bytes=7)) == ["input"]


# ── Registered definitions ────────────────────────────────────────────────────────────────────────────────────

BY_INPUT = {"steps": [STEP | {"payload": {"id": {"$from": "input.customer.id"}}}]}


def test_a_definition_is_checked_before_there_is_an_input() -> None:
    assert register(BY_INPUT)["steps"][0]["payload"] == {"id": {"$from": "input.customer.id"}}
    for payload, field in (
        ({"$from": "input.a..b"}, "steps[0].payload"),
        ({"$from": "steps.nobody.result"}, "steps[0].payload"),
        ({"a": [{"$from": "steps.step-1.result"}]}, "steps[0].payload.a[0]"),
    ):
        with pytest.raises(Malformed) as told:
            register({"steps": [STEP | {"payload": payload}]})
        assert fields(told.value) == [field]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"steps": []}, "steps"),
        ({"steps": [STEP] * 101}, "steps"),
        ({"timeout_seconds": 0.001}, "timeout_seconds"),
        ({"steps": [STEP | {"kind": "pivot"}, STEP]}, "steps[0].kind"),
        ({"steps": [STEP | {"action_endpoint": "http://elsewhere.example/x"}]}, "steps[0].action_endpoint"),
        ({"input_required": [1]}, "input_required[0]"),
        ({"input": {}}, "input"),
    ],
)
def test_a_definition_keeps_the_rules_of_a_saga(change: dict[str, Any], field: str) -> None:
    with pytest.raises(Malformed) as told:
        register({"steps": [STEP]} | change)
    assert fields(told.value) == [field]


def test_a_definition_with_its_defaults_written_out_is_the_same() -> None:
    written = {
        "timeout_seconds": None,
        "input_required": ["b", "a"],
        "steps": [
            {
                "timeout_seconds": 30,
                "retry": {"multiplier": 2, "max_attempts": 5},
                "kind": "compensatable",
                "depends_on": [],
                "payload": {},
                "command": "step-1",
                "name": "step-1",
                "service_name": "billing",
            }
        ],
    }
    plain = {"steps": [STEP], "input_required": ["a", "b"]}
    assert register(written) == register(plain)
    assert register(plain) != register({"steps": [STEP | {"payload": {"a": 1}}], "input_required": ["a", "b"]})


def test_a_saga_by_name_needs_the_input_that_its_definition_requires() -> None:
    document, _ = parse(DefinitionRequest, orjson.dumps({**BY_INPUT, "input_required": ["customer"]}))
    plan = Plan.registered("order", "2", document)
    made = submit(b'{"name": "order", "input": {"customer": {"id": 7}}}', plan)
    stored = orjson.loads(made.definition)
    assert stored["version"] == "2" and stored["input"] == '{"customer":{"id":7}}' and made.services == ["billing"]
    for body, field in (
        (b'{"name": "order"}', "input"),
        (b'{"name": "order", "input": [1]}', "input"),
        (b'{"name": "order", "input": {"other": 1}}', "input.customer"),
        (b'{"name": "order", "input": {"customer": 1}}', "steps[0].payload.id"),
    ):
        with pytest.raises(Malformed) as told:
            submit(body, plan)
        assert fields(told.value) == [field]


def test_a_payload_over_the_limit_is_too_large_and_one_at_the_limit_is_not() -> None:
    fits = orjson.dumps(SAGA | {"steps": [STEP | {"payload": "é" * 50}]})
    assert submit(fits, max_payload_bytes=102)
    problem = refused(fits, max_payload_bytes=101)
    assert isinstance(problem, TooLarge) and fields(problem) == ["steps[0].payload"]


def test_a_saga_that_grows_past_a_kafka_record_is_too_large() -> None:
    # Five bytes of JSON become nineteen when they are written anew.
    numbers = b"[" + b",".join([b"1e15"] * 13_000) + b"]"
    step = b'{"service_name":"a","payload":' + numbers + b"}"
    body = b'{"name":"x","steps":[' + b",".join([step] * 8) + b"]}"
    assert len(body) < settings().max_body_bytes
    assert isinstance(refused(body), TooLarge)


def test_nul_in_a_payload_is_kept_as_an_escape() -> None:
    made = submit(orjson.dumps(SAGA | {"steps": [STEP | {"payload": {"a\x00": "\x00"}}]}))
    assert orjson.loads(made.definition)["steps"][0]["payload"] == '{"a\\u0000":"\\u0000"}'
    assert b"\x00" not in made.definition


def test_a_digest_knows_content_and_not_spelling() -> None:
    one = digest("POST /sagas", orjson.loads(b'{"a":1,"b":[1,2]}'))
    assert one == digest("POST /sagas", orjson.loads(b'{ "b": [1, 2], "a": 1 }'))
    assert one != digest("POST /sagas", orjson.loads(b'{"a":1,"b":[2,1]}'))


@pytest.mark.parametrize("values", [["a", "b"], [""], ["x" * 256], ["ü"], [" x"], ["a\x00"]])
def test_a_bad_idempotency_key_is_malformed(values: list[str]) -> None:
    with pytest.raises(Malformed):
        idempotency_key(values)


def test_an_idempotency_key_may_be_a_quoted_string() -> None:
    assert idempotency_key(['"8e03978e-40d5"']) == '"8e03978e-40d5"'
    assert idempotency_key([]) is None


def test_an_invalid_traceparent_is_ignored() -> None:
    valid = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert traceparent(valid) == valid
    for bad in (None, "", "x", valid.upper(), "00-" + "0" * 32 + "-00f067aa0ba902b7-01", valid + "-0"):
        assert traceparent(bad) is None


_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
_STEP = st.fixed_dictionaries(
    {"service_name": st.sampled_from(["billing", "a.b-c"]) | _JSON},
    optional={
        name: _JSON | valid
        for name, valid in {
            "name": st.sampled_from(["a", "b", "c"]),
            "command": st.just("do"),
            "payload": _JSON,
            "depends_on": st.lists(st.sampled_from(["a", "b", "step-1"]), max_size=3),
            "kind": st.sampled_from(["compensatable", "pivot", "retriable"]),
            "retry": st.fixed_dictionaries({}, optional={"max_attempts": st.integers(), "jitter": st.floats()}),
            "timeout_seconds": st.floats(),
            "action_endpoint": st.sampled_from(["/a", "b?c", "http://partner.example/x"]),
            "compensation_endpoint": st.just("/undo"),
        }.items()
    },
)
_SAGA = st.fixed_dictionaries(
    {"name": st.just("order") | _JSON, "steps": st.lists(_STEP, max_size=4) | _JSON},
    optional={
        "input": _JSON,
        "timeout_seconds": st.floats() | _JSON,
        "saga_id": st.uuids().map(str) | _JSON,
        "other": _JSON,
    },
)


@given(_SAGA)
def test_any_json_is_a_whole_saga_or_a_problem(document: Any) -> None:
    try:
        made = submit(json.dumps(document).encode())
    except (Malformed, TooLarge) as problem:
        orjson.loads(problem.response().body)
        return
    sent = fastavro.schemaless_reader(io.BytesIO(made.payload[5:]), SCHEMAS["fluxora.SagaStarted"], None)
    stored = orjson.loads(made.definition)
    assert sent == stored | {"transaction_id": str(made.transaction_id)}
    for step, given_step in zip(stored["steps"], document["steps"], strict=True):
        assert orjson.loads(step["payload"]) == given_step.get("payload", {})


@given(st.binary(max_size=200))
def test_any_bytes_are_malformed(body: bytes) -> None:
    assert isinstance(refused(body), Malformed)
